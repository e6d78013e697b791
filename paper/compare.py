"""Is my idea better? Contenders against each other: one command, an answer with an interval.

    python -m paper.compare my_idea.py
    python -m paper.compare "my_idea.py --sparsity 0.8" redq --seeds 10 --env-ids Hopper-v4 -- --learning-rate 1e-3

A contender is a script that has the command line and the run folder of omnet_sac.py (a copy of it, whatever was changed
inside), or a method of paper.baselines; each with flags, if any, in one word of the shell. The first one is what the
others are compared with: omnet_sac.py, unless it is named. Flags after `--` are for all contenders. A run is kept in
`<results>/<name>-<hash>/`: of flags, program, all that it imports but installed packages, and the module of
`module:EnvId`, so that nothing is reused once one of these has changed.
"""

import ast
import importlib.util
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import tyro

from omnet_sac import UsageError, check_args
from paper.baselines import METHODS, method_args
from paper.flops import sizes
from paper.stats import (
    along,
    area,
    curve,
    draw,
    improvement_text,
    interval,
    iqm_text,
    last_sixth,
    legend_below,
    markdown,
    normalised,
    panels,
    read,
    save,
    stack,
    verdict,
)
from paper.sweep import (
    PROTOCOLS,
    ROOT,
    Resources,
    Run,
    digest,
    finished_runs,
    flags_of,
    gflop,
    has_ended,
    one_sentence,
    print_help,
    run_missing,
    size_folder,
    split,
    words_of,
)

BASELINE = "omnet_sac.py"
WHOLE = ("total_timesteps", "learning_starts", "eval_interval", "hidden_dim", "buffer_size")
ADVICE = "A miniature is not the original: `--protocol paper` has the paper's tasks and size."


@dataclass
class Flags(Resources):
    """Runs contenders against each other and says which is better. Flags after -- are training flags for all."""

    contenders: tyro.conf.Positional[tuple[str, ...]] = ()
    """scripts and methods of paper.baselines, each with flags if any; the first is what others are compared with"""
    protocol: Literal[tuple(PROTOCOLS)] = "small"
    """two quick tasks in miniature, minutes per run; or the paper's four tasks and size, hours per run"""
    env_ids: tuple[str, ...] = ()
    """tasks; none given: the protocol's"""
    seeds: int = 10
    """runs of each contender on each task, with seeds 1, 2, ..."""
    results: Path = Path("runs/compare")
    """folder of all runs, and of compare.md and compare.png"""
    reference: Path = ROOT / "paper" / "results" / "earlier_streams"
    """results with the runs of SAC and REDQ that set the scale; only read"""
    dry_run: bool = False
    """print the commands and what they cost, and run nothing"""


@dataclass(frozen=True)
class Contender:
    """What is compared: a program and its flags, in the words of the user."""

    text: str
    program: tuple[str, ...]
    flags: dict

    @property
    def name(self) -> str:
        return Path(self.program[-1]).stem

    def run(self, flags: dict, results: Path, files: tuple[Path, ...]) -> Run:
        """Its run with these flags, in a folder that is named by its files and all flags but task and seed."""
        code, same = digest(files), {name: value for name, value in flags.items() if name not in ("env_id", "seed")}
        key = sha256("\n".join([code, *words_of(dict(sorted(same.items())))]).encode()).hexdigest()[:8]
        return Run(self.program, flags | {"run_dir": results / f"{self.name}-{key}"}, files, code)


