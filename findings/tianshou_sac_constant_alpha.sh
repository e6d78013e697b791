#!/usr/bin/env bash
# tianshou 2.0.1.
# Guess: SAC without further words tunes its temperature, as that of Stable-Baselines3, SBX, CleanRL, skrl and torchrl
# does.
# Seen: alpha is the constant 0.2 unless an AutoAlpha is passed; REDQ's and the discrete SAC's too.
#   SAC 0.2 FixedAlpha, REDQ 0.2 FixedAlpha, DiscreteSAC 0.2 FixedAlpha
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q tianshou==2.0.1 torch==2.13.0
"$dir/bin/python" - <<'END'
import inspect

from tianshou.algorithm.modelfree import discrete_sac, redq, sac

for algorithm in (sac.SAC, redq.REDQ, discrete_sac.DiscreteSAC):
    alpha = inspect.signature(algorithm).parameters["alpha"].default
    kind = type(sac.Alpha.from_float_or_instance(alpha))
    print(algorithm.__name__, alpha, kind.__name__)
    assert (alpha, kind) == (0.2, sac.FixedAlpha)
END
