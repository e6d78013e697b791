#!/usr/bin/env bash
# d3rlpy 2.8.1.
# Guess: a data set of 200 steps, two episodes of 100, holds 200 transitions to learn from.
# Seen: an episode that ended by time limit loses its last step, since the format stores no observation after it.
#   ended by terminals: 200 steps, 200 transitions
#   ended by timeouts: 200 steps, 198 transitions
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q d3rlpy==2.8.1 torch==2.13.0
"$dir/bin/python" - <<'END'
import d3rlpy
import numpy as np

ends = np.zeros(200)
ends[[99, 199]] = 1
data = {"observations": np.zeros((200, 3), np.float32), "actions": np.zeros((200, 1)), "rewards": np.zeros(200)}
seen = {}
for how, flags in {"terminals": (ends, 0 * ends), "timeouts": (0 * ends, ends)}.items():
    episodes = d3rlpy.dataset.MDPDataset(**data, terminals=flags[0], timeouts=flags[1]).episodes
    seen[how] = sum(e.size() for e in episodes), sum(e.transition_count for e in episodes)
    print("ended by {}: {} steps, {} transitions".format(how, *seen[how]))
assert seen == {"terminals": (200, 200), "timeouts": (200, 198)}
END
