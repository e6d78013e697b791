#!/usr/bin/env bash
# gymnasium 1.4.0.
# Guess: two runs of eight environments, with seeds 1 and 2, share no episode; and all of make_vec's environments seed
# alike.
# Seen: environment i is seeded with seed + i, so seven of the eight start states are shared. CartPole-v1, for which
# make_vec takes a vectorised version of its own unless told otherwise, draws all start states from one stream and
# shares none.
#   Pendulum-v1 SyncVectorEnv 7
#   CartPole-v1 CartPoleVectorEnv 0
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q gymnasium==1.4.0
"$dir/bin/python" - <<'END'
import gymnasium as gym

shared = {}
for name in ("Pendulum-v1", "CartPole-v1"):
    env = gym.make_vec(name, num_envs=8)
    one, two = ({tuple(start) for start in env.reset(seed=seed)[0].tolist()} for seed in (1, 2))
    shared[name] = len(one & two)
    print(name, type(env.unwrapped).__name__, shared[name])
assert shared == {"Pendulum-v1": 7, "CartPole-v1": 0}
END
