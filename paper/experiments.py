"""Which runs make which figure, and running them with Ray.

    python -m paper.experiments fig9b --seeds 3 --env-ids Hopper-v4 --total-timesteps 40000 --dry-run

A run is kept in `<results>/<variant>/`, whichever figure asked for it first. What is finished is not run again,
what was interrupted is resumed. The value bias is recorded in every run; it costs less than a hundredth.
"""

import dataclasses
import os
import shlex
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import ray
import tyro
from tqdm import tqdm

from omnet_sac import Args, UsageError, check_args, first_line, make_env, run_folder, stored_args, train
from paper.baselines import METHODS, make_agent

ROOT = Path(__file__).parent.parent
TASKS = "Hopper-v4", "Walker2d-v4", "Ant-v4", "Humanoid-v4"
EFFECTIVE_GFLOPS = 40  # of matrix products per second of training, one thread of a 2-core AVX-512 CPU (paper.speed)


@dataclass(frozen=True)
class Variant:
    """A method with flags that differ from its defaults."""

    method: str
    flags: dict = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The folder of its runs: redq, omnet_sac__sparsity_0.2, ..."""
        flags = (f"{key}_{value}" for key, value in sorted(self.flags.items()))
        return "__".join([METHODS[self.method][1].method, *flags])


@dataclass(frozen=True)
class Figure:
    """Variants by their names in the legend, each of which runs on every task."""

    variants: dict[str, Variant]
    env_ids: tuple[str, ...] = TASKS
    total_timesteps: int = 300_000
    flags: dict = field(default_factory=lambda: {"bias_interval": 5_000})


OMNET = {"OMNet": Variant("omnet-sac")}
# The same networks without masks: an agent of the maze, and the control that the paper lacks in Figures 4 and 9
NO_OMNET = {"no OMNet": Variant("omnet-sac", {"num_subnets": 1, "sparsity": 0.0})}
MULTIPLE = {"SAC": "sac", "SAC-20": "sac-20", "REDQ": "redq", "DroQ": "droq", "SR-SAC": "sr-sac"}
SINGLE = {"Sin-SAC": "sin-sac", "Sin-DroQ": "sin-droq", "SR-Sin-SAC": "sr-sin-sac"}
MULTIPLE, SINGLE = ({label: Variant(method) for label, method in group.items()} for group in (MULTIPLE, SINGLE))
DROQ = {f"DroQ p={p}": Variant("droq", {"dropout": p}) for p in (0.001, 0.003, 0.01, 0.03, 0.1)}
SIN_DROQ = {f"Sin-DroQ p={p}": Variant("sin-droq", {"dropout": p}) for p in (0.001, 0.01, 0.1)}
BIASED = {label: (MULTIPLE | SINGLE)[label] for label in ("REDQ", "DroQ", "SAC-20", "Sin-SAC", "Sin-DroQ")}
BIASED = OMNET | BIASED | NO_OMNET
NOISE = 0.0, 0.01, 0.03, 0.1  # the paper's scales are in a picture that its text does not give


def noisy(variants: dict[str, Variant]) -> dict[str, Variant]:
    return {
        f"{label} {scale}": Variant(v.method, v.flags | ({"obs_noise": scale} if scale else {}))
        for label, v in variants.items()
        for scale in NOISE
    }


MAZE = {"learning_starts": 1_000, "eval_interval": 200, "eval_episodes": 5, "trajectory_interval": 200}
MAZE["checkpoint_interval"] = 1_000
AGENTS = {"OMNet in actor and critic": Variant("omnet-sac")}
AGENTS["OMNet in the critic only"] = Variant("omnet-sac", {"actor_subnets": False})
AGENTS |= NO_OMNET
SPARSITIES = {f"S={s}": Variant("omnet-sac", {"sparsity": s}) for s in (0.2, 0.35, 0.65, 0.8)}
SUBNETS = {f"N={n}": Variant("omnet-sac", {"num_subnets": n}) for n in (2, 4, 8)}
INFINITE = {"N=infinity": Variant("omnet-sac", {"dynamic_masks": True})}

FIGURES = {
    "fig2a": Figure(OMNET | MULTIPLE),
    "fig2b": Figure(OMNET | SINGLE),
    "fig3": Figure(OMNET | MULTIPLE | SINGLE | DROQ),
    "fig4": Figure(BIASED, ("Humanoid-v4",)),
    "fig5-7": Figure(AGENTS, ("maze_env:Maze-v0",), 8_000, MAZE),
    "fig8": Figure(noisy(OMNET | {"REDQ": MULTIPLE["REDQ"]}), ("Humanoid-v4",)),
    "fig9a": Figure(OMNET | SPARSITIES),
    "fig9b": Figure(OMNET | NO_OMNET | SUBNETS | INFINITE),
    "fig10": Figure(DROQ),
    "fig11": Figure(SIN_DROQ),
    "bias-all-tasks": Figure(BIASED),
    "noise-all-tasks": Figure(noisy(OMNET | {"REDQ": MULTIPLE["REDQ"], "DroQ": MULTIPLE["DroQ"]})),
}


@dataclass
class Flags:
    """Runs what is missing of figures of the paper."""

    figures: tyro.conf.Positional[tuple[Literal[tuple(FIGURES)], ...]]
    """figures to run"""
    env_ids: tuple[str, ...] = ()
    """tasks of these alone; none given: the figure's"""
    seeds: int = 10
    """runs of each variant on each task, with seeds 1, 2, ..."""
    total_timesteps: int | None = None
    """environment steps per run; None: the figure's"""
    results: Path = ROOT / "paper" / "results"
    """folder of all results; on a cluster, on storage that every node shares"""
    dry_run: bool = False
    """print the commands and what they cost, and run nothing"""
    ray_address: str | None = None
    """address of a running Ray cluster; None: this machine alone"""
    num_cpus: float = 1
    """cores per run; each run has one thread"""
    num_gpus: float = 0
    """share of a GPU per run, 0.25 for four runs on one; above 0, runs are on cuda"""
    retries: int = 3
    """times that a run is resumed after its worker died"""


