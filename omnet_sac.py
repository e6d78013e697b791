"""OMNet-SAC: Soft Actor-Critic at a replay ratio of 20 with ONE critic network and ONE actor network.

The method of "One is More: Diverse Perspectives within a Single Network for Efficient DRL". A network with the
parameters theta in R^n holds N overlapping subnetworks theta * m_1, ..., theta * m_N, cut out by fixed random binary
masks. Their disagreement replaces the ten critics of REDQ: the TD target is the minimum over two random subnetworks
(Eq. 4), the actor climbs the mean over all of them (Eq. 5), and one actor subnetwork acts per episode (Section 3.3).

    python omnet_sac.py --env-id Ant-v4 --sparsity 0.5 --num-subnets 5
"""

import copy
import dataclasses
import difflib
import hashlib
import json
import math
import operator
import os
import pickle
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import typing
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal, TextIO

import filelock
import gymnasium as gym
import numpy as np
import psutil
import torch
import torch.nn as nn
import torch.nn.functional as F
import typeguard
import tyro
from torch.func import functional_call, grad_and_value
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_map
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    """OMNet-SAC: one critic, one actor, N masked subnetworks in each. The defaults are the paper's settings."""

    method: ClassVar[str] = "omnet_sac"  # names the run folder

    env_id: str = "Hopper-v4"  # Gymnasium environment with a bounded Box action; `module:EnvId` works too
    max_episode_steps: int | None = None  # environment steps that cut off an episode; None: the environment's own limit
    seed: int = 1  # seed of every random number of the run
    total_timesteps: int = 300_000  # environment steps of the run
    learning_starts: int = 5_000  # environment steps at the start with uniformly random actions and no updates
    replay_ratio: int = 20  # gradient steps on the critic per environment step
    policy_delay: int = 20  # gradient steps on the critic per gradient step on the actor and on alpha
    batch_size: int = 256  # transitions per gradient step
    buffer_size: int = 1_000_000  # transitions kept for replay; never more than total-timesteps are allocated
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # step of the Polyak average that the target critic takes after every critic step
    learning_rate: float = 3e-4  # Adam's step size for critic, actor and alpha
    hidden_dim: int = 256  # width of the two hidden layers
    target_entropy: float | None = None  # entropy that alpha is tuned to; None: REDQ's for the task, else -dim(A)
    num_subnets: int = 5  # N, the subnetworks in the critic and in the actor
    sparsity: float = 0.5  # S, the probability that a mask removes a parameter
    dynamic_masks: bool = False  # draw a fresh mask at every use of a subnetwork ("One is infinity?", Section 4.6)
    actor_subnets: bool = True  # OMNet in the actor too; off: a plain actor, the ablation of Section 4.3
    mask_input: bool = True  # masks on the input layers, part of the paper's theta in R^n; off: dense ones (ours)
    mask_output: bool = True  # masks on the output layers, too; off: dense ones (ours)
    obs_noise: float = 0.0  # sigma_m, scale of the observation noise, constant within an episode (Section 4.4)
    eval_interval: int = 5_000  # environment steps between evaluations; 0: never
    eval_episodes: int = 10  # episodes per evaluation; they cycle through the actor's subnetworks
    device: str = "cpu"  # torch device: cpu, cuda, cuda:1, ...
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # see torch.set_float32_matmul_precision
    compile: bool = True  # compile the updates; without a C++ compiler the run says so and goes on eagerly
    track: bool = False  # log to Weights & Biases as well (pip install wandb)
    capture_video: bool = False  # record the first episode of each evaluation in the run folder, videos/
    checkpoint_interval: int = 10_000  # environment steps after which the next episode end writes a checkpoint
    resume: Path | None = None  # run folder to go on with, exactly, by the flags stored in it
    evaluate: Path | None = None  # run folder to evaluate: eval-episodes episodes, returns per subnetwork
    run_dir: Path = Path("runs")  # where the run folder <env-id>__omnet_sac__<seed> is made


