# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["torch==2.13.0", "gymnasium[mujoco]==1.4.0", "mujoco==3.4.0", "numpy==2.4.6", "tyro==1.0.17",
#     "tqdm==4.70.1", "tensorboard==2.21.0", "psutil==7.2.2", "filelock==4.2.12", "moviepy==2.2.1"]
# ///
"""OMNet-SAC: Soft Actor-Critic at a replay ratio of 20 with ONE critic network and ONE actor network.

The method of "One is More: Diverse Perspectives within a Single Network for Efficient DRL". A network with the
parameters theta in R^n holds N overlapping subnetworks theta * m_1, ..., theta * m_N, cut out by fixed random binary
masks. Their disagreement replaces the ten critics of REDQ: the TD target is the minimum over two random subnetworks
(Eq. 4), the actor climbs the mean over all of them (Eq. 5), and one actor subnetwork acts per episode (Section 3.3).

    python omnet_sac.py --env-id Ant-v4 --sparsity 0.5 --num-subnets 5
"""

import copy
import importlib
import json
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal

import filelock
import gymnasium as gym
import numpy as np
import psutil
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.func import functional_call, grad_and_value
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
    eval_interval: int = 5_000  # environment steps between evaluations, at most total-timesteps; 0: never
    eval_episodes: int = 10  # episodes per evaluation; they cycle through the actor's subnetworks
    device: str = "cpu"  # torch device: cpu, cuda, cuda:1, ...
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # see torch.set_float32_matmul_precision
    compile: bool = True  # compile the updates; without a C++ compiler the run says so and goes on eagerly
    track: bool = False  # log to Weights & Biases as well (pip install wandb)
    capture_video: bool = False  # record each evaluation's first episode in the run folder, of --evaluate in ./videos
    checkpoint_interval: int = 1_000  # environment steps after which the next episode end writes a checkpoint
    resume: Path | None = None  # run folder to go on with, exactly, by the flags stored in it
    evaluate: Path | None = None  # run folder to evaluate: eval-episodes episodes, returns per subnetwork
    run_dir: Path = Path("runs")  # where the run folder <env-id>__omnet_sac__<seed> is made


def mlp(in_dim: int, out_dim: int, hidden_dim: int) -> nn.Sequential:
    """Two hidden layers, each Linear, LayerNorm, ReLU (Section 4.1); Xavier-uniform weights, zero biases."""
    net = OrderedDict(input=nn.Linear(in_dim, hidden_dim), norm_1=nn.LayerNorm(hidden_dim), relu_1=nn.ReLU())
    net.update(hidden=nn.Linear(hidden_dim, hidden_dim), norm_2=nn.LayerNorm(hidden_dim), relu_2=nn.ReLU())
    net.update(output=nn.Linear(hidden_dim, out_dim))
    for layer in net["input"], net["hidden"], net["output"]:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(net)


# Every random number of a run comes from one root, np.random.SeedSequence(seed): each name here has a child of it, what
# is done again (an evaluation, a reset) a child of that. Torch generators of one seed give the same numbers: masks
# and weights of one seed would go together. `probes` is for what paper/ records.
STREAMS = "weights", "masks", "updates", "acting", "episodes", "evaluation", "probes"


def stream(seed: int, name: str, *key: int) -> np.random.Generator:
    """The stream `name` of the run with this seed, or with `key` a child of that stream."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(name), *key)))


def torch_generator(rng: np.random.Generator, device="cpu") -> torch.Generator:
    """A generator for tensors, with a seed of 31 bits from `rng`: on a CPU, torch ignores all beyond 32."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**31)))


