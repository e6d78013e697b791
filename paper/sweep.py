"""Training runs as processes on Ray: which are missing, run, resumed, retried, reported.

A run is one command, `python my_idea.py ...` or `python -m paper.baselines redq ...`. The command line and the run
folder of omnet_sac.py are all that is asked of it. What it prints goes to a file beside its run folder.
"""

import dataclasses
import json
import operator
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import ray
import tyro
from ray import cloudpickle
from tqdm import tqdm

from omnet_sac import Args, UsageError, whole_numbers
from paper.baselines import METHODS, method_args
from paper.flops import gflop_per_step, reason, script_gflop_per_step, sizes

ROOT = Path(__file__).parent.parent
EFFECTIVE_GFLOPS = 40  # of matrix products per second of training, one thread of a 2-core AVX-512 CPU (paper.speed)
START_SECONDS = 30  # of a run: imports, compiling
# Flags that do not change what a run learns and records
FREE = {"run_dir", "resume", "evaluate", "device", "track", "compile", "capture_video", "checkpoint_interval"}
# How large a run is and what is recorded beside it: not part of what its method is
SIZE = {"total_timesteps", "learning_starts", "hidden_dim", "eval_interval", "eval_episodes"}
RECORDED = {"bias_interval", "trajectory_interval"}
# Flags that differ from run to run, and what says so for a sweep
OWN = {"env_id": "name tasks by --env-ids", "seed": "say how many by --seeds", "run_dir": "name a folder by --results"}
OWN |= {"resume": "the same command again resumes what is not finished", "evaluate": "use omnet_sac.py itself"}


@dataclass(frozen=True)
class Protocol:
    """A size of runs: flags of every run, and what differs on a task. `compared` are the tasks of paper.compare."""

    flags: dict
    tasks: dict[str, dict]
    compared: tuple[str, ...]

    def size(self, env_id: str) -> dict:
        """The flags of a run on a task, which may be one that the protocol does not name."""
        return self.flags | self.tasks.get(env_id, {})


SMALL = {"hidden_dim": 64, "total_timesteps": 20_000, "learning_starts": 1_000, "eval_interval": 1_000}
SMALL |= {"eval_episodes": 5, "bias_interval": 5_000}
PAPER = {"hidden_dim": 256, "total_timesteps": 300_000, "learning_starts": 5_000, "eval_interval": 5_000}
PAPER |= {"eval_episodes": 10, "bias_interval": 5_000}
PENDULUM = {"total_timesteps": 6_000, "eval_interval": 300, "bias_interval": 1_500}
HOPPER = {"total_timesteps": 40_000, "learning_starts": 5_000, "eval_interval": 2_000}
QUICK, TASKS = "InvertedDoublePendulum-v4", ("Hopper-v4", "Walker2d-v4", "Ant-v4", "Humanoid-v4")
PROTOCOLS = {
    "small": Protocol(SMALL, {QUICK: PENDULUM, "HalfCheetah-v4": {}, "Hopper-v4": HOPPER}, (QUICK, "HalfCheetah-v4")),
    "paper": Protocol(PAPER, {env_id: {} for env_id in TASKS}, TASKS),
}


@dataclass
class Resources:
    """What a sweep runs on."""

    ray_address: str | None = None
    """address of a running Ray cluster; None: this machine alone"""
    num_cpus: float = 1
    """cores per run; each run has one thread"""
    num_gpus: float = 0
    """share of a GPU per run, 0.25 for four runs on one; above 0, runs are on cuda"""
    retries: int = 3
    """times that a run is resumed after its process died"""


def split(words: list[str], flags_class: type) -> tuple[list[str], list[str]]:
    """A command line in two: arguments of `flags_class`, and flags that it does not know, which are for training."""
    names = {f.name for f in dataclasses.fields(flags_class)} | {"help"}
    own, training = [], []
    current = own
    for word in words:
        if word.startswith("--"):
            name = word[2:].split("=")[0].replace("-", "_")
            current = own if name in names or name.removeprefix("no_") in names else training
        if word != "--":
            current.append(word)
    return own, training


