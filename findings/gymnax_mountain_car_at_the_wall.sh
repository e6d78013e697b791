#!/usr/bin/env bash
# gymnax 1.0.1 (its newest release), gymnasium 1.3.0 (the newest that it admits), jax 0.10.2.
# Guess: gymnax's MountainCarContinuous-v0 is Gymnasium's, in JAX: the wall on the left takes all speed from the car.
# Seen: the car keeps its speed into the wall and leans on it for many steps at full throttle; the condition that should
# stop it looks at the goal. The discrete MountainCar-v0 of the same package does stop.
#   speed at the wall: gymnax -0.07, Gymnasium 0.00; steps until full throttle leaves the wall: gymnax 19, Gymnasium 1
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q gymnax==1.0.1 gymnasium==1.3.0 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 numpy==2.4.6 six==1.17.0
JAX_PLATFORMS=cpu "$dir/bin/python" -W ignore - <<'END'
import gymnasium as gym
import gymnax
import jax
import jax.numpy as jnp
import numpy as np

key, start = jax.random.PRNGKey(0), (-1.15, -0.07)


def path(name, action, throttle):
    """Positions and speeds from `start` on: one step of `action`, then of `throttle`."""
    env, params = gymnax.make(name)
    _, state = env.reset(key, params)
    state = state.replace(position=jnp.array(start[0]), velocity=jnp.array(start[1]))
    real = gym.make(name)
    real.reset(seed=0)
    real.unwrapped.state = np.array(start, np.float32)
    jitted, plain = [], []
    for k in range(40):
        chosen = throttle if k else action
        _, state, *_ = env.step(key, state, jnp.array(chosen), params)
        jitted.append((float(state.position), float(state.velocity)))
        obs, *_ = real.step(np.array(chosen))
        plain.append(tuple(map(float, obs)))
    return jitted, plain


jitted, plain = path("MountainCarContinuous-v0", [-1.0], [1.0])
steps = [next(k for k, (x, _) in enumerate(way) if x > -1.2 + 1e-6) for way in (jitted, plain)]
print(f"speed at the wall: gymnax {jitted[0][1]:.2f}, Gymnasium {plain[0][1]:.2f};", end=" ")
print(f"steps until full throttle leaves the wall: gymnax {steps[0]}, Gymnasium {steps[1]}")
assert jitted[0][0] == plain[0][0] and jitted[0][1] < -0.06 and plain[0][1] == 0
assert steps[0] > 10 and steps[1] == 1
jitted, plain = path("MountainCar-v0", 0, 2)
assert jitted[0][1] == plain[0][1] == 0
END
