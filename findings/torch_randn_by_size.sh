#!/usr/bin/env bash
# torch 2.13.0, CPU.
# Guess: from one seed, randn(15) is the beginning of randn(16), as it is for numpy's generators and for torch.rand.
# Seen: from 16 numbers on another method is used, and of a size that 16 does not divide the last 16 are drawn anew.
# So one more action dimension, or a batch of 16 instead of 15, changes all noise.
#   first numbers of randn that agree: 15 of 16: 0; 16 of 17: 1; 16 of 32: 16
#   first numbers of rand that agree: 15 of 16: 15; 16 of 17: 16; 16 of 32: 16
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$dir/bin/python" - <<'END'
import torch


def agree(draw, short, long):
    a, b = (draw(size, generator=torch.Generator().manual_seed(0)) for size in (short, long))
    return (a == b[:short]).sum().item()


sizes = (15, 16), (16, 17), (16, 32)
seen = {draw.__name__: [agree(draw, *pair) for pair in sizes] for draw in (torch.randn, torch.rand)}
for name, counts in seen.items():
    print(f"first numbers of {name} that agree:", "; ".join(f"{a} of {b}: {n}" for (a, b), n in zip(sizes, counts)))
assert seen == {"randn": [0, 1, 16], "rand": [15, 16, 16]}
END