class OMNet(nn.Module):
    """N subnetworks theta * m_i inside one network `net`, of one input and one output (Section 3.1).

    `theta` (n,) is all parameters of `net` in one vector, `masks` (N, n) the fixed masks, each entry 1 with probability
    1 - sparsity. Parameters of normalisation layers and of the submodules named in `dense` are in every subnetwork:
    a unit without its gain would be dead. With `dynamic`, `sample` draws new masks: N = infinity (Section 4.6). Raises
    ValueError for a layer that keeps running statistics, AttributeError for a name in `dense` that `net` has not.
    """

    def __init__(self, net: nn.Module, num_subnets: int, sparsity: float, generator=None, dynamic=False, dense=()):
        super().__init__()
        if any(getattr(module, "running_mean", None) is not None for module in net.modules()):
            raise ValueError("a layer keeps running statistics, which the subnetworks would share: use LayerNorm")
        norms = nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase
        modules = [m for m in net.modules() if isinstance(m, norms)] + [net.get_submodule(name) for name in dense]
        unmasked = {param for module in modules for param in module.parameters()}
        density = [torch.full((p.numel(),), 1.0 if p in unmasked else 1 - sparsity) for p in net.parameters()]
        theta = torch.cat([param.detach().flatten() for param in net.parameters()])
        self.shapes = {name: param.shape for name, param in net.named_parameters()}
        self.call = partial(functional_call, net)  # `net` lends its structure alone
        self.theta = nn.Parameter(theta, requires_grad=False)  # torch.func takes gradients by argument
        self.register_buffer("density", torch.cat(density).to(theta.device), persistent=False)  # P(m = 1), (n,)
        self.register_buffer("masks", self.draw(num_subnets, generator))
        self.dynamic, self.batched = dynamic, theta.device.type != "cpu"  # on a CPU one by one is faster

    def draw(self, k: int, generator=None) -> torch.Tensor:
        """k new masks (k, n), m ~ Bernoulli(1 - S); bfloat16, exact and of what is exact the fastest to read."""
        return torch.bernoulli(self.density.expand(k, -1), generator=generator).bfloat16()

    def sample(self, steps: int, k: int, generator=None) -> torch.Tensor:
        """Per step the numbers (steps, min(k, N)) of different masks, chosen uniformly; if dynamic, new masks."""
        if self.dynamic:
            return self.draw(steps * k, generator).view(steps, k, -1)
        order = torch.rand(steps, len(self.masks), generator=generator, device=self.masks.device).argsort(1)
        return order[:, :k]

    def forward(self, theta: torch.Tensor, masks: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The outputs (k, ...) of the subnetworks f_{theta * m}(x) with these masks (k, n) or mask numbers (k,)."""
        masks = self.masks[masks] if masks.dim() == 1 else masks
        if self.batched and len(masks) > 1:
            return torch.vmap(self.subnet, (0, None))(theta * masks, x)
        return torch.stack([self.subnet(theta * mask, x) for mask in masks])

    def subnet(self, theta: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """f_theta(*inputs): `net` with the entries of the vector theta (n,) as its parameters."""
        views = theta.split([shape.numel() for shape in self.shapes.values()])
        return self.call({name: view.view(shape) for view, (name, shape) in zip(views, self.shapes.items())}, inputs)


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

    One row each makes a minibatch one gather. An open `file` gets all rows of a run, of which the ring keeps the last.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, device: str, added: int = 0):
        self.rows = torch.zeros(capacity, 2 * obs_dim + action_dim + 3, device=device)
        self.added, self.crc, self.file = added, 0, None

    def __len__(self) -> int:
        return min(self.added, len(self.rows))

    def add(self, obs, action, reward: float, next_obs, terminated: bool, truncated: bool) -> None:
        """Stores a transition, over the oldest one when full; values bootstrap through `truncated`."""
        row = np.concatenate([obs, action, [reward], next_obs, [terminated, truncated]], dtype=np.float32)
        self.extend(row[None])
        if self.file:
            self.file.write(row)

    def extend(self, rows: np.ndarray) -> None:
        """Stores rows (k, width), k at most the capacity; `crc` is the CRC-32 of all rows that were ever stored."""
        index = torch.arange(self.added, self.added + len(rows), device=self.rows.device) % len(self.rows)
        self.rows[index] = torch.from_numpy(rows).to(self.rows.device)
        self.added, self.crc = self.added + len(rows), zlib.crc32(rows, self.crc)

    def sample(self, num_batches: int, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """Minibatches (num_batches, batch_size, width), drawn uniformly with replacement."""
        index = torch.randint(len(self), (num_batches * batch_size,), generator=generator, device=self.rows.device)
        return self.rows.index_select(0, index).view(num_batches, batch_size, -1)


# Entropy targets of MBPO and REDQ; other tasks have -dim(A).
TARGET_ENTROPY = {"Hopper": -1.0, "HalfCheetah": -3.0, "Walker2d": -3.0, "Ant": -4.0, "Humanoid": -2.0}
METRICS = "critic_loss", "q_value", "actor_loss", "entropy", "alpha"


class OMNetSAC(nn.Module):
    """The agent: two OMNets, their optimizers, and the update of Appendix A with automatically tuned alpha."""

    def __init__(self, args: Args, obs_dim: int, action_dim: int):
        super().__init__()
        self.args, self.obs_dim, self.action_dim, self.gradient_steps = args, obs_dim, action_dim, 0
        generators = (torch_generator(stream(args.seed, name), args.device) for name in ("masks", "updates", "acting"))
        self.mask_generator, self.generator, self.act_generator = generators
        torch.manual_seed(int(stream(args.seed, "weights").integers(2**31)))  # torch's layers draw from the global one
        self.critic, self.actor = self.make_networks()
        self.register_buffer("theta_target", self.critic.theta.clone())
        self.register_buffer("log_alpha", torch.zeros((), device=args.device))
        self.critic_adam = Adam(self.critic.theta, args.learning_rate)
        self.actor_adam = Adam(self.actor.theta, args.learning_rate)
        self.alpha_adam = Adam(self.log_alpha, args.learning_rate)
        default = TARGET_ENTROPY.get(args.env_id.split(":")[-1].split("-v")[0], -float(action_dim))
        target_entropy = default if args.target_entropy is None else args.target_entropy
        for name, value in (("gamma", args.gamma), ("tau", args.tau), ("target_entropy", target_entropy)):
            self.register_buffer(name, self.log_alpha.new_tensor(value))  # a compiled step would freeze a number

    def make_networks(self) -> tuple[OMNet, OMNet]:
        """The critic, (O + A) to 1, and the actor, (O) to means and log stds (2 A)."""
        args = self.args
        critic = mlp(self.obs_dim + self.action_dim, 1, args.hidden_dim).to(args.device)
        actor = mlp(self.obs_dim, 2 * self.action_dim, args.hidden_dim).to(args.device)
        dense = [name for name, masked in (("input", args.mask_input), ("output", args.mask_output)) if not masked]
        omnet = partial(OMNet, generator=self.mask_generator, dynamic=args.dynamic_masks, dense=dense)
        critic = omnet(critic, args.num_subnets, args.sparsity)
        return critic, (omnet(actor, args.num_subnets, args.sparsity) if args.actor_subnets else OMNet(actor, 1, 0.0))

    @property
    def num_actor_subnets(self) -> int:
        """Actor subnetworks that can be told apart: N, but 1 for a plain actor and for dynamic masks."""
        return 1 if self.actor.dynamic else len(self.actor.masks)

    def policy(self, phi, mask, obs, noise) -> tuple[torch.Tensor, torch.Tensor]:
        """Action (..., A) in [-1, 1] and its log-probability (...) at obs (..., O): a Gaussian squashed by tanh."""
        mean, log_std = self.actor(phi, mask, obs)[0].chunk(2, dim=-1)
        log_std = log_std.clamp(-20, 2)
        u = mean + log_std.exp() * noise
        log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_det = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2), exact for large |u|
        return u.tanh(), (log_normal - log_det).sum(-1)

    def q_value(self, theta, masks, obs_action) -> torch.Tensor:
        """Q-values (k, B) of the critic subnetworks with these masks (k, n) at obs_action (B, O + A)."""
        return self.critic(theta, masks, obs_action).squeeze(-1)

    def td_target(self, reward, next_obs, terminated, two_masks, actor_mask, noise) -> torch.Tensor:
        """Eq. (4): r + gamma (minimum over two target subnetworks, at an action of actor subnetwork i''), (B,)."""
        next_action, next_log_pi = self.policy(self.actor.theta, actor_mask, next_obs, noise)
        next_q = self.q_value(self.theta_target, two_masks, torch.cat([next_obs, next_action], -1)).amin(0)
        next_value = next_q - self.log_alpha.exp() * next_log_pi
        return reward + self.gamma * (1 - terminated) * next_value

    def critic_loss(self, theta, mask, obs_action, target) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. (4): the squared error of one critic subnetwork; beside it, its mean Q-value."""
        q = self.q_value(theta, mask, obs_action)  # (1, B); (k, B) of an agent with k critics, whose losses add up
        assert q.shape[1:] == target.shape == obs_action.shape[:1]
        return (q - target).square().mean(1).sum(), q.mean()

    def critic_step(self, batch, mask, two_masks, actor_mask, noise) -> torch.Tensor:
        """A step on one critic subnetwork, then one of the target. Returns loss and mean Q (2,)."""
        widths = self.obs_dim + self.action_dim, 1, self.obs_dim, 1, 1
        obs_action, reward, next_obs, terminated, _ = batch.split(widths, dim=-1)
        target = self.td_target(reward[:, 0], next_obs, terminated[:, 0], two_masks, actor_mask, noise)
        grad, metrics = grad_and_value(self.critic_loss, has_aux=True)(self.critic.theta, mask, obs_action, target)
        self.critic_adam.step(self.critic.theta, grad)
        self.theta_target.lerp_(self.critic.theta, self.tau)
        return torch.stack(metrics)

    def actor_loss(self, phi, mask, all_masks, obs, noise) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. (5): minus the mean of all critic subnetworks at an actor subnetwork's action; beside it, the entropy."""
        action, log_pi = self.policy(phi, mask, obs, noise)
        q = self.q_value(self.critic.theta, all_masks, torch.cat([obs, action], -1)).mean(0)
        return (self.log_alpha.exp() * log_pi - q).mean(), -log_pi.mean()

    def actor_step(self, obs, mask, all_masks, noise) -> torch.Tensor:
        """A step on one actor subnetwork, then one of alpha. Returns loss, entropy, alpha (3,)."""
        alpha, grad_and_loss = self.log_alpha.exp(), grad_and_value(self.actor_loss, has_aux=True)
        grad, (loss, entropy) = grad_and_loss(self.actor.theta, mask, all_masks, obs, noise)
        self.actor_adam.step(self.actor.theta, grad)
        self.alpha_adam.step(self.log_alpha, entropy - self.target_entropy)  # grad of log_alpha * (entropy - target)
        return torch.stack([loss, entropy, alpha])

    def update(self, buffer: ReplayBuffer) -> dict[str, float]:
        """The gradient steps of one environment step; draws all their random numbers, the steps draw none."""
        args, generator, steps, actor_metrics = self.args, self.generator, self.args.replay_ratio, None
        batches = buffer.sample(steps, args.batch_size, generator)
        mask = self.critic.sample(steps, 1, generator)  # of the subnetwork i to update
        two_masks = self.critic.sample(steps, 2, generator)  # of i'_1 and i'_2
        actor_mask = self.actor.sample(steps, 1, generator)  # of i''
        noise = torch.randn(steps, args.batch_size, self.action_dim, generator=generator, device=args.device)
        for inputs in zip(batches, mask, two_masks, actor_mask, noise):
            critic_metrics = self.critic_step(*inputs)
            self.gradient_steps += 1
            if self.gradient_steps % args.policy_delay == 0:
                obs, phi_mask = inputs[0][:, : self.obs_dim], self.actor.sample(1, 1, generator)[0]
                all_masks = self.critic.sample(1, args.num_subnets, generator)[0]  # in any order
                fresh_noise = torch.randn(noise[0].shape, generator=generator, device=args.device)
                critic_metrics = critic_metrics.clone()  # what a CUDA graph returns, the next graph overwrites
                actor_metrics = self.actor_step(obs, phi_mask, all_masks, fresh_noise).clone()
        metrics = critic_metrics if actor_metrics is None else torch.cat([critic_metrics, actor_metrics])
        return dict(zip(METRICS, metrics.tolist()))  # the one wait for a GPU

    def act(self, obs: np.ndarray, subnet: int, generator=None, deterministic: bool = False) -> np.ndarray:
        """Action (A,) of actor subnetwork `subnet`, of a new one if dynamic, at obs (O,); deterministic: no noise."""
        generator, obs = generator or self.act_generator, torch.as_tensor(obs, dtype=torch.float32)
        noise = torch.randn(self.action_dim, generator=generator, device=self.args.device)
        mask = self.actor.draw(1, generator) if self.actor.dynamic else torch.full((1,), subnet, device=noise.device)
        return self.act_step(mask, obs.to(self.args.device), noise * (not deterministic)).cpu().numpy()

    def act_step(self, mask, obs, noise) -> torch.Tensor:
        """What `act` does on the device: the action (A,)."""
        return self.policy(self.actor.theta, mask, obs, noise)[0]

    def get_extra_state(self) -> dict:
        """What a resume needs beyond the tensors; nn.Module puts it into the state dict."""
        states = [generator.get_state() for generator in (self.generator, self.act_generator)]
        return {"generators": states, "gradient_steps": self.gradient_steps}

    def set_extra_state(self, state: dict) -> None:
        self.gradient_steps = state["gradient_steps"]
        for generator, saved in zip((self.generator, self.act_generator), state["generators"]):
            if len(saved) == len(generator.get_state()):  # else of another kind of device, and begun afresh
                generator.set_state(saved.cpu())


def compile_steps(agent: OMNetSAC) -> None:
    """Compiles the steps and says how long it took; where that fails says so and leaves them eager."""
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}  # the same shapes always
    on_gpu = torch.device(agent.args.device).type == "cuda"
    options |= {"triton.cudagraphs": True, "deterministic": True} if on_gpu else {"cpp_wrapper": True}
    steps = ("critic_step", "actor_step") + ("act_step",) * on_gpu
    calls = 3 if on_gpu else 1  # a CUDA graph is recorded by the second call and first replayed by the third
    torch.empty(2**25 - 2**14, dtype=torch.uint8)  # freed at once: glibc then keeps blocks of this size, 7% faster
    print("compiling the update ...", end=" ", flush=True)
    start, state = time.perf_counter(), copy.deepcopy(agent.state_dict())
    try:
        os.makedirs(os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir()), exist_ok=True)
        for name in steps:
            flags = {"fullgraph": True, "dynamic": False, "isolate_recompiles": True, "options": dict(options)}
            setattr(agent, name, torch.compile(getattr(agent, name), **flags))
        buffer = ReplayBuffer(1, agent.obs_dim, agent.action_dim, agent.args.device, added=1)
        with warnings.catch_warnings(action="ignore"):  # torch warns with a stack when a signal comes
            for _ in range(calls * math.ceil(agent.args.policy_delay / agent.args.replay_ratio)):
                agent.update(buffer)
                agent.act(np.zeros(agent.obs_dim), 0)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    except Exception as error:  # of a compiler, its cache or a capture, which raise all kinds
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()  # eager torch.func asks for a cache, too
        for name in steps:
            vars(agent).pop(name, None)
        print(f"not possible here, the run goes on without, more slowly: {one_line(error)}", flush=True)
    agent.load_state_dict(state)


