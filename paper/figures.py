"""From the raw files of runs to the paper's figures and their tables.

    python -m paper.figures fig5-7 fig2a

Writes `<name>.png` and `<name>.md` for each figure into `<results>/figures/`. A figure made of fewer seeds or steps
than the paper's says so in its title. Intervals are 95% bootstrap intervals over seeds.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Literal

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import tyro

from maze_env import GOAL, GOAL_RADIUS, START, WALLS
from paper.experiments import FIGURES, ROOT, Figure, Variant, gflop_per_step

matplotlib.use("Agg")
# The palette of Okabe & Ito, which the colour-blind can tell apart; line styles tell curves apart in print
COLORS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#F0E442"]
STYLES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), "-", "--"]
# Returns of a random policy and of TD3 on the v4 tasks, for a normalisation that depends on no set of methods
RANDOM = {"Hopper-v4": 18.8, "Walker2d-v4": 2.8, "Ant-v4": -70.3, "Humanoid-v4": 120.4}
TD3 = {"Hopper-v4": 3226.0, "Walker2d-v4": 3946.0, "Ant-v4": 3942.0, "Humanoid-v4": 5165.0}
MAZE_WINDOWS = 100, 500, 1000  # training steps of Figure 6
CELLS = 30  # per side of its grid
PAPER_SEEDS = 10


@cache
def read(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file of numbers; empty fields are NaN."""
    with path.open() as file:
        header, *rows = csv.reader(file)
    table = np.array([[float(x) if x else np.nan for x in row] for row in rows]).reshape(-1, len(header))
    return dict(zip(header, table.T))


def folders(results: Path, variant: Variant, env_id: str) -> list[Path]:
    """The run folders of a variant on a task, by seed."""
    name = env_id.replace(":", "-").replace("/", "-")
    found = (results / variant.name).glob(f"{name}__*__*/eval.csv")
    return sorted((path.parent for path in found), key=lambda folder: int(folder.name.rsplit("__", 1)[1]))


def curve(folder: Path, file: str = "eval.csv", column: str = "return") -> dict[int, float]:
    """The mean of a column at each step."""
    table, means = read(folder / file), defaultdict(list)
    for step, value in zip(table["step"], table[column]):
        means[int(step)].append(value)
    return {step: float(np.mean(values)) for step, values in means.items()}


