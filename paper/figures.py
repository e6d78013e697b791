"""From the raw files of runs to the paper's figures and their tables.

    python -m paper.figures fig5-7 fig2a
    python -m paper.figures runs/*
    python -m paper.figures pages

Writes `<name>.png` and `<name>.md` for each figure into `<results>/figures/`, with `--protocol small` from runs in
`<results>/small` into `<results>/small/figures/`. Curves are of finished runs with equal flags: of what was run most
often, the longest. Intervals are 95% intervals over seeds, of paper/stats.py; an axis reaches as far as single seeds
do, and cuts off wider intervals. Of run folders it draws what there is so far, into one picture beside them. `pages`
writes the tables of README.md and paper/README.md again, which are parts of the figures' tables.
"""

import csv
import os
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro

from maze_env import GOAL, GOAL_RADIUS, START, WALLS
from omnet_sac import Args, UsageError
from paper.baselines import METHODS
from paper.experiments import FIGURES, MAZE, MAZE_ID, NAMES, RETURN, Variant, on_task
from paper.flops import gflop_per_step
from paper.stats import (
    COLORS,
    along,
    area,
    as_wide_as,
    curve,
    draw,
    improvement_text,
    interval,
    iqm_text,
    last_sixth,
    legend_below,
    line_style,
    margins,
    markdown,
    normalised,
    panels,
    ratio_text,
    read,
    save,
    stack,
)
from paper.sweep import (
    PROTOCOLS,
    ROOT,
    finished_runs,
    one_sentence,
    print_help,
    size_folder,
    split,
    stored_flags,
    stored_run,
    typed_flags,
)

MAZE_WINDOWS = 100, 500, 1000  # training steps of Figure 6
CELLS = 30  # per side of its grid
# The line of each method of paper/reference_curves.csv, whose curves are of ten seeds
PUBLISHED = {"REDQ-20": "-", "SAC": ":", "DroQ-20": "--", "CrossQ": "-.", "SimbaV2-UTD2": (0, (5, 1, 1, 1, 1, 1))}
FLOP_TICKS = 0.02, 0.05, 0.1, 0.2, 0.5, 1
# What looks the same in all figures; nine further on the colour is the same
FAMILIAR = "OMNet-SAC", "dense ends", "no masks", "REDQ", "SAC", "SAC-20", "Sin-SAC", "DroQ", "one static mask"
FAMILIAR += "masks in the critic only", "balanced masks", "SR-SAC", "SR-Sin-SAC", "two dense critics", "dense input"
FAMILIAR += "N=infinity", "dense output", "Sin-DroQ"
OMNET = "OMNet-SAC"  # what all are compared with
BETTER = f"P(better than {OMNET}"
ALL = f"figures to draw: {', '.join(NAMES)}"
INTERVALS = "mean and 95% interval over seeds"
LEGEND = f"{INTERVALS}; where these are two or three, each seed in a thin line"
COUNTED = f"{INTERVALS}, whose number is beside it"


@dataclass
class Flags:
    """Draws figures from the runs that are there, with further training flags from those that have these."""

    figures: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(help=f"{ALL}; run folders; or pages")] = ()
    protocol: Literal[tuple(PROTOCOLS)] = "paper"
    """draw the runs of this protocol"""
    env_ids: tuple[str, ...] = ()
    """tasks; none given: the figure's, and those outside the protocol, as far as there are runs"""
    results: Path = ROOT / "paper" / "results"
    """folder of all results"""


class Results:
    """The runs that a figure is made of."""

    def __init__(self, name: str, flags: Flags, words: list[str]):
        self.name, self.figure, self.protocol = name, FIGURES[name], flags.protocol
        self.flags, self.words, self.env_ids, self.root = flags, words, flags.env_ids, flags.results
        self.variants = self.figure.variants | self.figure.also
        self.looks = numbered(self.variants)
        self.width = self.asked(Variant("omnet-sac")).get("hidden_dim", PROTOCOLS[flags.protocol].flags["hidden_dim"])
        self.folder = size_folder(flags.results, flags.protocol, self.width)

    def asked(self, variant: Variant) -> dict:
        return typed_flags(variant.method, self.words)

    def size(self, env_id: str) -> dict:
        """The flags of a run of this figure on a task, as the protocol has them."""
        return PROTOCOLS[self.protocol].size(env_id) | self.figure.flags

    def runs(self, variant: Variant, env_id: str) -> list[Path]:
        """The folders of the finished runs of a variant, all of one size, by seed."""
        variant = on_task(variant, env_id, self.protocol, self.size(env_id)["total_timesteps"])
        folder = size_folder(self.root, self.protocol, variant.flags.get("hidden_dim", self.width))
        return finished_runs(folder, variant.method, env_id, self.asked(variant) | variant.flags)

    def tasks(self) -> list[str]:
        """The tasks to draw: those asked for, else the figure's and whatever else was run outside the protocol."""
        variants, known = self.figure.every_variant(), (*PROTOCOLS[self.protocol].tasks, *MAZE_ID)
        methods = {METHODS[v.method][1].method for v in variants}
        found = {stored_env_id(path) for m in methods for path in self.folder.glob(f"{m}*/*__{m}__*/args.json")}
        tasks = self.env_ids or [*getattr(self.figure, self.protocol), *sorted(found - {*known, ""})]
        return [env_id for env_id in tasks if any(self.runs(v, env_id) for v in variants)]

    def title(self) -> str:
        """What the figure shows, of runs of what size."""
        told = [self.figure.title]
        told += ["in miniature"] if self.protocol == "small" else []
        told += [f"width {self.width}"] if self.width != PROTOCOLS[self.protocol].flags["hidden_dim"] else []
        return ", ".join(told)

    def save(self, fig, name: str) -> None:
        (self.folder / "figures").mkdir(exist_ok=True)
        save(fig, self.folder / "figures" / f"{name}.png")