def episode(env: gym.Env, seed: int, noise: float, act) -> Iterator[tuple]:
    """An episode of `act`, which maps obs to an action: yields obs, action, reward, next_obs, terminated, truncated.

    Section 4.4: sigma ~ U[-noise, noise]^O, drawn per episode and constant within it, is added to all observations.
    """
    random.seed(seed)  # some environments draw from the global generators
    np.random.seed(seed)
    obs, _ = env.reset(seed=seed)  # seeded per episode: no state of the environment to checkpoint
    sigma = env.np_random.uniform(-noise, noise, obs.shape) if noise else 0.0
    obs, done = obs + sigma, False  # the sum is a copy: some environments return the same array every time
    while not done:
        action = act(obs)
        next_obs, reward, terminated, truncated, _ = env.step(action.reshape(env.action_space.shape))
        next_obs, done = next_obs + sigma, terminated or truncated
        yield obs, action, float(reward), next_obs, bool(terminated), bool(truncated)
        obs = next_obs


def training_steps(args: Args, agent: OMNetSAC, env: gym.Env, buffer: ReplayBuffer, rng) -> Iterator[tuple]:
    """The off-policy loop from step `buffer.added` on: act, store, update. Raises RunError at a NaN or infinity.

    Yields (step, (subnet, return so far, length), done, metrics) after every environment step.
    """

    def act(obs):
        if buffer.added >= args.learning_starts:
            action = agent.act(obs, subnet)
        else:
            uniform = torch.rand(agent.action_dim, generator=agent.act_generator, device=args.device)
            action = (2 * uniform - 1).cpu().numpy()
        check_finite(buffer.added, observation=obs, action=action)
        return action

    while buffer.added < args.total_timesteps:
        subnet, total, length = int(rng.integers(agent.num_actor_subnets)), 0.0, 0  # Section 3.3: for a whole episode
        for transition in episode(env, int(rng.integers(2**31)), args.obs_noise, act):
            _, _, reward, next_obs, terminated, truncated = transition
            step, total, length = buffer.added + 1, total + reward, length + 1
            check_finite(step, observation=next_obs, reward=reward)
            buffer.add(*transition[:-1], truncated or step == args.total_timesteps)  # cut off by the end, too
            metrics = agent.update(buffer) if step > args.learning_starts else {}
            check_finite(step, **metrics)
            yield step, (subnet, total, length), terminated or truncated, metrics
            if step == args.total_timesteps:
                return


