"""A run in a few megabytes, to be gone on with on another machine: its checkpoint and its actions.

    python -m paper.pack runs/Hopper-v4__omnet_sac__1 hopper.xz
    python -m paper.pack hopper.xz runs/Hopper-v4__omnet_sac__1

Replay rows follow from actions and the seeds of episodes: unpacking simulates them again and trains nothing.
"""

import io
import lzma
import sys
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import torch
import tyro

from omnet_sac import (
    Args,
    ReplayBuffer,
    RunError,
    UsageError,
    blamed,
    make_env,
    one_line,
    read_checkpoint,
    sizes,
    stream,
    training_steps,
)


def simulate(args: Args, num_actor_subnets: int, actions: np.ndarray, file: BinaryIO) -> int:
    """Writes the replay rows of a run with these actions (steps, A) into `file`. Returns their CRC-32."""
    with closing(make_env(args)) as env:
        buffer = ReplayBuffer(1, *sizes(args, env), "cpu")
        buffer.file = file

        def act(obs, subnet) -> np.ndarray:
            return actions[buffer.added]

        agent = SimpleNamespace(num_actor_subnets=num_actor_subnets, act=act, update=lambda buffer: {})
        for step, *_ in training_steps(args, agent, env, buffer, stream(args.seed, "episodes")):
            if step == len(actions):
                break
    return buffer.crc


def run_args(state: dict) -> Args:
    """The flags of the run with this checkpoint, of whichever method, for `simulate`: every action is the agent's."""
    flags = {field.name: state["about"]["args"][field.name] for field in fields(Args)}
    return Args(**flags | {"learning_starts": 0, "buffer_size": 0, "device": "cpu"})  # nor is a replay buffer needed


def pack(folder: Path, path: Path) -> None:
    """Writes the run in `folder` to `path`. Raises UsageError or RunError where it has no good checkpoint."""
    state = read_checkpoint(folder)
    args = run_args(state)
    with closing(make_env(args)) as env:
        obs_dim, action_dim = sizes(args, env)
    width = 2 * obs_dim + action_dim + 3
    rows = np.fromfile(folder / "replay.f32", np.float32, state["step"] * width).reshape(-1, width)
    state["actions"] = torch.from_numpy(rows[:, obs_dim : obs_dim + action_dim].copy())
    with lzma.open(path, "wb") as file:
        torch.save(state, file)


def unpack(path: Path, folder: Path) -> None:
    """Makes the run folder again. Raises RunError where its rows are not to the last digit what they were."""
    with blamed(f"{path} cannot be used", RunError):
        state = torch.load(io.BytesIO(lzma.decompress(path.read_bytes())), weights_only=True)
        actions, args = state.pop("actions").numpy(), run_args(state)
    num_actor_subnets = 1 if args.dynamic_masks else len(state["agent"]["actor.masks"])
    folder.mkdir(parents=True)
    with (folder / "replay.f32").open("wb") as file:
        crc = simulate(args, num_actor_subnets, actions, file)
    if crc != state["crc"]:
        raise RunError(f"the simulator gives other numbers here than where {path} was made: go on with it there")
    torch.save(state, folder / "checkpoint.pt")


def main(source: Path, target: Path) -> None:
    """Packs the run folder `source` into the file `target`, or makes the run folder `target` from such a file."""
    try:
        if target.exists():
            raise UsageError(f"{target} exists: choose another name")
        (pack if source.is_dir() else unpack)(source, target)
    except (RunError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None


if __name__ == "__main__":
    tyro.cli(tyro.conf.configure(tyro.conf.Positional)(main))