def stored_env_id(path: Path) -> str:
    """The task of the run whose args.json this is; "" if it is none."""
    try:
        return str(stored_flags(path.parent).get("env_id", ""))
    except UsageError:
        return ""


def finish(results: Results, fig, axes, note: str = LEGEND) -> None:
    """Legend, title, the file."""
    legend_below(fig, axes)
    fig.suptitle(f"{results.title()}\n{note}", x=0.02, ha="left", fontsize=10)
    results.save(fig, results.name)


def panel_title(env_id: str, steps: int) -> str:
    return f"{env_id}, to {steps:,} steps"


def numbered(variants: Iterable[str]) -> dict[str, int]:
    """By its title the number of each variant's look: FAMILIAR ones have theirs, others what is free in this figure,
    first of the colours that no other has."""
    titles = [*variants]
    taken = {FAMILIAR.index(title) for title in titles if title in FAMILIAR}
    free = iter(sorted({*range(63)} - taken, key=lambda k: (k % 9 in {look % 9 for look in taken}, k)))
    return {title: FAMILIAR.index(title) if title in FAMILIAR else next(free) for title in titles}


def draw_means(axis, groups: dict[float, np.ndarray], **style) -> None:
    """At each x the mean of its values (seeds,), with its 95% interval and the number of seeds."""
    x, means = [*groups], [values.mean() for values in groups.values()]
    bars = np.transpose([margins([values]) for values in groups.values()])
    with as_wide_as(axis, np.repeat(x, [*map(len, groups.values())]), np.concatenate([*groups.values()])):
        axis.errorbar(x, means, bars, **style)
    for place, mean, values in zip(x, means, groups.values()):
        axis.annotate(len(values), (place, mean), (4, 4), textcoords="offset points", fontsize=7, color="0.3")


def better(*tasks: tuple[list[Path], list[Path]], by_score: bool = False) -> str:
    """The probability of improvement over OMNet, by area under the curve or by score, over the steps that all have,
    from both's runs on each task; empty where that says nothing."""
    if any(not omnet or omnet == runs for runs, omnet in tasks):
        return ""
    pairs = []
    for runs, omnet in tasks:
        steps, values = stack([curve(run) for run in (*runs, *omnet)])
        worth = last_sixth(steps, values) if by_score else area(values)
        pairs.append(np.split(worth, [len(runs)]))
    return improvement_text(*map(list, zip(*pairs)))


def draw_curves(results: Results) -> str:
    """One panel per task, a curve with its interval per variant; the published curves in grey. Returns the table."""
    tasks, rows = results.tasks(), []
    fig, axes = panels(tasks)
    for axis, env_id in zip(axes[0], tasks):
        omnet, longest = results.runs(Variant("omnet-sac"), env_id), np.zeros(1)
        for title, variant in results.variants.items():
            runs = results.runs(variant, env_id)
            if not runs:
                continue
            steps, values = stack([curve(run) for run in runs])
            longest = max(longest, steps, key=lambda s: s[-1])
            draw(axis, steps, values, results.looks[title], title)
            scores = last_sixth(steps, values)
            told = interval(scores), iqm_text([scores], 0), better((runs, omnet), by_score=True)
            told += interval(area(values)), better((runs, omnet))
            rows.append([env_id, title, len(runs), f"{steps[-1]:,}", *told])
        if results.protocol == "paper":
            rows += [[*row, "", "", worth, ""] for *row, worth in draw_published(axis, env_id, longest)]
        axis.set(title=panel_title(env_id, longest[-1]), ylabel="return")
        along(axis)
    finish(results, fig, axes)
    header = f"task | method | seeds | steps | score (last sixth), mean [95%] | IQM [95%] | {BETTER} by score) [95%]"
    return markdown(f"{header} | area under the curve [95%] | {BETTER}) [95%]", rows)