def evaluate(agent: OMNetSAC, env: gym.Env, episodes: int, rng: np.random.Generator) -> list[tuple[int, float, int]]:
    """(subnet, return, length) of deterministic episodes that cycle through the subnetworks.

    A function of parameters and `rng` alone. Beside a training episode use `kept_random_state`, as `train` does.
    """
    generator, results = torch_generator(rng, agent.args.device), []
    for k in range(episodes):
        subnet, total, length = k % agent.num_actor_subnets, 0.0, 0
        act = partial(agent.act, subnet=subnet, generator=generator, deterministic=True)
        for _, _, reward, *_ in episode(env, int(rng.integers(2**31)), agent.args.obs_noise, act):
            total, length = total + reward, length + 1
        results.append((subnet, total, length))
    return results


def train(args: Args, make_agent=OMNetSAC, stop: "Stop | None" = None) -> OMNetSAC:
    """A whole run: trains an agent, evaluates it, writes logs and checkpoints into the run folder. Returns the agent.

    `make_agent(args, obs_dim, action_dim)` gives the agent, so that other methods reuse all of this. `stop` may end it
    after an episode. Raises UsageError for what the user must mend first, RunError when the run cannot go on.
    """
    check_args(args)
    torch.set_float32_matmul_precision(args.matmul_precision)
    torch.set_flush_denormal(True)  # else a long run may slow down to half its speed
    torch.set_num_threads(min(2, torch.get_num_threads()))  # 1.4x as fast as one; OMP_NUM_THREADS=1 is kept
    folder, stop, shown = Path(args.resume or run_folder(args)), stop or Stop(), {}
    videos = folder / "videos" if args.capture_video else None
    obs_dim, action_dim = check_env(args)
    agent, rng = make_agent(args, obs_dim, action_dim), stream(args.seed, "episodes")
    buffer = ReplayBuffer(min(args.buffer_size, args.total_timesteps), obs_dim, action_dim, args.device)
    with closing(make_env(args)) as env, locked_replay_file(folder, args) as buffer.file:
        about, seconds = describe(args), 0.0
        if args.resume:
            about["id"], seconds = restore(folder, agent, buffer, rng)
        save = partial(save_checkpoint, folder, about, agent, buffer, rng)
        with logs(args, folder, about, buffer.added) as (board, bar):
            start = time.time() - seconds
            saved = buffer.added or save(0.0)  # a new run has a checkpoint at once, before CSV files: it can be resumed
            for name in COLUMNS:
                append_csv(folder / name)
            if args.compile and saved < args.total_timesteps:
                compile_steps(agent)
            stop.training = True
            for step, (subnet, total, length), done, metrics in training_steps(args, agent, env, buffer, rng):
                if step % 1000 == 0:
                    for name, value in metrics.items():
                        board.add_scalar(f"losses/{name}", value, step)
                if args.eval_interval and step % min(args.eval_interval, args.total_timesteps) == 0:
                    with kept_random_state(), closing(make_env(args, videos, f"step-{step}")) as eval_env:
                        results = evaluate(agent, eval_env, args.eval_episodes, stream(args.seed, "evaluation", step))
                    seconds = round(time.time() - start, 1)
                    check_folder(folder, buffer.file)
                    append_csv(folder / "eval.csv", *((step, k, *result, seconds) for k, result in enumerate(results)))
                    mean_return = np.mean([ret for _, ret, _ in results])
                    board.add_scalar("eval/return", mean_return, step)
                    shown["eval"] = f"{mean_return:.1f}"
                if done:
                    check_folder(folder, buffer.file)
                    append_csv(folder / "train.csv", (step, subnet, total, length))
                    board.add_scalar("charts/episodic_return", total, step)
                    board.add_scalar("charts/SPS", step / max(time.time() - start, 1e-9), step)
                    bar.set_postfix(shown | {"episode": f"{total:.1f}"}, refresh=False)
                bar.update()
                if step == args.total_timesteps or done and (stop.signum or step - saved >= args.checkpoint_interval):
                    saved = save(time.time() - start)
                if done and stop.signum:
                    break
    return agent


