"""Which runs make which figure.

    python -m paper.experiments fig9b --protocol small --seeds 3 --env-ids InvertedDoublePendulum-v4 --dry-run

What is finished is not run again, what was interrupted is resumed. Any training flag (`--learning-rate 1e-3`) is for
all runs. A run is kept in `<results>/<variant>/`, of protocol small in `<results>/small/<variant>/`, whichever figure
asked for it first; where that folder holds a run with other flags, in one beside it that is named by what differs.
Value bias and diversity are recorded in every run; that costs less than a hundredth.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

import tyro

from omnet_sac import check_args
from paper.baselines import METHODS, table_dropout
from paper.flops import sizes
from paper.sweep import (
    PROTOCOLS,
    QUICK,
    ROOT,
    TASKS,
    Resources,
    Run,
    beside,
    method_run,
    one_sentence,
    print_help,
    run_missing,
    size_folder,
    split,
    typed_flags,
)


@dataclass(frozen=True)
class Variant:
    """A method with flags, by name."""

    method: str
    flags: dict = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The folder of its runs, by flags that differ from the method's defaults: redq, omnet_sac__sparsity_0.2, ...;
        without the width, for which the folder around it stands."""
        default = METHODS[self.method][1]
        flags = sorted((k, v) for k, v in self.flags.items() if k != "hidden_dim" and v != getattr(default, k))
        return "__".join([default.method, *(f"{key}_{value}" for key, value in flags)])

    def at(self, **flags) -> "Variant":
        """This one, with further flags."""
        return Variant(self.method, self.flags | flags)


SUITE = tuple(PROTOCOLS["small"].tasks)
SHORT = PROTOCOLS["small"].compared


@dataclass(frozen=True)
class Figure:
    """What it shows, and variants by their names in the legend, each of which runs on every task of the protocol.

    `along` has one flag, with values at each of which every variant runs: what the figure is drawn against.
    """

    title: str
    variants: dict[str, Variant]
    paper: tuple[str, ...] = TASKS
    small: tuple[str, ...] = SUITE
    flags: dict = field(default_factory=dict)  # in place of the protocol's
    along: dict[str, tuple] = field(default_factory=dict)
    also: dict[str, Variant] = field(default_factory=dict)  # drawn where they were run for another figure

    def every_variant(self) -> list[Variant]:
        """All that is run."""
        settings = [dict(zip(self.along, values)) for values in product(*self.along.values())]
        return [variant.at(**setting) for variant in self.variants.values() for setting in settings]


def omnet(**flags) -> Variant:
    return Variant("omnet-sac", flags)


OMNET = {"OMNet-SAC": omnet()}
DENSE = {"input": {"mask_input": False}, "output": {"mask_output": False}}
DENSE["ends"] = DENSE["input"] | DENSE["output"]
MASKS = OMNET | {f"dense {layers}": omnet(**flags) for layers, flags in DENSE.items()}
OURS = {label: MASKS[label] for label in ("OMNet-SAC", "dense ends")}  # the second is ours
# The same networks without masks: an agent of the maze, and the control that the paper lacks
NO_MASKS = {"no masks": omnet(num_subnets=1, sparsity=0.0)}
CRITIC_ONLY = {"masks in the critic only": omnet(actor_subnets=False)}
STATIC = {"one static mask": omnet(num_subnets=1)}
MULTIPLE = {"SAC": "sac", "SAC-20": "sac-20", "REDQ": "redq", "DroQ": "droq", "SR-SAC": "sr-sac"}
SINGLE = {"Sin-SAC": "sin-sac", "Sin-DroQ": "sin-droq", "SR-Sin-SAC": "sr-sin-sac"}
MULTIPLE, SINGLE = ({label: Variant(method) for label, method in group.items()} for group in (MULTIPLE, SINGLE))
REDQ = {"REDQ": MULTIPLE["REDQ"]}
DROQ = {f"DroQ p={p}": Variant("droq", {"dropout": p}) for p in (0.001, 0.003, 0.01, 0.03, 0.1)}
SIN_DROQ = {f"Sin-DroQ p={p}": Variant("sin-droq", {"dropout": p}) for p in (0.001, 0.01, 0.1)}
BIASED = {label: (MULTIPLE | SINGLE)[label] for label in ("REDQ", "DroQ", "SAC-20", "Sin-SAC", "Sin-DroQ")}
BIASED = OURS | BIASED | NO_MASKS
NOISE = {"obs_noise": (0.0, 0.01, 0.03, 0.1)}  # the paper's scales are in a picture that its text does not give
WIDTHS = {"hidden_dim": (64, 128, 256)}
MAZE = {"total_timesteps": 8_000, "learning_starts": 1_000, "eval_interval": 200, "eval_episodes": 5}
MAZE |= {"trajectory_interval": 200, "bias_interval": 0, "checkpoint_interval": 1_000}
MAZE_ID = ("maze_env:Maze-v0",)
AGENTS = OMNET | CRITIC_ONLY | NO_MASKS
SPARSITIES = {f"S={s}": omnet(sparsity=s) for s in (0.2, 0.35, 0.65, 0.8)}
SUBNETS = {f"N={n}": omnet(num_subnets=n) for n in (2, 4, 8)}
INFINITE = {"N=infinity": omnet(dynamic_masks=True)}

