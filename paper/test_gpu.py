"""A GPU's way, tested on a CPU: memory that is overwritten, CUDA graphs, batched products, a second device, waits."""

import dataclasses
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor.compile_fx import compile_fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import omnet_sac
from omnet_sac import OMNet, ReplayBuffer, compile_steps, mlp
from paper import baselines
from paper.baselines import METHODS
from test_omnet_sac import (
    filled_buffer,
    make_agent,
    same_agent,
    what_a_run_changes_in_its_process,  # noqa: F401  of every test here, too
)

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("replay_ratio, policy_delay", [(20, 20), (1, 1), (4, 3), (2, 1)])
def test_metrics_outlive_the_next_compiled_call(replay_ratio, policy_delay):
    """Both steps share one pool of CUDA graphs: what one returned is overwritten by the next call of either."""
    plain, agent = (same_agent(replay_ratio=replay_ratio, policy_delay=policy_delay) for _ in range(2))
    returned = []

    def overwriting(step, *inputs):
        for output in returned:
            output.fill_(torch.nan)
        returned[:] = tree_leaves(step(*inputs))
        return returned[0] if len(returned) == 1 else tuple(returned)

    agent.critic_step, agent.actor_step = (partial(overwriting, step) for step in (agent.critic_step, agent.actor_step))
    for _ in range(3):
        metrics = agent.update(filled_buffer(agent))
        assert metrics == plain.update(filled_buffer(plain))  # NaN equals nothing
        assert all(type(value) is float and np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_subnetwork_needs_no_batched_product(dynamic):
    omnet, x = OMNet(mlp(6, 3, 16), 5, 0.5, dynamic=dynamic), torch.randn(8, 6)
    omnet.batched = True
    for k in (1, 2, 5):
        inputs = omnet.theta, omnet.sample(1, k)[0], x
        graph = make_fx(omnet)(*inputs)
        products = re.findall(r"aten\.(?:bmm|baddbmm)\.default\(", graph.code)
        assert graph(*inputs).shape == (k, 8, 3) and len(products) == (0 if k == 1 else 3)  # three linear layers


def test_compiled_steps_suit_cuda_graphs():
    """Inductor skips the CUDA graph of a step that changes an input which is not a parameter or a buffer."""
    agent, graphs = same_agent(replay_ratio=1, policy_delay=1), []
    agent.critic.batched = agent.actor.batched = True

    def inspect(graph, inputs, static_input_idxs=(), **kwargs):
        nodes = list(graph.graph.nodes)
        places = {node: i for i, node in enumerate(node for node in nodes if node.op == "placeholder")}
        mutated = {places[node.args[0]] for node in nodes if node.target is torch.ops.aten.copy_.default}
        graphs.append((mutated, set(static_input_idxs), nodes[-1].args[0], {str(node.target) for node in nodes}))
        run = lambda inputs: graph(*inputs)  # noqa: E731  eagerly: there is no kernel to wait for
        run._boxed_call = True
        return run

    agent.critic_step, agent.actor_step, agent.act_step = (
        torch.compile(step, fullgraph=True, dynamic=False, backend=partial(compile_fx, inner_compile=inspect))
        for step in (agent.critic_step, agent.actor_step, agent.act_step)
    )
    plain, obs = same_agent(replay_ratio=1, policy_delay=1), np.ones(agent.obs_dim)
    assert agent.update(filled_buffer(agent)) == pytest.approx(plain.update(filled_buffer(plain)), rel=1e-4)
    np.testing.assert_allclose(agent.act(obs, 2), plain.act(obs, 2), rtol=1e-4)
    for (mutated, static, outputs, operations), count in zip(graphs, (6, 10, 0), strict=True):
        assert len(mutated) == count  # Adam's theta, m, v, powers and the target's theta; and alpha's five; none
        assert mutated <= static and len(outputs) == 1
        several = "aten.bmm.default" in operations or "aten.baddbmm.default" in operations
        assert several == (count > 0)  # one subnetwork acts


@pytest.mark.parametrize("device, more", [("cpu", []), ("cuda", ["act_step"])])
def test_on_a_gpu_acting_is_compiled_too(device, more, monkeypatch):
    compiled, agent = [], make_agent()
    monkeypatch.setattr(torch, "compile", lambda step, **_: compiled.append(step.__name__) or step)
    agent.args.device = device  # without a GPU the update now fails, and the run goes on eagerly
    compile_steps(agent)
    assert compiled == ["critic_step", "actor_step", *more]


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU. Its numbers are on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: torch.Tensor):
        size, stride, offset = numbers.shape, numbers.stride(), numbers.storage_offset()
        self = cls._make_wrapper_subclass(cls, size, stride, offset, dtype=numbers.dtype, device="gpu:0")
        self.numbers = numbers
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} outside of PretendGPU")

    def tolist(self):
        return self.cpu().tolist()