def mlp(in_dim: int, out_dim: int, hidden_dim: int) -> nn.Sequential:
    """Two hidden layers, each Linear, LayerNorm, ReLU (Section 4.1); Xavier-uniform weights, zero biases."""
    net = nn.Sequential(
        *(nn.Linear(in_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU()),
        *(nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU()),
        nn.Linear(hidden_dim, out_dim),
    )
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net


NORMALISATION = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


# Every random number of a run comes from np.random.SeedSequence(seed): one child of it for each of these names; what is
# done again (an evaluation, a reset) takes a child of that child. Two torch generators with one seed would give the
# same numbers: masks drawn by one would be the signs of the weights drawn by the other.
STREAMS = "weights", "masks", "updates", "acting", "episodes", "evaluation", "probes"


def stream(seed: int, name: str, *key: int) -> np.random.Generator:
    """The stream `name` of the run with this seed, or with `key` a child of that stream."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(name), *key)))


def torch_generator(rng: np.random.Generator, device="cpu") -> torch.Generator:
    """A generator for tensors, with a seed of 31 bits from `rng`: on a CPU, torch ignores all beyond 32."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**31)))


class OMNet(nn.Module):
    """N subnetworks theta * m_i inside one network `net`, which may be any nn.Module (Section 3.1).

        omnet = OMNet(MyNet(), num_subnets=5, sparsity=0.5)
        i = omnet.select(steps=1, k=2)[0]  # two different subnetworks
        outputs = omnet(omnet.theta, i, x)  # MyNet's outputs at x, stacked along a new first dimension of 2

    `theta` (n,) is all trainable parameters of `net` in one vector, `masks` (N, n) the fixed masks, each entry 1 with
    probability 1 - sparsity. Modules in `unmasked`, given as types or as names in `net`, keep all their parameters:
    without its gain a unit is gone. So do scalars that are no bias. Buffers and frozen parameters are constants.
    `i` says which subnetworks: indices (k,) of masks, or masks (k, n) themselves. With `dynamic`, `select` draws new
    masks: N = infinity (Section 4.6). Raises ValueError for a `net` whose layers keep state of their own, and for
    names in `unmasked` that it does not have.
    """

    def __init__(self, net, num_subnets: int, sparsity: float, generator=None, dynamic=False, unmasked=NORMALISATION):
        super().__init__()
        refuse_state(net)
        params = {name: param for name, param in net.named_parameters() if param.requires_grad}
        self.shapes = {name: param.shape for name, param in params.items()}
        self.theta = nn.Parameter(torch.cat([p.detach().flatten() for p in params.values()]), requires_grad=False)
        self.net = (net,)  # a tuple hides it from nn.Module: it lends its structure alone
        constants = dict(net.named_buffers()) | {k: p for k, p in net.named_parameters() if k not in params}
        self.constants = {name: f"net/{name.replace('.', '/')}" for name in constants}
        for name, tensor in constants.items():
            self.register_buffer(self.constants[name], tensor.detach().clone())

        dense = dense_parameters(net, unmasked)
        p_one = [torch.full((p.numel(),), 1.0 if p in dense else 1 - sparsity) for p in params.values()]
        self.register_buffer("p_one", torch.cat(p_one).to(self.theta.device), persistent=False)  # P(m = 1) (n,)
        self.register_buffer("masks", self.draw(num_subnets, generator))
        self.dynamic = dynamic
        self.recurrent = any(isinstance(module, nn.RNNBase) for module in net.modules())

    @property
    def batched(self) -> bool:
        """Whether several subnetworks are one batched product; on a CPU one after another stays in the cache."""
        return self.theta.device.type != "cpu" and not self.recurrent  # which vmap does not know

    def draw(self, k: int, generator=None) -> torch.Tensor:
        """k new masks (k, n), m ~ Bernoulli(1 - S); uint8, since reading them costs more than the product."""
        return torch.bernoulli(self.p_one.expand(k, -1), generator=generator).to(torch.uint8)

    def select(self, steps: int, k: int, generator=None) -> torch.Tensor:
        """Per step k different subnetworks, chosen uniformly: i (steps, min(k, N)); if dynamic, masks (steps, k, n)."""
        if self.dynamic:
            return self.draw(steps * k, generator).view(steps, k, -1)
        return torch.rand(steps, len(self.masks), generator=generator, device=self.masks.device).argsort(1)[:, :k]

    def forward(self, theta: torch.Tensor, i: torch.Tensor, *inputs):
        """The outputs (k, ...) of the subnetworks f_{theta * m_i}(*inputs); tuples and dicts keep their form."""
        masks = self.masks[i] if i.dim() == 1 else i
        if self.batched and len(masks) > 1:
            return torch.vmap(lambda theta_i: self.subnet(theta_i, *inputs), randomness="different")(theta * masks)
        outputs = [self.subnet(theta * mask, *inputs) for mask in masks]
        return tree_map(lambda *tensors: torch.stack(tensors), *outputs)

    def subnet(self, theta: torch.Tensor, *inputs):
        """f_theta(*inputs): `net` with the entries of the vector theta (n,) as its parameters."""
        views = theta.split([shape.numel() for shape in self.shapes.values()])
        params = {name: view.view(shape) for view, (name, shape) in zip(views, self.shapes.items())}
        constants = {name: getattr(self, key) for name, key in self.constants.items()}
        return functional_call(self.net[0], params | constants, inputs)

    def train(self, mode: bool = True) -> nn.Module:
        """As nn.Module's, for the hidden network too."""
        self.net[0].train(mode)
        return super().train(mode)


def dense_parameters(net: nn.Module, unmasked: tuple[type | str, ...]) -> set[nn.Parameter]:
    """The parameters of `net` that masks leave alone, see OMNet. Raises ValueError for a name that is not in `net`."""
    kinds, names = (tuple(which for which in unmasked if isinstance(which, of)) for of in (type, str))
    biases = {m.bias for m in net.modules() if isinstance(m, (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd))}
    dense = {param for param in net.parameters() if param.numel() == 1} - biases
    for module in net.modules():
        if isinstance(module, kinds):
            dense |= set(module.parameters())
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], parametrizations._WeightNorm):
            dense.add(module.original0)  # weight normalisation's gains
    named = dict(net.named_modules()) | dict(net.named_parameters(remove_duplicate=False))
    for name in names:
        if name not in named:
            raise ValueError(f"unmasked: there is no {name} in {', '.join(filter(None, named))}")
        dense |= {named[name]} if isinstance(named[name], nn.Parameter) else set(named[name].parameters())
    return dense


def refuse_state(net: nn.Module) -> None:
    """Raises ValueError for layers whose state the subnetworks would share, and spoil for each other."""
    for name, module in net.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise ValueError(f"{name} keeps running statistics: use LayerNorm, or track_running_stats=False")
        stateful = isinstance(module, parametrize.ParametrizationList) and any(True for _ in module.buffers())
        old = any(type(hook).__module__.startswith("torch.nn.utils") for hook in module._forward_pre_hooks.values())
        if stateful or old:
            raise ValueError(f"{name} has a parametrisation with a state: use parametrizations.weight_norm, or none")


class Adam(nn.Module):
    """Adam (Kingma & Ba, 2015) on one flat parameter vector."""

    def __init__(self, theta: torch.Tensor, learning_rate: float):
        super().__init__()
        self.register_buffer("learning_rate", theta.new_tensor(learning_rate))
        self.register_buffer("m", torch.zeros_like(theta))
        self.register_buffer("v", torch.zeros_like(theta))
        self.register_buffer("beta1_t", theta.new_ones(()))  # beta1^t as a product: compilers put a power into the loop
        self.register_buffer("beta2_t", theta.new_ones(()))

    def step(self, theta: torch.Tensor, grad: torch.Tensor, beta1=0.9, beta2=0.999, eps=1e-8) -> None:
        """Updates `theta` in place."""
        self.beta1_t.mul_(beta1)
        self.beta2_t.mul_(beta2)
        self.m.lerp_(grad, 1 - beta1)
        self.v.lerp_(grad.square(), 1 - beta2)
        step_size, v_scale = (1 - self.beta1_t).reciprocal() * self.learning_rate, 1 / (1 - self.beta2_t)
        theta -= step_size * self.m / ((v_scale * self.v).sqrt() + eps)