def stack(curves: list[dict[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,) that all curves have, and their values (seeds, T)."""
    steps = sorted(set.intersection(*(set(c) for c in curves)))
    return np.array(steps), np.array([[c[step] for step in steps] for c in curves])


def iqm(values: np.ndarray) -> float:
    """Mean of the middle half; with weights at its edges, so that every number of values has one."""
    values = np.sort(np.ravel(values))
    edges = np.arange(len(values) + 1) / len(values)
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return float(weights @ values / weights.sum())


def bootstrap(groups: list[np.ndarray], statistic: Callable, draws: int = 2000) -> tuple[float, float]:
    """95% percentile interval of `statistic(groups)`, each group (seeds, ...) resampled by itself (stratified)."""
    rng = np.random.default_rng(0)
    resampled = ([group[rng.integers(len(group), size=len(group))] for group in groups] for _ in range(draws))
    low, high = np.percentile([statistic(sample) for sample in resampled], [2.5, 97.5], axis=0)
    return low, high


def interval(values: list[float] | np.ndarray, statistic: Callable = np.mean, digits: int = 0) -> str:
    """`mean [low, high]` over seeds; without an interval if there is but one."""
    point = f"{statistic(values):.{digits}f}"
    if len(values) < 2:
        return point
    low, high = bootstrap([np.array(values)], lambda groups: statistic(groups[0]))
    return f"{point} [{low:.{digits}f}, {high:.{digits}f}]"


def last_sixth(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Section 4.1: the mean over the last sixth of the steps (T,), the last 50K of 300K, of values (..., T)."""
    return values[..., steps > steps[-1] * 5 / 6].mean(-1)


def score(folder: Path) -> float:
    """The mean evaluation return over the last sixth of a run."""
    steps, values = stack([curve(folder)])
    return float(last_sixth(steps, values)[0])


def markdown(header: str, rows: list[list]) -> str:
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def shortfall(figure: Figure, seeds: int, steps: int) -> str:
    """What a title must admit: fewer seeds or steps than the paper's."""
    told = [f"{seeds} of {PAPER_SEEDS} seeds"] if seeds < PAPER_SEEDS else []
    told += [f"{steps:,} of {figure.total_timesteps:,} steps"] if steps < figure.total_timesteps else []
    return f" ({', '.join(told)})" if told else ""


def draw_curves(name: str, results: Path, file="eval.csv", column="return", label="return") -> str:
    """One panel per task, a curve with its interval per variant; the published curves in grey. Returns the table."""
    figure, rows = FIGURES[name], []
    tasks = [env_id for env_id in figure.env_ids if any(folders(results, v, env_id) for v in figure.variants.values())]
    fig, axes = plt.subplots(1, len(tasks), figsize=(3 + 4 * len(tasks), 3.8), squeeze=False, layout="constrained")
    fewest, most_steps = PAPER_SEEDS, 0
    for axis, env_id in zip(axes[0], tasks):
        longest = np.zeros(1)  # steps (T,) of the task's longest variant
        for k, (title, variant) in enumerate(figure.variants.items()):
            runs = [f for f in folders(results, variant, env_id) if (f / file).exists()]
            if not runs:
                continue
            steps, values = stack([curve(run, file, column) for run in runs])
            fewest, longest = min(fewest, len(runs)), max(longest, steps, key=lambda s: s[-1])
            axis.plot(steps, values.mean(0), color=COLORS[k % 9], linestyle=STYLES[k % 9], label=title)
            if len(runs) > 1:
                low, high = bootstrap([values], lambda groups: groups[0].mean(0))
                axis.fill_between(steps, low, high, color=COLORS[k % 9], alpha=0.2, linewidth=0)
            scores, digits = (last_sixth(steps, values), 0) if file == "eval.csv" else (values[:, -1], 2)
            summary = interval(scores, digits=digits), interval(scores, iqm, digits)
            rows.append([env_id, title, len(runs), f"{steps[-1]:,}", *summary])
        most_steps = max(most_steps, longest[-1])
        if file == "eval.csv":
            rows += draw_published(axis, env_id, longest)
        else:
            axis.set_yscale("symlog", linthresh=0.1)  # small biases and huge ones, the paper's two panels, in one
        axis.set(title=env_id, xlabel="environment steps", ylabel=label)
    labels = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels())}
    fig.legend(labels.values(), labels, loc="outside right upper", fontsize=8, frameon=False)
    fig.suptitle(f"{name}{shortfall(figure, fewest, most_steps)}")
    save(fig, name, results)
    value = "score (last sixth)" if file == "eval.csv" else f"last {label}"
    return markdown(f"task | method | seeds | steps | {value}, mean [95%] | IQM [95%]", rows)


def draw_published(axis, env_id: str, steps: np.ndarray) -> list[list]:
    """The curves of paper/reference_curves.csv, means of 10 seeds, at `steps` (T,); returns their rows of the table."""
    with (ROOT / "paper" / "reference_curves.csv").open() as file:
        published = [row for row in csv.DictReader(file) if row["env_id"] == env_id]
    table = []
    for method, style in (("REDQ-20", "-"), ("SAC", ":")) if published else ():
        points = [(int(row["step"]), float(row["mean"])) for row in published if row["method"] == method]
        means = np.interp(steps, *zip(*points))
        axis.plot(steps, means, color="0.6", linestyle=style, linewidth=1, label=f"{method}, published")
        row = [f"{method}, published", PAPER_SEEDS, f"{steps[-1]:,}", f"{last_sixth(steps, means):.0f}", ""]
        table.append([env_id, *row])
    return table


def save(fig, name: str, results: Path) -> None:
    (results / "figures").mkdir(exist_ok=True)
    fig.savefig(results / "figures" / f"{name}.png", dpi=110)
    plt.close(fig)


