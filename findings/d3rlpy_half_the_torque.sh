#!/usr/bin/env bash
# d3rlpy 2.8.1 with the gymnasium 1.0.0 that it demands.
# Guess: built with an environment, d3rlpy's SAC acts in that environment's action space.
# Seen: it acts in [-1, 1] whatever the bounds. On Pendulum-v1, whose torque goes to 2, the upper half is never tried,
# unless an action_scaler is given.
#   action space to 2.0, largest of 10 000 actions 0.999
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q d3rlpy==2.8.1 torch==2.13.0
"$dir/bin/python" - <<'END'
import d3rlpy
import gymnasium as gym
import numpy as np

d3rlpy.seed(0)
env = gym.make("Pendulum-v1")
sac = d3rlpy.algos.SACConfig().create()
sac.build_with_env(env)
actions = sac.sample_action(np.random.default_rng(0).normal(size=(10_000, 3)).astype(np.float32))
print(f"action space to {env.action_space.high[0]}, largest of 10 000 actions {np.abs(actions).max():.3f}")
assert env.action_space.high[0] == 2 and 0.9 < np.abs(actions).max() <= 1
END
