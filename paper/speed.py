"""How fast a method trains, next to the floor that its own matrix products set and next to other libraries.

    python -m paper.speed --env-id Ant-v4 --methods omnet-sac "omnet-sac --num-subnets 1" redq --peers --csv speed.csv

Timed is the whole loop of training with a full replay buffer: act, step the environment, store, sample, update. The
floor and the loops take turns in rounds, and each number is a median over the rounds: machines drift.
"""

import dataclasses
import importlib
import os
import resource
import shlex
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import gymnasium as gym
import torch
import tyro

from omnet_sac import (
    Args,
    ReplayBuffer,
    UsageError,
    check_args,
    compile_steps,
    make_env,
    one_line,
    sizes,
    stream,
    training_steps,
)
from paper.baselines import METHODS, Baseline, make_agent, method_args
from paper.baselines import check_args as check_baseline
from paper.flops import Products, trace

ROUNDS = 9
REPEATS = 50  # calls per round of `act` and of each matrix product
HEADER = (
    "method,env_id,hidden_dim,precision,compiled,threads,critic_updates_per_s,env_steps_per_s,ms_per_update,"
    "gflop_per_update,floor_ms,ratio_to_floor,peak_mb,act_us"
)


@dataclass
class Flags:
    """Times the training loop of OMNet-SAC, and of other methods and libraries if asked to, at their defaults."""

    methods: tuple[str, ...] = ("omnet-sac",)
    """methods of paper.baselines to time, in quotes with flags of their own; ratios are to the first one"""
    env_id: str = Args.env_id
    """Gymnasium environment to train in"""
    hidden_dim: int = Args.hidden_dim
    """width of the two hidden layers"""
    batch_size: int = Args.batch_size
    """transitions per gradient step"""
    replay_ratio: int | None = None
    """gradient steps on the critic per environment step; None: the method's"""
    policy_delay: int | None = None
    """gradient steps on the critic per gradient step on the actor and on alpha; None: the method's"""
    device: str = Args.device
    """torch device: cpu, cuda, cuda:1, ..."""
    matmul_precision: str = Args.matmul_precision
    """precision of PyTorch's float32 matrix products: highest, high or medium"""
    compile: bool = Args.compile
    """compile the updates"""
    threads: int = 1
    """CPU threads of PyTorch and of JAX"""
    seconds: float = 50.0
    """time for which each training loop is measured, after compiling and warming up"""
    peers: bool = False
    """time the SAC of Stable-Baselines3, and the SAC and DroQ of SBX, too (pip install stable-baselines3 sbx-rl)"""
    csv: Path | None = None
    """CSV file to append the results to"""


def repeated(call: Callable, device: str) -> Callable:
    """`call` done REPEATS times; on a GPU as one CUDA graph, as in compiled training: launches take no time."""

    def calls():
        for _ in range(REPEATS):
            call()

    if torch.device(device).type != "cuda":
        return calls
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        calls()
    return lambda operands=call: graph.replay()  # the graph alone does not keep them alive