DIVERSE = MASKS | {label: MULTIPLE[label] for label in ("REDQ", "SAC-20", "DroQ")} | NO_MASKS
for where in ("critic", "actor"):
    MASKS |= {f"dense {layers}, {where} only": omnet(**flags, dense_in=where) for layers, flags in DENSE.items()}
TWO_CRITICS = {"two dense critics": Variant("droq", {"dropout": 0.0})}  # with layer normalisation, and a plain actor
CONTROLS = OURS | NO_MASKS | CRITIC_ONLY | REDQ | STATIC | TWO_CRITICS
CONTROLS["balanced masks"] = omnet(balanced_masks=True)
CONTROLS["OMNet-SAC, policy delay 4"] = omnet(policy_delay=4)
CONTROLS["masks in the critic only, policy delay 4"] = omnet(actor_subnets=False, policy_delay=4)
for rate in (6e-4, 1e-3):
    for label, variant in (OMNET | REDQ | NO_MASKS).items():
        CONTROLS[f"{label}, learning rate {rate}"] = variant.at(learning_rate=rate)
WIDE = OURS | NO_MASKS | CRITIC_ONLY | {label: MULTIPLE[label] for label in ("REDQ", "SAC-20")}

RETURN = "Return while training"
FIGURES = {
    "fig2a": Figure(f"{RETURN}, methods with several critics", OURS | MULTIPLE),
    "fig2b": Figure(f"{RETURN}, methods with one critic", OURS | SINGLE),
    "fig3": Figure(
        "Area under the curve against the FLOPs of training",
        OURS | MULTIPLE | SINGLE,
        also=NO_MASKS | STATIC | CRITIC_ONLY | TWO_CRITICS,
    ),
    "compute": Figure(
        "Return against the cost of training",
        OURS | NO_MASKS | MULTIPLE | {"Sin-SAC": SINGLE["Sin-SAC"]},
        also=STATIC,
    ),
    "fig4": Figure("Value bias while training", BIASED, ("Humanoid-v4",), also=STATIC),
    "fig5-7": Figure("The maze", AGENTS, MAZE_ID, MAZE_ID, MAZE),
    "fig8": Figure("Return by observation noise", OURS | REDQ, ("Humanoid-v4",), (QUICK,), along=NOISE),
    "fig9a": Figure(f"{RETURN}, by sparsity S", OURS | SPARSITIES, small=SHORT),
    "fig9b": Figure(
        f"{RETURN}, by number of subnetworks N", OURS | NO_MASKS | SUBNETS | INFINITE, small=SHORT, also=STATIC
    ),
    "fig10": Figure(f"{RETURN}, by DroQ's rate of dropout p", DROQ, small=(QUICK,)),
    "fig11": Figure(f"{RETURN}, by Sin-DroQ's rate of dropout p", SIN_DROQ, small=(QUICK,)),
    "bias-all-tasks": Figure("Value bias while training", BIASED, also=STATIC),
    "noise-all-tasks": Figure(
        "Return by observation noise", OMNET | REDQ | {"DroQ": MULTIPLE["DroQ"]}, small=(QUICK,), along=NOISE
    ),
    "masks": Figure(f"{RETURN}, by the layers with masks", MASKS, small=SHORT),
    "controls": Figure(f"{RETURN}, one change at a time", CONTROLS, small=SHORT),
    "widths": Figure("Return by width of the hidden layers", WIDE, ("Hopper-v4",), (QUICK,), along=WIDTHS),
    "diversity": Figure("How much the critics differ while training", DIVERSE),
    "overview": Figure(RETURN, OURS | NO_MASKS | REDQ | {"SAC": MULTIPLE["SAC"]}, ("Hopper-v4", "Ant-v4"), also=STATIC),
    "streams": Figure(
        f"{RETURN}, with earlier streams of random numbers and with today's",
        OMNET | STATIC | NO_MASKS | {label: MULTIPLE[label] for label in ("REDQ", "SAC-20", "SAC")},
        (QUICK,),
        (QUICK,),
    ),
}
NAMES = {name: name for name in FIGURES} | {f"fig{k}": "fig5-7" for k in (5, 6, 7)}