def published(method: str, env_id: str, steps: np.ndarray) -> np.ndarray | None:
    """The mean returns at `steps` (T,) of paper/reference_curves.csv; None where the task is not in it."""
    with (ROOT / "paper" / "reference_curves.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["method"], row["env_id"]) == (method, env_id)]
    return np.interp(steps, *zip(*((int(row["step"]), float(row["mean"])) for row in rows))) if rows else None


def draw_published(axis, env_id: str, steps: np.ndarray, methods=("REDQ-20", "SAC")) -> list[list]:
    """The published curves at `steps` (T,) in grey; returns their rows: task, method, seeds, steps, score, area."""
    table, steps = [], steps[steps <= Args.total_timesteps]  # where they end
    for method in methods if len(steps) else ():
        means = published(method, env_id, steps)
        if means is not None:
            axis.plot(steps, means, color="0.6", linestyle=PUBLISHED[method], linewidth=1, label=f"{method}, published")
            row = [env_id, f"{method}, published", 10, f"{steps[-1]:,}"]
            table.append([*row, f"{last_sixth(steps, means):.0f}", f"{area(means):.0f}"])
    return table


def draw_recorded(results: Results, columns: dict[str, str]) -> str:
    """A panel per task and column of bias.csv (by its label), a curve per variant that has it. Returns the table."""
    tasks, rows, longest = results.tasks(), {}, {}
    fig, axes = panels(tasks, 0.8 + 3 * len(columns), len(columns))
    for (label, column), line in zip(columns.items(), axes):
        for axis, env_id in zip(line, tasks):
            for title, variant in results.variants.items():
                runs = [run for run in results.runs(variant, env_id) if (run / "bias.csv").exists()]
                runs = [run for run in runs if np.isfinite(read(run / "bias.csv").get(column, [np.nan])).any()]
                if not runs:
                    continue
                steps, values = stack([curve(run, "bias.csv", column) for run in runs])
                longest[env_id] = max(longest.get(env_id, 0), steps[-1])
                draw(axis, steps, values, results.looks[title], title)
                row = rows.setdefault((env_id, title), [len(runs), f"{steps[-1]:,}"] + [""] * len(columns))
                row[2 + list(columns).index(label)] = interval(values[:, -1], digits=3)
            axis.set(title=panel_title(env_id, longest.get(env_id, 0)), ylabel=label)
            along(axis)
            if column == "normalised_mean":
                axis.set_yscale("symlog", linthresh=0.1)  # small biases and huge ones, the paper's two panels, in one
    finish(results, fig, axes)
    header = " | ".join(["task | method | seeds | steps", *(f"last {label} [95%]" for label in columns)])
    return markdown(header, [[*key, *row] for key, row in rows.items()])


def references(results: Results, env_id: str, steps: list[int]) -> list[list[dict[int, float]]]:
    """The curves of SAC and of REDQ: at the paper's size as published, at `steps`; in miniature of our runs. Empty
    where there are not both."""
    if results.protocol == "paper":
        known = [published(method, env_id, np.array(steps)) for method in ("SAC", "REDQ-20")]
        return [[dict(zip(steps, means))] for means in known] if known[0] is not None else []
    found = [[curve(run) for run in results.runs(Variant(method), env_id)] for method in ("sac", "redq")]
    return found if all(found) else []


def scale(results: Results, env_id: str, runs: dict[str, list[Path]]) -> tuple[dict[str, np.ndarray], str]:
    """The area under the curves (seeds,) of each method on a task, on the scale on which SAC's is 0 and REDQ's is 1,
    and the name of that scale; where these are not known, relative to the best method's."""
    curves = {title: [curve(run) for run in found] for title, found in runs.items()}
    known = references(results, env_id, sorted({step for own in curves.values() for c in own for step in c}))
    worth = {}
    for title, own in curves.items():
        areas = area(stack([*own, *(c for group in known for c in group)])[1])
        worth[title], *ends = np.split(areas, np.cumsum([len(own), *map(len, known)])[:-1])
        if known:
            worth[title] = normalised(worth[title], *ends)
    if known:
        return worth, "score: 0 = SAC, 1 = REDQ" + ", as published" * (results.protocol == "paper")
    best = max(areas.mean() for areas in worth.values())
    return {title: areas / best for title, areas in worth.items()}, "score: 1 = the best"


def kept_share(variant: Variant) -> float:
    """The share of a variant's products that its masks keep; 1 where not all layers of both networks are masked."""
    partly = {"mask_input", "mask_output", "actor_subnets"} & variant.flags.keys()
    return 1.0 if variant.method != "omnet-sac" or partly else 1 - variant.flags.get("sparsity", 0.5)


def variant_gflop(variant: Variant, env_id: str, hidden_dim: int) -> float:
    """GFLOPs of a variant per environment step, at a width of the hidden layers."""
    return gflop_per_step(variant.method, env_id, **{"hidden_dim": hidden_dim} | variant.flags)


def draw_efficiency(results: Results) -> str:
    """Figure 3: what every method that was run is worth, against its training FLOPs relative to REDQ's."""
    tasks, rows, groups, found_on = results.tasks(), [], defaultdict(dict), {}
    fig, axes = panels(tasks, 4.6)
    for axis, env_id in zip(axes[0], tasks):
        runs = found_on[env_id] = {}
        for title, variant in results.variants.items():
            found = results.runs(variant, env_id)
            if found and found not in runs.values():  # one of the rates of dropout is DroQ's own
                runs[title] = found
        worth, name = scale(results, env_id, runs)
        for title, variant in results.variants.items():
            if title not in worth:
                continue
            k, values, width = results.looks[title], worth[title], stored_flags(runs[title][0])["hidden_dim"]
            dense = variant_gflop(variant, env_id, width) / variant_gflop(Variant("redq"), env_id, width)
            marker = {"marker": "osD^v<>P*X"[k // 9 % 10], "color": COLORS[k % 9], "linestyle": ""}
            draw_means(axis, {dense: values}, label=title, **marker)
            sparse = f"{dense * kept_share(variant):.2f}"
            areas = interval(area(stack([curve(run) for run in runs[title]])[1]))
            told = areas, interval(values, digits=2), better((runs[title], runs.get(OMNET, [])))
            rows.append([env_id, title, len(values), f"{dense:.2f}", sparse, *told])
            groups[title][env_id] = values
        axis.set(xscale="log", xlabel="FLOPs of training relative to REDQ", title=env_id, ylabel=name)
        axis.set_xticks(FLOP_TICKS, FLOP_TICKS)
        axis.set_xticks([], minor=True)
    for title, by_task in groups.items():
        if len(tasks) > 1 and by_task.keys() == set(tasks):
            equal = min(map(len, by_task.values()))  # seeds, so that every task has the same weight
            summary = f"{iqm_text([values[:equal] for values in by_task.values()])} (IQM)"
            told = better(*((runs[title], runs.get(OMNET, [])) for runs in found_on.values()))
            rows.append([f"all {len(tasks)}", title, equal, "", "", "", summary, told])
    finish(results, fig, axes, COUNTED)
    header = "task | method | seeds | FLOPs / REDQ's | masked entries not counted | area under the curve [95%]"
    return markdown(f"{header} | score: 0 = SAC, 1 = REDQ [95%] | {BETTER}) [95%]", rows)


def training_times(results: Results) -> dict[tuple[str, str, int], float]:
    """The time of training by variant, task and width, relative to OMNet-SAC's in the same measurement, the last one,
    of those that paper.speed has appended to `speed.csv` in the folder of all results or above it, OMNet-SAC first."""
    paths = [path for path in (results.root / "speed.csv", results.root.parent / "speed.csv") if path.exists()]
    omnet, times = {}, {}
    if not paths:
        return {}
    with paths[0].open() as file:
        for row in csv.DictReader(file):
            method, *words = shlex.split(row["method"])
            where, speed = (row["env_id"], int(row["hidden_dim"])), float(row["env_steps_per_s"])
            if row["method"] == "omnet-sac":
                omnet[where] = speed
            if method in METHODS and where in omnet:  # no other library's
                times[Variant(method, typed_flags(method, words)).name, *where] = omnet[where] / speed
    return times


def against_cost(run: Path, cost: float) -> tuple[np.ndarray, np.ndarray]:
    """What training has cost before each evaluation of a run (T,), at `cost` per environment step, from the last
    evaluation before it, and returns (T,)."""
    steps, values = stack([curve(run)])
    trained = np.clip(steps - stored_flags(run)["learning_starts"], 0, None)
    start = max(0, np.searchsorted(trained, 0, "right") - 1)
    return trained[start:] * cost, values[0, start:]


def draw_compute(results: Results) -> str:
    """Returns against the FLOPs of training and, where speeds were measured, against its time, as far as OMNet-SAC's
    runs go; areas under these curves at equal cost."""
    tasks, times, rows = results.tasks(), training_times(results), []
    runs, flop, time = {}, {}, {}  # by task and title; what an environment step costs
    for env_id, (title, variant) in product(tasks, results.variants.items()):
        if found := results.runs(variant, env_id):
            runs[env_id, title] = found
            flop[env_id, title] = 1e9 * variant_gflop(variant, env_id, results.width)
            if measured := times.get((variant.name, env_id, results.width)):
                time[env_id, title] = measured
    costs = {"FLOPs of training": flop} | ({"time of training, in steps of OMNet-SAC": time} if time else {})
    fig, axes = panels(tasks, 3.8 * len(costs), len(costs))
    for (quantity, cost), line in zip(costs.items(), axes):
        for axis, env_id in zip(line, tasks):
            titles = [title for task, title in cost if task == env_id]
            curves = {t: [against_cost(run, cost[env_id, t]) for run in runs[env_id, t]] for t in titles}
            omnets = curves.get(OMNET, [])
            for title, own in curves.items():
                spent = np.linspace(0, min(known[-1] for known, _ in (*own, *omnets)), 101)
                values, others = (np.array([np.interp(spent, *c) for c in group]) for group in (own, omnets))
                draw(axis, spent, values, results.looks[title], title)
                areas, told = area(values), ["", ""]
                if omnets and title != OMNET:
                    told = [interval(area(others)), improvement_text([areas], [area(others)])]
                end = f"{spent[-1] / 1e15:.3g} PFLOP" if cost is flop else f"time of {spent[-1]:,.0f} steps"
                rows.append([env_id, title, len(own), end, interval(areas), *told])
            axis.set(title=env_id, ylabel="return", visible=bool(curves))
            along(axis, quantity)
    finish(results, fig, axes)
    header = "task | method | seeds | cost | area under the curve to there [95%] | OMNet-SAC's to there [95%]"
    return markdown(f"{header} | {BETTER} at equal cost) [95%]", rows)


def draw_against(results: Results, label: str) -> str:
    """What methods return at each value of the figure's flag, which `label` names: a panel per task, a line per method.
    Returns the table, in which OMNet-SAC is that at the same value."""
    tasks, rows = results.tasks(), []
    ((flag, values),) = results.figure.along.items()
    first = values[0]
    fig, axes = panels(tasks)
    for axis, env_id in zip(axes[0], tasks):
        found = {
            title: {x: results.runs(variant.at(**{flag: x}), env_id) for x in values}
            for title, variant in results.variants.items()
        }
        for title, by_value in found.items():
            curves = {x: stack([curve(run) for run in runs]) for x, runs in by_value.items() if runs}
            areas = {x: area(returns) for x, (_, returns) in curves.items()}
            for x in areas:
                told = [interval(areas[x]), better((by_value[x], found[OMNET][x]))]
                told += [ratio_text(areas[x], areas[first]) if x != first and first in areas else ""]
                rows.append([env_id, title, x, len(areas[x]), *told, interval(last_sixth(*curves[x]))])
            if areas:
                look = line_style(results.looks[title])
                draw_means(axis, {values.index(x): areas[x] for x in areas}, label=title, marker="o", **look)
        axis.set(xlabel=label, ylabel="area under the curve", title=env_id)
        axis.set_xticks(range(len(values)), values)
    finish(results, fig, axes, COUNTED)
    header = f"task | method | {label} | seeds | area under the curve [95%] | {BETTER}) [95%]"
    return markdown(f"{header} | area relative to that at {first} [95%] | score (last sixth) [95%]", rows)


# The maze: Figures 5, 6, 7


def maze_map(axis) -> None:
    for wall in WALLS:
        axis.plot(*wall.T, color="black", linewidth=2.5, solid_capstyle="butt")
    axis.add_patch(plt.Circle(GOAL, GOAL_RADIUS, color="0.8", zorder=0))
    axis.plot(*START, "o", color="0.4", markersize=5)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=[], yticks=[])


def visitation(folder: Path, steps: int) -> np.ndarray:
    """Share of the first `steps` training steps in each cell (30, 30) of the grid: x, y."""
    table = read(folder / "visits.csv")
    points = np.stack([table["obs_0"], table["obs_1"]])[:, :steps]
    counts, _, _ = np.histogram2d(*points, bins=CELLS, range=[[0, 1], [0, 1]])
    return counts / counts.sum()


def paths(folder: Path) -> dict[int, list[np.ndarray]]:
    """By step, the path (t, 2) of each subnetwork's deterministic episode."""
    table, found = read(folder / "trajectories.csv"), defaultdict(lambda: defaultdict(list))
    for step, subnet, x, y in zip(*(table[c] for c in ("step", "subnet", "obs_0", "obs_1"))):
        found[int(step)][subnet].append((x, y))
    return {step: [np.array(path) for path in subnets.values()] for step, subnets in found.items()}


def divergence(subnet_paths: list[np.ndarray], length: int = 51) -> float:
    """Mean distance of two subnetworks' positions at the same time; who has arrived stays where it is."""
    still = [path[np.minimum(np.arange(length), len(path) - 1)] for path in subnet_paths]
    return float(np.mean([np.linalg.norm(a - b, axis=1).mean() for a, b in combinations(still, 2)]))


def steps_to_success(folder: Path, share: float = 0.9) -> float:
    """The first evaluation from which on three in a row reach the goal in `share` of the episodes; the end if none."""
    returns = curve(folder)
    steps, good = list(returns), [value >= 100 * share for value in returns.values()]
    return next((steps[k] for k in range(len(steps) - 2) if all(good[k : k + 3])), steps[-1])


def first_success(folder: Path, starts: int) -> float:
    """Steps after the warm-up until a training episode first ended in the goal; all of them if none did."""
    table = read(folder / "train.csv")
    won = table["step"][(table["step"] > starts) & (table["return"] > 0)]
    return float(won[0] if len(won) else table["step"][-1]) - starts


def arrivals(recorded: dict[int, list[np.ndarray]]) -> tuple[int, int]:
    """Of recorded paths, the first step at which some subnetwork reaches the goal, and the first at which all do."""
    arrived = {step: [np.linalg.norm(path[-1] - GOAL) < GOAL_RADIUS for path in ps] for step, ps in recorded.items()}
    some = next((step for step, ok in arrived.items() if any(ok)), max(arrived))
    return some, next((step for step, ok in arrived.items() if step >= some and all(ok)), max(arrived))


def draw_paths(axis, subnet_paths: list[np.ndarray]) -> None:
    """The path (t, 2) of each subnetwork on the map."""
    maze_map(axis)
    for subnet, path in enumerate(subnet_paths):
        label, color = f"subnetwork {subnet}", plt.cm.plasma(0.9 * subnet / max(1, len(subnet_paths) - 1))
        axis.plot(*path.T, color=color, linewidth=1.4, marker=".", markersize=3, label=label)


def draw_overview(results: Results) -> str:
    """The README's picture: returns, and the subnetworks' paths in the maze when one first arrives."""
    tasks, rows = results.tasks(), []
    fig, (*axes, right) = plt.subplots(1, len(tasks) + 1, figsize=(4.2 * len(tasks) + 3.6, 4.6), layout="constrained")
    for axis, env_id in zip(axes, tasks):
        for title, variant in results.variants.items():
            if found := results.runs(variant, env_id):
                steps, values = stack([curve(run) for run in found])
                seeds = f"{len(found)} seed{'s' * (len(found) > 1)}"
                draw(axis, steps, values, results.looks[title], f"{title} ({seeds})")
                rows.append([env_id, title, len(found), interval(area(values))])
        axis.set_title(f"return on {panel_title(env_id, steps[-1])}", fontsize=10)
        along(axis)
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15))  # hides no curve
    maze = Results("fig5-7", Flags(results=results.root), [])
    if found := maze.runs(Variant("omnet-sac"), *MAZE_ID):
        recorded = paths(found[0])
        step = arrivals(recorded)[0]
        draw_paths(right, recorded[step])
        right.set_title(f"the five actor subnetworks in the maze,\n{step - MAZE['learning_starts']:,} actor steps")
        right.title.set_fontsize(10)
        right.legend(fontsize=7, frameon=False, loc="lower left")
    fig.suptitle(f"{results.title()}: {LEGEND}", x=0.02, ha="left", fontsize=10)
    results.save(fig, results.name)
    return markdown("task | method | seeds | area under the curve [95%]", rows)


