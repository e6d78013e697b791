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
import json
import math
import os
import pickle
import platform
import signal
import sys
import time
import warnings
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal, TextIO

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


class UsageError(Exception):
    """Arguments that cannot work, in a sentence that says what to do. Exit code 2."""


class RunError(Exception):
    """A run that cannot go on, in a sentence that says what is safe. Exit code 1."""


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


def make_env(args: Args, video_dir: Path | None = None) -> gym.Env:
    """The environment `args.env_id` with observations (O,) and actions (A,) in [-1, 1]; UsageError if it has none."""
    warnings.filterwarnings("ignore", message=".*out of date.*")  # v4 is meant: published curves are v4
    try:
        env = gym.make(args.env_id, render_mode="rgb_array" if video_dir else None)
        if video_dir:
            env = gym.wrappers.RecordVideo(env, video_dir, episode_trigger=lambda k: k % args.eval_episodes == 0)
    except (gym.error.Error, ImportError, ValueError) as error:
        near = difflib.get_close_matches(args.env_id, gym.registry, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near and near[0] != args.env_id else ""
        raise UsageError(f"--env-id {args.env_id}: {first_line(error)}{hint}") from None
    action_space, obs_space = env.action_space, env.observation_space
    is_float_box = isinstance(action_space, gym.spaces.Box) and action_space.dtype.kind == "f"
    if not is_float_box or not action_space.is_bounded():
        raise UsageError(f"--env-id {args.env_id}: SAC needs a bounded Box of floats as actions, not {action_space}")
    if not obs_space.is_np_flattenable:
        raise UsageError(f"--env-id {args.env_id}: observations must flatten to a vector, these are {obs_space}")
    if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
        env = gym.wrappers.FlattenObservation(env)
    env = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    if len(action_space.shape) != 1:
        flat = gym.spaces.flatten_space(env.action_space)
        env = gym.wrappers.TransformAction(env, lambda action: action.reshape(action_space.shape), flat)
    return ObservationNoise(env, args.obs_noise) if args.obs_noise else env


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


class OMNet(nn.Module):
    """N subnetworks theta * m_i inside one network `net`, which may be any nn.Module (Section 3.1).

    `theta` (n,) is all parameters of `net` in one vector; `masks` (N, n) are the fixed masks, each entry 1 with
    probability 1 - sparsity. Gains and biases of normalisation layers stay unmasked: without its gain a unit is gone.
    With `dynamic`, every subnetwork that is asked for gets a fresh mask instead: N = infinity (Section 4.6).
    """

    def __init__(self, net: nn.Module, num_subnets: int, sparsity: float, generator=None, dynamic: bool = False):
        super().__init__()
        params = dict(net.named_parameters())
        self.shapes = {name: param.shape for name, param in params.items()}
        self.theta = nn.Parameter(torch.cat([param.detach().flatten() for param in params.values()]), False)
        self.call = partial(functional_call, net)  # hides net from nn.Module: only its structure is used

        norms = {param for m in net.modules() if "Norm" in type(m).__name__ for param in m.parameters(recurse=False)}
        p_one = [torch.full((param.numel(),), 1 - sparsity * (param not in norms)) for param in params.values()]
        self.register_buffer("p_one", torch.cat(p_one).to(self.theta.device), persistent=False)  # P(m = 1) (n,)
        self.register_buffer("masks", self.draw(num_subnets, generator))
        self.dynamic = dynamic

    def draw(self, k: int, generator=None) -> torch.Tensor:
        """k new masks (k, n), m ~ Bernoulli(1 - S); uint8, since reading them costs more than the product."""
        return torch.bernoulli(self.p_one.expand(k, -1), generator=generator).to(torch.uint8)

    def select(self, steps: int, k: int, generator=None) -> torch.Tensor:
        """Per step k different subnetworks, chosen uniformly: i (steps, min(k, N)); if dynamic, new masks instead."""
        if self.dynamic:
            return self.draw(steps * k, generator).view(steps, k, -1)
        return torch.rand(steps, len(self.masks), generator=generator, device=self.masks.device).argsort(1)[:, :k]

    def forward(self, theta: torch.Tensor, i: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The outputs (k, ...) of the subnetworks f_{theta * m_i}(x) for what `select` gave for a step."""
        masks = i if self.dynamic else self.masks[i]
        if masks.device.type == "cpu":  # one after another: each stays in the cache
            return torch.stack([self.subnet(theta * mask, x) for mask in masks])
        return torch.vmap(self.subnet, (0, None))(theta * masks, x)

    def subnet(self, theta: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """f_theta(x): `net` with the entries of the vector theta (n,) as its parameters."""
        views = theta.split([shape.numel() for shape in self.shapes.values()])
        return self.call({name: view.view(shape) for view, (name, shape) in zip(views, self.shapes.items())}, inputs)


class Adam(nn.Module):
    """Adam (Kingma & Ba, 2015) on one flat parameter vector."""

    def __init__(self, theta: torch.Tensor, learning_rate: float):
        super().__init__()
        self.learning_rate = learning_rate
        self.register_buffer("m", torch.zeros_like(theta))
        self.register_buffer("v", torch.zeros_like(theta))
        self.register_buffer("beta1_t", theta.new_ones(()))  # beta1^t as a product: compilers put a power into the loop
        self.register_buffer("beta2_t", theta.new_ones(()))

    def step(self, theta: torch.Tensor, grad: torch.Tensor, beta1=0.9, beta2=0.999, eps=1e-8) -> None:
        """Updates `theta` in place."""
        self.beta1_t *= beta1
        self.beta2_t *= beta2
        self.m.lerp_(grad, 1 - beta1)
        self.v.lerp_(grad.square(), 1 - beta2)
        step_size, v_scale = self.learning_rate / (1 - self.beta1_t), 1 / (1 - self.beta2_t)
        theta -= step_size * self.m / ((v_scale * self.v).sqrt() + eps)


class ReplayBuffer:
    """Ring of transitions, one float32 row each: obs, action, reward, next_obs, terminated.

    So a minibatch is one gather, and the critic's input (obs, action) is a slice of it. Raises UsageError where the
    memory for `capacity` rows is not free.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, device: str, added: int = 0):
        width = 2 * obs_dim + action_dim + 2
        on_gpu = torch.device(device).type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        if 4 * capacity * width > free:
            need = f"{4 * capacity * width / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            raise UsageError(f"the replay buffer needs {need}: lower --buffer-size or --total-timesteps")
        self.rows = torch.zeros(capacity, width, device=device)
        self.added = added

    def __len__(self) -> int:
        return min(self.added, len(self.rows))

    def add(self, obs, action, reward: float, next_obs, terminated: bool) -> None:
        """Stores a transition, over the oldest one when full; `terminated` without truncation, which bootstraps."""
        row = np.concatenate([obs, action, [reward], next_obs, [terminated]], dtype=np.float32, casting="unsafe")
        self.rows[self.added % len(self.rows)] = torch.from_numpy(row)
        self.added += 1

    def sample(self, num_batches: int, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """Minibatches (num_batches, batch_size, width), drawn uniformly with replacement."""
        index = torch.randint(len(self), (num_batches * batch_size,), generator=generator, device=self.rows.device)
        return self.rows.index_select(0, index).view(num_batches, batch_size, -1)

    def state_dict(self) -> dict:
        return {"rows": self.rows[: len(self)].clone(), "added": self.added}

    def load_state_dict(self, state: dict) -> None:
        self.rows[: len(state["rows"])], self.added = state["rows"], state["added"]


# Entropy targets of MBPO and REDQ; other tasks have -dim(A).
TARGET_ENTROPY = {"Hopper": -1.0, "HalfCheetah": -3.0, "Walker2d": -3.0, "Ant": -4.0, "Humanoid": -2.0}


class OMNetSAC(nn.Module):
    """The agent: two OMNets, their optimizers, and the update of Appendix A with automatically tuned alpha."""

    def __init__(self, args: Args, obs_dim: int, action_dim: int):
        super().__init__()
        self.args, self.obs_dim, self.action_dim = args, obs_dim, action_dim
        self.generator = torch.Generator(args.device).manual_seed(args.seed)
        self.critic, self.actor = self.make_networks()
        self.register_buffer("theta_target", self.critic.theta.clone())
        self.register_buffer("log_alpha", torch.zeros((), device=args.device))
        self.critic_adam = Adam(self.critic.theta, args.learning_rate)
        self.actor_adam = Adam(self.actor.theta, args.learning_rate)
        self.alpha_adam = Adam(self.log_alpha, args.learning_rate)
        task = args.env_id.split(":")[-1].rsplit("-v", 1)[0]
        default = TARGET_ENTROPY.get(task, -float(action_dim))
        self.target_entropy = default if args.target_entropy is None else args.target_entropy
        self.gradient_steps = 0
        if args.compile:
            self.compile_steps()

    def make_networks(self) -> tuple[OMNet, OMNet]:
        """The critic, (O + A) to 1, and the actor, (O) to means and log stds (2 A)."""
        args = self.args
        critic = mlp(self.obs_dim + self.action_dim, 1, args.hidden_dim).to(args.device)
        actor = mlp(self.obs_dim, 2 * self.action_dim, args.hidden_dim).to(args.device)
        omnet = partial(OMNet, generator=self.generator, dynamic=args.dynamic_masks)
        critic = omnet(critic, args.num_subnets, args.sparsity)
        return critic, omnet(actor, args.num_subnets, args.sparsity) if args.actor_subnets else OMNet(actor, 1, 0.0)

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

    def critic_step(self, batch, i, i_target, i_next, noise) -> torch.Tensor:
        """Eq. (4): a step on one critic subnetwork, then one of the target. Returns loss and mean Q (2,)."""
        end = self.obs_dim + self.action_dim
        obs_action, reward, next_obs, terminated = batch[:, :end], batch[:, end], batch[:, end + 1 : -1], batch[:, -1]
        next_action, next_log_pi = self.policy(self.actor.theta, i_next, next_obs, noise)
        next_q = self.q_value(self.theta_target, i_target, torch.cat([next_obs, next_action], -1)).amin(0)
        next_value = next_q - self.log_alpha.exp() * next_log_pi
        target = reward + self.args.gamma * (1 - terminated) * next_value

        def loss_fn(theta):
            q = self.q_value(theta, i, obs_action)  # (1, B)
            assert q.shape[1:] == target.shape == batch.shape[:1]
            return (q - target).square().mean(1).sum(), q.mean()

        grad, metrics = grad_and_value(loss_fn, has_aux=True)(self.critic.theta)
        self.critic_adam.step(self.critic.theta, grad)
        self.theta_target.lerp_(self.critic.theta, self.args.tau)
        return torch.stack(metrics)

    def actor_step(self, obs, i, i_critic, noise) -> torch.Tensor:
        """Eq. (5): a step on one actor subnetwork, then one of alpha. Returns loss, entropy, alpha (3,)."""
        alpha = self.log_alpha.exp()

        def loss_fn(phi):
            action, log_pi = self.policy(phi, i, obs, noise)
            q = self.q_value(self.critic.theta, i_critic, torch.cat([obs, action], -1)).mean(0)
            return (alpha * log_pi - q).mean(), -log_pi.mean()

        grad, (loss, entropy) = grad_and_value(loss_fn, has_aux=True)(self.actor.theta)
        self.actor_adam.step(self.actor.theta, grad)
        self.alpha_adam.step(self.log_alpha, entropy - self.target_entropy)
        return torch.stack([loss, entropy, alpha])

    def update(self, buffer: ReplayBuffer) -> dict[str, torch.Tensor]:
        """The gradient steps of one environment step; draws all their random numbers, the steps draw none."""
        args, generator, steps, metrics = self.args, self.generator, self.args.replay_ratio, {}
        batches = buffer.sample(steps, args.batch_size, generator)
        i = self.critic.select(steps, 1, generator)  # the subnetwork to update
        i_target = self.critic.select(steps, 2, generator)  # i'_1 and i'_2
        i_next = self.actor.select(steps, 1, generator)  # i''
        noise = torch.randn(steps, args.batch_size, self.action_dim, generator=generator, device=args.device)
        for inputs in zip(batches, i, i_target, i_next, noise):
            metrics["critic_loss, q_value"] = self.critic_step(*inputs)
            self.gradient_steps += 1
            if self.gradient_steps % args.policy_delay == 0:
                obs = inputs[0][:, : self.obs_dim]
                i_actor = self.actor.select(1, 1, generator)[0]
                i_all = self.critic.select(1, args.num_subnets, generator)[0]
                fresh_noise = torch.empty_like(noise[0]).normal_(generator=generator)
                metrics["actor_loss, entropy, alpha"] = self.actor_step(obs, i_actor, i_all, fresh_noise)
        return {name: value for names, values in metrics.items() for name, value in zip(names.split(", "), values)}

    def act(self, obs: np.ndarray, subnet: int, generator: torch.Generator, deterministic: bool = False) -> np.ndarray:
        """Action (A,) of actor subnetwork `subnet` at obs (O,); deterministic: tanh of the mean."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.args.device)
        noise = torch.randn(self.action_dim, generator=generator, device=self.args.device)
        i = self.actor.draw(1, generator) if self.actor.dynamic else [subnet]
        return self.policy(self.actor.theta, i, obs, noise * (not deterministic))[0].cpu().numpy()

    def compile_steps(self) -> None:
        """Compiles both steps and says how long it took; without a working compiler says so and stays eager."""
        options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}  # every call has the same shapes
        options |= {"triton.cudagraphs": True} if "cuda" in self.args.device else {"cpp_wrapper": True}
        compiled = partial(torch.compile, fullgraph=True, dynamic=False, isolate_recompiles=True, options=options)
        self.critic_step, self.actor_step = compiled(self.critic_step), compiled(self.actor_step)
        torch.empty(2**25 - 2**14, dtype=torch.uint8)  # having freed it, glibc gives no memory back: 7% faster
        print("compiling the update ...", end=" ", flush=True)
        start, state = time.time(), copy.deepcopy(self.state_dict())
        try:
            with warnings.catch_warnings(action="ignore"):  # else a signal in the midst of it shows torch's own stack
                for _ in range(math.ceil(self.args.policy_delay / self.args.replay_ratio)):
                    self.update(ReplayBuffer(1, self.obs_dim, self.action_dim, self.args.device, added=1))
            print(f"{time.time() - start:.0f} s", flush=True)
        except RuntimeError as error:
            del self.critic_step, self.actor_step
            print(f"not possible here, the run goes on without, more slowly: {first_line(error)}", flush=True)
        self.load_state_dict(state)

    def get_extra_state(self) -> dict:
        """What a resume needs beyond the tensors; nn.Module puts it into the state dict."""
        return {"generator": self.generator.get_state(), "gradient_steps": self.gradient_steps}

    def set_extra_state(self, state: dict) -> None:
        if len(state["generator"]) == len(self.generator.get_state()):  # else it is of another kind of device
            self.generator.set_state(state["generator"].cpu())
        self.gradient_steps = state["gradient_steps"]


def evaluate(agent: nn.Module, env: gym.Env, episodes: int, seed: list[int]) -> list[tuple[int, float, int]]:
    """(subnet, return, length) of deterministic episodes that cycle through the subnetworks.

    A function of parameters and `seed` alone: training cannot tell whether it was called.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator(agent.args.device).manual_seed(int(rng.integers(2**31)))
    results = []
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
    sizes = "total_timesteps learning_starts replay_ratio policy_delay batch_size buffer_size hidden_dim"
    for name in f"{sizes} eval_episodes checkpoint_interval learning_rate".split():
        if not getattr(args, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be positive, not {getattr(args, name)}")
    for ok, message in (
        (0 <= args.seed < 2**63, "--seed must be at least 0 and below 2**63"),
        (args.num_subnets >= 1, "--num-subnets must be at least 1 (with 1, the TD target is that one: no minimum)"),
        (0 <= args.sparsity < 1, "--sparsity must be at least 0 and below 1: it is the share of parameters removed"),
        (0 <= args.gamma <= 1, "--gamma must lie in [0, 1]"),
        (0 < args.tau <= 1, "--tau must be above 0 and at most 1"),
        (args.obs_noise >= 0, "--obs-noise must not be negative"),
        (args.eval_interval >= 0, "--eval-interval must not be negative; 0 means never"),
        (args.batch_size <= args.learning_starts, "--batch-size must not exceed --learning-starts"),
        (args.learning_starts < args.total_timesteps, "--total-timesteps must exceed --learning-starts"),
    ):
        if not ok:
            raise UsageError(message)
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {args.device} cannot be used here, try --device cpu: {first_line(error)}") from None


def check_finite(step: int, **quantities) -> None:
    """Raises RunError that names the first quantity that is NaN or infinite."""
    for name, value in quantities.items():
        if not torch.isfinite(torch.as_tensor(value, dtype=torch.float32)).all():
            raise RunError(f"step {step}: {name} is not finite, the run stops; the last checkpoint is still good")


def write_atomically(path: Path, write) -> None:
    """`write(file)` into a temporary file that then replaces `path`: a kill leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", "is the disk full?")
        raise RunError(f"{path} could not be written, what was there is kept: {reason}") from None


def open_csv(path: Path, columns: str, step: int) -> TextIO:
    """Opens a CSV file for appending rows, cut back to its whole rows up to `step`."""
    lines = path.read_text().splitlines(keepends=True)[1:] if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= step]
    write_atomically(path, lambda file: file.write("".join([columns + "\n", *kept]).encode()))
    return path.open("a")


def run_folder(args: Args) -> Path:
    """`<run-dir>/<env>__omnet_sac__<seed>`; `:` and `/` in the environment's id become `-`."""
    return args.run_dir / f"{args.env_id.replace(':', '-').replace('/', '-')}__{args.method}__{args.seed}"


def describe(args: Args) -> dict:
    """What a run's numbers follow from, in plain types: its flags, and the versions of what computes them."""
    flags = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(args).items()}
    versions = {name: metadata.version(name) for name in ("torch", "gymnasium", "mujoco", "numpy")}
    return {"args": flags, "versions": {"python": platform.python_version()} | versions}


def stored_args(folder: Path, args: Args) -> Args:
    """The flags of the run in `folder`, as `args` are, to be resumed. Raises UsageError where there is none."""
    try:
        flags = json.loads((folder / "args.json").read_text())["args"]
        return type(args)(**flags | {"run_dir": Path(flags["run_dir"]), "resume": folder})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder} is not a run folder of this program: {first_line(error)}") from None


def load_checkpoint(folder: Path, args: Args, *parts) -> dict:
    """The checkpoint in `folder`, its agent and buffer loaded into `parts`. Raises RunError when it is damaged,
    made by other flags or versions, or for another network."""
    path = folder / "checkpoint.pt"
    try:
        state = torch.load(path, weights_only=True, map_location=args.device)
        then, now = (about["args"] | about["versions"] for about in (state["about"], describe(args)))
        free = {"python", "run_dir", "resume", "evaluate", "device", "track", "total_timesteps"}
        names = (then.keys() | now.keys()) - free
        different = [f"{k} = {then.get(k)}, here {now.get(k)}" for k in sorted(names) if then.get(k) != now.get(k)]
        for part, name in zip(parts, ("agent", "buffer")) if not different else ():
            part.load_state_dict(state[name])
    except pickle.UnpicklingError:
        raise RunError(f"{path} is refused: to load it would run code, or it is damaged") from None
    except Exception as error:  # whatever a foreign file makes of torch.load
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RunError(f"{path} cannot be used, it is damaged or of another program: {reason}") from None
    if different:
        raise RunError(f"{path} was made with {different[0]}")
    return state


def train(args: Args, make_agent=OMNetSAC) -> nn.Module:
    """The off-policy loop: act, store, update, evaluate, log, checkpoint. Returns the trained agent.

    `make_agent(args, obs_dim, action_dim)` gives the agent, so that other methods reuse all of this.
    Raises UsageError before anything is written, RunError when the run cannot go on.
    """
    check_args(args)
    torch.set_float32_matmul_precision(args.matmul_precision)
    torch.set_flush_denormal(True)  # else a long run may slow down to half its speed
    torch.set_num_threads(min(2, torch.get_num_threads()))  # 1.4x as fast as one; OMP_NUM_THREADS=1 is kept
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    folder = args.resume or run_folder(args)
    if not args.resume and os.path.exists(folder / "args.json"):
        raise UsageError(f"{folder} holds a run already: go on with --resume {folder}, or choose another --run-dir")
    env, eval_env = make_env(args), make_env(args, folder / "videos" if args.capture_video else None)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    buffer = ReplayBuffer(min(args.buffer_size, args.total_timesteps), obs_dim, action_dim, args.device)
    if args.track:
        try:
            import wandb
        except ImportError:
            raise UsageError("--track needs Weights & Biases: pip install wandb") from None
        wandb.init(project="omnet-sac", name=folder.name, config=describe(args), sync_tensorboard=True)
    if not args.resume:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--run-dir {args.run_dir}: {folder} cannot be made: {error.strerror}") from None
        about = json.dumps(describe(args), indent=2).encode()
        write_atomically(folder / "args.json", lambda file: file.write(about))
    agent, step, seconds = make_agent(args, obs_dim, action_dim), 0, 0.0
    if args.resume and (folder / "checkpoint.pt").exists():
        state = load_checkpoint(folder, args, agent, buffer)
        rng.bit_generator.state, step, seconds = state["rng"], state["step"], state["seconds"]
    print(f"run folder: {folder}, from step {step}", flush=True)
    train_csv = open_csv(folder / "train.csv", "step,subnet,return,length", step)
    eval_csv = open_csv(folder / "eval.csv", "step,episode,subnet,return,length,seconds", step)
    board = SummaryWriter(folder, purge_step=step)
    bar = tqdm(total=args.total_timesteps, initial=step, unit="step", dynamic_ncols=True)
    start, last_checkpoint, shown = time.time() - seconds, step, {}

    with closing(env), closing(eval_env), closing(board), train_csv, eval_csv, bar:
        while step < args.total_timesteps:
            subnet = int(rng.integers(agent.num_actor_subnets))  # Section 3.3: one subnetwork for the whole episode
            obs, _ = env.reset(seed=int(rng.integers(2**31)))  # seeded per episode: no environment state to checkpoint
            episode_return, episode_start, done = 0.0, step, False
            while not done and step < args.total_timesteps:
                if step < args.learning_starts:
                    action = rng.uniform(-1, 1, action_dim).astype(np.float32)
                else:
                    action = agent.act(obs, subnet, agent.generator)
                check_finite(step, observation=obs, action=action)
                next_obs, reward, terminated, truncated, _ = env.step(action)
                step += 1
                check_finite(step, observation=next_obs, reward=reward)
                buffer.add(obs, action, float(reward), next_obs, terminated)
                obs, done = next_obs, terminated or truncated
                episode_return += float(reward)
                if step > args.learning_starts:
                    metrics = agent.update(buffer)
                    check_finite(step, **metrics)
                    if step % 1000 == 0:
                        for name, value in metrics.items():
                            board.add_scalar(f"losses/{name}", value.item(), step)
                if args.eval_interval and step % args.eval_interval == 0:
                    results = evaluate(agent, eval_env, args.eval_episodes, [args.seed, step])
                    for episode, result in enumerate(results):
                        print(step, episode, *result, round(time.time() - start, 1), sep=",", file=eval_csv, flush=True)
                    mean_return = np.mean([ret for _, ret, _ in results])
                    board.add_scalar("eval/return", mean_return, step)
                    shown["eval"] = f"{mean_return:.1f}"
                bar.update()
            if done:
                print(step, subnet, episode_return, step - episode_start, sep=",", file=train_csv, flush=True)
                board.add_scalar("charts/episodic_return", episode_return, step)
                board.add_scalar("charts/SPS", step / (time.time() - start), step)
                bar.set_postfix(episode=f"{episode_return:.1f}", **shown)
            if step - last_checkpoint >= args.checkpoint_interval or step == args.total_timesteps:
                check_finite(step, **dict(agent.named_parameters()), **dict(agent.named_buffers()))
                state = {"about": describe(args), "agent": agent.state_dict(), "buffer": buffer.state_dict()}
                state |= {"rng": rng.bit_generator.state, "step": step, "seconds": time.time() - start}
                write_atomically(folder / "checkpoint.pt", partial(torch.save, state))
                last_checkpoint = step
    return agent


def evaluate_run(folder: Path, args: Args, make_agent=OMNetSAC) -> None:
    """Prints the returns of the run in `folder`, per subnetwork, over `args.eval_episodes` episodes."""
    check_args(args)
    stored = dataclasses.replace(stored_args(folder, args), device=args.device)
    env = make_env(stored, folder / "videos" if args.capture_video else None)
    quick = dataclasses.replace(stored, compile=False)
    agent = make_agent(quick, env.observation_space.shape[0], env.action_space.shape[0])
    state = load_checkpoint(folder, stored, agent)
    results = evaluate(agent, env, args.eval_episodes, [args.seed, state["step"]])
    env.close()
    print(f"{folder}, step {state['step']}: mean return {np.mean([ret for _, ret, _ in results]):.1f}")
    for subnet in sorted({subnet for subnet, _, _ in results}):
        returns = [ret for i, ret, _ in results if i == subnet]
        print(f"subnetwork {subnet}: {np.mean(returns):.1f} +- {np.std(returns):.1f} over {len(returns)} episodes")


def main(args: Args, make_agent=OMNetSAC) -> None:
    """Runs, resumes or evaluates, as `args` say. What the user can mend ends in one sentence and an exit code."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, frame: sys.exit(128 + signum))
    folder = args.resume or args.evaluate or run_folder(args)
    try:
        if args.evaluate:
            return evaluate_run(args.evaluate, args, make_agent)
        train(stored_args(args.resume, args) if args.resume else args, make_agent)
        print(f"done: curves in {folder}/eval.csv, the agent in {folder}/checkpoint.pt")
    except (UsageError, RunError, OSError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except SystemExit:
        print(f"\nstopped: go on from the last checkpoint with --resume {folder}", file=sys.stderr)
        raise


if __name__ == "__main__":
    main(tyro.cli(Args))
