#!/usr/bin/env bash
# gymnasium 1.4.0.
# Guess: NormalizeReward scales by the spread of discounted returns within episodes, so each episode begins at zero.
# Seen: after a truncation the sum goes on into the next episode: tasks that end by time limit alone (Pendulum-v1,
# HalfCheetah-v5) have one endless return. After a termination the last reward goes on into it.
#   CartPole-v1, reward 1 a step, gamma 1: the sum after the first step of each of three episodes
#   truncated [1.0, 3.0, 5.0]
#   terminated [1.0, 2.0, 2.0]
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q gymnasium==1.4.0
"$dir/bin/python" - <<'END'
import gymnasium as gym

seen = {}
for how, limit in {"truncated": 2, "terminated": None}.items():
    env = gym.wrappers.NormalizeReward(gym.make("CartPole-v1", max_episode_steps=limit), gamma=1.0)
    seen[how] = []
    for _ in range(3):
        env.reset(seed=0)
        done = env.step(1)[2]
        seen[how].append(float(env.discounted_reward[0]))
        while not done:
            done = any(env.step(1)[2:4])
    print(how, seen[how])
assert seen == {"truncated": [1, 3, 5], "terminated": [1, 2, 2]}
END
