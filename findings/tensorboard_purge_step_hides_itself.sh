#!/usr/bin/env bash
# tensorboard 2.21.0, torch 2.13.0.
# Guess: a run that goes on after its checkpoint at step 300 gives `purge_step=300`: what came after is purged.
# Seen: the events of step 300 itself, written before the checkpoint, are hidden too, on the page and in
# `EventAccumulator`. It must be 301.
#   purge_step=300: [100, 200, 400]   purge_step=301: [100, 200, 300, 400]
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q torch==2.13.0 tensorboard==2.21.0 numpy==2.4.6
"$dir/bin/python" - <<'END'
import tempfile
import time

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

for purge_step, expected in ((300, [100, 200, 400]), (301, [100, 200, 300, 400])):
    folder = tempfile.mkdtemp()
    for steps, resumed in (((100, 200, 300, 350), {}), ((400,), {"purge_step": purge_step})):
        with SummaryWriter(folder, **resumed) as writer:
            for step in steps:
                writer.add_scalar("return", 0.0, step)
        time.sleep(1.1)  # the name of an event file has the second
    seen = [event.step for event in EventAccumulator(folder).Reload().Scalars("return")]
    print(f"purge_step={purge_step}: {seen}")
    assert seen == expected
END
