#!/usr/bin/env bash
# torch 2.13.0, CPU.
# Guess: a generator takes a 64-bit seed, so seeds that are hashed to 64 bits hardly ever collide.
# Seen: only the low 32 bits count. Seeds 1 and 1 + 2**32 give equal numbers, though initial_seed() tells them apart.
#   1 + 2**32: initial seed 4294967297, numbers equal to those of seed 1: True
#   1 + 2**31: initial seed 2147483649, numbers equal to those of seed 1: False
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$dir/bin/python" - <<'END'
import torch

one = torch.rand(1000, generator=torch.Generator().manual_seed(1))
equal = {}
for power in (32, 31):
    generator = torch.Generator().manual_seed(1 + 2**power)
    equal[power] = torch.equal(torch.rand(1000, generator=generator), one)
    print(f"1 + 2**{power}: initial seed {generator.initial_seed()}, numbers equal to those of seed 1: {equal[power]}")
assert equal == {32: True, 31: False}
END