def draw_maze(results: Results) -> str:
    """Figures 5 to 7, and the numbers beside them."""
    (env_id,), starts = MAZE_ID, MAZE["learning_starts"]
    runs = {title: results.runs(variant, env_id) for title, variant in results.variants.items()}
    runs = {title: found for title, found in runs.items() if found}
    seeds = {title: f"{title} ({len(found)} seeds)" for title, found in runs.items()}

    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained", width_ratios=[1, 1.4])
    maze_map(left)
    for title, found in runs.items():
        steps, values = stack([curve(run) for run in found])
        draw(right, steps, values, results.looks[title], seeds[title])
    right.set_ylabel("evaluation return")
    along(right)
    right.legend(fontsize=8, frameon=False)
    fig.suptitle(f"Figure 5: the maze, and the return in it; {INTERVALS}", fontsize=11)
    results.save(fig, "fig5")

    fig, axes = plt.subplots(len(runs), 3, figsize=(9.5, 3.2 * len(runs)), layout="constrained", squeeze=False)
    for column, steps in zip(axes.T, MAZE_WINDOWS):
        means = [np.mean([visitation(run, steps) for run in found], axis=0) for found in runs.values()]
        for axis, title, mean in zip(column, runs, means):
            scale = {"vmin": 0, "vmax": np.max(means) ** 0.5}  # one for all agents
            axis.imshow(mean.T**0.5, origin="lower", extent=(0, 1, 0, 1), cmap="Reds", **scale)
            maze_map(axis)
            axis.set_title(f"{title}\nfirst {steps:,} steps of training", fontsize=9)
    fig.suptitle("Figure 6: visitation frequency (square root), mean over seeds", fontsize=11)
    results.save(fig, "fig6")

    first = paths(next(iter(runs.values()))[0])
    some, every = arrivals(first)
    shown = {min(first), min(first, key=lambda s: abs(s - starts - 500)), some, every, max(first)}
    shown.add(min(first, key=lambda s: abs(s - every - 1200)))
    fig, axes = plt.subplots(1, len(shown), figsize=(2.6 * len(shown), 3.2), layout="constrained", squeeze=False)
    for axis, step in zip(axes[0], sorted(shown)):
        draw_paths(axis, first[step])
        axis.set_title(f"{step - starts:,} actor steps", fontsize=10)
    axes[0][0].legend(fontsize=6, frameon=False, loc="lower left")
    fig.suptitle("Figure 7: deterministic episodes of the five subnetworks, seed 1", fontsize=11)
    results.save(fig, "fig7")

    header, rows = "measure | " + " | ".join(seeds.values()), []
    for steps in MAZE_WINDOWS:
        shares = [[(visitation(run, steps) > 0).mean() for run in found] for found in runs.values()]
        rows.append([f"share of cells visited in {steps} steps", *(interval(v, digits=3) for v in shares)])
    for steps in MAZE_WINDOWS:
        grids = [[visitation(run, steps) for run in found] for found in runs.values()]
        entropies = [[float(-(g[g > 0] * np.log(g[g > 0])).sum()) for g in gs] for gs in grids]
        rows.append([f"entropy of the visitation in {steps} steps, nats", *(interval(v, digits=2) for v in entropies)])
    for after in (200, 1000, 3000, MAZE["total_timesteps"] - starts):
        cells = []
        for found in runs.values():
            recorded = [paths(run).get(starts + after, []) for run in found]
            apart = [divergence(subnets) for subnets in recorded if len(subnets) > 1]
            cells.append(interval(apart, digits=3) if apart else "one actor")
        rows.append([f"distance between subnetworks' paths after {after:,} actor steps", *cells])
    for label, measure in (
        ("training steps until the goal is first reached", lambda run: first_success(run, starts)),
        ("environment steps until 90% success", steps_to_success),
    ):
        rows.append([label, *(interval([measure(run) for run in found]) for found in runs.values())])
    return markdown(header, rows)