class ReplayBuffer:
    """Ring of transitions, one float32 row each: obs, action, reward, next_obs, terminated, truncated.

    So a minibatch is one gather, and the critic's input (obs, action) is a slice of it.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, device: str, added: int = 0):
        self.rows = torch.zeros(capacity, 2 * obs_dim + action_dim + 3, device=device)
        self.added = added

    def __len__(self) -> int:
        return min(self.added, len(self.rows))

    def add(self, obs, action, reward: float, next_obs, terminated: bool, truncated: bool) -> None:
        """Stores a transition, over the oldest one when full; values bootstrap through `truncated`."""
        row = obs, action, [reward], next_obs, [terminated, truncated]
        row = np.concatenate(row, dtype=np.float32, casting="unsafe")
        self.rows[self.added % len(self.rows)] = torch.from_numpy(row)
        self.added += 1

    def sample(self, num_batches: int, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """Minibatches (num_batches, batch_size, width), drawn uniformly with replacement."""
        index = torch.randint(len(self), (num_batches * batch_size,), generator=generator, device=self.rows.device)
        return self.rows.index_select(0, index).view(num_batches, batch_size, -1)

    def state_dict(self) -> dict:
        """The rows in use; on a CPU not a copy, so that a checkpoint needs no more memory."""
        return {"rows": torch.from_numpy(self.rows[: len(self)].cpu().numpy()), "added": self.added}

    def load_state_dict(self, state: dict) -> None:
        self.rows[: len(state["rows"])], self.added = state["rows"], operator.index(state["added"])


# Entropy targets of MBPO and REDQ; other tasks have -dim(A).
TARGET_ENTROPY = {"Hopper": -1.0, "HalfCheetah": -3.0, "Walker2d": -3.0, "Ant": -4.0, "Humanoid": -2.0}
METRICS = "critic_loss", "q_value", "actor_loss", "entropy", "alpha"


class OMNetSAC(nn.Module):
    """The agent: two OMNets, their optimizers, and the update of Appendix A with automatically tuned alpha."""

    def __init__(self, args: Args, obs_dim: int, action_dim: int):
        super().__init__()
        self.args, self.obs_dim, self.action_dim = args, obs_dim, action_dim
        generators = (torch_generator(stream(args.seed, name), args.device) for name in STREAMS[1:4])
        self.mask_generator, self.generator, self.act_generator = generators
        torch.manual_seed(int(stream(args.seed, "weights").integers(2**31)))  # torch's layers draw from the global one
        self.critic, self.actor = self.make_networks()
        self.register_buffer("theta_target", self.critic.theta.clone())
        self.register_buffer("log_alpha", torch.zeros((), device=args.device))
        self.critic_adam = Adam(self.critic.theta, args.learning_rate)
        self.actor_adam = Adam(self.actor.theta, args.learning_rate)
        self.alpha_adam = Adam(self.log_alpha, args.learning_rate)
        task = args.env_id.split(":")[-1].rsplit("-v", 1)[0]
        default = TARGET_ENTROPY.get(task, -float(action_dim))
        target_entropy = default if args.target_entropy is None else args.target_entropy
        for name, value in (("gamma", args.gamma), ("tau", args.tau), ("target_entropy", target_entropy)):
            self.register_buffer(name, self.log_alpha.new_tensor(value))  # a tensor, as a compiled step freezes numbers
        self.gradient_steps = 0

    def make_networks(self) -> tuple[OMNet, OMNet]:
        """The critic, (O + A) to 1, and the actor, (O) to means and log stds (2 A)."""
        args = self.args
        critic = mlp(self.obs_dim + self.action_dim, 1, args.hidden_dim).to(args.device)
        actor = mlp(self.obs_dim, 2 * self.action_dim, args.hidden_dim).to(args.device)
        omnet = partial(OMNet, generator=self.mask_generator, dynamic=args.dynamic_masks)
        critic = omnet(critic, args.num_subnets, args.sparsity, unmasked=self.unmasked("critic"))
        if not args.actor_subnets:
            return critic, OMNet(actor, 1, 0.0)
        return critic, omnet(actor, args.num_subnets, args.sparsity, unmasked=self.unmasked("actor"))

    def unmasked(self, network: str) -> tuple[type | str, ...]:
        """What masks leave alone in `network`, which is "critic" or "actor"; see OMNet."""
        ends = ("0",) * (not self.args.mask_input) + ("6",) * (not self.args.mask_output)  # their names in mlp
        return *NORMALISATION, *ends

    @property
    def num_actor_subnets(self) -> int:
        """Actor subnetworks that can be told apart: N, but 1 for a plain actor and for dynamic masks."""
        return 1 if self.actor.dynamic else len(self.actor.masks)

    def policy(self, phi, i, obs, noise) -> tuple[torch.Tensor, torch.Tensor]:
        """Action (B, A) in [-1, 1] and its log-probability (B,) at obs (B, O): a Gaussian squashed by tanh."""
        mean, log_std = self.actor(phi, i, obs)[0].chunk(2, dim=-1)
        log_std = log_std.clamp(-20, 2)
        u = mean + log_std.exp() * noise
        log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_det = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2), exact for large |u|
        return u.tanh(), (log_normal - log_det).sum(-1)

    def q_value(self, theta, i, obs_action) -> torch.Tensor:
        """Q-values (k, B) of k critic subnetworks at obs_action (B, O + A)."""
        return self.critic(theta, i, obs_action).squeeze(-1)

    def td_target(self, batch, i_target, i_next, noise) -> torch.Tensor:
        """Eq. (4): r + gamma (minimum over two target subnetworks, at an action of actor subnetwork i''), (B,)."""
        end = self.obs_dim + self.action_dim
        reward, next_obs, terminated = batch[:, end], batch[:, end + 1 : -2], batch[:, -2]
        next_action, next_log_pi = self.policy(self.actor.theta, i_next, next_obs, noise)
        next_q = self.q_value(self.theta_target, i_target, torch.cat([next_obs, next_action], -1)).amin(0)
        next_value = next_q - self.log_alpha.exp() * next_log_pi
        return reward + self.gamma * (1 - terminated) * next_value

    def critic_loss(self, theta, i, obs_action, target) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. (4): the squared error of critic subnetwork i; beside it, its mean Q-value."""
        q = self.q_value(theta, i, obs_action)  # (1, B)
        assert q.shape[1:] == target.shape == obs_action.shape[:1]
        return (q - target).square().mean(1).sum(), q.mean()

    def critic_step(self, batch, i, i_target, i_next, noise) -> torch.Tensor:
        """A step on critic subnetwork i, then one of the target. Returns loss and mean Q (2,)."""
        obs_action, target = batch[:, : self.obs_dim + self.action_dim], self.td_target(batch, i_target, i_next, noise)
        grad, metrics = grad_and_value(self.critic_loss, has_aux=True)(self.critic.theta, i, obs_action, target)
        self.critic_adam.step(self.critic.theta, grad)
        self.theta_target.lerp_(self.critic.theta, self.tau)
        return torch.stack(metrics)

    def actor_loss(self, phi, i, i_critic, obs, noise) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. (5): minus the mean of all critic subnetworks at actor subnetwork i's action; beside it, the entropy."""
        action, log_pi = self.policy(phi, i, obs, noise)
        q = self.q_value(self.critic.theta, i_critic, torch.cat([obs, action], -1)).mean(0)
        return (self.log_alpha.exp() * log_pi - q).mean(), -log_pi.mean()

    def actor_step(self, obs, i, i_critic, noise) -> torch.Tensor:
        """A step on actor subnetwork i, then one of alpha. Returns loss, entropy, alpha (3,)."""
        alpha = self.log_alpha.exp()
        grad, (loss, entropy) = grad_and_value(self.actor_loss, has_aux=True)(self.actor.theta, i, i_critic, obs, noise)
        self.actor_adam.step(self.actor.theta, grad)
        self.alpha_adam.step(self.log_alpha, entropy - self.target_entropy)
        return torch.stack([loss, entropy, alpha])

    def update(self, buffer: ReplayBuffer) -> dict[str, float]:
        """The gradient steps of one environment step; draws all their random numbers, the steps draw none."""
        args, generator, steps, metrics = self.args, self.generator, self.args.replay_ratio, {}
        batches = buffer.sample(steps, args.batch_size, generator)
        i = self.critic.select(steps, 1, generator)  # the subnetwork to update
        i_target = self.critic.select(steps, 2, generator)  # i'_1 and i'_2
        i_next = self.actor.select(steps, 1, generator)  # i''
        noise = torch.randn(steps, args.batch_size, self.action_dim, generator=generator, device=args.device)
        for inputs in zip(batches, i, i_target, i_next, noise):
            metrics["critic"] = self.critic_step(*inputs)
            self.gradient_steps += 1
            if self.gradient_steps % args.policy_delay == 0:
                obs = inputs[0][:, : self.obs_dim]
                i_actor = self.actor.select(1, 1, generator)[0]
                i_all = self.critic.select(1, args.num_subnets, generator)[0]
                fresh_noise = torch.empty_like(noise[0]).normal_(generator=generator)
                metrics["critic"] = metrics["critic"].clone()  # what a CUDA graph returns, the next graph overwrites
                metrics["actor"] = self.actor_step(obs, i_actor, i_all, fresh_noise).clone()
        return dict(zip(METRICS, torch.cat(list(metrics.values())).tolist()))  # the one wait for a GPU

    def act(self, obs: np.ndarray, subnet: int, generator=None, deterministic: bool = False) -> np.ndarray:
        """Action (A,) of actor subnetwork `subnet` at obs (O,); deterministic: tanh of the mean."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.args.device)
        generator = generator or self.act_generator
        noise = torch.randn(self.action_dim, generator=generator, device=self.args.device)
        i = self.actor.draw(1, generator) if self.actor.dynamic else self.actor.masks[subnet : subnet + 1]
        return self.act_step(i, obs, noise * (not deterministic)).cpu().numpy()

    def act_step(self, i, obs, noise) -> torch.Tensor:
        """What `act` does on the device: the action (A,)."""
        return self.policy(self.actor.theta, i, obs, noise)[0]

    def get_extra_state(self) -> dict:
        """What a resume needs beyond the tensors; nn.Module puts it into the state dict."""
        states = {"generator": self.generator.get_state(), "act_generator": self.act_generator.get_state()}
        return states | {"gradient_steps": self.gradient_steps}

    def set_extra_state(self, state: dict) -> None:
        if len(state["generator"]) == len(self.generator.get_state()):
            self.generator.set_state(state["generator"].cpu())
            self.act_generator.set_state(state["act_generator"].cpu())
        else:  # of another kind of device
            print("the random numbers of the other device cannot be continued: from here on not the exact same run")
        self.gradient_steps = operator.index(state["gradient_steps"])


def compile_steps(agent: OMNetSAC) -> None:
    """Compiles the steps and says how long it took; where that fails says so and leaves them eager."""
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}  # every call has the same shapes
    on_gpu = torch.device(agent.args.device).type == "cuda"
    options |= {"triton.cudagraphs": True, "deterministic": True} if on_gpu else {"cpp_wrapper": True}
    steps = ("critic_step", "actor_step", "act_step") if on_gpu else ("critic_step", "actor_step")
    calls = 3 if on_gpu else 1  # a CUDA graph is recorded by the second call and first replayed by the third
    torch.empty(2**25 - 2**14, dtype=torch.uint8)  # having freed it, glibc gives no memory back: 7% faster
    print("compiling the update ...", end=" ", flush=True)
    start, state = time.perf_counter(), copy.deepcopy(agent.state_dict())
    try:
        os.makedirs(os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir()), exist_ok=True)
        for name in steps:
            flags = {"fullgraph": True, "dynamic": False, "isolate_recompiles": True, "options": dict(options)}
            setattr(agent, name, torch.compile(getattr(agent, name), **flags))
        with warnings.catch_warnings(action="ignore"):  # else a signal in the midst of it shows torch's own stack
            for _ in range(calls * math.ceil(agent.args.policy_delay / agent.args.replay_ratio)):
                agent.update(ReplayBuffer(1, agent.obs_dim, agent.action_dim, agent.args.device, added=1))
                agent.act(np.zeros(agent.obs_dim), 0)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    except Exception as error:  # of a compiler, its cache or a capture, which raise all kinds
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()  # eager torch.func asks for one too
        for name in steps:
            vars(agent).pop(name, None)
        print(f"not possible here, the run goes on without, more slowly: {first_line(error)}", flush=True)
    agent.load_state_dict(state)


class UsageError(Exception):
    """Arguments that cannot work, in a sentence that says what to do. Exit code 2."""


class RunError(Exception):
    """A run that cannot go on, in a sentence that says why. Exit code 1."""


def first_line(error: Exception) -> str:
    """What an exception says, for a sentence of ours."""
    return str(error).strip().split("\n")[0] or type(error).__name__


class ObservationNoise(gym.ObservationWrapper):
    """Section 4.4: adds sigma ~ U[-scale, scale]^d to the observations, drawn per episode, constant within it."""

    def __init__(self, env: gym.Env, scale: float):
        super().__init__(env)
        self.scale = scale

    def reset(self, *, seed=None, options=None):
        obs, info = self.env.reset(seed=seed, options=options)
        self.sigma = self.np_random.uniform(-self.scale, self.scale, obs.shape)
        return self.observation(obs), info

    def observation(self, obs):
        return obs + self.sigma


# Packages that register environments when they are imported, with how the ids of these start
PLUGINS = {"gymnasium_robotics": ("Fetch", "Hand", "Adroit", "Franka", "PointMaze", "AntMaze"), "shimmy": "dm_control/"}


def make_env(args: Args, video_dir: Path | None = None) -> gym.Env:
    """The environment `args.env_id` with observations (O,) and actions (A,) in [-1, 1]; UsageError if it has none."""
    warnings.filterwarnings("ignore", message=".*out of date.*")  # v4 is meant: published curves are v4
    sys.path += [os.getcwd()] * (os.getcwd() not in sys.path)  # last, so that `module:EnvId` shadows nothing
    flag, advice = f"--env-id {args.env_id}", ""
    try:
        video = {"render_mode": "rgb_array"} if video_dir else {}  # not every environment takes the argument
        env = gym.make(args.env_id, max_episode_steps=args.max_episode_steps, **video)
        if video_dir:
            flag, advice = "--capture-video", "; without a display, MUJOCO_GL=egl or MUJOCO_GL=osmesa may help"
            with warnings.catch_warnings(action="ignore"):  # the error that follows says it better
                env.reset(seed=args.seed)
                env.render()
            env = gym.wrappers.RecordVideo(env, video_dir, episode_trigger=lambda k: k % args.eval_episodes == 0)
    except Exception as error:  # a constructor may raise anything
        known = [k for k, spec in gym.registry.items() if "raise" not in getattr(spec.entry_point, "__name__", "")]
        if args.env_id not in known and ":" not in args.env_id:  # `known` is without those that Gymnasium has removed
            near = [f"{module}:{args.env_id}" for module, ids in PLUGINS.items() if args.env_id.startswith(ids)]
            near = near or difflib.get_close_matches(args.env_id, known, n=3)
            advice = f"; did you mean {', '.join(near)}?" if near else ""
        raise UsageError(f"{flag}: {' '.join(str(error).split()) or type(error).__name__}{advice}") from None
    action_space, obs_space = env.action_space, env.observation_space
    is_float_box = isinstance(action_space, gym.spaces.Box) and action_space.dtype.kind == "f"
    span = np.subtract(action_space.high, action_space.low, dtype=np.float64) if is_float_box else np.zeros(1)
    if not ((span > 0) & (span < 1e9)).all():
        raise UsageError(f"{flag}: SAC needs actions in a Box of floats with finite, different bounds: {action_space}")
    if not obs_space.is_np_flattenable:
        raise UsageError(f"{flag}: observations must flatten to a vector, these are {obs_space}")
    if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
        env = gym.wrappers.FlattenObservation(env)
    env = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    if len(action_space.shape) != 1:
        flat = gym.spaces.flatten_space(env.action_space)
        env = gym.wrappers.TransformAction(env, lambda action: action.reshape(action_space.shape), flat)
    env = gym.wrappers.TransformObservation(env, np.array, None)  # a copy: some return the same array every time
    return ObservationNoise(env, args.obs_noise) if args.obs_noise else env


def interact(args: Args, agent: OMNetSAC, env: gym.Env, buffer: ReplayBuffer, rng, step: int = 0) -> Iterator[tuple]:
    """The off-policy loop: act, store, update. Raises RunError for what is not finite.

    Yields (step, episode, done, metrics) after every environment step; episode is (subnet, return, length) so far.
    """
    while step < args.total_timesteps:
        subnet = int(rng.integers(agent.num_actor_subnets))  # Section 3.3: one subnetwork for the whole episode
        obs, _ = env.reset(seed=int(rng.integers(2**31)))  # seeded per episode: no environment state to checkpoint
        episode_return, length, done, metrics = 0.0, 0, False, {}
        while not done and step < args.total_timesteps:
            if step < args.learning_starts:
                action = torch.rand(agent.action_dim, generator=agent.act_generator, device=args.device)
                action = (2 * action - 1).cpu().numpy()
            else:
                action = agent.act(obs, subnet, agent.act_generator)
            check_finite(step, observation=obs, action=action)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            step, length, reward, done = step + 1, length + 1, float(reward), bool(terminated or truncated)
            check_finite(step, observation=next_obs, reward=reward)
            cut_off = truncated or step == args.total_timesteps
            buffer.add(obs, action, reward, next_obs, terminated, cut_off)
            obs, episode_return = next_obs, episode_return + reward
            if step > args.learning_starts:
                metrics = agent.update(buffer)
                check_finite(step, **metrics)
            yield step, (subnet, episode_return, length), done, metrics


def evaluate(agent: nn.Module, env: gym.Env, episodes: int, rng: np.random.Generator) -> list[tuple[int, float, int]]:
    """(subnet, return, length) of deterministic episodes that cycle through the subnetworks.

    A function of parameters and `rng` alone: training cannot tell whether it was called.
    """
    generator, results = torch_generator(rng, agent.args.device), []
    for episode in range(episodes):
        subnet = episode % agent.num_actor_subnets
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        episode_return, length, done = 0.0, 0, False
        while not done:
            action = agent.act(obs, subnet, generator, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            episode_return, length, done = episode_return + float(reward), length + 1, terminated or truncated
        results.append((subnet, episode_return, length))
    return results


def check_args(args: Args) -> None:
    """Raises UsageError for values that no run can work with."""
    sizes = "max_episode_steps total_timesteps learning_starts replay_ratio policy_delay batch_size buffer_size"
    for name in f"{sizes} hidden_dim eval_episodes checkpoint_interval learning_rate".split():
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be positive, not {getattr(args, name)}")
    for ok, message in (
        (0 <= args.seed < 2**63, "--seed must be at least 0 and below 2**63"),
        (args.num_subnets >= 1, "--num-subnets must be at least 1 (with 1, the TD target is that one: no minimum)"),
        (0 <= args.sparsity < 1, "--sparsity must be at least 0 and below 1: it is the share of parameters removed"),
        (0 <= args.gamma <= 1, "--gamma must lie in [0, 1]"),
        (0 < args.tau <= 1, "--tau must be above 0 and at most 1"),
        (0 <= args.obs_noise < math.inf, "--obs-noise must not be negative, and finite"),
        (args.learning_rate < math.inf, "--learning-rate must be finite"),
        (math.isfinite(args.target_entropy or 0), "--target-entropy must be finite"),
        (args.eval_interval >= 0, "--eval-interval must not be negative; 0 means never"),
        (args.batch_size <= args.learning_starts, "--batch-size must not exceed --learning-starts"),
        (args.learning_starts < args.total_timesteps, "--total-timesteps must exceed --learning-starts"),
    ):
        if not ok:
            raise UsageError(message)


def check_device(args: Args, obs_dim: int, action_dim: int) -> None:
    """Raises UsageError where `args.device` cannot be used, or has not the memory that the run will need."""
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {args.device} cannot be used here, try --device cpu: {first_line(error)}") from None
    on_gpu = torch.device(args.device).type == "cuda"
    free = torch.cuda.mem_get_info(args.device)[0] if on_gpu else psutil.virtual_memory().available
    width, n = 2 * obs_dim + action_dim + 3, 2 * args.hidden_dim * (obs_dim + 2 * action_dim + args.hidden_dim)
    masks = args.num_subnets + 2 * args.replay_ratio * args.dynamic_masks  # of 5 bytes an entry while they are drawn
    need = {"--buffer-size or --total-timesteps": 4 * min(args.buffer_size, args.total_timesteps) * width}
    need["--replay-ratio or --batch-size"] = 4 * args.replay_ratio * args.batch_size * width
    need["--num-subnets or --hidden-dim"] = n * (5 * masks + 40)
    if sum(need.values()) > free:
        told = f"the run needs {sum(need.values()) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise UsageError(f"{told}: lower {max(need, key=need.get)}")


def check_finite(step: int, **quantities) -> None:
    """Raises RunError that names the first quantity that is NaN or infinite."""
    for name, value in quantities.items():
        if not torch.isfinite(torch.as_tensor(value, dtype=torch.float32)).all():
            raise RunError(f"step {step}: {name} is not finite, the run stops")


# The run folder


def run_folder(args: Args) -> Path:
    """`<run-dir>/<env>__omnet_sac__<seed>`; `:` and `/` in the environment's id become `-`."""
    return Path(args.run_dir) / f"{args.env_id.replace(':', '-').replace('/', '-')}__{args.method}__{args.seed}"