def imported(file: Path, folders: list[Path]) -> Iterator[Path]:
    """The files that a Python file imports, anywhere in it, of those that are in these folders."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        module, level = getattr(node, "module", None), getattr(node, "level", 0)
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else []:
            parts = [*(module.split(".") if module else []), *alias.name.split(".")]
            for k, part in enumerate(parts):
                within = [f.joinpath(*parts[:k]) for f in ([file.parents[level - 1]] if level else folders)]
                found = [f / name for f in within for name in (f"{part}/__init__.py", f"{part}.py")]
                yield from [path for path in found if path.exists()][:1]


def sources(program: tuple[str, ...], env_id: str) -> tuple[Path, ...]:
    """The files of a program and of the module in `module:EnvId`, with all that they import but installed packages.

    Raises UsageError where one of them is no Python.
    """
    files = [ROOT / "paper" / "baselines.py" if program[0] == "-m" else Path(program[0])]
    paths = [p for p in sys.path if "site-packages" not in p and not Path(p).is_relative_to(sys.base_prefix)]
    folders = [files[0].parent, ROOT, *map(Path, paths)]
    if ":" in env_id:
        files.append(Path(importlib.util.find_spec(env_id.split(":")[0]).origin))
    for file in files:
        try:
            files += [path for path in dict.fromkeys(imported(file, folders)) if path not in files]
        except (SyntaxError, ValueError) as error:
            raise UsageError(f"{file} is no Python: {error}") from None
    return tuple(files)


def contender(text: str) -> Contender:
    """A contender from its word on the command line. Raises UsageError where there is no such program."""
    program, *words = shlex.split(text) or [""]
    if program in METHODS:
        program = "-m", "paper.baselines", program
    elif Path(program).suffix == ".py" and Path(program).is_file():
        program = (program,)
    elif program == BASELINE:
        program = (str(ROOT / BASELINE),)
    else:
        raise UsageError(f"{program or 'nothing'} is neither a script (.py) nor one of {', '.join(METHODS)}")
    return Contender(text, program, flags_of(words))


def contenders(texts: tuple[str, ...]) -> list[Contender]:
    """The contenders, omnet_sac.py before them unless it is among two or more."""
    found = [contender(text) for text in dict.fromkeys(texts)]
    if len(found) < 2 or not any(Path(c.program[-1]).resolve() == ROOT / BASELINE for c in found):
        found = [contender(BASELINE), *(c for c in found if c.text != BASELINE)]
    if len(found) < 2:
        raise UsageError("there is nothing to compare omnet_sac.py with")
    return found


def contender_runs(flags: Flags, rivals: list[Contender], words: list[str]) -> dict[str, dict[str, list[Run]]]:
    """By contender and task, a run for each seed. Raises UsageError where one cannot work."""
    if flags.seeds < 1:
        raise UsageError("--seeds must be positive")
    protocol, shared, seeds = PROTOCOLS[flags.protocol], flags_of(words), range(1, flags.seeds + 1)
    device = {"device": "cuda"} if flags.num_gpus else {}
    runs = {rival.text: {} for rival in rivals}
    for rival in rivals:
        for env_id in flags.env_ids or protocol.compared:
            sizes(env_id)
            size = {k: v for k, v in protocol.size(env_id).items() if k != "bias_interval"}  # which scripts do not know
            given = {"env_id": env_id} | size | device | shared | rival.flags
            given = checked(rival.program[-1], given) if rival.program[0] == "-m" else whole(given)
            files = sources(rival.program, env_id)
            runs[rival.text][env_id] = [rival.run(given | {"seed": seed}, flags.results, files) for seed in seeds]
    return runs


def whole(flags: dict) -> dict:
    """The flags of a script, of which those that must be known here are whole numbers. Raises UsageError."""
    try:
        return flags | {name: int(flags[name]) for name in WHOLE if name in flags}
    except ValueError as error:
        raise UsageError(f"{', '.join(WHOLE)} must be whole numbers: {error}") from None


def checked(method: str, flags: dict) -> dict:
    """The flags of a method of paper.baselines, in its types. Raises UsageError where they cannot work."""
    args = method_args(method, words_of(flags))
    check_args(args)
    return {name: getattr(args, name) for name in flags}


@dataclass
class Task:
    """What finished runs say on a task: steps (T,); by contender mean returns (seeds, T), seconds and GFLOPs of a run.

    `scale` holds the mean returns of the reference runs of SAC and REDQ, if there are both.
    """

    env_id: str
    steps: np.ndarray
    values: dict[str, np.ndarray]
    scale: dict[str, np.ndarray]
    seconds: dict[str, float]
    gflops: dict[str, float]

    def scores(self, text: str) -> np.ndarray:
        """Areas under the curves of a contender (seeds,), 0 being that of SAC and 1 that of REDQ."""
        return normalised(area(self.values[text]), *map(area, self.scale.values()))


def reference_runs(flags: Flags, run: Run) -> dict[str, list[Path]]:
    """Runs of SAC and REDQ on the task of a contender's run, at its size; {} where one of the two was not run."""
    size = {name: run.flags[name] for name in ("hidden_dim", "learning_starts", "eval_interval")}
    folder, found = size_folder(flags.reference, flags.protocol, size["hidden_dim"]), {}
    for label, method in (("SAC", "sac"), ("REDQ", "redq")):
        runs = finished_runs(folder, method, run.flags["env_id"], size)
        found[f"{label}, reference"] = [path for path in runs if has_ended(path, run.flags)]
    return found if all(found.values()) else {}


def read_task(flags: Flags, env_id: str, runs: dict[str, list[Run]]) -> Task | None:
    """What the contenders' finished runs on a task say; None where the first has none."""
    ended = {t: [r for r in found if r.folder and has_ended(r.folder, r.flags)] for t, found in runs.items()}
    if not ended[next(iter(runs))]:
        return None
    ended = {text: found for text, found in ended.items() if found}
    reference = reference_runs(flags, next(iter(ended.values()))[0])
    folders = {text: [run.folder for run in found] for text, found in ended.items()} | reference
    steps, values = stack([curve(folder) for found in folders.values() for folder in found])
    if not len(steps):
        raise UsageError(f"{env_id}: there is no step at which all contenders were evaluated")
    values = dict(zip(folders, np.split(values, np.cumsum([len(found) for found in folders.values()])[:-1])))
    scale = {label: values.pop(label) for label in reference}
    seconds = {t: median(read(r.folder / "eval.csv")["seconds"][-1] for r in found) for t, found in ended.items()}
    return Task(env_id, steps, values, scale, seconds, {text: gflop(found[0]) for text, found in ended.items()})


