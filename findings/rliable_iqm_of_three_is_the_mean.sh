#!/usr/bin/env bash
# rliable 1.2.0, scipy 1.17.1, numpy 2.4.6.
# Guess: the interquartile mean leaves out the best and the worst quarter of the runs, so one outlier cannot move it.
# Seen: it cuts int(n / 4) whole runs at each end: of one task and three runs none, and the IQM is the mean, outlier and
# all. With seven runs it cuts one at each end, as with four.
#   IQM of 0, 1, 1000: 333.67, the mean
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q rliable==1.2.0 arch==7.2.0 scipy==1.17.1 numpy==2.4.6
"$dir/bin/python" - <<'END'
import numpy as np
from rliable import metrics

scores = np.array([[0.0], [1.0], [1000.0]])
print("IQM of 0, 1, 1000:", round(metrics.aggregate_iqm(scores), 2))
assert metrics.aggregate_iqm(scores) == scores.mean()
for runs in range(4, 8):
    scores = np.arange(runs, dtype=float)[:, None] ** 3
    assert metrics.aggregate_iqm(scores) == np.sort(scores, 0)[1:-1].mean(), runs
END