def describe(args: Args) -> dict:
    """What a run's numbers follow from, in plain types: its method, its flags, the versions of what computes them."""
    args = dataclasses.replace(args, resume=None, evaluate=None)
    flags = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(args).items()}
    versions = {name: metadata.version(name).split("+")[0] for name in ("torch", "gymnasium", "mujoco", "numpy")}
    return {"method": args.method, "args": flags, "versions": {"python": platform.python_version()} | versions}


def describe_code() -> dict:
    """SHA-256 of the script that runs, and the git commit it is of; as far as there are a script and git."""
    code, script = {}, Path(getattr(sys.modules["__main__"], "__file__", "")).resolve()
    with suppress(OSError, subprocess.CalledProcessError):
        code["script_sha256"] = hashlib.sha256(script.read_bytes()).hexdigest()
        git = partial(subprocess.check_output, cwd=script.parent, text=True, stderr=subprocess.DEVNULL)
        code["git_commit"] = git(["git", "rev-parse", "HEAD"]).strip()
        code["git_clean"] = not git(["git", "status", "--porcelain"])
    return code


def stored_args(folder: Path, like: Args) -> Args:
    """The flags of the run in `folder`. Raises UsageError where there is none of the method and class of `like`."""
    try:
        about = json.loads((folder / "args.json").read_text())
        stored = about["args"] | {"run_dir": Path(about["args"]["run_dir"])}
        args, kinds = type(like)(**stored | {"resume": None, "evaluate": None}), typing.get_type_hints(type(like))
        for field in dataclasses.fields(args):
            typeguard.check_type(getattr(args, field.name), kinds[field.name])
        method = about.get("method", args.method)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, typeguard.TypeCheckError) as error:
        raise UsageError(f"{folder} is not a run folder of this program: {first_line(error)}") from None
    if method != like.method:
        raise UsageError(f"{folder} is a run of {method}, not of {like.method}")
    return args