def draw_streams(results: Results) -> str:
    """Of each variant, runs whose masks followed from the weights' random numbers, beside those of today: a panel with
    two curves. Returns the table."""
    (env_id, *_), rows = results.tasks(), []
    before = Results(results.name, replace(results.flags, results=results.root / "earlier_streams"), results.words)
    both = {t: [where.runs(v, env_id) for where in (before, results)] for t, v in results.variants.items()}
    both = {title: found for title, found in both.items() if all(found)}
    omnets = both.get(OMNET, [[], []])
    fig, axes = panels(both)
    for axis, (title, groups) in zip(axes[0], both.items()):
        for k, (label, runs, omnet) in enumerate(zip(("earlier streams", "today's streams"), groups, omnets)):
            steps, values = stack([curve(run) for run in runs])
            draw(axis, steps, values, k, label)
            over = better((runs, omnet)), better((runs, groups[0]))
            rows.append([title, label, len(runs), interval(area(values)), *over])
        axis.set(title=f"{title}, {panel_title(env_id, steps[-1])}", ylabel="return")
        axis.title.set_fontsize(9)
        along(axis)
    finish(results, fig, axes)
    header = f"method | streams | seeds | area under the curve [95%] | {BETTER} of these streams) [95%]"
    return markdown(f"{header} | P(better than with earlier streams) [95%]", rows)