# From here on what any run needs, whatever the method: environments, checks, the run folder, the command line


class RunError(Exception):
    """A run that cannot go on, in a sentence that says why. Exit code 1."""


class UsageError(RunError):
    """Arguments, or a run folder, that cannot work, in a sentence that says what to do. Exit code 2."""


def one_line(error: Exception) -> str:
    """What an exception says, in one line, with advice where drawing failed."""
    text = " ".join(str(error).split()) or type(error).__name__
    advice = "; without a display set MUJOCO_GL=egl (it needs libegl1) or MUJOCO_GL=osmesa (libosmesa6)"
    return text[:500] + advice * bool(re.search("gl[A-Z]|GL(?!OBAL|IBC)|OSMesa|[Rr]ender", text))


@contextmanager
def blamed(flag: str, error_class=UsageError) -> Iterator[None]:
    """Whatever is raised within becomes a sentence about `flag`: environments, drivers and files raise all kinds."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        raise error_class(f"{flag}: {one_line(error)}") from None


def make_env(args: Args, videos: Path | str | None = None, name: str = "") -> gym.Env:
    """The environment `args.env_id` with observations (O,) and actions in [-1, 1]; with `videos`, one that records its
    first episode there as `name`. Raises UsageError where there is none, or none for SAC."""
    warnings.filterwarnings("ignore", message=".*(out of date|Overwriting existing videos)")  # v4 is meant
    sys.path += [os.getcwd()] * (os.getcwd() not in sys.path)  # last, so that `module:EnvId` shadows nothing
    with blamed(f"--env-id {args.env_id}"):
        module, _, env_id = args.env_id.rpartition(":")
        if module and importlib.import_module(module) and env_id.split("-v")[0] not in str([*gym.registry]):
            raise ValueError(f"importing {module} registers no {env_id}: its page says what does")
        drawn = {"render_mode": "rgb_array"} if videos else {}  # some constructors know no render_mode
        env = gym.make(args.env_id, max_episode_steps=args.max_episode_steps, **drawn)
        if statistics := re.search("Normalize(Observation|Reward)(?=<)", str(env)):
            message = f"{statistics[0]} keeps statistics, which evaluations and a resume would not have"
            raise ValueError(f"{message}: normalise in the agent, as the fork in the README does")
        space = env.action_space
        is_box = isinstance(space, gym.spaces.Box) and space.dtype.kind == "f"
        if not is_box or not ((space.high > space.low) & np.isfinite(space.high - space.low)).all():
            raise ValueError(f"SAC needs actions in a Box of floats with finite, different bounds, not {space}")
        if not env.observation_space.is_np_flattenable:
            raise ValueError(f"observations must flatten to a vector, these are {env.observation_space}")
        if videos:
            env.reset()
            env.render()  # a machine that cannot draw says so before training
            env = gym.wrappers.RecordVideo(env, videos, episode_trigger=lambda k: k == 0, name_prefix=name)
        return gym.wrappers.RescaleAction(gym.wrappers.FlattenObservation(env), -1, 1)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Puts the global generators back as they were, from which some environments draw."""
    state, np_state = random.getstate(), np.random.get_state()
    yield
    random.setstate(state)
    np.random.set_state(np_state)