def figure_runs(flags: Flags) -> list[Args]:
    """The arguments of every run that the figures ask for, each once, finished ones included."""
    runs = {}
    for figure in (FIGURES[name] for name in flags.figures):
        for env_id in flags.env_ids or figure.env_ids:
            for seed in range(1, flags.seeds + 1):
                for variant in figure.variants.values():
                    args = dataclasses.replace(
                        METHODS[variant.method][1],
                        **figure.flags | variant.flags,
                        env_id=env_id,
                        seed=seed,
                        total_timesteps=flags.total_timesteps or figure.total_timesteps,
                        run_dir=flags.results / variant.name,
                        device="cuda" if flags.num_gpus else "cpu",
                    )
                    runs.setdefault(run_folder(args), args)
    return list(runs.values())


def last_step(csv: Path) -> int:
    """The step of the last whole row of a run's CSV file; 0 without one."""
    lines = csv.read_text().split("\n")[1:-1] if csv.exists() else []
    return int(lines[-1].split(",")[0]) if lines else 0


def is_finished(args: Args) -> bool:
    return last_step(run_folder(args) / "eval.csv") >= args.total_timesteps // args.eval_interval * args.eval_interval


def subcommand_of(args: Args) -> str:
    """The name in paper.baselines of a run's method."""
    return next(name for name, (_, default) in METHODS.items() if default.method == args.method)


def command(args: Args) -> str:
    """The shell command of a run."""
    subcommand = subcommand_of(args)
    default = METHODS[subcommand][1]
    if (run_folder(args) / "args.json").exists():
        return f"python -m paper.baselines {subcommand} --resume {shlex.quote(str(run_folder(args)))}"
    words = ["python -m paper.baselines", subcommand]
    for f in dataclasses.fields(args):
        value, flag = getattr(args, f.name), f.name.replace("_", "-")
        if value != getattr(default, f.name):
            words.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {value}")
    return " ".join(words)


@cache
def sizes(env_id: str) -> tuple[int, int]:
    """Dimensions of observations and actions."""
    env = make_env(Args(env_id=env_id))
    env.close()
    return env.observation_space.shape[0], env.action_space.shape[0]


