#!/usr/bin/env bash
# gym_electric_motor 3.0.3, Cont-CC-PMSM-v0.
# Guess: observations lie in the observation space, at least until the step that ends an episode.
# Seen: torque and transformed voltages leave their Box of [-1, 1] in 6 of 100 steps of a random policy, and the
# episode goes on; scaling by the space's bounds does not bound what a network sees.
#   244 of 4071 steps: torque to 1.84, u_sd to 1.28, u_sq to 1.30
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q gym_electric_motor==3.0.3
"$dir/bin/python" - <<'END'
import gym_electric_motor  # registers its environments
import gymnasium as gym
import numpy as np

env = gym.make("Cont-CC-PMSM-v0")
env.action_space.seed(0)
names, states = env.unwrapped.physical_system.state_names, []
for episode in range(30):
    env.reset(seed=episode)
    while True:
        (state, _), _, terminated, _, _ = env.step(env.action_space.sample())
        if terminated:
            break
        states.append(abs(state))
states = np.array(states)
largest = {name: x for name, x in zip(names, states.max(0)) if x > 1}
outside = (states.max(1) > 1).sum()
print(f"{outside} of {len(states)} steps:", ", ".join(f"{name} to {x:.2f}" for name, x in largest.items()))
assert set(largest) == {"torque", "u_sd", "u_sq"} and outside > len(states) / 50
END