def on_task(variant: Variant, env_id: str, protocol: str, total_timesteps: int) -> Variant:
    """`variant` as it is run: in miniature, SR-SAC resets after a third of the steps, as 100K are of 300K; a task's own
    rate of dropout is DroQ's default, whose runs need not be made twice."""
    default, flags = METHODS[variant.method][1].__dict__, variant.flags
    if protocol == "small" and default.get("reset_interval"):
        return variant.at(reset_interval=total_timesteps // 3)
    if "dropout" in flags and flags["dropout"] == table_dropout(default["num_critics"], env_id):
        return Variant(variant.method, {name: value for name, value in flags.items() if name != "dropout"})
    return variant


@dataclass
class Flags(Resources):
    """Runs what is missing of figures of the paper. Other flags are training flags, for all runs."""

    figures: tyro.conf.Positional[tuple[Literal[tuple(NAMES)], ...]] = ()
    """figures to run"""
    protocol: Literal[tuple(PROTOCOLS)] = "paper"
    """the paper's tasks and size, or in miniature: hidden layers of 64 and short horizons, minutes per run"""
    env_ids: tuple[str, ...] = ()
    """tasks; none given: the figure's"""
    seeds: int = 10
    """runs of each variant on each task, with seeds 1, 2, ..."""
    results: Path = ROOT / "paper" / "results"
    """folder of all results; on a cluster, on storage that every node shares"""
    dry_run: bool = False
    """print the commands and what they cost, and run nothing"""


def figure_runs(flags: Flags, words: list[str] = ()) -> list[Run]:
    """The runs that the figures ask for, each once, finished ones included. Raises UsageError where one cannot work."""
    runs, protocol = {}, PROTOCOLS[flags.protocol]
    figures = [FIGURES[name] for name in dict.fromkeys(NAMES[name] for name in flags.figures)]
    asked = {v.method: typed_flags(v.method, words) for figure in figures for v in figure.variants.values()}
    device = {"device": "cuda"} if flags.num_gpus else {}
    for figure in figures:
        tasks, seeds = flags.env_ids or getattr(figure, flags.protocol), range(1, flags.seeds + 1)
        for env_id in tasks:
            sizes(env_id)
        for env_id, seed, variant in product(tasks, seeds, figure.every_variant()):
            size = protocol.size(env_id) | figure.flags | asked[variant.method] | device
            variant = on_task(variant, env_id, flags.protocol, size["total_timesteps"])
            size |= variant.flags
            run_dir = size_folder(flags.results, flags.protocol, size["hidden_dim"]) / variant.name
            run = method_run(variant.method, size | {"env_id": env_id, "seed": seed, "run_dir": run_dir})
            check_args(dataclasses.replace(METHODS[variant.method][1], **run.flags))
            runs.setdefault(run.name, run)
    return [beside(run) for run in runs.values()]


def main(flags: Flags, words: list[str] = ()) -> None:
    """Runs the figures, or says what that would take. Exit code 1 if a run failed or cannot go on."""
    if not flags.figures:
        print_help(Flags)
    with one_sentence():
        runs = figure_runs(flags, words)
        failed = run_missing(runs, flags, flags.dry_run)
    if not flags.dry_run:
        print(f"{len(runs) - len(failed)} of {len(runs)} runs are finished in {flags.results}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    own, training = split(sys.argv[1:], Flags)
    main(tyro.cli(Flags, args=own), training)
