"""From a run's rows to what may be said: curves, areas under them, intervals, and which of two agents is better.

Definitions of IQM, stratified bootstrap and probability of improvement are rliable's (Agarwal et al., 2021).
"""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter
from scipy.stats import norm

from omnet_sac import UsageError

matplotlib.use("Agg")  # into files, on machines without a display too
# Okabe & Ito's, which the colour-blind can tell apart, but for their yellow, too pale, and grey, the published curves';
# line styles tell curves apart in print
COLORS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B", "#7B3FA0"]
STYLES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))]
DRAWS = 2000  # of a bootstrap
LEVEL, POWER = 0.05, 0.8  # of a test, where seeds are counted


@cache
def read(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file of numbers; empty fields are NaN. Raises UsageError where it is none."""
    try:
        with path.open() as file:
            header, *rows = csv.reader(file)
        table = np.array([[float(x) if x else np.nan for x in row] for row in rows]).reshape(len(rows), len(header))
    except ValueError as error:
        raise UsageError(f"{path} is not a table of numbers: {error}") from None
    return dict(zip(header, table.T))


def curve(folder: Path, file: str = "eval.csv", column: str = "return") -> dict[int, float]:
    """The mean of a column at each step."""
    table, means = read(folder / file), defaultdict(list)
    if not {"step", column} <= table.keys():
        raise UsageError(f"{folder / file} has no columns step and {column}")
    for step, value in zip(table["step"], table[column]):
        means[int(step)].append(value)
    return {step: float(np.mean(values)) for step, values in means.items()}


def stack(curves: list[dict[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,) that all curves have, and their values (seeds, T)."""
    steps = sorted(set.intersection(*(set(c) for c in curves)))
    return np.array(steps), np.array([[c[step] for step in steps] for c in curves])


def area(values: np.ndarray) -> np.ndarray:
    """Area under the curve: the mean over all evaluations, of values (..., T)."""
    return values.mean(-1)


def last_sixth(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Section 4.1: the mean over the last sixth of the steps (T,), the last 50K of 300K, of values (..., T)."""
    return values[..., steps > steps[-1] * 5 / 6].mean(-1)


def score(folder: Path) -> float:
    """The mean evaluation return over the last sixth of a run."""
    steps, values = stack([curve(folder)])
    return float(last_sixth(steps, values)[0])


def normalised(values: np.ndarray, zero: np.ndarray, one: np.ndarray) -> np.ndarray:
    """`values` on the scale on which the mean of `zero` is 0 and the mean of `one` is 1."""
    return (values - zero.mean()) / (one.mean() - zero.mean())


def iqm(values: np.ndarray) -> float:
    """Mean of the middle half; with weights at its edges, so that every number of values has one."""
    values = np.sort(np.ravel(values))
    edges = np.arange(len(values) + 1) / len(values)
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return float(weights @ values / weights.sum())


def bootstrap(groups: list[np.ndarray], statistic: Callable) -> tuple[float, float]:
    """95% percentile interval of `statistic(groups)`, each group (seeds, ...) resampled by itself (stratified)."""
    rng = np.random.default_rng(0)
    resampled = ([group[rng.integers(len(group), size=len(group))] for group in groups] for _ in range(DRAWS))
    low, high = np.percentile([statistic(sample) for sample in resampled], [2.5, 97.5], axis=0)
    return low, high


def improvement(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
    """Probability of improvement: P(X > Y), a tie counting half, of the seeds x (m,) and y (n,) of each task; its mean
    over tasks."""
    return float(np.mean([(np.sign(x[:, None] - y) + 1).mean() / 2 for x, y in zip(xs, ys)]))


def pooled(xs: list[np.ndarray], ys: list[np.ndarray]) -> tuple[list[np.ndarray], Callable]:
    """The seeds of both agents as groups of one sample, and the probability of improvement as a statistic of it."""
    return [*xs, *ys], lambda sample: improvement(sample[: len(xs)], sample[len(xs) :])


def least_p(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
    """The smallest two-sided p that a permutation test within tasks can give: could these seeds decide at all?"""
    return min(1, 2 / math.prod(math.comb(len(x) + len(y), len(x)) for x, y in zip(xs, ys)))


def seeds_to_decide(probability: float, num_tasks: int) -> float:
    """Seeds per agent and task with which a rank test at 5% finds such a probability of improvement in 80% of all
    cases, by the formula of Noether (1987), the variance of the mean over tasks being that of one over their number."""
    z = norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)
    return math.inf if probability == 0.5 else math.ceil(z**2 / (6 * num_tasks * (probability - 0.5) ** 2))


def verdict(xs: list[np.ndarray], ys: list[np.ndarray]) -> str:
    """Is X better than Y, worse, or is that undecided, and about how many more seeds would decide?"""
    low, high = bootstrap(*pooled(xs, ys))
    if least_p(xs, ys) <= LEVEL and not low <= 0.5 <= high:
        return "better" if low > 0.5 else "worse"
    needed = seeds_to_decide(improvement(xs, ys), len(xs)) - min(len(seeds) for seeds in (*xs, *ys))
    if needed > 1000:
        return "undecided: at the effect seen, which is next to none, it would take more than 1000 more seeds per task"
    return f"undecided: about {max(1, needed)} more seeds per task would decide at the effect seen"


def told(groups: list[np.ndarray], statistic: Callable, digits: int) -> str:
    """`statistic(groups) [low, high]`; without an interval if a group has but one seed."""
    point = f"{statistic(groups):.{digits}f}"
    if min(map(len, groups)) < 2:
        return point
    low, high = bootstrap(groups, statistic)
    return f"{point} [{low:.{digits}f}, {high:.{digits}f}]"


def interval(values: list[float] | np.ndarray, statistic: Callable = np.mean, digits: int = 0) -> str:
    """`mean [low, high]` over seeds."""
    return told([np.array(values)], lambda sample: statistic(sample[0]), digits)


def ratio_text(values: np.ndarray, reference: np.ndarray) -> str:
    """`ratio [low, high]` of the means of two groups of seeds; empty where the reference's is not positive."""
    if reference.mean() <= 0:
        return ""
    return told([values, reference], lambda sample: sample[0].mean() / sample[1].mean(), 2)


def iqm_text(groups: list[np.ndarray]) -> str:
    """`IQM [low, high]` of the scores (seeds,) of several tasks."""
    return told(groups, lambda sample: iqm(np.concatenate(sample)), 2)


def improvement_text(xs: list[np.ndarray], ys: list[np.ndarray]) -> str:
    """`probability [low, high]` of improvement."""
    return told(*pooled(xs, ys), 2)


def markdown(header: str, rows: list[list]) -> str:
    """A table; the columns of its header are separated by ` | `."""
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def line_style(k: int) -> dict:
    """Colour and line of the k-th curve; no two of the first 63 share both."""
    return {"color": COLORS[k % 9], "linestyle": STYLES[(k + k // 9) % 7]}


def along(axis, quantity: str = "environment steps") -> None:
    """The x axis of a curve."""
    axis.set_xlabel(quantity)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 40k


def panels(tasks: Collection, height: float = 3.8, rows: int = 1):
    """A figure with a panel per task in each row: the figure, and its axes (rows, tasks)."""
    size = 3 + 4 * len(tasks), height
    return plt.subplots(rows, len(tasks), figsize=size, squeeze=False, layout="constrained")


def legend_beside(fig, axes) -> None:
    """One legend for all panels, beside them, in as many columns as its lines need."""
    labels = {label: line for axis in np.ravel(axes) for line, label in zip(*axis.get_legend_handles_labels())}
    width, height = fig.get_size_inches()
    columns = 1 + len(labels) // int(5 * height)  # lines of a legend to the inch
    fig.set_figwidth(width + 3 * (columns - 1))
    fig.legend(labels.values(), labels, loc="outside right upper", fontsize=8, frameon=False, ncols=columns)


def save(fig, path: Path) -> None:
    fig.savefig(path, dpi=110)
    plt.close(fig)


def draw(axis, steps: np.ndarray, values: np.ndarray, k: int, label: str) -> None:
    """The mean of values (seeds, T) at steps (T,) on a matplotlib axis, as its k-th curve, with its 95% interval."""
    axis.plot(steps, values.mean(0), label=label, **line_style(k))
    if len(values) > 1:
        low, high = bootstrap([values], lambda groups: groups[0].mean(0))
        axis.fill_between(steps, low, high, color=COLORS[k % 9], alpha=0.2, linewidth=0)