def check_env(args: Args) -> tuple[int, int]:
    """O and A of the environment, which is tried: says where it does not follow its seeds, by which runs are repeated.

    Raises UsageError where it cannot be made, reset, stepped or drawn.
    """

    def play(env: gym.Env, seed: int) -> Iterator[tuple]:
        actions = np.random.default_rng(seed)
        yield from islice(episode(env, seed, 0.0, lambda obs: actions.uniform(-1, 1, env.action_space.shape)), 10)

    with blamed(f"--env-id {args.env_id}"), closing(make_env(args)) as env, closing(make_env(args)) as other:
        if args.capture_video:
            with tempfile.TemporaryDirectory() as videos:
                make_env(args, videos).close()
        first, _, again = [*play(env, 0)], [*play(env, 1)], []
        for row in play(env, 0):
            again.append(row)
            with kept_random_state():
                next(play(other, 2))  # as an evaluation in the midst of an episode
        if not all(map(np.array_equal, chain(*first), chain(*again))):
            print(f"{args.env_id} does not follow its seeds: no run of it can be repeated or resumed exactly")
        if env.spec.max_episode_steps is None:
            print(f"{args.env_id} has no time limit: if its episodes may not end, set --max-episode-steps")
        return sizes(args, env)


CONDITIONS = """0 <= seed < 2**63; 0 <= sparsity < 1; 0 <= gamma <= 1; 0 < tau <= 1; 0 < learning_rate < inf;
0 <= obs_noise < inf; max_episode_steps is None or 0 < max_episode_steps; 0 <= eval_interval; 0 < eval_episodes;
target_entropy is None or -inf < target_entropy < inf; 0 < batch_size <= learning_starts < total_timesteps;
0 < replay_ratio; 0 < policy_delay; 0 < buffer_size; 0 < hidden_dim; 0 < num_subnets; 0 < checkpoint_interval"""


def check_args(args: Args) -> None:
    """Raises UsageError for values that no run can work with."""
    for condition in CONDITIONS.split(";"):
        if not eval(condition.strip(), {"inf": math.inf}, vars(args)):
            given = [f"--{k.replace('_', '-')} {v}" for k, v in vars(args).items() if re.search(rf"\b{k}\b", condition)]
            raise UsageError(f"{' '.join(given)}: must satisfy {condition.strip()}")


def check_finite(step: int, **quantities) -> None:
    """Raises RunError that names the first quantity that is NaN or infinite."""
    for name, value in quantities.items():
        if not torch.isfinite(torch.as_tensor(value, dtype=torch.float32)).all():
            raise RunError(f"step {step}: {name} is not finite, the run stops")


def sizes(args: Args, env: gym.Env) -> tuple[int, int]:
    """O and A. Raises UsageError where the device is not there, or has no room for the replay buffer."""
    obs_dim, action_dim = env.observation_space.shape[0], math.prod(env.action_space.shape)
    with blamed(f"--device {args.device} cannot be used here, try --device cpu"):
        torch.empty(0, device=args.device)
        free = torch.cuda.mem_get_info(args.device)[0] if "cuda" in args.device else psutil.virtual_memory().available
    need = 4 * min(args.buffer_size, args.total_timesteps) * (2 * obs_dim + action_dim + 3)
    if need > free:
        raise UsageError(f"the replay buffer needs {need / 1e9:.1f} GB of {free / 1e9:.1f} free: lower --buffer-size")
    return obs_dim, action_dim


def run_folder(args: Args) -> Path:
    """`<run-dir>/<env>__<method>__<seed>`; `:` and `/` in the environment's id become `-`."""
    return Path(args.run_dir) / f"{re.sub('[:/]', '-', args.env_id)}__{args.method}__{args.seed}"


def describe(args: Args) -> dict:
    """What a run's numbers follow from, in plain types: method, flags, versions; and its id for Weights & Biases."""
    flags = asdict(replace(args, resume=None, evaluate=None)) | {"run_dir": str(args.run_dir)}
    packages = "torch", "gymnasium", "mujoco", "numpy"
    found = chain(*(islice(metadata.distributions(name=name), 1) for name in packages))  # the first is imported
    versions = {p.name: p.version.split("+")[0] for p in found}
    return {"method": args.method, "args": flags, "versions": versions, "id": os.urandom(8).hex()}