def draw_efficiency(name: str, results: Path) -> str:
    """Figure 3: scores against training FLOPs relative to REDQ's, counted dense and without masked entries."""
    figure, rows = FIGURES[name], []
    scores = {
        title: {
            env_id: np.array([score(run) for run in folders(results, variant, env_id)]) for env_id in figure.env_ids
        }
        for title, variant in figure.variants.items()
    }
    scores = {title: {e: s for e, s in tasks.items() if len(s)} for title, tasks in scores.items()}
    scores = {title: tasks for title, tasks in scores.items() if tasks}
    shared = [env_id for env_id in figure.env_ids if all(env_id in tasks for tasks in scores.values())]
    if not shared:
        raise SystemExit("error: no task has runs of every method that has runs; run more of fig3")
    best = {env_id: max(tasks[env_id].mean() for tasks in scores.values()) for env_id in shared}
    fig, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    fewest = min(len(s) for tasks in scores.values() for s in tasks.values())
    for k, (title, tasks) in enumerate(scores.items()):
        groups = [tasks[env_id] / best[env_id] for env_id in shared]
        fixed = [(tasks[e] - RANDOM[e]) / (TD3[e] - RANDOM[e]) for e in shared]
        point = np.mean([group.mean() for group in groups])
        low, high = bootstrap(groups, lambda sample: np.mean([group.mean() for group in sample]))
        fixed_low, fixed_high = bootstrap(fixed, lambda sample: iqm(np.concatenate(sample)))
        variant = figure.variants[title]
        dense = np.mean([gflop_per_step(variant.method, e) / gflop_per_step("redq", e) for e in shared])
        sparse = dense * (1 - 0.5 * (variant.method == "omnet-sac"))
        axis.errorbar(
            dense, point, [[max(0, point - low)], [max(0, high - point)]], fmt="o", color=COLORS[k % 9], label=title
        )
        iqm_text = f"{iqm(np.concatenate(fixed)):.2f} [{fixed_low:.2f}, {fixed_high:.2f}]"
        rows.append([title, f"{dense:.3f}", f"{sparse:.3f}", f"{point:.2f} [{low:.2f}, {high:.2f}]", iqm_text])
    axis.set(xscale="log", xlabel="training FLOPs relative to REDQ", ylabel="score relative to the best method")
    axis.legend(fontsize=8, frameon=False)
    fig.suptitle(f"{name}: {', '.join(shared)} ({fewest} seeds)")
    save(fig, name, results)
    header = "method | FLOPs / REDQ, dense | masked entries not counted | score / best, mean [95%]"
    return markdown(f"{header} | IQM between random and TD3 [95%]", rows)


# The maze: Figures 5, 6, 7


def maze_map(axis) -> None:
    for wall in WALLS:
        axis.plot(*wall.T, color="black", linewidth=2.5, solid_capstyle="butt")
    axis.add_patch(plt.Circle(GOAL, GOAL_RADIUS, color="#E69F00", zorder=0))
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