def differing(runs: list[tuple[str, dict]]) -> list[str]:
    """Names of runs, of these methods with these flags, by method and the flags in which those of it differ on the
    task."""
    names = []
    for method, flags in runs:
        alike = [f for m, f in runs if (m, f["env_id"]) == (method, flags["env_id"])]
        values = {name: {str(f.get(name)) for f in alike} for f in alike for name in f}
        told = [name for name in flags if len(values[name]) > 1 and name not in ("seed", "env_id", "run_dir")]
        names.append(", ".join([method, *(f"{name} {flags[name]}" for name in told)]))
    return names


def draw_folders(folders: list[Path]) -> str:
    """The curves of these run folders, as far as they have come, by task and by method with the flags that differ; at
    the paper's width the published ones beside them. Writes `curves.png` beside the folders. Returns the table."""
    runs = [stored_run(folder) for folder in folders]
    groups = defaultdict(lambda: defaultdict(list))
    for folder, (_, flags), name in zip(folders, runs, differing(runs)):
        if (folder / "eval.csv").exists() and (known := curve(folder)):
            groups[flags["env_id"]][name].append(known)
        else:
            print(f"left out, not evaluated yet: {folder}", file=sys.stderr)
    if not groups:
        raise UsageError("none of these runs has been evaluated yet: there is nothing to draw")
    looks = numbered(dict.fromkeys(name for by_name in groups.values() for name in by_name))
    fig, axes = panels(groups)
    rows = []
    for axis, (env_id, by_name) in zip(axes[0], groups.items()):
        longest = np.zeros(1)
        for name, curves in by_name.items():
            steps, values = stack(curves)
            if not len(steps):
                raise UsageError(f"{name} on {env_id}: there is no step at which all its runs were evaluated")
            draw(axis, steps, values, looks[name], name)
            told = interval(last_sixth(steps, values)), interval(area(values))
            rows.append([env_id, name, len(curves), f"{steps[-1]:,}", *told])
            longest = max(longest, steps, key=lambda s: s[-1])
        if {flags.get("hidden_dim") for _, flags in runs if flags["env_id"] == env_id} == {Args.hidden_dim}:
            rows += draw_published(axis, env_id, longest, PUBLISHED)
        axis.set(title=env_id, ylabel="return")
        along(axis)
    legend_below(fig, axes)
    fig.suptitle(f"{RETURN}\n{LEGEND}", x=0.02, ha="left", fontsize=10)
    path = Path(os.path.commonpath([folder.resolve().parent for folder in folders])) / "curves.png"
    save(fig, path)
    table = markdown("task | runs | seeds | steps | score (last sixth) [95%] | area under the curve [95%]", rows)
    return f"{table}\nthe curves are in {path}"