@cache
def gflop_per_step(method: str, env_id: str) -> float:
    """GFLOPs of matrix products per environment step, at the method's defaults."""
    from paper.speed import trace

    args = METHODS[method][1]
    products, num_updates = trace(dataclasses.replace(args, env_id=env_id), make_agent, *sizes(env_id))
    return args.replay_ratio * products.flop / num_updates / 1e9


def cost(args: Args) -> float:
    """GFLOPs of a run's updates."""
    return gflop_per_step(subcommand_of(args), args.env_id) * (args.total_timesteps - args.learning_starts)


def memory(args: Args) -> int:
    """Bytes that a run needs: the program, and the replay buffer twice while a checkpoint is written."""
    obs_dim, action_dim = sizes(args.env_id)
    rows = min(args.buffer_size, args.total_timesteps)
    return int(0.8e9 + 2 * 4 * rows * (2 * obs_dim + action_dim + 2))


@ray.remote(max_calls=1)  # a process of its own for every run
def execute(args: Args) -> str | None:
    """Trains or resumes; None, or what went wrong in a sentence. An error of ours is final, a dead worker is not."""
    try:
        folder = run_folder(args)
        train(stored_args(folder, args) if (folder / "args.json").exists() else args, make_agent)
    except Exception as error:
        return first_line(error)


def run_all(runs: list[Args], flags: Flags) -> dict[Path, str]:
    """Runs them all, as many at once as the cluster holds. Returns what failed and why."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = {"log_to_driver": False, "logging_level": "error", "runtime_env": {"env_vars": environment}}
    ray.init(flags.ray_address or "local", **options | ({} if flags.ray_address else {"include_dashboard": False}))
    resources = {"num_cpus": flags.num_cpus, "num_gpus": flags.num_gpus, "max_retries": flags.retries}
    pending = {execute.options(**resources, memory=memory(args)).remote(args): args for args in runs}
    failed = {}
    with tqdm(total=sum(args.total_timesteps for args in runs), unit="step", dynamic_ncols=True) as bar:
        while pending:
            done, _ = ray.wait(list(pending), timeout=2)
            for ref in done:
                folder = run_folder(pending.pop(ref))
                try:
                    error = ray.get(ref)
                except ray.exceptions.RayError as dead:
                    error = f"its worker died {flags.retries + 1} times: {first_line(dead)}"
                if error:
                    failed[folder] = error
                bar.write(f"FAILED: {folder}: {error}" if error else f"done: {folder}")
            running = {run_folder(args): last_step(run_folder(args) / "train.csv") for args in pending.values()}
            bar.n = sum(running.get(run_folder(args), args.total_timesteps) for args in runs)  # what ended counts whole
            shown = ", ".join(f"{folder.parent.name}/{folder.name} {n}" for folder, n in running.items() if n)
            num_done = len(runs) - len(pending) - len(failed)
            bar.set_postfix_str(f"{num_done} done, {len(failed)} failed; {shown}")
    ray.shutdown()
    return failed


def main(flags: Flags) -> None:
    """Runs the figures, or says what that would take. Exit code 1 if a run failed."""
    try:
        runs = figure_runs(flags)
        for args in runs:
            check_args(args)
        for env_id in {args.env_id for args in runs}:
            sizes(env_id)
        missing = [args for args in runs if not is_finished(args)]
        for args in missing:
            folder = run_folder(args)
            stored = stored_args(folder, args) if (folder / "args.json").exists() else args
            if stored.total_timesteps != args.total_timesteps:
                told = f"{folder} holds a run of {stored.total_timesteps} steps, not of {args.total_timesteps}"
                raise UsageError(f"{told}: change total_timesteps in its args.json, or move it away")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if flags.dry_run:
        gflop = sum(map(cost, missing))
        print(*map(command, missing), sep="\n")
        hours = f"{gflop / EFFECTIVE_GFLOPS / 3600:.1f} core-hours on a 2-core AVX-512 CPU"
        print(f"{len(missing)} runs to do, {len(runs) - len(missing)} finished; {gflop / 1e6:.2f} PFLOP, about {hours}")
        return
    failed = run_all(missing, flags) if missing else {}
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are finished in {flags.results}")
    for folder, error in failed.items():
        print(f"failed: {folder}: {error}", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(tyro.cli(Flags))