RESUMABLE = ["total_timesteps", "eval_episodes", "checkpoint_interval", "track", "capture_video", "device", "compile"]


def merge_args(folder: Path, args: Args, default: Args, free: list[str]) -> Args:
    """The flags of the run in `folder`, with those of `free` that were given: they are on the command line, or their
    values in `args` are not those of `default`. Raises UsageError for another flag that was given and differs."""
    stored = stored_args(folder, args)
    words = {re.sub("^--(no-)?|=.*", "", word).replace("-", "_") for word in sys.argv[1:]}
    for name, value in vars(args).items():
        was_given = name in words or value != getattr(default, name)
        if was_given and value != getattr(stored, name) and name not in ("resume", "evaluate"):
            if name not in free:
                told = f"--{name.replace('_', '-')} {value}: the run in {folder} has {getattr(stored, name)}"
                raise UsageError(f"{told}; what may be given here is {', '.join(free)}")
            setattr(stored, name, value)
    return stored


def refuse_to_overwrite(folder: Path, args: Args) -> None:
    """Raises UsageError if `folder` holds a run, and names the flags in which it differs from `args`."""
    if os.path.exists(folder / "args.json"):
        stored = vars(stored_args(folder, args))
        other = [f"{k} = {stored[k]}, not {v}" for k, v in vars(args).items() if stored[k] != v and k != "run_dir"]
        told = f"{folder} holds a run already" + f", of other flags ({', '.join(other)})" * bool(other)
        raise UsageError(f"{told}: go on with --resume {folder}, or choose another --run-dir")


