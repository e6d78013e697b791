#!/usr/bin/env bash
# dm_control 1.0.50, mujoco 4.0.0.
# Guess: a plain `pip install dm_control` brings a mujoco that this release works with.
# Seen: it asks for mujoco>=3.17.0 without an upper bound, and under 4.0.0, which pip then takes, no domain of
# the Control Suite loads: AttributeError: 'MjModel' object has no attribute 'flex_vertedge'.
#   mujoco 4.0.0: 0 of 19 domains load
#   mujoco 3.17.0: 19 of 19 domains load
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
for mujoco in 4.0.0 3.17.0; do
    "$dir/bin/pip" install -q dm_control==1.0.50 "mujoco==$mujoco"
    MUJOCO_GL=disable "$dir/bin/python" - <<'END'
import mujoco
from dm_control import suite

loaded = 0
for domain, task in dict(suite.ALL_TASKS).items():
    try:
        suite.load(domain, task)
        loaded += 1
    except AttributeError as error:
        last = error
domains = len(dict(suite.ALL_TASKS))
print(f"mujoco {mujoco.__version__}: {loaded} of {domains} domains load", "" if loaded else f"({last})")
assert loaded == {"4.0.0": 0, "3.17.0": domains}[mujoco.__version__]
END
done