def part(table: str, task: str, columns: list[str]) -> str:
    """Of a table the rows that begin with `task`, all where it is `*`, with these columns, named by how they begin."""
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    chosen = [next((k for k, name in enumerate(header) if name.startswith(column)), None) for column in columns]
    rows = [[row[k] for k in chosen if k is not None] for row in rows if task in (row[0], "*")]
    if None in chosen or not rows:
        raise UsageError(f"no table of {task} with the columns {', '.join(columns)}: there are {', '.join(header)}")
    return markdown(" | ".join(header[k] for k in chosen), rows)


MARKED = re.compile(r"(<!-- (\S+\.(?:md|csv)) (.*?): (.*?) -->\n).*?(<!-- end -->)", re.S)


def filled(page: Path) -> str:
    """The text of a page, each table of which stands between `<!-- figures/NAME.md TASK: COLUMN, COLUMN -->`, a path
    below paper/results, of a CSV file too, and `<!-- end -->`, and is written again."""

    def table(found: re.Match) -> str:
        begin, path, task, columns, end = found.groups()
        text = (ROOT / "paper" / "results" / path).read_text()
        if path.endswith(".csv"):
            header, *rows = csv.reader(text.splitlines())
            text = markdown(" | ".join(header), rows)
        return begin + part(text, task, columns.split(", ")) + end

    return MARKED.sub(table, page.read_text())


