"""The matrix products of training and their FLOPs, counted on the real update.

    python -m paper.flops my_idea.py --env-id Hopper-v4 --hidden-dim 64

prints the GFLOPs per environment step of a script that has the command line and the run folder of omnet_sac.py.
"""

import dataclasses
import json
import math
import os
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

import omnet_sac
from omnet_sac import Args, ReplayBuffer, UsageError, make_env
from paper.baselines import METHODS, make_agent

# Flags of methods that change what is multiplied, and not how often
SAME_PRODUCTS = {"learning_rate", "gamma", "tau", "sparsity", "mask_input", "mask_output", "dense_in", "balanced_masks"}
SAME_PRODUCTS |= {"dropout", "obs_noise", "reset_interval"}


class Products(TorchDispatchMode):
    """Records the matrix products (and convolutions) that PyTorch computes inside `with`, and their FLOPs.

    `counts` and `calls` hold, for each different product, how often it was computed and a function that repeats it. The
    formulas are FlopCounterMode's; it cannot be used itself, as its module hooks fail inside torch.func.grad.
    """

    def __init__(self):
        super().__init__()
        self.flop, self.counts, self.calls = 0, Counter(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flop += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            if func is torch.ops.aten.addmm.default:
                func, args = torch.ops.aten.mm.default, args[1:]  # adding the bias is no product
            key = func, *((x.shape, x.stride()) for x in args if isinstance(x, torch.Tensor))
            self.counts[key] += 1
            if key not in self.calls:
                self.calls[key] = partial(func, *tree_map_only(torch.Tensor, torch.clone, args), **(kwargs or {}))
        return out


def trace(args: Args, make_agent, obs_dim: int, action_dim: int) -> tuple[Products, int]:
    """The products of the eager update in one whole cycle of critic and actor steps; its number of critic steps."""
    agent = make_agent(dataclasses.replace(args, compile=False), obs_dim, action_dim)
    buffer = ReplayBuffer(1, obs_dim, action_dim, args.device, added=1)
    num_updates = math.lcm(args.replay_ratio, args.policy_delay)
    with Products() as products:
        for _ in range(num_updates // args.replay_ratio):
            agent.update(buffer)
    return products, num_updates


@cache
def sizes(env_id: str) -> tuple[int, int]:
    """Dimensions of observations and actions. Raises UsageError where there is no such environment."""
    args = Args(env_id=env_id, buffer_size=1)
    with closing(make_env(args)) as env:
        return omnet_sac.sizes(args, env)


def gflop_per_step(method: str, env_id: str, **flags) -> float:
    """GFLOPs per environment step of a method of paper.baselines with flags that differ from its defaults."""
    return count_gflop(method, env_id, **{name: value for name, value in flags.items() if name not in SAME_PRODUCTS})


@cache
def count_gflop(method: str, env_id: str, **flags) -> float:
    """The same, counted once for equal flags."""
    args = dataclasses.replace(METHODS[method][1], env_id=env_id, **flags)
    products, num_updates = trace(dataclasses.replace(args, batch_size=2), make_agent, *sizes(env_id))
    return args.replay_ratio * products.flop / num_updates * args.batch_size / 2 / 1e9  # all products have the batch


@cache
def script_gflop_per_step(script: str, *words: str) -> float:
    """GFLOPs per environment step of a script with these flags. Raises UsageError where it cannot be run."""
    command = [sys.executable, "-m", "paper.flops", script, *words]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if found.returncode:
        raise UsageError(f"the FLOPs of {script} cannot be counted: {reason(found.stderr)}")
    return float(found.stdout.splitlines()[-1])


def reason(log: str) -> str:
    """Why a program failed, by what it wrote: its last `error: ...`, or else its last words."""
    lines = [line.strip(" │|") for line in log.splitlines() if any(map(str.isalnum, line))]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it does not say why"])[-1]


def count(script: str, words: list[str]) -> float:
    """GFLOPs per environment step, counted while `script` trains eagerly for one cycle of critic and actor steps."""
    sys.path[0] = str(Path(script).resolve().parent)  # as for `python script`
    sys.modules.pop("omnet_sac", None)  # the script's own may be another one
    given = dict(pairwise(words)).get("--learning-starts")
    starts, steps, cycle = int(given or Args.learning_starts), 0, 1
    while steps != cycle:
        steps = cycle
        with tempfile.TemporaryDirectory() as folder:
            size = ["--learning-starts", str(starts), "--total-timesteps", str(starts + steps), "--run-dir", folder]
            sys.argv = [script, *words, *size, "--eval-interval", "0", "--no-compile", "--device", "cpu"]
            with Products() as products:
                runpy.run_path(script, run_name="__main__")
            (path,) = Path(folder).glob("*/args.json")
            args = json.loads(path.read_text())["args"]
        cycle = math.lcm(args["replay_ratio"], args["policy_delay"]) // args["replay_ratio"]
    return products.flop / steps / 1e9


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(count(sys.argv[1], sys.argv[2:]))