def flags_of(words: list[str]) -> dict:
    """Training flags by name from a command line: `--gamma 0.9 --no-compile` is {"gamma": "0.9", "compile": False}.

    Several values are a list. Raises UsageError for what is no flag, and for flags that a sweep sets itself.
    """
    flags, name = {}, None
    for word in whole_numbers(Args(), words):
        if word.startswith("--"):
            name, *values = word[2:].split("=", 1)
            flags[name] = values
        elif name is None:
            raise UsageError(f"{word} is neither a flag nor the value of one")
        else:
            flags[name].append(word)
    named = {}
    for name, values in flags.items():
        negated = name.startswith("no-") and not values
        value = (values if len(values) > 1 else values[0]) if values else not negated
        named[name.removeprefix("no-" if negated else "").replace("-", "_")] = value
    for name in OWN.keys() & named.keys():
        raise UsageError(f"--{name.replace('_', '-')} is for a single run: {OWN[name]}")
    return named


def words_of(flags: dict) -> list[str]:
    """The command line of flags by name; those that are None are left out."""
    words = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words


def typed_flags(method: str, words: list[str]) -> dict:
    """Training flags from the command line, as the method types them; ends the program where it does not know one."""
    if not words:
        return {}
    args = method_args(method, words)
    return {name: getattr(args, name) for name in flags_of(words)}


@dataclass(frozen=True)
class Run:
    """One training run.

    `program` is what follows `python`: a script, or -m paper.baselines and a method. `flags`, by name, have env_id,
    seed, run_dir, total_timesteps, learning_starts, eval_interval at least. With `code`, the SHA-256 of the `sources`,
    it is not run once these have changed.
    """

    program: tuple[str, ...]
    flags: dict
    sources: tuple[Path, ...] = ()
    code: str = ""

    @property
    def method(self) -> str | None:
        """The method of paper.baselines; None for a script."""
        return self.program[-1] if self.program[0] == "-m" else None

    @property
    def stem(self) -> Path:
        """`<run-dir>/<env>`, with which the names of run folder and log begin."""
        return Path(self.flags["run_dir"]) / self.flags["env_id"].replace(":", "-").replace("/", "-")

    @property
    def name(self) -> str:
        """What it is called in reports: the end of its run folder's path, with the script's name for its method's."""
        label = (self.method or Path(self.program[0]).stem).replace("-", "_")
        return "/".join([*self.stem.parts[-3:-1], f"{self.stem.name}__{label}__{self.flags['seed']}"])

    @property
    def log(self) -> Path:
        return self.stem.parent / f"{Path(self.name).name}.log"

    @property
    def folder(self) -> Path | None:
        """Its run folder `<env>__<method>__<seed>`, once it is there; what a script calls its method is not known."""
        method = self.method.replace("-", "_") if self.method else "*"
        found = self.stem.parent.glob(f"{self.stem.name}__{method}__{self.flags['seed']}/args.json")
        return next((path.parent for path in sorted(found)), None)

    @property
    def words(self) -> list[str]:
        """The command after `python`: to go on where there is a run, else with every flag."""
        begun = self.folder and (self.folder / "checkpoint.pt").exists()
        return [*self.program, *(["--resume", str(self.folder)] if begun else words_of(self.flags))]

    def command(self) -> str:
        return shlex.join(["python", *self.words])


def method_run(method: str, flags: dict) -> Run:
    """A run of a method of paper.baselines."""
    return Run(("-m", "paper.baselines", method), flags)


def stored_run(folder: Path) -> tuple[str, dict]:
    """Method and flags of the run in a folder. Raises UsageError where its args.json does not hold flags."""
    try:
        about = json.loads((folder / "args.json").read_text())
        flags = dict(about["args"])
        return str(about.get("method")), flags
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / 'args.json'} does not hold the flags of a run: {error}") from None


def stored_flags(folder: Path) -> dict:
    """The flags of the run in a folder. Raises UsageError where its args.json does not hold them."""
    return stored_run(folder)[1]


def last_step(path: Path) -> int:
    """The step of the last whole row of a run's CSV file; 0 without one. Raises UsageError where a row is none."""
    try:
        header, *lines = path.read_text().split("\n")[:-1] if path.exists() else [""]
        rows = [[float(x) for x in line.split(",")] for line in lines]
        if any(len(row) != len(header.split(",")) for row in rows):
            raise ValueError
        return int(rows[-1][0]) if rows else 0
    except ValueError:
        raise UsageError(f"{path} has rows that are not those of a run") from None