BIAS = {"value bias / mean return": "normalised_mean"}
DIVERSITY = {"spread of Q / mean return": "normalised_spread", "mean - min of two / mean return": "normalised_gap"}
DIVERSITY |= {"correlation of errors": "error_correlation", "distance of actions": "action_distance"}
DRAW = {name: draw_curves for name in FIGURES}
DRAW |= {name: partial(draw_recorded, columns=BIAS) for name in ("fig4", "bias-all-tasks")}
NOISY = partial(draw_against, label="scale of the observation noise")
DRAW |= {"fig8": NOISY, "noise-all-tasks": NOISY}
DRAW |= {
    "fig3": draw_efficiency,
    "compute": draw_compute,
    "fig5-7": draw_maze,
    "widths": partial(draw_against, label="width of the hidden layers"),
    "diversity": partial(draw_recorded, columns=DIVERSITY),
    "overview": draw_overview,
    "streams": draw_streams,
}


def draw_figure(results: Results) -> str:
    """Draws a figure and writes its table, which it returns. Exit code 1 where there is nothing to draw."""
    if not results.tasks():
        hint = f"python -m paper.experiments {results.name} --protocol small --seeds 3"
        print(f"error: no finished runs of {results.name} in {results.folder}: {hint}", file=sys.stderr)
        sys.exit(1)
    table = DRAW[results.name](results)
    (results.folder / "figures" / f"{results.name}.md").write_text(table)
    return f"{results.name}\n{table}"


def main(flags: Flags, words: list[str] = ()) -> None:
    """Draws the figures and prints their tables. Exit code 1 or 2 where there is nothing to draw."""
    if not flags.figures:
        print_help(Flags)
    with one_sentence():
        folders = [Path(name) for name in flags.figures if (Path(name) / "args.json").exists()]
        names = dict.fromkeys(NAMES[name] for name in flags.figures if name in NAMES)
        pages = "pages" in flags.figures
        unknown = [name for name in flags.figures if name not in (*NAMES, "pages") and not Path(name).exists()]
        if unknown or not (folders or names or pages):
            told = f"{', '.join(unknown or flags.figures)}: neither a figure nor a run folder"
            raise UsageError(f"{told}; figures are {', '.join(NAMES)}")
        for name in names:
            print(draw_figure(Results(name, flags, words)))
        if folders:
            print(draw_folders(folders))
        for page in (ROOT / "README.md", ROOT / "paper" / "README.md") if pages else ():
            page.write_text(filled(page))


if __name__ == "__main__":
    own, training = split(sys.argv[1:], Flags)
    main(tyro.cli(Flags, args=own), training)