class PretendGPU(TorchDispatchMode):
    """A second device "gpu", as strict as CUDA about where tensors are. Counts how often a program waits for it."""

    def __init__(self):
        super().__init__()
        self.waits, self.generators = 0, []

    def make_generator(self, device="cpu", real=torch.Generator) -> torch.Generator:
        """In place of torch.Generator: a backend made in Python has none of its own."""
        generator = real()
        self.generators += [generator] if torch.device(device).type == "gpu" else []
        return generator

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, aten = dict(kwargs or {}), torch.ops.aten
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.ndim or isinstance(x, OnGPU)}  # scalars may be on the CPU
        target = torch.device(kwargs.pop("device", None) or ("gpu" if "gpu" in devices else "cpu")).type
        if func in (aten._to_copy.default, aten.copy_.default):
            self.waits += len({target, *(x.device.type for x in tensors)}) > 1
        elif func is aten._local_scalar_dense.default:
            self.waits += target == "gpu"
        else:
            if generator := kwargs.get("generator"):  # another object for the same generator
                devices.add("gpu" if generator._cdata in [g._cdata for g in self.generators] else "cpu")
            assert devices <= {target}, f"{func}: {devices}, {target}"
        on_cpu_args, on_cpu_kwargs = tree_map_only(OnGPU, lambda x: x.numbers, (args, kwargs))
        result = func(*on_cpu_args, **on_cpu_kwargs)
        if torch.Tag.inplace_view in func.tags and target == "gpu":
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)  # squeeze_ and the like: the wrapper gets the new shape, too
        if func._schema.is_mutable:
            return args[0]
        return tree_map_only(torch.Tensor, OnGPU, result) if target == "gpu" else result


def environment_steps(kind: str, device: str, mode: PretendGPU) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Of three environment steps with a full minibatch each: how often each waits, and all tensors at their end."""
    flags = {"hidden_dim": 8, "batch_size": 4, "replay_ratio": 2, "policy_delay": 2, "compile": False, "device": device}
    method, given = ("omnet-sac", {"dynamic_masks": True}) if kind == "dynamic masks" else (kind, {})
    args = dataclasses.replace(METHODS[method][1], **flags, **given)
    agent = baselines.make_agent(args, 3, 2)
    buffer, again = (ReplayBuffer(2, 3, 2, device) for _ in range(2))
    waits, tensors = [], {}
    for k in range(3):
        before, obs = mode.waits, np.full(3, k)
        action = agent.act(obs, 0)
        buffer.add(obs, action, 1.0, obs + 1, k == 2, False)
        metrics = agent.update(buffer)
        omnet_sac.check_finite(k, **metrics)
        waits.append(mode.waits - before)
        tensors |= {f"{name} {k}": torch.tensor(x) for name, x in ({"action": action} | metrics).items()}
    again.extend(buffer.rows.cpu().numpy())
    agent.load_state_dict(agent.state_dict())
    own = dict(agent.named_parameters()) | dict(agent.named_buffers()) | {"rows": buffer.rows, "again": again.rows}
    own["sample"] = again.sample(2, 4, agent.generator)
    assert {x.device.type for x in own.values()} == {device}
    return waits, tensors | {name: x.cpu() for name, x in own.items()}


def on_a_second_device(*kinds: str) -> None:
    """Prints for each kind of agent how often an environment step waits, and what is not as it is on the CPU."""
    backend_registration._setup_privateuseone_for_python_backend("gpu")
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(x, device="gpu") makes it on the CPU and copies
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with PretendGPU() as mode:
        torch.Generator = mode.make_generator
        for kind in kinds:
            (_, expected), (waits, got) = (environment_steps(kind, device, mode) for device in ("cpu", "gpu"))
            same = [name for name in got if torch.allclose(got[name], expected[name], rtol=1e-3, atol=1e-5)]
            print(json.dumps([kind, waits, sorted(got.keys() - set(same))]))


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot register a device from Python",
)
def test_a_second_device_has_every_tensor_and_is_waited_for_four_times_a_step():
    kinds = ["omnet-sac", "dynamic masks", "redq", "droq", "sac"]
    code = f"from paper import test_gpu; test_gpu.on_a_second_device(*{kinds})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert results == [[kind, [4, 4, 4], []] for kind in kinds]  # observation, action, transition, metrics
