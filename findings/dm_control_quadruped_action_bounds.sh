#!/usr/bin/env bash
# dm_control 1.0.50 (the Control Suite), mujoco 3.17.0.
# Guess: all domains but LQR, whose actions are unbounded, take actions in [-1, 1]; a tanh policy needs no rescaling.
# Seen: each leg of the quadruped has bounds of 1, 1.1 and 0.8.
#   quadruped, 12 actions: -1.0, -1.0, -0.8 to 1.0, 1.1, 0.8 on each leg
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q dm_control==1.0.50 mujoco==3.17.0
MUJOCO_GL=disable "$dir/bin/python" - <<'END'
from dm_control import suite

odd = {}
for domain, task in dict(suite.ALL_TASKS).items():
    spec = suite.load(domain, task).action_spec()
    if domain != "lqr" and not (all(spec.minimum == -1) and all(spec.maximum == 1)):
        odd[domain] = spec.minimum.tolist(), spec.maximum.tolist()
        print(f"{domain}, {len(spec.minimum)} actions: {odd[domain][0]} to {odd[domain][1]}")
assert odd == {"quadruped": (4 * [-1, -1, -0.8], 4 * [1, 1.1, 0.8])}
END
