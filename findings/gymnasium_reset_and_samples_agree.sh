#!/usr/bin/env bash
# gymnasium[mujoco] 1.4.0.
# Guess: env.reset(seed=s) and env.action_space.seed(s), the two lines that every script has, give independent numbers.
# Seen: both begin the same stream. The random actions of the warm-up are the noise of the start state, scaled.
#   start noise / 0.005 [0.0236 0.9009 -0.7117 ...], first four actions [0.0236 0.9009 -0.7117 ...]
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q 'gymnasium[mujoco]==1.4.0' mujoco==3.4.0
"$dir/bin/python" - <<'END'
import gymnasium as gym
import numpy as np

env = gym.make("Hopper-v5")
env.reset(seed=1)
env.action_space.seed(1)
data, hopper = env.unwrapped.data, env.unwrapped
noise = np.concatenate([data.qpos - hopper.init_qpos, data.qvel - hopper.init_qvel]) / 0.005
actions = np.concatenate([env.action_space.sample() for _ in range(4)])
print("start noise / 0.005 ", noise.round(4))
print("first four actions  ", actions.round(4))
assert np.abs(noise - actions).max() < 1e-6
END