def only_writer(folder: Path):
    """Makes the folder and a lock in it, which dies with this process. Raises UsageError where another holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(folder / ".lock", blocking=False).acquire()
    except filelock.Timeout:
        path, processes = str((folder / ".lock").resolve()), psutil.process_iter(["open_files"])
        pids = [str(p.pid) for p in processes if path in [file.path for file in p.info["open_files"] or ()]]
        raise UsageError(f"{folder} is being written by process {' '.join(pids) or 'of another user'}") from None
    except OSError as error:
        raise UsageError(f"--run-dir {folder.parent}: {folder} cannot be made: {error.strerror}") from None


def write_atomically(path: Path, write) -> None:
    """`write(file)` into a temporary file that then replaces `path`: a kill leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", "is the disk full?")
        raise RunError(f"{path} could not be written, what was there is kept: {reason}") from None


def write_args(folder: Path, about: dict) -> None:
    write_atomically(folder / "args.json", lambda file: file.write(json.dumps(about, indent=2).encode()))


def crc32(file) -> int:
    """The checksum of an open file."""
    value = file.seek(0)
    while block := file.read(2**20):
        value = zlib.crc32(block, value)
    return value


def write_checkpoint(path: Path, state: dict) -> None:
    """Writes a torch archive and its CRC-32 behind it, since torch.load does not look at those inside."""
    write_atomically(path, lambda file: (torch.save(state, file), file.write(crc32(file).to_bytes(4, "little"))))