def draw_maze(name: str, results: Path) -> str:
    """Figures 5 to 7, and the numbers beside them."""
    figure, (env_id,) = FIGURES[name], FIGURES[name].env_ids
    runs = {title: folders(results, variant, env_id) for title, variant in figure.variants.items()}
    runs = {title: found for title, found in runs.items() if found}
    starts = figure.flags["learning_starts"]
    note = shortfall(figure, min(map(len, runs.values())), figure.total_timesteps)

    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained", width_ratios=[1, 1.4])
    maze_map(left)
    for k, (title, found) in enumerate(runs.items()):
        steps, values = stack([curve(run) for run in found])
        right.plot(steps, values.mean(0), color=COLORS[k], linestyle=STYLES[k], label=title)
        low, high = bootstrap([values], lambda groups: groups[0].mean(0))
        right.fill_between(steps, low, high, color=COLORS[k], alpha=0.2, linewidth=0)
    right.set(xlabel="environment steps", ylabel="evaluation return")
    right.legend(fontsize=8, frameon=False)
    fig.suptitle(f"Figure 5: the maze; evaluation return, mean and 95% interval{note}")
    save(fig, "fig5", results)

    fig, axes = plt.subplots(len(runs), 3, figsize=(9.5, 3.2 * len(runs)), layout="constrained", squeeze=False)
    for column, steps in zip(axes.T, MAZE_WINDOWS):
        means = [np.mean([visitation(run, steps) for run in found], axis=0) for found in runs.values()]
        for axis, title, mean in zip(column, runs, means):
            scale = {"vmin": 0, "vmax": np.max(means) ** 0.5}  # one for all agents
            axis.imshow(mean.T**0.5, origin="lower", extent=(0, 1, 0, 1), cmap="Reds", **scale)
            maze_map(axis)
            axis.set_title(f"{title}\nfirst {steps} training steps", fontsize=9)
    fig.suptitle(f"Figure 6: visitation frequency (square root), mean over seeds{note}")
    save(fig, "fig6", results)

    first = paths(next(iter(runs.values()))[0])
    arrived = {step: [np.linalg.norm(path[-1] - GOAL) < GOAL_RADIUS for path in ps] for step, ps in first.items()}
    some = next((step for step, ok in arrived.items() if any(ok)), max(arrived))
    every = next((step for step, ok in arrived.items() if step >= some and all(ok)), max(arrived))
    shown = sorted({min(arrived), min(first, key=lambda s: abs(s - starts - 500)), some, every, max(arrived)})
    shown += [step for step in [min(first, key=lambda s: abs(s - every - 1200))] if step not in shown]
    fig, axes = plt.subplots(1, len(shown), figsize=(2.6 * len(shown), 3.2), layout="constrained", squeeze=False)
    for axis, step in zip(axes[0], sorted(shown)):
        maze_map(axis)
        for subnet, path in enumerate(first[step]):
            axis.plot(
                *path.T, color=COLORS[subnet], linewidth=1.4, marker=".", markersize=3, label=f"subnetwork {subnet}"
            )
        axis.set_title(f"{step - starts:,} actor steps", fontsize=10)
    axes[0][0].legend(fontsize=6, frameon=False, loc="lower left")
    fig.suptitle("Figure 7: deterministic episodes of the five subnetworks, seed 1", fontsize=11)
    save(fig, "fig7", results)

    header, rows = "measure | " + " | ".join(f"{title} ({len(found)} seeds)" for title, found in runs.items()), []
    for steps in MAZE_WINDOWS:
        shares = [[(visitation(run, steps) > 0).mean() for run in found] for found in runs.values()]
        rows.append([f"share of cells visited in {steps} steps", *(interval(v, digits=3) for v in shares)])
    for steps in MAZE_WINDOWS:
        grids = [[visitation(run, steps) for run in found] for found in runs.values()]
        entropies = [[float(-(g[g > 0] * np.log(g[g > 0])).sum()) for g in gs] for gs in grids]
        rows.append([f"entropy of the visitation in {steps} steps, nats", *(interval(v, digits=2) for v in entropies)])
    for after in (200, 1000, 3000, figure.total_timesteps - starts):
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


DRAW = {name: draw_curves for name in FIGURES}
DRAW |= {"fig3": draw_efficiency, "fig5-7": draw_maze}
BIAS = {"file": "bias.csv", "column": "normalised_mean", "label": "value bias / mean return"}


@dataclass
class Flags:
    """Draws figures from the runs that are there."""

    figures: tyro.conf.Positional[tuple[Literal[tuple(FIGURES)], ...]]
    """figures to draw"""
    results: Path = ROOT / "paper" / "results"
    """folder of all results"""


def main(flags: Flags) -> None:
    for name in flags.figures:
        figure = FIGURES[name]
        if not any(folders(flags.results, v, e) for v in figure.variants.values() for e in figure.env_ids):
            print(f"error: no runs of {name} in {flags.results}: python -m paper.experiments {name}", file=sys.stderr)
            sys.exit(1)
        extra = BIAS if name in ("fig4", "bias-all-tasks") else {}
        table = DRAW[name](name, flags.results, **extra)
        (flags.results / "figures").mkdir(exist_ok=True)
        (flags.results / "figures" / f"{name}.md").write_text(table)
        print(f"{name}\n{table}")


if __name__ == "__main__":
    main(tyro.cli(Flags))