@contextmanager
def locked_replay_file(folder: Path, args: Args) -> Iterator[BinaryIO]:
    """Makes and locks the run folder; yields its replay.f32, open. Raises UsageError where another run is there."""
    with blamed(f"--run-dir {args.run_dir} cannot be used"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = filelock.FileLock(folder / ".lock", blocking=False).acquire()
        except filelock.Timeout:
            holder = " ".join((folder / ".lock").read_text().split())  # host and process, where locks are files
            message = f"{folder} is being written by another process {holder}"
            raise UsageError(f"{message}; if that is gone, remove {folder}/.lock") from None
    with lock:
        if not args.resume and any((folder / name).exists() for name in ("checkpoint.pt", *COLUMNS)):
            raise UsageError(f"{folder} holds a run already: go on with --resume {folder}, or choose another --run-dir")
        with (folder / "replay.f32").open("ab" if args.resume else "wb") as file:
            yield file


COLUMNS = {"train.csv": "step,subnet,return,length", "eval.csv": "step,episode,subnet,return,length,seconds"}


def append_csv(path: Path, *rows: tuple, columns: str = "") -> None:
    """Appends rows to a CSV file of a run, below its header."""
    with path.open("a") as file:
        if not file.tell():
            print(columns or COLUMNS[path.name], file=file)
        for row in rows:
            print(*row, sep=",", file=file)


def check_folder(folder: Path, replay: BinaryIO) -> None:
    """Raises UsageError where the run folder was removed, or begun anew by another process."""
    with blamed(f"{folder} was removed: this run ends"):
        if not os.path.samestat(os.stat(folder / "replay.f32"), os.fstat(replay.fileno())):
            raise UsageError(f"{folder} was begun anew by another process: this run ends")


def save_checkpoint(folder: Path, about: dict, agent: OMNetSAC, buffer: ReplayBuffer, rng, seconds: float) -> int:
    """Writes all that an exact resume needs and returns its step: with the text of the CSV files, but of replay.f32,
    which grows, only how many rows count and their CRC-32. Raises RunError; the last checkpoint then stays good."""
    check_finite(buffer.added, **dict(agent.named_parameters()), **dict(agent.named_buffers()))
    check_folder(folder, buffer.file)
    buffer.file.flush()
    os.fsync(buffer.file.fileno())
    csv = {path.name: path.read_text() for path in folder.glob("*.csv")}
    state = {"about": about, "agent": agent.state_dict(), "step": buffer.added, "crc": buffer.crc, "csv": csv}
    state |= {"rng": rng.bit_generator.state, "seconds": seconds}
    path, temporary = folder / "checkpoint.pt", folder / "checkpoint.pt.tmp"
    with blamed(f"{path} could not be written, the last one is kept", RunError), temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)  # a kill leaves the old one or the new one
    return buffer.added


def read_checkpoint(folder: Path, agent: OMNetSAC | None = None) -> dict:
    """The checkpoint in `folder`, loaded into `agent`. Raises UsageError where there is none, RunError where a bit is
    not as it was written, or the agent is another one. Says where other versions made it."""
    path = Path(folder) / "checkpoint.pt"
    if not path.exists():
        raise UsageError(f"{folder} holds no checkpoint: begin its run anew, without --resume and --evaluate")
    with blamed(f"{path} cannot be used, it is damaged or of other code", RunError):
        if zipfile.ZipFile(path).testzip():  # torch.load looks at no checksum
            raise ValueError("its checksum is another one")
        state = torch.load(path, weights_only=True, map_location="cpu")
        about, *_ = (state[name] for name in ("about", "agent", "step", "crc", "csv", "rng", "seconds"))  # or KeyError
        if agent:
            agent.load_state_dict(state["agent"])
            made, here = about["versions"].items(), describe(agent.args)["versions"].items()
            if other := [f"{name}=={version}" for name, version in made - here]:
                print(f"not exactly the same run from here on, other versions made it: pip install {' '.join(other)}")
    return state


def restore(folder: Path, agent: OMNetSAC, buffer: ReplayBuffer, rng: np.random.Generator) -> tuple[str, float]:
    """Puts all back as it was at the checkpoint, the CSV files too. Returns the run's id and its seconds so far."""
    state, width = read_checkpoint(folder, agent), buffer.rows.shape[1]
    message = f"{folder}/replay.f32 is damaged, the run cannot go on"
    with blamed(message, RunError), (folder / "replay.f32").open("rb+") as file:
        while buffer.added < state["step"]:
            count = min(4096, len(buffer.rows), state["step"] - buffer.added)
            buffer.extend(np.fromfile(file, np.float32, count * width).reshape(count, width))
        if buffer.crc != state["crc"]:
            raise ValueError("its checksum is another one")
        file.truncate(4 * width * buffer.added)
    for path in folder.glob("*.csv"):
        if path.name not in state["csv"]:  # begun since then
            path.replace(path.with_suffix(".csv.old"))
    for name, text in state["csv"].items():
        (folder / name).write_text(text)
    rng.bit_generator.state = state["rng"]
    return state["about"]["id"], state["seconds"]


@contextmanager
def logs(args: Args, folder: Path, about: dict, step: int) -> Iterator[tuple[SummaryWriter, tqdm]]:
    """Writes args.json; yields TensorBoard's writer, which --track mirrors to Weights & Biases, and a progress bar."""
    if args.track:
        with blamed("--track needs Weights & Biases: pip install wandb, wandb login"):
            wandb, names = importlib.import_module("wandb"), {"name": str(folder), "id": about["id"], "resume": "allow"}
            group = str(folder).rpartition("__")[0]
            wandb.init(project="omnet-sac", group=group, config=about, sync_tensorboard=True, **names)
            wandb.define_metric("*", step_metric="global_step")
    (folder / "args.json").write_text(json.dumps(about, indent=2))
    print(f"run folder: {folder}, from step {step}", flush=True)
    intervals = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 60, "smoothing": 1}  # in a file
    bar = tqdm(total=args.total_timesteps, initial=step, unit="step", dynamic_ncols=True, **intervals)
    with closing(SummaryWriter(folder, purge_step=step + 1)) as board, bar:
        yield board, bar