def relative(tasks: list[Task], text: str, first: str, quantity: str) -> str:
    """Time or FLOPs of a contender relative to the first one's, the geometric mean over tasks."""
    ratios = [getattr(task, quantity)[text] / getattr(task, quantity)[first] for task in tasks]
    return f"{np.exp(np.mean(np.log(ratios))):.2f}"


def answer(tasks: list[Task], texts: list[str]) -> str:
    """What to say of the contenders: a sentence for each, a table over all tasks, one for each task."""
    first, *others = texts
    by_text = {text: [task for task in tasks if text in task.values] for text in texts}
    sentences, rows = [], []
    for text, own in by_text.items():
        if not own:
            sentences.append(f"{text}: no run has finished.")
            continue
        xs, ys = ([area(task.values[t]) for task in own] for t in (text, first))
        better = improvement_text(xs, ys) if text in others else ""
        if text in others:
            seeds = f"{min(map(len, (*xs, *ys)))} seeds on {', '.join(task.env_id for task in own)}"
            told = f"{verdict(xs, ys)}; probability of improvement {better}, {seeds}"
            sentences.append(f"**{text} against {first}: {told}.**")
        scaled = [task.scores(text) for task in own if task.scale]
        score = iqm_text(scaled) if scaled else "no reference"
        times = [relative(own, text, first, quantity) for quantity in ("seconds", "gflops")]
        rows.append([text, score, better, *times])
    unscaled = [task.env_id for task in tasks if not task.scale]
    if unscaled:
        told = f"SAC and REDQ were not run at this size on {', '.join(unscaled)}: these are left out of the score."
        sentences.append(told)
    header = f"contender | score, IQM [95%]: 0 = SAC, 1 = REDQ | P(better than {first}) [95%] | time | FLOPs"
    parts = ["\n\n".join(sentences), markdown(header, rows)]
    header = "contender | seeds | area under the curve [95%] | final score [95%] | P(better) [95%] | time | FLOPs"
    for task in tasks:
        rows = []
        for text, values in task.values.items():
            areas, scores = area(values), last_sixth(task.steps, values)
            better = improvement_text([areas], [area(task.values[first])]) if text != first else ""
            times = [relative([task], text, first, quantity) for quantity in ("seconds", "gflops")]
            rows.append([text, len(values), interval(areas), interval(scores), better, *times])
        for label, values in task.scale.items():
            scores = last_sixth(task.steps, values)
            rows.append([label, len(values), interval(area(values)), interval(scores), "", "", ""])
        parts.append(f"{task.env_id}, {task.steps[-1]:,} steps\n\n{markdown(header, rows)}")
    return "\n".join(parts)


def draw_tasks(tasks: list[Task], texts: list[str], path: Path) -> None:
    """A panel per task: a curve with its interval per contender, the reference runs thin and grey."""
    fig, axes = panels(tasks)
    for axis, task in zip(axes[0], tasks):
        for text, values in task.values.items():
            draw(axis, task.steps, values, texts.index(text), text)
        for (label, values), style in zip(task.scale.items(), (":", "-")):
            axis.plot(task.steps, values.mean(0), color="0.6", linewidth=1, linestyle=style, label=label)
        axis.set(title=task.env_id, ylabel="return")
        along(axis)
    legend_below(fig, axes)
    save(fig, path)


def main(flags: Flags, words: list[str] = ()) -> None:
    """Runs what is missing and answers. Exit code 1 if a run failed, or if there is nothing to answer with."""
    if not flags.contenders:
        print_help(Flags)
    with one_sentence():
        rivals = contenders(flags.contenders)
        texts = [rival.text for rival in rivals]
        runs = contender_runs(flags, rivals, words)
        every = {run.name: run for by_task in runs.values() for found in by_task.values() for run in found}
        failed = run_missing([*every.values()], flags, flags.dry_run)
        if not flags.dry_run:
            found = [read_task(flags, env_id, {t: runs[t][env_id] for t in texts}) for env_id in runs[texts[0]]]
            tasks = [task for task in found if task]
            if not tasks:
                print(f"error: no run of {texts[0]} has finished: there is no answer", file=sys.stderr)
                sys.exit(1)
            told = answer(tasks, texts) + (f"\n{ADVICE}\n" if flags.protocol == "small" else "")
            (flags.results / "compare.md").write_text(told)
            draw_tasks(tasks, texts, flags.results / "compare.png")
            print(f"\n{told}\nalso in {flags.results / 'compare.md'}, curves in {flags.results / 'compare.png'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    own, training = split(sys.argv[1:], Flags)
    main(tyro.cli(Flags, args=own), training)