def seal_csvs(folder: Path) -> dict[str, list[int]]:
    """[bytes, CRC-32] of each CSV file of a run, once all of it has reached the disk."""
    seals = {}
    for path in folder.glob("*.csv"):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            data = file.read()
        seals[path.name] = [len(data), zlib.crc32(data)]
    return seals


def check_csvs(folder: Path, seals: dict[str, list[int]]) -> None:
    """Raises RunError where CSV files no longer begin with what a checkpoint counts on."""
    for name, (length, crc) in seals.items():
        data = (folder / name).read_bytes() if (folder / name).exists() else b""
        if len(data) < length:
            raise RunError(f"{folder / name} has {len(data)} of the {length} bytes that the checkpoint counts on")
        if zlib.crc32(data[:length]) != crc:
            raise RunError(f"{folder / name} was changed since the checkpoint was written")


def open_csv(path: Path, columns: str) -> TextIO:
    """Opens a CSV file for appending rows."""
    file = path.open("a")
    if not file.tell():
        print(columns, file=file, flush=True)
    return file


def load_checkpoint(folder: Path, args: Args, agent: OMNetSAC, buffer: ReplayBuffer | None = None, rng=None) -> dict:
    """Loads the checkpoint in `folder` into what is given, and returns its state. Raises RunError, with nothing changed
    in the folder, when it is damaged, made by other flags or versions, or for another network."""
    path = folder / "checkpoint.pt"
    try:
        with path.open("rb") as file:
            if crc32(file) != 0x2144DF1C:  # which anything has that is followed by its own CRC-32
                raise ValueError("its checksum is another one")
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        abouts = dict(state)["about"], describe(args)
        then, now = (about["args"] | about["versions"] | {"method": about["method"]} for about in abouts)
        for name in sorted((then.keys() | now.keys()) - {*RESUMABLE, "python", "run_dir"}):
            if then.get(name) != now.get(name):
                raise RunError(f"{path} was made with {name} = {then.get(name)}, here {now.get(name)}")
        if buffer is not None and state["step"] >= args.total_timesteps != then["total_timesteps"]:
            raise UsageError(f"--total-timesteps {args.total_timesteps}: the run in {folder} has done {state['step']}")
        agent.load_state_dict(state["agent"])
        if buffer is not None:
            check_csvs(folder, state["csvs"])
            buffer.load_state_dict(state["buffer"])
            rng.bit_generator.state = state["rng"]
        return state | {"step": operator.index(state["step"]), "seconds": float(state["seconds"])}
    except (RunError, UsageError):
        raise
    except pickle.UnpicklingError:
        raise RunError(f"{path} is refused: to load it would run code, or it is damaged") from None
    except Exception as error:  # whatever a foreign file makes of torch.load and the others
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RunError(f"{path} cannot be used, it is damaged or of another program: {reason}") from None