def clock(device: str) -> float:
    """Seconds, read when the device has done all it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def floor(products: Products, device: str) -> Callable[[], float]:
    """Times all that was recorded: each different product on its own, with its operands in the cache."""
    calls = {key: repeated(call, device) for key, call in products.calls.items()}

    def seconds() -> float:
        total = 0.0
        for key, count in products.counts.items():
            start = clock(device)
            calls[key]()
            total += count * (clock(device) - start) / REPEATS
        return total

    return seconds


def training(args: Args, agent, env: gym.Env, buffer: ReplayBuffer) -> Iterator[int]:
    """The loop of a run without evaluations, logs and checkpoints; yields 1 per environment step."""
    endless = dataclasses.replace(args, total_timesteps=10**12)
    for _ in training_steps(endless, agent, env, buffer, stream(args.seed, "episodes")):
        yield 1


def sac_training(module: str, net: dict, args: Args, buffer: ReplayBuffer) -> Iterator[int]:
    """The loop of the SAC of stable_baselines3 or sbx on a copy of `buffer`; yields the steps done, 10 at a time."""
    sac, logger = importlib.import_module(module).SAC, importlib.import_module("stable_baselines3.common.logger")
    # Stable-Baselines3 has no policy delay: an actor step follows each critic step
    flags = {"policy_delay": args.policy_delay} if module == "sbx" else {"device": args.device}
    flags |= {"gradient_steps": args.replay_ratio, "batch_size": args.batch_size, "seed": args.seed}
    flags |= {"policy_kwargs": {"net_arch": [args.hidden_dim] * 2} | net, "learning_starts": 0}
    model = sac("MlpPolicy", make_env(args), buffer_size=len(buffer), **flags)
    model.set_logger(logger.Logger(None, []))  # else each `learn` sets up a new one
    (obs_dim,), (action_dim,) = model.observation_space.shape, model.action_space.shape
    columns = buffer.rows.cpu().split([obs_dim, action_dim, 1, obs_dim, 1, 1], dim=1)
    for name, column in zip(("observations", "actions", "rewards", "next_observations", "dones"), columns):
        rows = getattr(model.replay_buffer, name)
        rows[:] = column.reshape(rows.shape)
    model.replay_buffer.full = True
    while True:
        model.learn(10, reset_num_timesteps=False)
        yield 10


def peer_loops(args: Args, threads: int, buffer: ReplayBuffer) -> dict[str, Iterator[int]]:
    """The training loops of the peers, compiled; names in one line those that cannot run here."""
    # Read by JAX when it is imported; NPROC is the size of its thread pool, the thread flags of XLA_FLAGS do nothing
    os.environ |= {"NPROC": str(threads), "JAX_PLATFORMS": torch.device(args.device).type}
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # else JAX takes most of a GPU's memory
    peers = {"sb3_sac": ("stable_baselines3", {}), "sbx_sac": ("sbx", {})}
    peers["sbx_droq"] = ("sbx", {"dropout_rate": 0.01, "layer_norm": True})
    loops, missing = {}, []
    for name, (module, net) in peers.items():
        try:
            loops[name] = sac_training(module, net, args, buffer)
            for _ in range(2):  # 20 steps, each of which SBX may compile if replay-ratio is below policy-delay
                next(loops[name])
        except (ImportError, RuntimeError) as error:  # RuntimeError: JAX without CUDA
            del loops[name]
            missing.append(f"{name} ({one_line(error)})")
    if missing:
        print(f"not timed: {', '.join(missing)}", flush=True)
    return loops


def steps_per_second(loop: Iterator[int], seconds: float, device: str) -> float:
    """Environment steps per second of a training loop that goes on for `seconds`."""
    steps, start = 0, clock(device)
    while clock(device) < start + seconds:
        steps += next(loop)
    return steps / (clock(device) - start)


def peak_megabytes(device: str) -> float:
    """Most memory held so far, in MB: on a GPU by tensors, else by the process, compiling included."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(runs: dict[str, tuple[Args, Callable]], threads: int, seconds: float, peers: bool) -> list[dict]:
    """A row as in HEADER for each (args, make_agent(args, obs_dim, action_dim)) by its name, then one for each peer if
    asked for.

    Environment, batch size, device and precision are those of the first run.
    """
    args, _ = next(iter(runs.values()))
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision(args.matmul_precision)
    rows, loops, floors, cycles, acts = {}, {}, {}, {}, {}
    with closing(make_env(args)) as env:
        obs_dim, action_dim = sizes(args, env)
    capacity = min(args.buffer_size, args.total_timesteps)
    buffer = ReplayBuffer(capacity, obs_dim, action_dim, args.device, added=capacity)
    buffer.rows.normal_().clamp_(-1, 1)[:, -2:] = 0  # actions are in [-1, 1], nothing ends
    for name, (args_, make) in runs.items():
        products, num_updates = trace(args_, make, obs_dim, action_dim)
        agent = make(args_, obs_dim, action_dim)
        if args_.compile:
            compile_steps(agent)
        loops[name] = training(args_, agent, make_env(args_), buffer)
        next(loops[name])
        floors[name], cycles[name] = floor(products, args.device), num_updates
        acts[name] = partial(agent.act, buffer.rows[0, :obs_dim].cpu().numpy(), 0)
        peak_mb = "" if rows else peak_megabytes(args.device)  # of the first alone, before the others are there
        rows[name] = {"compiled": str("critic_step" in vars(agent)), "peak_mb": peak_mb, "ratio": args_.replay_ratio}
        rows[name]["hidden_dim"] = args_.hidden_dim
        rows[name]["gflop_per_update"] = products.flop / num_updates / 1e9
        rows[name]["parameters"] = agent.critic.theta.numel() + agent.actor.theta.numel()
    for name, loop in peer_loops(args, threads, buffer).items() if peers else ():
        loops[name], rows[name] = loop, {"ratio": args.replay_ratio}

    samples = {name: {"floor": [], "act": [], "rate": []} for name in loops}
    for _ in range(ROUNDS):
        for name, loop in loops.items():
            samples[name]["rate"].append(steps_per_second(loop, seconds / ROUNDS, args.device))
            if name in floors:
                samples[name]["floor"].append(floors[name]() / cycles[name])
                samples[name]["act"].append(timeit.timeit(acts[name], number=REPEATS) / REPEATS)

    for name, row in rows.items():
        rate, ratio = samples[name]["rate"], row["ratio"]
        updates = ratio * median(rate)
        row |= {"method": name, "env_id": args.env_id, "threads": threads, "critic_updates_per_s": updates}
        row |= {"env_steps_per_s": median(rate), "ms_per_update": 1e3 / updates}
        row["precision"] = "" if name.startswith("sbx") else args.matmul_precision  # JAX has its own
        row["rounds"] = f"{ratio * min(rate):.0f}-{ratio * max(rate):.0f}"
        if name in floors:
            floor_ms = 1e3 * median(samples[name]["floor"])
            row |= {"floor_ms": floor_ms, "ratio_to_floor": row["ms_per_update"] / floor_ms}
            row |= {"act_us": 1e6 * median(samples[name]["act"]), "gflop_per_step": ratio * row["gflop_per_update"]}
    return [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows.values()]


