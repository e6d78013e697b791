#!/usr/bin/env bash
# envpool 1.2.5 (its newest release), gymnasium 1.4.0.
# Guess: environments made without a seed start at random, as Gymnasium's do; runs that forget the seed are independent.
# Seen: the default seed is 42: unless `make` or `reset` is given one, every run has the same start states, in every
# process: "ten independent runs" share all that the environment draws.
#   first observations of Hopper-v4, unseeded twice and seeded with 42: equal; of another seed: another
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q envpool==1.2.5 gymnasium==1.4.0 numpy==2.4.6
"$dir/bin/python" -W ignore - <<'END'
import subprocess
import sys

code = """
import envpool
env = envpool.make("Hopper-v4", env_type="gymnasium", num_envs=2{seed})
print(env.reset()[0].tolist())
"""
unseeded, again, with_42, with_43 = (
    subprocess.run([sys.executable, "-W", "ignore", "-c", code.replace("{seed}", seed)], capture_output=True, text=True,
        check=True).stdout
    for seed in ("", "", ", seed=42", ", seed=43")
)
print(unseeded)
assert unseeded == again == with_42 != with_43
END
