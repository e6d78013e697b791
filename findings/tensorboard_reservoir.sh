#!/usr/bin/env bash
# tensorboard 2.21.0.
# Guess: EventAccumulator(folder).Scalars(tag), by which curves are read from event files, returns all that was written.
# Seen: beyond 10 000 points of a tag it returns 10 000, a random sample that keeps the last, without a word.
#   written 12000, read 10000, last step 11999
#   with size_guidance={"scalars": 0}: written 12000, read 12000, last step 11999
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q tensorboard==2.21.0
"$dir/bin/python" - "$dir/events" <<'END'
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

folder = sys.argv[1]
writer = EventFileWriter(folder)
for step in range(12_000):
    writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag="return", simple_value=step)])))
writer.close()
counts = []
for size_guidance in (None, {"scalars": 0}):
    events = EventAccumulator(folder, size_guidance=size_guidance)
    events.Reload()
    steps = [scalar.step for scalar in events.Scalars("return")]
    counts.append(len(set(steps)))
    print(f"size_guidance={size_guidance}: written 12000, read {counts[-1]}, last step {steps[-1]}")
assert counts == [10_000, 12_000]
END
