"""From a run's rows to what may be said: curves, areas under them, intervals, and which of two agents is better.

IQM and probability of improvement are rliable's (Agarwal et al., 2021); its bootstrap is not, which is too narrow for
fewer than ten seeds.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter
from scipy.signal import convolve
from scipy.stats import norm, rankdata, t, trim_mean

from omnet_sac import UsageError

matplotlib.use("Agg")  # into files, on machines without a display too
# Okabe & Ito's, which the colour-blind can tell apart, but for their yellow, too pale, and grey, the published curves';
# line styles tell curves apart in print
COLORS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B", "#7B3FA0"]
STYLES = ["-", "--", "-.", ":", (0, (9, 2, 1, 2, 1, 2)), (0, (3, 1, 1, 1)), (0, (1, 1))]
LEVEL, POWER = 0.05, 0.8  # of a test; intervals are of 1 - LEVEL
TRIMMED = 0.25  # of each tail, for an IQM


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


def normalised(values: np.ndarray, zero: np.ndarray, one: np.ndarray) -> np.ndarray:
    """`values` on the scale on which the mean of `zero` is 0 and the mean of `one` is 1."""
    return (values - zero.mean()) / (one.mean() - zero.mean())


def margins(groups: list[np.ndarray], share: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """How far below and above the sum of the means of independent groups (seeds, ...) its true value may lie, with 95%:
    arrays (...), NaN where a group has but one seed.

    Student's t with Welch's degrees of freedom, and on the side of the longer tail as much more as the skewness term of
    the Edgeworth expansion shifts it (Hall, 1983). Only a `share` of the seeds counts, of a trimmed mean's.
    """
    counts = np.array([share * len(group) for group in groups])
    if counts.min() <= 1:
        return np.nan, np.nan
    off = [group - group.mean(0) for group in groups]
    parts = np.array([(d**2).sum(0) / (n * (n - 1)) for d, n in zip(off, counts)])
    skews = sum((d**3).sum(0) / (n * (n - 1) * max(n - 2, 1)) for d, n in zip(off, counts))  # those of two cancel
    error = np.sqrt(parts.sum(0))
    with np.errstate(invalid="ignore"):  # seeds that are all alike leave no doubt: 0 / 0
        quantile = t.ppf(1 - LEVEL / 2, error**4 / np.tensordot(1 / (counts - 1), parts**2, 1))
        half, more = np.nan_to_num([quantile * error, skews / error**2 * (2 * quantile**2 + 1) / 6])
    return half - np.minimum(more, 0), half + np.maximum(more, 0)


def improvement(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
    """Probability of improvement: P(X > Y), a tie counting half, of the seeds x (m,) and y (n,) of each task; its mean
    over tasks."""
    return float(np.mean([(np.sign(x[:, None] - y) + 1).mean() / 2 for x, y in zip(xs, ys)]))


def improvement_bounds(xs: list[np.ndarray], ys: list[np.ndarray]) -> tuple[float, float]:
    """95% interval of the probability of improvement, within [0, 1] and with a width even where all seeds of one agent
    are above all of the other: Newcombe's (2006) fifth, which holds what a test with the variance of Hanley and McNeil
    does not refute, continuity corrected; at 1/2 this is the test by ranks."""
    m, n = (np.array([*map(len, groups)])[:, None] for groups in (xs, ys))
    true = np.linspace(0, 1, 10_001)
    alike = ((m + n) / 2 - 1) * ((1 - true) / (2 - true) + true / (1 + true))  # pairs that share a seed
    error = np.sqrt((true * (1 - true) / (m * n) * (1 + alike)).sum(0)) / len(xs)
    off = abs(improvement(xs, ys) - true) - 1 / (2 * (m * n).sum())
    low, high = true[off <= norm.ppf(1 - LEVEL / 2) * error][[0, -1]]
    return float(low), float(high)


def rank_test(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
    """Two-sided p of the probability of improvement, exact also with ties: the share of all ways of dealing the seeds
    of each task to two agents that bring its mean over tasks as far from 1/2."""
    grid = math.lcm(*(2 * len(x) * len(y) for x, y in zip(xs, ys)))  # steps of one task's probability
    chances = np.ones(1)  # of each sum over tasks
    for x, y in zip(xs, ys):
        m, n, ranks = len(x), len(y), (2 * rankdata([*x, *y])).astype(int)
        ways = np.zeros((m + 1, ranks.sum() + 1))  # by how many of the seeds so far are X's, and the sum of their ranks
        ways[0, 0] = 1
        for rank in ranks:
            ways[1:, rank:] += ways[:-1, :-rank]
        task = np.zeros(grid + 1)
        task[:: grid // (2 * m * n)] = ways[m, m * (m + 1) :][: 2 * m * n + 1] / math.comb(m + n, m)
        chances = convolve(chances, task)
    top = len(xs) * grid
    seen = round(top * improvement(xs, ys))
    return min(1.0, float(chances[abs(2 * np.arange(top + 1) - top) >= abs(2 * seen - top)].sum()))


def seeds_to_decide(probability: float, num_tasks: int) -> float:
    """Seeds per agent and task with which a rank test at 5% finds such a probability of improvement in 80% of all
    cases, by the formula of Noether (1987), the variance of the mean over tasks being that of one over their number."""
    z = norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)
    away = round(abs(probability - 0.5), 9)  # the same for 0.3 and 0.7
    return math.ceil(z**2 / (6 * num_tasks * away**2)) if away else math.inf


def verdict(xs: list[np.ndarray], ys: list[np.ndarray]) -> str:
    """Is X better than Y, worse, or is that undecided, and about how many more seeds would decide?"""
    probability = improvement(xs, ys)
    if rank_test(xs, ys) <= LEVEL + 1e-9:  # 1/20 is 5%, however it was summed
        return "better" if probability > 0.5 else "worse"
    needed = seeds_to_decide(probability, len(xs)) - min(len(seeds) for seeds in (*xs, *ys))
    if needed > 1000:
        return "undecided: at the effect seen, which is next to none, it would take more than 1000 more seeds per task"
    return f"undecided: about {max(1, needed)} more seeds per task would decide at the effect seen"


def told(point: float, groups: list[np.ndarray], digits: int, share: float = 1) -> str:
    """`point [low, high]` of a sum of means of groups; without an interval if a group has but one seed."""
    below, above = margins(groups, share)
    text = f"{point:.{digits}f}"
    return text if np.isnan(below) else f"{text} [{point - below:.{digits}f}, {point + above:.{digits}f}]"


def interval(values: list[float] | np.ndarray, digits: int = 0) -> str:
    """`mean [low, high]` over seeds."""
    return told(np.mean(values), [np.array(values)], digits)


def ratio_text(values: np.ndarray, reference: np.ndarray) -> str:
    """`ratio [low, high]` of the means of two groups of seeds, by its linear terms; empty where the reference's is not
    positive."""
    one = reference.mean()
    return told(values.mean() / one, [values / one, -values.mean() * reference / one**2], 2) if one > 0 else ""


def iqm_text(groups: list[np.ndarray], digits: int = 2) -> str:
    """`IQM [low, high]` of the scores (seeds,) of several tasks: the mean of what is left without int(n / 4) scores at
    either end. Its interval is Tukey and McLaughlin's, from scores whose ends are set to the last ones kept."""
    scores = np.sort(np.concatenate(groups))
    cut = int(TRIMMED * len(scores))
    weighted = [np.clip(g, scores[cut], scores[-1 - cut]) * len(g) / len(scores) for g in groups]
    return told(trim_mean(scores, TRIMMED), weighted, digits, 1 - 2 * cut / len(scores))


