#!/usr/bin/env bash
# ale-py 0.12.1, gymnasium 1.4.0.
# Guess: make_vec(id) gives several of what make(id) gives.
# Seen: for Atari it gives another task under the same id: four stacked grey images of 84x84, and rewards cut to their
# sign. Returns of one cannot be compared with returns of the other.
#   make (210, 160, 3), rewards [0.0, 10.0]
#   make_vec (4, 84, 84), rewards [0.0, 1.0]
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q ale-py==0.12.1 gymnasium==1.4.0
"$dir/bin/python" - <<'END'
import ale_py
import gymnasium as gym
import numpy as np

gym.register_envs(ale_py)
one, many = gym.make("ALE/MsPacman-v5"), gym.make_vec("ALE/MsPacman-v5", num_envs=1)
one.reset(seed=0), many.reset(seed=0)
rewards = set(), set()
for action in np.random.default_rng(0).integers(9, size=300).tolist():
    _, reward, terminated, truncated, _ = one.step(action)
    rewards[0].add(float(reward))
    rewards[1].add(float(many.step(np.array([action]))[1][0]))
    if terminated or truncated:
        one.reset()
shapes = one.observation_space.shape, many.single_observation_space.shape
print(f"make {shapes[0]}, rewards {sorted(rewards[0])}\nmake_vec {shapes[1]}, rewards {sorted(rewards[1])}")
assert shapes == ((210, 160, 3), (4, 84, 84)) and max(rewards[0]) == 10 and max(rewards[1]) == 1
END