def timed_args(text: str, given: dict) -> Args:
    """The flags of a method that is named as on the command line of paper.baselines, with those given for all.

    Raises UsageError where there is no such method or it cannot work; an unknown flag ends the program.
    """
    method, *words = shlex.split(text) or [""]
    if method not in METHODS:
        raise UsageError(f"--methods: there is no {method!r}, but {', '.join(METHODS)}")
    args = method_args(method, words, **given)
    check_args(args)
    if isinstance(args, Baseline):
        check_baseline(args)
    if (args.env_id, args.device) != (given["env_id"], given["device"]):
        raise UsageError("--env-id and --device are for all methods: give them outside of --methods")
    return args


def main(flags: Flags) -> None:
    """Measures, prints a table with a column for each method, and appends its rows to the CSV file."""
    given = {f.name: getattr(flags, f.name) for f in dataclasses.fields(Args) if hasattr(flags, f.name)}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        runs = {text: (timed_args(text, given), make_agent) for text in flags.methods}
        if flags.threads < 1 or flags.seconds <= 0:
            raise UsageError("--threads and --seconds must be positive")
        if flags.csv and flags.csv.exists() and flags.csv.read_text().partition("\n")[0] not in ("", HEADER):
            raise UsageError(f"{flags.csv} has other columns, give another --csv")
        rows = measure(runs, flags.threads, flags.seconds, flags.peers)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for row in rows:
        row["speedup_over_it"] = f"{rows[0]['critic_updates_per_s'] / row['critic_updates_per_s']:.2f}"
    for column in (*HEADER.split(","), "gflop_per_step", "parameters", "rounds", "speedup_over_it"):
        print(f"{column:20}", *(f"{row.get(column, ''):>{max(12, len(row['method']))}}" for row in rows))
    if flags.csv:
        with flags.csv.open("a") as file:
            if not file.tell():
                print(HEADER, file=file)
            for row in rows:
                print(*(row.get(column, "") for column in HEADER.split(",")), sep=",", file=file)


if __name__ == "__main__":
    main(tyro.cli(Flags))
