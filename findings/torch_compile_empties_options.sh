#!/usr/bin/env bash
# torch 2.13.0.
# Guess: a dict given as `options` is read; two functions compiled with one dict are compiled alike.
# Seen: `torch.compile` takes `guard_filter_fn` out of the caller's dict: the second function keeps all its guards and
# is compiled again where the first one is not, without a word.
#   options after one call: ['max_autotune']
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$dir/bin/python" - <<'END'
import torch

options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, "max_autotune": False}
torch.compile(lambda x: x + 1, options=options)
print("options after one call:", [*options])
assert [*options] == ["max_autotune"]
END