def peek(folder: Path) -> dict:
    """The checkpoint in `folder` without a check, its tensors not yet read; empty where there is none."""
    with suppress(Exception):
        return dict(torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu", mmap=True))
    return {}


def last_checkpoint(folder: Path) -> str:
    """What there is to go on from, for a sentence."""
    step = peek(folder).get("step")
    kept = "there is no checkpoint yet, begin again" if step is None else f"go on from the checkpoint of step {step}"
    return f"{kept} with --resume {folder}"


class Stop:
    """Ctrl-C and SIGTERM: the first one in training ends it after the episode, any other ends the program at once."""

    signum, training = 0, False

    def __call__(self, signum, frame) -> None:
        again, self.signum = self.signum, signum  # always: what compiles may swallow the exit
        if again or not self.training:
            sys.exit(128 + signum)
        with suppress(OSError):  # not print, in which the signal may have come
            os.write(2, b"\nstopping at the end of this episode; again to stop now\n")


class Output:
    """A standard stream to which nobody need listen; in a file, the returns of a progress bar become lines."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def attempt(self, name: str, *args):
        with suppress(OSError, ValueError, AttributeError):  # the reader has gone, or it was closed from the start
            return getattr(self.stream, name)(*args)

    def isatty(self) -> bool:
        return bool(self.attempt("isatty"))

    def write(self, text: str) -> int:
        self.attempt("write", text if self.isatty() else text.replace("\r", "\n"))
        return len(text)

    def flush(self) -> None:
        self.attempt("flush")


def progress(total: int, initial: int = 0) -> tqdm:
    """A bar of environment steps; where the error stream is no terminal, a line a minute."""
    seconds = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 60}
    return tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True, **seconds)


def start_tracking(folder: Path, about: dict) -> None:
    """Weights & Biases gets what TensorBoard gets. Raises UsageError where it is not installed."""
    try:
        import wandb
    except ImportError:
        raise UsageError("--track needs Weights & Biases: pip install wandb") from None
    wandb.init(project="omnet-sac", name=folder.name, config=about, sync_tensorboard=True)


def train(args: Args, make_agent=OMNetSAC, stop: Stop | None = None) -> OMNetSAC:
    """A whole run: trains an agent, evaluates it, writes logs and checkpoints into the run folder. Returns the agent.

    `make_agent(args, obs_dim, action_dim)` gives the agent, so that other methods reuse all of this. `stop` may end it
    after an episode. Raises UsageError before anything is written, RunError when the run cannot go on.
    """
    check_args(args)
    torch.set_float32_matmul_precision(args.matmul_precision)
    torch.set_flush_denormal(True)  # else a long run may slow down to half its speed
    torch.set_num_threads(min(2, torch.get_num_threads()))  # 1.4x as fast as one; OMP_NUM_THREADS=1 is kept
    rng, folder, stop = stream(args.seed, "episodes"), Path(args.resume or run_folder(args)), stop or Stop()
    with ExitStack() as stack:
        env = stack.enter_context(closing(make_env(args)))
        eval_env = stack.enter_context(closing(make_env(args, folder / "videos" if args.capture_video else None)))
        obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
        check_device(args, obs_dim, action_dim)
        if env.spec.max_episode_steps is None:
            print(f"{args.env_id} has no time limit: if its episodes may not end, set --max-episode-steps", flush=True)
        about = describe(args) | {"code": describe_code()}
        if args.track:
            start_tracking(folder, about)
        stack.enter_context(only_writer(folder))
        if not args.resume:
            refuse_to_overwrite(folder, args)
            write_args(folder, about)

        agent, step, seconds = make_agent(args, obs_dim, action_dim), 0, 0.0
        buffer = ReplayBuffer(min(args.buffer_size, args.total_timesteps), obs_dim, action_dim, args.device)
        csvs, saved = [*folder.glob("*.csv")], {}
        has_rows = any(csv.read_bytes().count(b"\n") > 1 for csv in csvs)
        if args.resume and (has_rows or (folder / "checkpoint.pt").exists()):  # rows are not cut without a checkpoint
            state = load_checkpoint(folder, args, agent, buffer, rng)
            step, seconds, saved = state["step"], state["seconds"], state["csvs"]
            write_args(folder, about)
        for csv in csvs:
            os.truncate(csv, saved.get(csv.name, [0])[0])  # what was written after the checkpoint is done again
        train_csv = stack.enter_context(open_csv(folder / "train.csv", "step,subnet,return,length"))
        eval_csv = stack.enter_context(open_csv(folder / "eval.csv", "step,episode,subnet,return,length,seconds"))
        start = time.time() - seconds

        def write() -> int:
            check_finite(step, **dict(agent.named_parameters()), **dict(agent.named_buffers()))
            state = {"about": about, "agent": agent.state_dict(), "buffer": buffer.state_dict(), "step": step}
            state |= {"rng": rng.bit_generator.state, "seconds": time.time() - start, "csvs": seal_csvs(folder)}
            write_checkpoint(folder / "checkpoint.pt", state)
            return step

        print(f"run folder: {folder}, from step {step}", flush=True)
        written = step or write()
        if args.compile and step < args.total_timesteps:
            compile_steps(agent)
        board = stack.enter_context(closing(SummaryWriter(folder, purge_step=step)))
        bar, shown, stop.training = stack.enter_context(progress(args.total_timesteps, step)), {}, True
        steps = interact(args, agent, env, buffer, rng, step)
        for step, (subnet, episode_return, length), done, metrics in steps:
            if step % 1000 == 0:
                for name, value in metrics.items():
                    board.add_scalar(f"losses/{name}", value, step)
            never = step == args.total_timesteps < args.eval_interval  # a run so short is evaluated at its end
            if args.eval_interval and (step % args.eval_interval == 0 or never):
                results = evaluate(agent, eval_env, args.eval_episodes, stream(args.seed, "evaluation", step))
                for episode, result in enumerate(results):
                    print(step, episode, *result, round(time.time() - start, 1), sep=",", file=eval_csv, flush=True)
                mean_return = np.mean([ret for _, ret, _ in results])
                board.add_scalar("eval/return", mean_return, step)
                shown["eval"] = f"{mean_return:.1f}"
            if done:
                print(step, subnet, episode_return, length, sep=",", file=train_csv, flush=True)
                board.add_scalar("charts/episodic_return", episode_return, step)
                board.add_scalar("charts/SPS", step / max(time.time() - start, 1e-9), step)
                bar.set_postfix(shown | {"episode": f"{episode_return:.1f}"}, refresh=False)
            bar.update()
            if step == args.total_timesteps or done and (stop.signum or step - written >= args.checkpoint_interval):
                written = write()
            if done and stop.signum:
                break
    return agent


def load(folder: Path, args: Args | None = None, make_agent=OMNetSAC) -> tuple[OMNetSAC, gym.Env, Args]:
    """The trained agent of a run folder, an environment for it, and its flags (or `args`, if they are read already)."""
    args = args or stored_args(Path(folder), Args())
    env = make_env(args, Path(folder) / "videos" if args.capture_video else None)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    check_device(args, obs_dim, action_dim)
    agent = make_agent(args, obs_dim, action_dim)
    load_checkpoint(Path(folder), args, agent)
    return agent, env, args


def evaluate_run(folder: Path, args: Args, default: Args, make_agent=OMNetSAC) -> None:
    """Prints the returns of the run in `folder`, per subnetwork, over `args.eval_episodes` episodes."""
    check_args(args)
    merge_args(folder, args, default, ["eval_episodes", "seed", "device", "capture_video"])
    stored = stored_args(folder, args)
    stored.device, stored.capture_video = args.device, args.capture_video
    agent, env, _ = load(folder, stored, make_agent)
    step = peek(folder)["step"]
    with closing(env):
        results = evaluate(agent, env, args.eval_episodes, stream(args.seed, "evaluation", step))
    print(f"{folder}, step {step}: mean return {np.mean([ret for _, ret, _ in results]):.1f}")
    for subnet in sorted({subnet for subnet, _, _ in results}):
        returns = [ret for i, ret, _ in results if i == subnet]
        print(f"subnetwork {subnet}: {np.mean(returns):.1f} +- {np.std(returns):.1f} over {len(returns)} episodes")


def parse(kind, **options):
    """The command line as `kind`, by tyro; whole numbers may be written as 1e5."""
    words = (str(int(float(w))) if re.fullmatch(r"\d+e\d+", w) else w for w in sys.argv[1:])
    return tyro.cli(kind, args=list(words), **options)


def main(args: Args, make_agent=OMNetSAC, default: Args | None = None) -> None:
    """Runs, resumes or evaluates, as `args` say. What the user can mend ends in one sentence and an exit code.

    `default` has the flags as they are where none is given; None: those of the class of `args`.
    """
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
    stop, folder, default = Stop(), Path(args.resume or args.evaluate or run_folder(args)), default or type(args)()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    try:
        if args.resume and args.evaluate:
            raise UsageError("--resume goes on with a run and --evaluate looks at one: give one of them")
        if args.evaluate:
            return evaluate_run(folder, args, default, make_agent)
        if args.resume:
            args = dataclasses.replace(merge_args(folder, args, default, RESUMABLE), resume=folder)
        train(args, make_agent, stop)
        if stop.signum:
            sys.exit(128 + stop.signum)
        print(f"done: curves in {folder}/eval.csv, the agent in {folder}/checkpoint.pt")
    except (UsageError, RunError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        kept = f"; {last_checkpoint(folder)}" if stop.training else ""
        print(f"\nerror: {first_line(error)}{kept}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except SystemExit:
        print(f"\nstopped: {last_checkpoint(folder)}", file=sys.stderr)
        raise


if __name__ == "__main__":
    main(parse(Args))