class Stop:
    """Ctrl-C and other signals: the first one in training ends it after the episode, any other the program at once."""

    signum, training = 0, False

    def __call__(self, signum, frame) -> None:
        again, self.signum = self.signum, signum  # always: code that compiles may swallow the exit
        if again or not self.training:
            sys.exit(128 + signum)
        with suppress(OSError):  # not print, in which the signal may have come
            os.write(2, b"\nstopping at the end of this episode; again to stop now\n")


RESUMABLE = ["total_timesteps", "eval_episodes", "checkpoint_interval", "track", "capture_video", "device", "compile"]
EVALUABLE = ["eval_episodes", "seed", "device", "capture_video"]


def whole_numbers(default: Args, words: list[str]) -> list[str]:
    """`words` with 1e5 as 100000, where a flag takes a whole number."""
    names = "|".join(field.name for field in fields(default) if re.search(r"\bint\b", str(field.type)))
    flag_and_number = rf"(--(?:{names})[\0=])(\d+e\d\d?)(?=\0|$)".replace("_", "[-_]")
    text = re.sub(flag_and_number, lambda m: m[1] + str(int(float(m[2]))), "\0".join(words))
    return text.split("\0") if words else []


def parse(default: Args, words: list[str], **options) -> Args:
    """The command line as flags, by default those of the run that --resume or --evaluate names. Raises UsageError."""

    def read(default: Args) -> Args:
        args = tyro.cli(type(default), default=default, args=whole_numbers(default, words), **options)
        paths = {name: getattr(args, name) for name in ("resume", "evaluate", "run_dir") if getattr(args, name)}
        return replace(args, **{name: path.expanduser() for name, path in paths.items()})

    args = read(default)
    folder, allowed = args.resume or args.evaluate, (RESUMABLE if args.resume else EVALUABLE)
    if not folder:
        return args
    if args.resume and args.evaluate:
        raise UsageError("--resume goes on with a run and --evaluate looks at one: give one of them")
    state = read_checkpoint(folder)
    method, flags = state["about"]["method"], state["about"]["args"]
    if method != default.method or flags.keys() != vars(default).keys():
        raise UsageError(f"{folder} is a run of {method} with flags of its own, not of this {default.method}")
    flags |= {"run_dir": Path(flags["run_dir"]), "resume": args.resume, "evaluate": args.evaluate}
    args = read(replace(default, **flags))
    for name, value in vars(args).items():
        if value != flags[name] and name not in allowed:
            message = f"--{name.replace('_', '-')} {value}: the run in {folder} has {flags[name]}"
            raise UsageError(f"{message}; what may be given here is {', '.join(allowed)}")
    if args.resume and args.total_timesteps != flags["total_timesteps"] and args.total_timesteps <= state["step"]:
        raise UsageError(f"--total-timesteps {args.total_timesteps}: the run in {folder} has done {state['step']}")
    return args


def load(folder, default: Args | None = None, make_agent=OMNetSAC, **changes) -> tuple[OMNetSAC, gym.Env, Args]:
    """The trained agent of a run folder, an environment for it, and its flags, with `changes` (device="cpu").

    `default` has the class of the flags. Raises UsageError or RunError where there is no such run.
    """
    args = replace(parse(default or Args(), ["--evaluate", str(folder)]), **changes)
    agent, env, _ = trained(args, make_agent)
    return agent, env, args


def trained(args: Args, make_agent) -> tuple[OMNetSAC, gym.Env, int]:
    """The agent of the run in `args.evaluate`, an environment for it, and the step of its checkpoint."""
    check_args(args)
    env = make_env(args)
    agent = make_agent(args, *sizes(replace(args, buffer_size=0), env))  # no buffer is needed
    return agent, env, read_checkpoint(args.evaluate, agent)["step"]


def print_evaluation(args: Args, make_agent) -> None:
    """The returns of the run in `args.evaluate`, per subnetwork, over `args.eval_episodes` episodes."""
    agent, env, step = trained(args, make_agent)
    if args.capture_video:
        env.close()
        env = make_env(args, Path("videos") / args.evaluate.name, f"step-{step}")
    with closing(env):
        results = evaluate(agent, env, args.eval_episodes, stream(args.seed, "evaluation", step))
    print(f"{args.evaluate}, step {step}: mean return {np.mean([ret for _, ret, _ in results]):.1f}")
    for subnet in sorted({subnet for subnet, _, _ in results}):
        returns = [ret for i, ret, _ in results if i == subnet]
        print(f"subnetwork {subnet}: {np.mean(returns):.1f} +- {np.std(returns):.1f} over {len(returns)} episodes")


def main(default: Args | None = None, make_agent=OMNetSAC, words: list[str] | None = None, **options) -> None:
    """Runs, resumes or evaluates, as the command line says. What the user can mend ends in one sentence and exit code 1
    or 2. `default` has the flags where none is given, `options` are tyro's."""
    stop, hint = Stop(), ""
    for signum in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1:
        signal.signal(signum, stop)
    try:
        args = parse(default or Args(), sys.argv[1:] if words is None else words, **options)
        if args.evaluate:
            return print_evaluation(args, make_agent)
        folder = args.resume or run_folder(args)
        hint = f"; what it has done is kept, go on with --resume {folder}"
        train(args, make_agent, stop)
        if stop.signum:
            sys.exit(128 + stop.signum)
        print(f"done: curves in {folder}/eval.csv, the agent in {folder}/checkpoint.pt")
    except (RunError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        usage = isinstance(error, UsageError)
        print(f"\nerror: {one_line(error)}{hint * (stop.training and not usage)}", file=sys.stderr)
        sys.exit(2 if usage else 1)
    except SystemExit:
        sys.stderr.write(f"\nstopped{hint}\n" * stop.training)
        raise


if __name__ == "__main__":
    main()