def has_ended(folder: Path, flags: dict) -> bool:
    """Do the evaluations of a run go as far as these flags say?"""
    total, interval = int(flags["total_timesteps"]), int(flags["eval_interval"]) or 1
    return last_step(folder / "eval.csv") >= (total // interval * interval or total)


def differences(method: str, flags: dict, stored: dict) -> dict:
    """The flags of a run of a method, defaults included, that a stored run does not share; it may be longer."""
    default = dataclasses.asdict(METHODS[method][1])
    asked, stored = default | flags, default | stored
    different = {k: v for k, v in asked.items() if k not in FREE and stored.get(k) != v}
    if isinstance(stored["total_timesteps"], int) and stored["total_timesteps"] > asked["total_timesteps"]:
        del different["total_timesteps"]
    return different


def beside(run: Run) -> Run:
    """The run of a method, where its folder holds one with other flags in a folder beside that is named by these."""
    try:
        different = differences(run.method, run.flags, stored_flags(run.folder)) if run.folder else {}
    except UsageError:
        return run  # `plan` reports it
    run_dir = "__".join([str(run.flags["run_dir"]), *(f"{k}_{v}" for k, v in sorted(different.items()))])
    return dataclasses.replace(run, flags=run.flags | {"run_dir": Path(run_dir)})


def plan(runs: list[Run]) -> tuple[list[Run], dict[str, str]]:
    """The runs that have not ended, and by name what is wrong with those that cannot go on."""
    missing, refused = [], {}
    for run in runs:
        try:
            stored = stored_flags(run.folder) if run.folder else {}
            different = differences(run.method, run.flags, stored) if stored and run.method else {}
            if different:
                told = ", ".join(f"{k} = {stored.get(k)}, not {v}" for k, v in different.items())
                raise UsageError(f"{run.folder} holds a run with {told}: move it away")
            if stored and has_ended(run.folder, run.flags):
                continue
            missing.append(run)
            begun, asked = stored.get("device"), run.flags.get("device", "cpu")
            if begun not in (None, asked):
                print(f"{run.folder} was begun on {begun} and goes on there, not on {asked}", file=sys.stderr)
        except UsageError as error:
            refused[run.name] = str(error)
    return missing, refused


def finished_runs(results: Path, method: str, env_id: str, flags: dict) -> list[Path]:
    """The folders of finished runs of a method on a task, by seed, all of one size: that with the most seeds, then the
    longest. Longer runs of it serve as well, since curves of several runs end with the shortest.

    `flags` are what differs from the method's defaults; what SIZE names and they do not may be anything. A run that
    cannot be read is named on stderr and left out.
    """
    groups, default, name = defaultdict(dict), dataclasses.asdict(METHODS[method][1]), METHODS[method][1].method
    fixed = default.keys() - SIZE - RECORDED - FREE - {"env_id", "seed"} | flags.keys()
    env_name = env_id.replace(":", "-").replace("/", "-")
    for path in sorted(results.glob(f"{name}*/{env_name}__{name}__*/args.json")):
        try:
            stored = default | stored_flags(path.parent)
            if all(stored.get(k) == (default | flags)[k] for k in fixed) and has_ended(path.parent, stored):
                group = groups[tuple(stored[k] for k in sorted(SIZE - {"total_timesteps"}))]
                run = stored["total_timesteps"], path.parent
                group[stored["seed"]] = max(group.get(stored["seed"], run), run)
        except (UsageError, ValueError, TypeError) as error:
            print(f"left out: {path.parent}: {error}", file=sys.stderr)
    choices = []
    for group in groups.values():
        for shortest, _ in group.values():
            seeds = sorted((seed, folder) for seed, (steps, folder) in group.items() if steps >= shortest)
            choices.append((len(seeds), shortest, [folder for _, folder in seeds]))
    return max(choices)[-1] if choices else []


def size_folder(results: Path, protocol: str, hidden_dim: int) -> Path:
    """Where in a folder of results the runs of a protocol are; those of another width than its own are apart."""
    if hidden_dim == PROTOCOLS[protocol].flags["hidden_dim"]:
        return results / {"paper": "", "small": "small"}[protocol]
    return results / {"paper": f"paper_width_{hidden_dim}", "small": f"width_{hidden_dim}"}[protocol]


def digest(files: tuple[Path, ...]) -> str:
    """SHA-256 of files."""
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def gflop(run: Run) -> float:
    """GFLOPs of matrix products per environment step of a run."""
    if run.method:
        leave_out = FREE | RECORDED | SIZE - {"hidden_dim"} | {"seed"}
        return gflop_per_step(run.method, **{k: v for k, v in run.flags.items() if k not in leave_out})
    leave_out = {"seed", "run_dir", "total_timesteps", "eval_interval", "eval_episodes", "device"}
    return script_gflop_per_step(*run.program, *words_of({k: v for k, v in run.flags.items() if k not in leave_out}))


def report_cost(missing: list[Run], num_finished: int) -> None:
    """Prints the commands of the runs to do and what they take."""
    pflop = sum(gflop(run) * (int(run.flags["total_timesteps"]) - int(run.flags["learning_starts"])) for run in missing)
    pflop /= 1e6
    print(*(run.command() for run in missing), sep="\n")
    hours = (pflop * 1e6 / EFFECTIVE_GFLOPS + START_SECONDS * len(missing)) / 3600
    told = f"{len(missing)} runs to do, {num_finished} finished; {pflop:.2f} PFLOP"
    print(f"{told}, about {hours:.1f} core-hours on a 2-core AVX-512 CPU")


def memory(run: Run) -> int:
    """Bytes that a run needs: the program and the replay buffer."""
    obs_dim, action_dim = sizes(run.flags["env_id"])
    rows = min(int(run.flags.get("buffer_size", Args.buffer_size)), int(run.flags["total_timesteps"]))
    return int(0.8e9 + 4 * rows * (2 * obs_dim + action_dim + 3))


# Starts a Python program that hears SIGINT, which Ray blocks, and that Linux kills together with what started it
TIED = """import ctypes, os, signal, sys
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
# Variables of the environment that are a node's own
OF_A_NODE = re.compile(r"RAY_|SLURM_|HOSTNAME|TMPDIR|\w*VISIBLE_DEVICES")


@ray.remote(max_calls=1, retry_exceptions=[ChildProcessError])
def execute(run: Run, folder: Path, variables: dict[str, str]) -> tuple[int, str]:
    """Begins or resumes a run, in folder and environment of the sweep; its exit code, and what it printed.

    Raises ChildProcessError if it was killed, which is tried again, as is a worker that died: nothing runs on beside.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # for ray.cancel; what a script has in its back ignores it
    os.chdir(folder)
    if run.code and run.code != digest(run.sources):
        return 2, f"error: {', '.join(map(str, run.sources))}: one of these has changed since the sweep began"
    command = [sys.executable, "-c", TIED, *run.words]
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("a+b") as log:
        start = log.seek(0, os.SEEK_END)
        options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": os.environ | variables}
        process = subprocess.Popen(command, **options, start_new_session=True)  # no Ctrl-C but from here
        try:
            while process.poll() is None:
                time.sleep(0.2)  # not process.wait(), which ray.cancel would not interrupt
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # the run ends after its episode, with a checkpoint
            process.wait()
            raise
        log.seek(start)
        if process.returncode < 0:
            raise ChildProcessError(f"killed by signal {-process.returncode}")
        return process.returncode, log.read().decode(errors="replace")


def environment() -> dict[str, str]:
    """The variables that a run has from the sweep, on whatever node it is."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {name: value for name, value in os.environ.items() if not OF_A_NODE.match(name)}
    return variables | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


def check_address(address: str) -> None:
    """Raises UsageError where no Ray cluster can be reached in 15 seconds; Ray itself would try for minutes."""
    command = [sys.executable, "-c", f"import ray; ray.init({address!r}, log_to_driver=False)"]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=15)
    except subprocess.SubprocessError:
        told = "does it run, and has it the RAY_AUTH_MODE and RAY_AUTH_TOKEN that are set here?"
        raise UsageError(f"--ray-address {address}: no Ray cluster lets this program in: {told}") from None


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """A connection to Ray: to the cluster there, else to one of this machine; within another one, that.

    Raises UsageError where no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import torch, their runs do
    options = {"address": address or "local", "logging_level": "error", "log_to_driver": False}
    if address:
        check_address(address)
    else:
        options |= {"object_store_memory": 10**8, "include_dashboard": False}
        if sys.platform == "linux":  # Ray knows the quota of a container, and not what taskset or a job's share leave
            cores = len(os.sched_getaffinity(0)), ray._private.utils.get_num_cpus(override_docker_cpu_warning=True)
            options["num_cpus"] = max(1, min(cores))
        if len(tempfile.gettempdir()) > 30:
            options["_temp_dir"] = "/tmp/ray"  # the paths of Ray's sockets have 107 letters at most
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in Ray's processes for ever, as it does with SIGINT
    try:
        ray.init(**options)
        for signum in (signal.SIGINT, signal.SIGTERM):  # in the background of a script, SIGINT is ignored
            signal.signal(signum, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        yield
    finally:
        ray.shutdown()


def check_node(resources: Resources, num_bytes: int) -> None:
    """Raises UsageError where no node of the cluster has what a run needs, for which Ray would wait for ever."""
    need = resources.num_gpus, num_bytes / 1e9, resources.num_cpus
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [(node.get("GPU", 0), node.get("memory", 0) / 1e9, node.get("CPU", 0)) for node in found]
    if not any(all(map(operator.ge, node, need)) for node in nodes):
        told = "{:g} GPUs, {:.1f} GB of memory and {:g} CPU cores"
        told = f"a run needs {told.format(*need)}, the largest node has {told.format(*max(nodes))}"
        raise UsageError(f"{told}: lower --num-gpus, --buffer-size or --num-cpus")


def steps_done(run: Run) -> int:
    """How far a run is, for a progress bar."""
    try:
        return last_step(run.folder / "train.csv") if run.folder else 0
    except UsageError:
        return 0


@contextmanager
def gentle_stop(pending: dict) -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the pending runs after their episodes, a second one at once."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopping every run at the end of its episode; again to stop now", file=sys.stderr)
        for ref in pending:
            ray.cancel(ref)
        for ref in pending:
            ray.wait([ref])
        raise


def run_all(runs: list[Run], resources: Resources) -> dict[str, str]:
    """Runs them all, as many at once as the cluster holds. Returns by name what failed and why.

    Raises UsageError where the cluster cannot be reached, or has no node that is large enough for one of them.
    """
    options = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus, "max_retries": resources.retries}
    if min(options.values()) < 0 or resources.num_gpus > 1 and resources.num_gpus % 1:
        raise UsageError("--num-cpus, --num-gpus and --retries must not be negative, --num-gpus above 1 be whole")
    total, failed, pending = {run.name: int(run.flags["total_timesteps"]) for run in runs}, {}, {}
    with cluster(resources.ray_address):
        check_node(resources, max(map(memory, runs)))
        seconds = 0.1 if sys.stderr.isatty() else 60  # between two looks of the bar
        shape = {"unit": "step", "dynamic_ncols": True, "mininterval": seconds, "maxinterval": max(10, seconds)}
        with tqdm(total=sum(total.values()), **shape) as bar, gentle_stop(pending):
            given = Path.cwd(), environment()
            pending |= {execute.options(**options, memory=memory(run)).remote(run, *given): run for run in runs}
            while pending:
                for ref in ray.wait(list(pending), timeout=2)[0]:
                    run = pending.pop(ref)
                    try:
                        code, printed = ray.get(ref)
                        error = reason(printed) if code else ""
                    except ray.exceptions.RayError as dead:
                        error = f"it died {resources.retries + 1} times: {reason(str(dead))}"
                    if error:
                        failed[run.name] = error
                    bar.write(f"FAILED: {run.name}: {error}, see {run.log}" if error else f"done: {run.name}")
                running = {run.name: steps_done(run) for run in pending.values()}
                shown = ", ".join(f"{name} {steps}" for name, steps in running.items() if steps)
                ended = len(runs) - len(pending)
                bar.set_postfix_str(f"{ended - len(failed)} done, {len(failed)} failed; {shown}", False)
                bar.update(sum((total | running).values()) - bar.n)  # what has ended counts whole
    return failed


def run_missing(runs: list[Run], resources: Resources, dry_run: bool) -> dict[str, str]:
    """Runs what is missing, or says what that would take. Returns by name what failed or cannot go on, and why."""
    missing, failed = plan(runs)
    if dry_run:
        report_cost(missing, len(runs) - len(missing) - len(failed))
    elif missing:
        failed |= run_all(missing, resources)
    for name, error in failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return failed


def print_help(flags_class: type) -> NoReturn:
    """For a call that asks for nothing: exit code 2."""
    with suppress(SystemExit):
        tyro.cli(flags_class, args=["--help"])
    sys.exit(2)


@contextmanager
def one_sentence() -> Iterator[None]:
    """What a user can mend, or has asked for by Ctrl-C or SIGTERM, ends in one sentence and an exit code."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from the last checkpoint of each run", file=sys.stderr)
        sys.exit(130)