def improvement_text(xs: list[np.ndarray], ys: list[np.ndarray]) -> str:
    """`probability [low, high], p = p` of improvement."""
    low, high = improvement_bounds(xs, ys)
    p = rank_test(xs, ys)
    return f"{improvement(xs, ys):.2f} [{low:.2f}, {high:.2f}], " + (f"p = {p:.2g}" if p >= 0.001 else "p < 0.001")


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


def legend_below(fig, axes) -> None:
    """One legend for all panels, below them, with the number of seeds in each panel of the first row that says it."""
    lines, seeds = {}, defaultdict(list)
    for axis in np.ravel(axes):
        for line, label in zip(*axis.get_legend_handles_labels()):
            lines[label] = line
            if axis in axes[0] and getattr(line, "seeds", 0):
                seeds[label].append(line.seeds)
    counts = {label: ", ".join(map(str, dict.fromkeys(n))) for label, n in seeds.items()}
    told = {label: f" ({text} seed{'s' * (text != '1')})" for label, text in counts.items()}
    labels = [label + told.get(label, "") for label in lines]
    width, height = fig.get_size_inches()
    columns = max(1, int(width / (0.7 + 0.075 * max(map(len, labels)))))
    fig.set_figheight(height + 0.19 * -(-len(lines) // columns))
    fig.legend(lines.values(), labels, loc="outside lower left", fontsize=8, frameon=False, ncols=columns)


def save(fig, path: Path) -> None:
    fig.savefig(path, dpi=110)
    plt.close(fig)


def draw(axis, steps: np.ndarray, values: np.ndarray, k: int, label: str) -> None:
    """The mean of values (seeds, T) at steps (T,) on a matplotlib axis, as its k-th curve, with its 95% interval; of
    two or three seeds, whose interval would fill the picture, with each of them as a thin line."""
    mean, (below, above) = values.mean(0), margins([values])
    with as_wide_as(axis, np.tile(steps, len(values)), values.ravel()):
        if len(values) > 3:
            axis.fill_between(steps, mean - below, mean + above, color=COLORS[k % 9], alpha=0.15, linewidth=0)
        elif len(values) > 1:
            axis.plot(steps, values.T, linewidth=0.5, alpha=0.7, **line_style(k))
    (line,) = axis.plot(steps, mean, label=label, marker="." * (len(steps) == 1), **line_style(k))
    line.seeds = len(values)


@contextmanager
def as_wide_as(axis, x: np.ndarray, y: np.ndarray) -> Iterator[None]:
    """Lets the axis reach as far as these points, not as what is drawn here: an interval of two seeds is cut off."""
    seen = axis.dataLim.frozen()
    yield
    axis.dataLim.set(seen)
    axis.update_datalim(np.column_stack([x, y]))
