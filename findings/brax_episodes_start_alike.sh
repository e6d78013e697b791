#!/usr/bin/env bash
# brax 0.14.2 (its newest release), jax 0.10.2.
# Guess: each episode of a training environment begins in a start state of its own, drawn anew, as in Gymnasium.
# Seen: `brax.envs.create`, with its default auto_reset, puts each environment of the batch back to the state in which
# it first began, in all episodes: a run of n environments knows n start states, a run of one knows one.
#   three episodes of two environments: start states of environment 0: 1, of environment 1: 1
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q brax==0.14.2 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/bin/python" -W ignore - <<'END'
import jax
import jax.numpy as jnp
import numpy as np
from brax import envs

env = envs.create("inverted_pendulum", episode_length=4, batch_size=2, backend="generalized")
state, step = jax.jit(env.reset)(jax.random.PRNGKey(0)), jax.jit(env.step)
starts, moved = [np.asarray(state.obs)], 0
for _ in range(8):
    state = step(state, jnp.zeros((2, env.action_size)))
    if state.done.all():
        starts.append(np.asarray(state.obs))
    else:
        moved += not np.array_equal(state.obs, starts[0])
counts = [len({start[k].tobytes() for start in starts}) for k in range(2)]
print(f"three episodes of two environments: start states of environment 0: {counts[0]}, of environment 1: {counts[1]}")
assert len(starts) == 3 and moved == 6 and counts == [1, 1] and not np.array_equal(starts[0][0], starts[0][1])
END
