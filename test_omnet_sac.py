"""The method, the loop, the checkpoints and the maze, stated exactly: `pytest` takes about three minutes."""

import dataclasses
import itertools
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
import warnings
from fractions import Fraction
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import omnet_sac
from maze_env import GOAL, START, WALLS, move
from omnet_sac import Adam, Args, ObservationNoise, OMNet, OMNetSAC, ReplayBuffer, evaluate, main, mlp, train

ROOT = Path(__file__).parent
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def denormals_again():
    """`train` flushes them to zero, which hypothesis does not accept."""
    yield
    torch.set_flush_denormal(False)


class Point(gym.Env):
    """A point on a line: observation (position, steps so far), reward -position^2, terminal beyond 1.2."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-0.5, 0.5, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = self.np_random.uniform(-1, 1), 0
        return np.array([self.position, 0.0]), {}

    def step(self, action):
        assert np.abs(action).max() <= 0.5
        self.position, self.steps = self.position + float(action[0]), self.steps + 1
        obs = np.array([self.position, self.steps])
        return obs, -(self.position**2), abs(self.position) > 1.2, False, {}

    def render(self):
        return np.full((32, 32, 3), int(127 + 100 * np.clip(self.position, -1, 1)), np.uint8)


gym.register("Point-v0", Point, max_episode_steps=10)


def small(**flags) -> Args:
    """Flags of a run that takes a second."""
    defaults = {"env_id": "Point-v0", "total_timesteps": 120, "learning_starts": 40, "batch_size": 16, "hidden_dim": 16}
    defaults |= {"replay_ratio": 2, "policy_delay": 2, "eval_interval": 50, "eval_episodes": 6, "compile": False}
    return Args(**defaults | flags)


def make_agent(obs_dim=3, action_dim=2, **flags) -> OMNetSAC:
    return OMNetSAC(small(**flags), obs_dim, action_dim)


def filled_buffer(agent, n=64) -> ReplayBuffer:
    buffer = ReplayBuffer(n, agent.obs_dim, agent.action_dim, agent.args.device, added=n)
    buffer.rows.copy_(torch.randn(buffer.rows.shape, generator=torch.Generator().manual_seed(0)))
    buffer.rows[:, -1] = (buffer.rows[:, -1] > 1).float()
    return buffer


def linear_entries(agent_or_net) -> torch.Tensor:
    """True (n,) where a parameter belongs to a linear layer of an `mlp`, whose layers 1 and 4 are layer norms."""
    params = agent_or_net.named_parameters()
    return torch.cat([torch.full((p.numel(),), name.split(".")[0] not in "14") for name, p in params])


# Section 3.1: masks


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_mask_rate_is_binomial_and_layer_norm_is_unmasked(sparsity):
    net = mlp(10, 4, 64)
    omnet, linear = OMNet(net, 5, sparsity, torch.Generator().manual_seed(0)), linear_entries(net)
    assert omnet.theta.shape == (sum(p.numel() for p in net.parameters()),)
    assert omnet.masks.unique().tolist() == [0, 1]
    n = int(linear.sum())
    for mask in omnet.masks:
        assert abs(mask[linear].float().sum() - n * (1 - sparsity)) < 5 * math.sqrt(n * sparsity * (1 - sparsity))
        assert mask[~linear].all()
    overlap = (omnet.masks[0] * omnet.masks[1])[linear].float().mean()  # independent: (1 - S)^2
    assert overlap == pytest.approx((1 - sparsity) ** 2, abs=0.03)


def test_masks_differ_between_subnetworks_and_repeat_with_the_seed():
    one, two, other = (OMNet(mlp(3, 1, 16), 5, 0.5, torch.Generator().manual_seed(s)).masks for s in (7, 7, 8))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert len({tuple(mask.tolist()) for mask in one}) == 5
    assert not torch.equal(make_agent(seed=1).critic.masks, make_agent(seed=2).critic.masks)


def test_masks_never_change_in_training_and_no_optimizer_knows_them():
    agent = make_agent()
    before = agent.critic.masks.clone(), agent.actor.masks.clone()
    for _ in range(5):
        agent.update(filled_buffer(agent))
    assert torch.equal(agent.critic.masks, before[0]) and torch.equal(agent.actor.masks, before[1])
    assert agent.critic_adam.m.shape == agent.critic.theta.shape
    assert {"critic.masks", "actor.masks", "theta_target"} <= agent.state_dict().keys()


class SmallConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4 * 4 * 4, 3)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).flatten(1))


@pytest.mark.parametrize("net, x", [(mlp(6, 3, 16), torch.randn(8, 6)), (SmallConv(), torch.randn(8, 2, 6, 6))])
def test_any_module_batched_equals_one_by_one_equals_masked_copy(net, x):
    omnet = OMNet(net, 4, 0.5, torch.Generator().manual_seed(0))
    batched = omnet(omnet.theta, torch.arange(4), x)
    assert batched.shape == (4, 8, 3)
    torch.testing.assert_close(
        batched, torch.vmap(omnet.subnet, (0, None))(omnet.theta * omnet.masks, x)
    )  # a GPU's way
    for i, (mask, out) in enumerate(zip(omnet.masks, batched)):
        torch.testing.assert_close(out, omnet(omnet.theta, torch.tensor([i]), x)[0])
        nn.utils.vector_to_parameters(omnet.theta * mask, net.parameters())
        torch.testing.assert_close(out, net(x))
        nn.utils.vector_to_parameters(omnet.theta, net.parameters())
    assert not torch.allclose(batched[0], batched[1])


def test_one_subnetwork_without_sparsity_is_the_plain_network():
    net, x = mlp(6, 3, 16), torch.randn(8, 6)
    omnet = OMNet(net, num_subnets=1, sparsity=0.0)
    torch.testing.assert_close(omnet(omnet.theta, torch.tensor([0]), x)[0], net(x))


def test_dynamic_masks_are_fresh_at_every_use():
    g = torch.Generator().manual_seed(0)
    omnet = OMNet(mlp(6, 3, 64), 5, 0.5, g, dynamic=True)
    draws = torch.cat([omnet.select(1, 3, g)[0], omnet.select(1, 1, g)[0], omnet.masks])
    assert len({tuple(mask.tolist()) for mask in draws}) == 9
    agent = make_agent(dynamic_masks=True)
    obs, g = np.ones(3), torch.Generator().manual_seed(0)
    first, second = (agent.act(obs, 0, g, deterministic=True) for _ in range(2))
    assert not np.array_equal(first, second) and agent.num_actor_subnets == 1
    agent.update(filled_buffer(agent))


def test_select_draws_distinct_subnetworks_uniformly():
    omnet, g = OMNet(mlp(6, 3, 64), 5, 0.5), torch.Generator().manual_seed(0)
    pairs = [tuple(pair) for pair in omnet.select(2000, 2, g).tolist()]
    assert all(i != j for i, j in pairs)
    counts = np.array([[pairs.count((i, j)) for j in range(5)] for i in range(5)])
    assert np.abs(counts[~np.eye(5, dtype=bool)] - 100).max() < 5 * math.sqrt(100)
    assert len(omnet.select(1, 5, g).unique()) == 5 and omnet.select(3, 9, g).shape == (3, 5)


# Appendix A: the update


class HandMade(OMNetSAC):
    """Q-values written by hand: subnetwork k of the critic says `values[k]`, everywhere."""

    values = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])

    def q_value(self, theta, i, obs_action):
        self.asked = getattr(self, "asked", []) + [(theta, i)]
        return self.values[i][:, None].expand(-1, len(obs_action)) + 0 * theta.sum() + 0 * obs_action.sum()


ALL = torch.arange(5)


@pytest.mark.parametrize("pair", [(0, 1), (3, 2), (4, 0)])
def test_target_is_the_minimum_over_two_subnetworks_of_the_target_critic(pair):
    agent = HandMade(small(), 3, 2)
    agent.log_alpha.fill_(math.log(0.3))
    batch, noise = filled_buffer(agent).rows[:16], torch.randn(16, 2)
    _, log_pi = agent.policy(agent.actor.theta, ALL[4:], batch[:, 6:9], noise)
    reward, terminated, q = batch[:, 5], batch[:, 9], agent.values[1]
    target = reward + 0.99 * (1 - terminated) * (agent.values[list(pair)].min() - 0.3 * log_pi)
    loss, q_mean = agent.critic_step(batch, ALL[1:2], torch.tensor(pair), ALL[4:], noise)
    assert agent.asked[0][0] is agent.theta_target and len(agent.asked[0][1]) == 2
    assert loss.item() == pytest.approx((q - target).square().mean().item(), rel=1e-5) and q_mean == q
    assert terminated.any() and not terminated.all()


def test_update_draws_two_distinct_target_subnetworks_and_fresh_ones_in_every_step():
    seen = []

    class Recorder(OMNetSAC):
        def critic_step(self, batch, i, i_target, i_next, noise):
            seen.append((i, i_target, i_next, noise))
            return super().critic_step(batch, i, i_target, i_next, noise)

    agent = Recorder(small(replay_ratio=20, policy_delay=20), 3, 2)
    agent.update(filled_buffer(agent))
    assert all(len(pair.unique(dim=0)) == 2 for _, pair, _, _ in seen)
    for position in (0, 2):  # critic subnetwork i and actor subnetwork i''
        assert len(torch.stack([s[position] for s in seen]).unique(dim=0)) > 2
    assert len(torch.stack([s[3] for s in seen]).unique(dim=0)) == 20


def test_critic_step_on_subnetwork_i_gives_masked_entries_and_target_no_gradient():
    agent = make_agent(tau=0.0)
    batch, mask, target = filled_buffer(agent).rows[:16], agent.critic.masks[2], agent.theta_target.clone()
    agent.critic_step(batch, ALL[2:3], ALL[:2], ALL[:1], torch.randn(16, 2))
    grad = agent.critic_adam.m  # after the first step, (1 - beta1) times the gradient
    assert (grad[mask == 0] == 0).all() and (grad[mask == 1] != 0).float().mean() > 0.5
    assert torch.equal(agent.theta_target, target) and (agent.actor_adam.m == 0).all()
    moved = agent.critic.theta != agent.theta_target
    assert moved.any() and not moved[mask == 0].any()


def test_actor_loss_is_the_mean_over_all_subnetworks():
    agent = HandMade(small(), 3, 2)
    obs, noise = torch.randn(16, 3), torch.randn(16, 2)
    _, log_pi = agent.policy(agent.actor.theta, ALL[:1], obs, noise)
    loss, entropy, alpha = agent.actor_step(obs, ALL[:1], ALL, noise)
    assert loss.item() == pytest.approx((alpha * log_pi.mean() - agent.values.mean()).item(), rel=1e-5)
    assert entropy.item() == pytest.approx(-log_pi.mean().item(), rel=1e-5)
    calls = []
    agent.actor_step = lambda obs, i, i_critic, noise: calls.append(i_critic) or torch.zeros(3)
    agent.update(filled_buffer(agent))
    assert len(calls) == 1 and sorted(calls[0].tolist()) == [0, 1, 2, 3, 4]


def test_actor_step_leaves_the_critic_alone_and_masked_actor_entries_without_gradient():
    agent = make_agent()
    critic, mask = agent.critic.theta.clone(), agent.actor.masks[3]
    agent.actor_step(torch.randn(16, 3), ALL[3:4], ALL, torch.randn(16, 2))
    assert torch.equal(agent.critic.theta, critic) and (agent.critic_adam.m == 0).all()
    assert (agent.actor_adam.m[mask == 0] == 0).all() and (agent.actor_adam.m[mask == 1] != 0).float().mean() > 0.5


@pytest.mark.parametrize("env_id, target", [("Hopper-v4", -1), ("Ant-v5", -4), ("maze_env:Maze-v0", -2)])
def test_alpha_rises_below_the_target_entropy_and_falls_above(env_id, target):
    agent = make_agent(env_id=env_id)
    assert agent.target_entropy == target and make_agent(target_entropy=0.0).target_entropy == 0
    agent.target_entropy = 100.0
    agent.actor_step(torch.randn(16, 3), ALL[:1], ALL, torch.randn(16, 2))
    assert agent.log_alpha.item() == pytest.approx(agent.args.learning_rate, rel=1e-3)


def test_log_pi_is_that_of_a_squashed_gaussian():
    agent = make_agent()
    obs, noise, i = torch.randn(64, 3), 2 * torch.randn(64, 2), ALL[1:2]
    action, log_pi = agent.policy(agent.actor.theta, i, obs, noise)
    mean, log_std = agent.actor(agent.actor.theta, i, obs)[0].double().chunk(2, -1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    expected = torch.tanh(mean + log_std.exp() * noise.double())
    torch.testing.assert_close(action.double(), expected, atol=1e-6, rtol=1e-5)
    inside = (expected.abs() < 0.999).all(-1)
    assert inside.sum() > 20
    torch.testing.assert_close(
        log_pi.double()[inside], squashed.log_prob(expected).sum(-1)[inside], atol=1e-4, rtol=1e-4
    )
    far, far_log_pi = agent.policy(agent.actor.theta, i, obs, torch.full((64, 2), 50.0))
    assert far_log_pi.isfinite().all() and far.abs().max() <= 1


def test_adam_is_adam():
    theta = torch.randn(50)
    reference = nn.Parameter(theta.clone())
    adam, expected = Adam(theta, 1e-2), torch.optim.Adam([reference], lr=1e-2)
    for _ in range(30):
        reference.grad = torch.randn(50)
        adam.step(theta, reference.grad)
        expected.step()
    torch.testing.assert_close(theta, reference.data, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("replay_ratio, policy_delay, actor_steps", [(20, 20, 3), (20, 1, 60), (1, 2, 1), (3, 2, 4)])
def test_policy_delay_counts_gradient_steps_and_polyak_follows_each(replay_ratio, policy_delay, actor_steps):
    agent = make_agent(replay_ratio=replay_ratio, policy_delay=policy_delay, tau=1.0)
    for _ in range(3):
        agent.update(filled_buffer(agent))
    taken = [round(math.log(adam.beta2_t) / math.log(0.999)) for adam in agent.children() if isinstance(adam, Adam)]
    assert taken == [3 * replay_ratio, actor_steps, actor_steps] and agent.gradient_steps == 3 * replay_ratio
    assert torch.equal(agent.theta_target, agent.critic.theta)  # tau = 1


def test_polyak_average():
    agent = make_agent(tau=0.25)
    target = agent.theta_target.clone()
    agent.critic_step(filled_buffer(agent).rows[:16], ALL[:1], ALL[:2], ALL[:1], torch.randn(16, 2))
    torch.testing.assert_close(agent.theta_target, 0.75 * target + 0.25 * agent.critic.theta)


def test_plain_actor_ablation():
    agent = make_agent(actor_subnets=False)
    assert agent.num_actor_subnets == 1 and agent.actor.masks.all() and not agent.critic.masks.all()
    agent.update(filled_buffer(agent))


@pytest.mark.parametrize("num_subnets", [1, 2])
def test_few_subnetworks(num_subnets):
    agent = make_agent(num_subnets=num_subnets)
    agent.update(filled_buffer(agent))
    assert agent.critic.select(1, 2).shape[1] == num_subnets  # with one, the minimum is over that one


# Replay


def test_replay_buffer_wraps_around_and_samples_what_it_holds():
    buffer = ReplayBuffer(4, 2, 1, "cpu")
    for i in range(6):
        buffer.add(np.full(2, i, np.float64), np.array([i / 10], np.float32), -i, np.full(2, i + 1.0), i == 5)
    assert len(buffer) == 4 and buffer.rows.dtype == torch.float32
    assert buffer.rows[:, 0].tolist() == [4, 5, 2, 3]
    torch.testing.assert_close(buffer.rows[1], torch.tensor([5, 5, 0.5, -5, 6, 6, 1]))
    generator = torch.Generator().manual_seed(0)
    sample = buffer.sample(50, 8, generator)
    assert sample.shape == (50, 8, 7)
    counts = torch.bincount(sample[..., 0].flatten().long())[2:]
    assert len(counts) == 4 and (counts - 100).abs().max() < 50
    assert not torch.equal(sample, buffer.sample(50, 8, generator))  # the generator advances
    assert set(ReplayBuffer(9, 2, 1, "cpu", added=1).sample(1, 8, generator).flatten().tolist()) == {0.0}


# The loop


class Recorder(OMNetSAC):
    """Keeps what the loop asks of the agent."""

    def __init__(self, *args):
        super().__init__(*args)
        self.acted, self.buffer = [], None

    def act(self, obs, subnet, generator, deterministic=False):
        if not deterministic:
            self.acted.append((subnet, obs[1]))
        return super().act(obs, subnet, generator, deterministic)

    def update(self, buffer):
        self.buffer = buffer
        return super().update(buffer)


def read_csv(path: Path, drop: str = "") -> list[dict]:
    names, *lines = path.read_text().splitlines()
    return [{k: float(v) for k, v in zip(names.split(","), line.split(",")) if k != drop} for line in lines]


def test_run_folder_holds_the_contract(tmp_path):
    args = small(run_dir=tmp_path)
    train(args)
    folder = tmp_path / "Point-v0__omnet_sac__1"
    assert {p.name.split(".")[0] for p in folder.iterdir()} == {"args", "eval", "train", "events", "checkpoint"}
    about = json.loads((folder / "args.json").read_text())
    assert about["args"]["batch_size"] == 16 and about["args"].keys() == {f.name for f in dataclasses.fields(Args)}
    assert about["versions"].keys() == {"python", "torch", "gymnasium", "mujoco", "numpy"}
    assert (folder / "eval.csv").read_text().startswith("step,episode,subnet,return,length,seconds\n")
    rows = read_csv(folder / "eval.csv")
    assert [(r["step"], r["episode"], r["subnet"]) for r in rows] == [
        (s, e, e % 5) for s in (50, 100) for e in range(6)
    ]
    assert (folder / "train.csv").read_text().startswith("step,subnet,return,length\n")
    steps = np.diff([0] + [r["step"] for r in read_csv(folder / "train.csv")])
    assert steps.tolist() == [r["length"] for r in read_csv(folder / "train.csv")]


def test_one_subnetwork_per_episode_and_terminated_without_truncated(tmp_path):
    agent = train(small(run_dir=tmp_path, total_timesteps=400), Recorder)
    episodes, previous = [], math.inf
    for subnet, moment in agent.acted:
        episodes += [[]] if moment <= previous else []
        episodes[-1].append(subnet)
        previous = moment
    assert all(len(set(subnets)) == 1 for subnets in episodes) and len({e[0] for e in episodes}) == 5
    rows = agent.buffer.rows
    obs, reward, next_obs, terminated = rows[:, :2], rows[:, 3], rows[:, 4:6], rows[:, 6]
    torch.testing.assert_close(reward, -next_obs[:, 0].square())
    torch.testing.assert_close(next_obs[:, 1], obs[:, 1] + 1)  # no transition crosses a reset
    torch.testing.assert_close(next_obs[:, 0], obs[:, 0] + 0.5 * rows[:, 2], atol=1e-5, rtol=1e-5)
    assert torch.equal(terminated.bool(), next_obs[:, 0].abs() > 1.2)
    truncated_only = (next_obs[:, 1] == 10) & (next_obs[:, 0].abs() <= 1.2)
    assert truncated_only.any() and (terminated[truncated_only] == 0).all() and terminated.any()


def test_same_seed_same_run_and_evaluation_leaves_training_alone(tmp_path):
    runs = {"a": {}, "b": {}, "no_eval": {"eval_interval": 0}, "other": {"seed": 2}}
    agents = {name: train(small(run_dir=tmp_path / name, **flags)) for name, flags in runs.items()}
    a, b, no_eval, other = (next((tmp_path / name).iterdir()) for name in runs)
    assert (a / "train.csv").read_bytes() == (b / "train.csv").read_bytes() == (no_eval / "train.csv").read_bytes()
    assert read_csv(a / "eval.csv", "seconds") == read_csv(b / "eval.csv", "seconds")
    assert (a / "train.csv").read_bytes() != (other / "train.csv").read_bytes()
    assert torch.equal(agents["a"].critic.theta, agents["no_eval"].critic.theta)
    assert not torch.equal(agents["a"].critic.theta, agents["other"].critic.theta)


def test_replay_ratio_and_learning_starts(tmp_path):
    agent = train(small(run_dir=tmp_path, replay_ratio=3))
    assert agent.gradient_steps == 3 * (120 - 40) and len(agent.acted if hasattr(agent, "acted") else []) == 0


def test_evaluation_cycles_through_the_subnetworks_and_repeats():
    agent, env = make_agent(2, 1), gym.wrappers.RescaleAction(gym.make("Point-v0"), np.float32(-1), np.float32(1))
    first, second, other = (evaluate(agent, env, 7, [seed]) for seed in (3, 3, 4))
    assert first == second != other and [subnet for subnet, _, _ in first] == [0, 1, 2, 3, 4, 0, 1]


def test_observation_noise_is_constant_in_an_episode_fresh_across_and_bounded():
    env = ObservationNoise(gym.make("Point-v0"), 0.3)
    sigmas = []
    for episode in range(200):
        obs, _ = env.reset(seed=episode)
        noise = [obs - [env.unwrapped.position, 0]]
        for k in range(3):
            obs = env.step(np.zeros(1, np.float32))[0]
            noise.append(obs - [env.unwrapped.position, k + 1])
        np.testing.assert_allclose(noise, np.tile(noise[0], (4, 1)), atol=1e-12)
        sigmas.append(noise[0])
    sigmas = np.array(sigmas)
    assert 0.28 < sigmas.max() <= 0.3 and -0.3 <= sigmas.min() < -0.28 and abs(sigmas.mean()) < 0.05
    assert abs(np.corrcoef(sigmas.T)[0, 1]) < 0.3 and len(np.unique(sigmas)) == 400  # one value per dimension


def test_observation_noise_in_training_and_evaluation(tmp_path):
    agent = train(small(run_dir=tmp_path, obs_noise=0.2), Recorder)
    time_noise = agent.buffer.rows[:, 1] - agent.buffer.rows[:, 1].round()
    assert 0.05 < time_noise.abs().max() <= 0.2
    assert isinstance(omnet_sac.make_env(small(obs_noise=0.2)), ObservationNoise)


class Strange(Point):
    """Dict observations and actions of shape (2, 1)."""

    observation_space = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (2, 2)), b=gym.spaces.Discrete(3))
    action_space = gym.spaces.Box(-3, 5, (2, 1), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert action.shape == (2, 1) and (action >= -3).all() and (action <= 5).all()
        return self.observation_space.sample(), 1.0, False, False, {}


gym.register("Strange-v0", Strange, max_episode_steps=10)


@pytest.mark.parametrize(
    "env_id", ["Strange-v0", "Hopper-v4", "Hopper-v5", "gymnasium.envs.classic_control:Pendulum-v1"]
)
def test_environments_of_all_kinds(env_id, tmp_path):
    agent = train(small(env_id=env_id, run_dir=tmp_path, total_timesteps=60))
    assert agent.obs_dim == {"Strange-v0": 7, "Hopper-v4": 11, "Hopper-v5": 11}.get(env_id, 3)
    assert "/" not in next(tmp_path.iterdir()).name and ":" not in next(tmp_path.iterdir()).name


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
COMPILES_TASTE = pytest.mark.xdist_group("taste")  # one process compiles it, and only once
TASTE = {"env_id": "Pendulum-v1", "hidden_dim": 64, "total_timesteps": 2500, "learning_starts": 500}


@COMPILES_TASTE
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_compiled_and_eager_updates_are_the_same(device):
    """After 100 updates on the same random numbers, float32 rounding apart (6e-8 on a CPU)."""
    agents = []
    for compiled in (True, False):
        torch.manual_seed(0)
        agents.append(OMNetSAC(Args(**TASTE, compile=compiled, device=device), 3, 1))
        for _ in range(5):
            metrics = agents[-1].update(filled_buffer(agents[-1]))
    assert agents[0].gradient_steps == 100 and "critic_step" in vars(agents[0]) and metrics["alpha"] < 1
    one, other = (dict(agent.named_parameters()) | dict(agent.named_buffers()) for agent in agents)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-5, msg=name)


# The command line


def cli(*flags, **popen) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "omnet_sac.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **popen)


TINY = "--env-id Pendulum-v1 --hidden-dim 8 --batch-size 8 --learning-starts 20 --total-timesteps 30"


def test_without_a_compiler_the_run_goes_on_eagerly(tmp_path):
    env = os.environ | {"PATH": "/nowhere", "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = cli(*TINY.split(), "--run-dir", tmp_path, env=env)
    assert done.returncode == 0 and (tmp_path / "Pendulum-v1__omnet_sac__1" / "checkpoint.pt").exists()
    assert done.stdout.count("not possible here") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", range(3))
def test_the_forks_in_the_readme_apply_and_run(number, tmp_path):
    diff = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[number]
    source = (ROOT / "omnet_sac.py").read_text()
    for hunk in diff.split("@@\n"):
        old, new = (
            "".join(f"{x[1:]}\n" for x in hunk.splitlines() if x[:1] in keep) for keep in ((" ", "-"), (" ", "+"))
        )
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    fork = types.ModuleType("fork")
    sys.modules["fork"] = fork
    exec(source, vars(fork))
    agent = fork.train(small(run_dir=tmp_path))
    assert agent.gradient_steps == 160
    if number == 1:  # balanced masks: of 5 subnetworks, 2 or 3 have a parameter at S = 0.5
        assert agent.critic.masks.sum(0).unique().tolist() in ([2, 5], [3, 5])


def test_video(tmp_path):
    train(small(run_dir=tmp_path, capture_video=True))
    assert len(list(tmp_path.glob("*/videos/*.mp4"))) == 2  # the first episode of each evaluation


# A run is never lost


@pytest.fixture(autouse=True)
def pytest_keeps_ctrl_c(monkeypatch):
    """`main` in this process must not take the signals away from pytest."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)


# omnet_sac.py, killed when half of its k-th checkpoint is written
KILLED_IN_WRITE = """
import os, runpy, sys
replace, left = os.replace, int(sys.argv.pop(1))
def replace_or_die(source, target):
    global left
    left -= target.name == "checkpoint.pt"
    if not left:
        os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), 9)
    replace(source, target)
os.replace = replace_or_die
runpy.run_path("omnet_sac.py", run_name="__main__")
"""


def interrupt(folder: Path, flags: list[str], how: str | signal.Signals, when: int) -> str:
    """Starts a run, and kills it in its `when`-th "write" or sends it a signal soon after that step. Returns stderr."""
    script = ["-c", KILLED_IN_WRITE, str(when)] if how == "write" else ["omnet_sac.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *script, *flags], cwd=ROOT, env=env, **pipes)
    if how != "write":
        next(line for line in process.stdout if line.startswith("run folder"))
        while process.poll() is None and last_step(folder / "train.csv") < when:
            time.sleep(0.002)
        time.sleep(np.random.default_rng().uniform(0, 0.05))  # somewhere in the episode
        process.send_signal(how)
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(how, -9), stderr
    assert how != "write" or (folder / "checkpoint.pt.tmp").exists()
    return stderr


def last_step(csv: Path) -> int:
    lines = csv.read_text().split("\n")[1:-1] if csv.exists() else []
    return int(lines[-1].split(",")[0]) if lines else 0


def assert_same_run(one: Path, two: Path):
    """Every row and every number in the checkpoint but the seconds, bit for bit."""
    assert (one / "train.csv").read_bytes() == (two / "train.csv").read_bytes()
    rows = ([line.rsplit(",", 1)[0] for line in (f / "eval.csv").read_text().split("\n")] for f in (one, two))
    assert next(rows) == next(rows)
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (one, two))
    torch.testing.assert_close([a["agent"], a["buffer"]], [b["agent"], b["buffer"]], rtol=0, atol=0)
    assert (a["rng"], a["step"]) == (b["rng"], b["step"])


RUN = "--no-compile --env-id Hopper-v4 --total-timesteps 320 --learning-starts 40 --checkpoint-interval 40 "
RUN += "--eval-interval 70 --eval-episodes 2 --batch-size 16 --hidden-dim 16 --replay-ratio 1 --policy-delay 2 "
RUN += "--buffer-size 200 --obs-noise 0.01 --run-dir"
COMPILED = (
    "--env-id Pendulum-v1 --hidden-dim 64 --total-timesteps 1210 --learning-starts 300 --checkpoint-interval 100 "
)
COMPILED += "--eval-interval 350 --eval-episodes 1 --run-dir"  # the shapes of TASTE, which are compiled already
EAGER = [("write", 1), (signal.SIGKILL, 80), (signal.SIGKILL, 120), ("write", 1)]
EAGER += [(signal.SIGINT, 160), (signal.SIGKILL, 200), (signal.SIGTERM, 240)]
KILLS = [("write", 2), (signal.SIGKILL, 400), (signal.SIGKILL, 600), ("write", 1), (signal.SIGKILL, 1000)]
compiler = pytest.mark.skipif(not shutil.which("g++"), reason="without a C++ compiler there are no compiled runs")


@pytest.mark.parametrize(
    "run, interruptions",
    [(RUN, EAGER), pytest.param(COMPILED, KILLS, marks=[compiler, COMPILES_TASTE])],
    ids=["eager", "compiled"],
)
def test_a_run_killed_again_and_again_is_the_uninterrupted_run(run, interruptions, tmp_path, capsys):
    env_id = re.search(r"--env-id (\S+)", run)[1]
    whole, folder = (tmp_path / name / f"{env_id}__omnet_sac__1" for name in ("whole", "killed"))
    main(tyro.cli(Args, args=[*run.split(), str(whole.parent)]))
    folder.mkdir(parents=True)
    (folder / "args.json.tmp").write_text('{"args')  # as of a kill at the very start
    flags = [*run.split(), str(folder.parent)]
    for how, when in interruptions:
        stderr = interrupt(folder, flags, how, when)
        if how in (signal.SIGINT, signal.SIGTERM):
            assert f"--resume {folder}\n" in stderr and "Traceback" not in stderr
        flags = ["--resume", str(folder)]
    main(Args(resume=folder))
    assert "not possible" not in capsys.readouterr().out  # compiled is compiled
    assert_same_run(whole, folder)


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Walker2d-v4", "HalfCheetah-v4", "Ant-v4", "Humanoid-v4"])
def test_a_seeded_reset_is_all_the_state_an_environment_has_between_episodes(env_id):
    """Why a checkpoint at the end of an episode needs nothing of the environment."""
    used, fresh = gym.make(env_id), gym.make(env_id)
    used.action_space.seed(0)
    for seed in (7, 8):
        used.reset(seed=seed)
        for _ in range(50):
            used.step(used.action_space.sample())
    np.testing.assert_array_equal(used.reset(seed=9)[0], fresh.reset(seed=9)[0])
    for _ in range(50):
        action = used.action_space.sample()
        one, two = used.step(action), fresh.step(action)
        np.testing.assert_array_equal(one[0], two[0])
        assert one[1:4] == two[1:4]


# Checkpoints of unknown origin


class Evil:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished")
    train(small(run_dir=run_dir, total_timesteps=60))
    return next(run_dir.iterdir())


def assert_fails(capsys, args: Args, code: int, *words: str, make_agent=OMNetSAC) -> str:
    """`main` ends with this code, and one sentence with these words after whatever the progress bar said."""
    with pytest.raises(SystemExit) as stop:
        main(args, make_agent)
    *bar, sentence = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == code and sentence.startswith("error: ") and len(sentence) < 600
    assert all(word in sentence for word in words), sentence
    assert not any("error" in line.lower() for line in bar) and (code == 1 or not bar)
    return sentence


def edit(change, path: Path):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


DAMAGE = {
    "code": (lambda path: torch.save({"agent": Evil(path.parent / "evil")}, path), "run code"),
    "pickled code": (lambda path: path.write_bytes(pickle.dumps(Evil(path.parent / "evil"), 2)), "run code"),
    "half a file": (lambda path: os.truncate(path, path.stat().st_size // 2), "damaged"),
    "empty": (lambda path: os.truncate(path, 0), "damaged"),
    "text": (lambda path: path.write_text("step,return\n1,2\n"), "damaged"),
    "missing": (lambda path: path.unlink(), ""),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "damaged"),
    "environment": (partial(edit, lambda s: s["about"]["args"].update(env_id="Ant-v4")), "env_id = Ant-v4", "Point"),
    "width": (partial(edit, lambda s: s["about"]["args"].update(hidden_dim=32)), "hidden_dim = 32", "16"),
    "version": (partial(edit, lambda s: s["about"]["versions"].update(torch="1.0")), "torch = 1.0", torch.__version__),
    "network": (partial(edit, lambda s: s["agent"].update(theta_target=torch.zeros(3))), "theta_target"),
    "no network": (partial(edit, lambda s: s.pop("agent")), "agent"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_is_not_this_runs_is_refused(damage, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    spoil, *words = DAMAGE[damage]
    spoil(folder / "checkpoint.pt")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for how in ("resume", "evaluate")[damage == "missing" :]:  # without a checkpoint a run goes on from its start
        assert_fails(capsys, Args(**{how: folder}), 1, "checkpoint.pt", *words)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_evaluate_gives_returns_per_subnetwork(finished, capsys):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    main(Args(evaluate=finished, eval_episodes=7))
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{finished}, step 60: mean return ")
    assert [line.split(":")[0] for line in lines] == [f"subnetwork {k}" for k in range(5)]
    assert [line.split("over ")[1] for line in lines] == ["2 episodes"] * 2 + ["1 episodes"] * 3
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


def test_evaluate_on_another_device(finished, tmp_path):
    """The state of a generator on a GPU, 16 bytes, means nothing on a CPU."""
    folder = shutil.copytree(finished, tmp_path / "run")
    gpu = torch.zeros(16, dtype=torch.uint8)
    edit(lambda state: state["agent"]["_extra_state"].update(generator=gpu), folder / "checkpoint.pt")
    main(Args(evaluate=folder, eval_episodes=1))


def test_a_run_stopped_while_it_compiles_goes_on(finished, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(small(run_dir=tmp_path, total_timesteps=60), lambda *_: sys.exit(130))
    assert capsys.readouterr().err.strip().endswith(f"--resume {tmp_path / finished.name}")
    main(Args(resume=tmp_path / finished.name))
    assert_same_run(finished, tmp_path / finished.name)


def test_a_finished_run_resumes_to_itself(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    main(Args(resume=folder))
    assert_same_run(finished, folder)


def test_a_finished_run_goes_on_when_its_total_timesteps_are_raised(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    about = json.loads((folder / "args.json").read_text())
    about["args"]["total_timesteps"] = 90
    (folder / "args.json").write_text(json.dumps(about))
    main(Args(resume=folder))
    assert (folder / "train.csv").read_text().startswith((finished / "train.csv").read_text())
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == checkpoint["buffer"]["added"] == len(checkpoint["buffer"]["rows"]) == 90


# Bad input never costs more than a sentence


def point(**attributes):
    return type("Variant", (Point,), attributes)


gym.register("Unbounded-v0", point(action_space=gym.spaces.Box(-np.inf, np.inf, (1,))))
gym.register("HalfBounded-v0", point(action_space=gym.spaces.Box(0, np.inf, (1,))))
gym.register("Sequence-v0", point(observation_space=gym.spaces.Sequence(gym.spaces.Discrete(2))))
gym.register("Integers-v0", point(action_space=gym.spaces.Box(0, 3, (1,), np.int32)))
SIZES = "total_timesteps learning_starts replay_ratio policy_delay batch_size buffer_size hidden_dim eval_episodes"
SIZES = [*SIZES.split(), "checkpoint_interval", "learning_rate"]


@pytest.mark.parametrize(
    "words, flags",
    [
        *[(f"--{name.replace('_', '-')} must be positive", {name: value}) for name in SIZES for value in (0, -5)],
        ("did you mean Hopper-v4", {"env_id": "Hoper-v4"}),
        ("no_such_module", {"env_id": "no_such_module:Maze-v0"}),
        ("Discrete(2)", {"env_id": "CartPole-v1"}),
        ("Box(-inf, inf", {"env_id": "Unbounded-v0"}),
        ("Box(0.0, inf", {"env_id": "HalfBounded-v0"}),
        ("Box(0, 3, (1,), int32", {"env_id": "Integers-v0"}),
        ("observations must flatten", {"env_id": "Sequence-v0"}),
        ("--sparsity", {"sparsity": 1.0}),
        ("--sparsity", {"sparsity": -0.1}),
        ("--sparsity", {"sparsity": np.nan}),
        ("--num-subnets must be at least 1 (with 1, the TD target is that one: no minimum)", {"num_subnets": 0}),
        ("--batch-size must not exceed --learning-starts", {"batch_size": 41}),
        ("--total-timesteps must exceed --learning-starts", {"total_timesteps": 40}),
        ("--gamma", {"gamma": 1.01}),
        ("--tau", {"tau": 0.0}),
        ("--seed", {"seed": -1}),
        ("--obs-noise", {"obs_noise": -0.1}),
        ("--eval-interval", {"eval_interval": -1}),
        ("--device cuda:99 cannot be used here, try --device cpu", {"device": "cuda:99"}),
        ("--device nonsense cannot be used here, try --device cpu", {"device": "nonsense"}),
        ("needs 28000.0 GB, ", {"total_timesteps": 10**12, "buffer_size": 10**12}),
        ("--run-dir file/runs", {"run_dir": Path("file/runs")}),
        ("--run-dir /proc/runs", {"run_dir": Path("/proc/runs")}),
        ("--run-dir xxx", {"run_dir": Path("x" * 256)}),  # stat itself fails, as in a folder one may not enter
        ("pip install wandb", {"track": True}),
        ("MoviePy is not installed", {"capture_video": True}),
        ("nowhere", {"resume": Path("nowhere")}),
        ("nowhere", {"evaluate": Path("nowhere")}),
    ],
    ids=str,
)
def test_bad_input_costs_one_sentence_and_writes_nothing(words, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "moviepy", None)
    Path("file").touch()
    assert_fails(capsys, small(**flags), 2, words)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "file"]


@pytest.mark.parametrize("flags", [{"eval_episodes": 0}, {"device": "nonsense"}])
def test_bad_input_to_evaluate(flags, finished, capsys):
    assert_fails(capsys, Args(evaluate=finished, **flags), 2, f"--{next(iter(flags)).replace('_', '-')}")


def test_a_run_that_is_there_is_not_touched(finished, capsys):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished.iterdir()}
    assert_fails(capsys, small(run_dir=finished.parent), 2, f"--resume {finished}", "--run-dir")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished.iterdir()} == before


def test_bad_input_from_the_shell(tmp_path):
    result = cli("--env-id=Antt-v4", "--run-dir", tmp_path)
    assert result.returncode == 2 and not result.stdout and not list(tmp_path.iterdir())
    assert result.stderr.strip().startswith("error: --env-id Antt-v4") and result.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("flags", [["--hidden-dim", "x"], ["--total-timesteps", "3e5"], ["--matmul-precision", "low"]])
def test_flags_that_do_not_parse(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(Args, args=flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


def failing(**flags) -> Args:
    """Checkpoints at every second or third episode, and few updates."""
    return small(total_timesteps=100, learning_starts=80, replay_ratio=1, checkpoint_interval=20, **flags)


def assert_goes_on(folder: Path):
    """The checkpoint that the failed run left is good."""
    path = folder / "checkpoint.pt"
    assert 0 < torch.load(path, weights_only=True)["step"] < 100 and not path.with_name(path.name + ".tmp").exists()
    main(Args(resume=folder))
    assert torch.load(path, weights_only=True)["step"] == 100


@pytest.mark.parametrize("limit", [20_000, 1], ids=["checkpoint", "train.csv"])
def test_a_full_disk_leaves_the_last_checkpoint_good(limit, tmp_path, monkeypatch, capsys):
    healthy, calls, unlimited = Point.step, itertools.count(1), resource.getrlimit(resource.RLIMIT_FSIZE)

    def step(self, action):
        if next(calls) == 90:  # from now on no file can grow beyond `limit` bytes
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        return healthy(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(Point, "step", step)
        try:
            args = failing(run_dir=tmp_path, eval_interval=0)
            assert re.search("disk full|File too large", assert_fails(capsys, args, 1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert_goes_on(next(tmp_path.iterdir()))


# What is not finite stops the run


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e39])  # 1e39: infinite in float32
@pytest.mark.parametrize("method, position, call", [("step", 0, 90), ("step", 1, 90), ("reset", 0, 6)])
def test_a_non_finite_number_from_the_environment(method, position, call, value, tmp_path, monkeypatch, capsys):
    healthy, calls = getattr(Point, method), itertools.count(1)

    def broken(self, *args, **kwargs):
        result = list(healthy(self, *args, **kwargs))
        if next(calls) == call:
            result[position] = (np.array([value, 0.0]), value)[position]
        return tuple(result)

    with monkeypatch.context() as patch:
        patch.setattr(Point, method, broken)
        args = failing(run_dir=tmp_path, eval_interval=0)
        sentence = f"{('observation', 'reward')[position]} is not finite"
        assert_fails(capsys, args, 1, "step 90: " if method == "step" else "step ", sentence, "checkpoint")
    assert_goes_on(next(tmp_path.iterdir()))


@pytest.mark.parametrize("name", ["critic.theta", "actor.theta", "theta_target", "log_alpha", "critic_adam.v"])
def test_a_non_finite_parameter(name, tmp_path, capsys):
    class Poisoned(OMNetSAC):
        def update(self, buffer):
            metrics = super().update(buffer)
            if self.gradient_steps == 10:
                self.state_dict()[name].view(-1)[0] = torch.nan
            return metrics

    args = failing(run_dir=tmp_path, eval_interval=0)
    assert_fails(capsys, args, 1, "step 9", "is not finite", "checkpoint", make_agent=Poisoned)
    assert_goes_on(next(tmp_path.iterdir()))


def test_twenty_runs_in_one_process_leave_memory_files_and_threads_as_they_were(tmp_path):
    process, after = psutil.Process(), []
    for seed in range(20):
        train(small(run_dir=tmp_path, seed=seed, total_timesteps=50, eval_episodes=1, replay_ratio=1))
        after.append((process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()))
    print(f"MB, open files, threads after run 5: {after[4]}, after run 20: {after[19]}")
    assert after[19][0] - after[4][0] < 10 and after[19][1] <= after[4][1] and after[19][2] <= after[4][2]


# The maze

A, B = 1 / 3, 2 / 3


def exact(point):
    return [Fraction(x) for x in point]


def meets(p, q, a, b):
    """Whether the closed segments p-q and a-b share a point, in rational arithmetic."""
    if any(max(p[i], q[i]) < min(a[i], b[i]) or max(a[i], b[i]) < min(p[i], q[i]) for i in (0, 1)):
        return False

    def side(u, v, w):
        u, v, w = exact(u), exact(v), exact(w)
        return (v[0] - u[0]) * (w[1] - u[1]) - (v[1] - u[1]) * (w[0] - u[0])

    return side(p, q, a) * side(p, q, b) <= 0 and side(a, b, p) * side(a, b, q) <= 0


def distance(p, wall):
    """From a point to an axis-parallel wall, in the maximum norm, in rational arithmetic."""
    return max(max(min(ends) - x, x - max(ends), Fraction(0)) for x, ends in zip(p, zip(*wall)))


EXACT_WALLS = [[exact(end) for end in wall] for wall in WALLS.tolist()]


def check_move(start, action):
    """One move against an exact, independent account of what a move may do. Returns where it ends."""
    end = move(start, action)
    assert all(0 <= x <= 1 for x in end)
    for wall in WALLS.tolist():
        assert not meets(start.tolist(), end.tolist(), *wall)
        assert not meets(np.float32(start).tolist(), np.float32(end).tolist(), *wall)  # nor to the agent's eyes
    if not (end == start + action).all():  # then it lies on the segment, at a wall that is straight ahead
        p, q, a = exact(start), exact(end), exact(action)
        share = sum((y - x) * d for x, y, d in zip(p, q, a)) / sum(d * d for d in a)
        assert -1e-12 < share <= 1 and all(abs(x + share * d - y) < 1e-12 for x, y, d in zip(p, q, a))
        ahead = [x + d / 2**60 for x, d in zip(q, a)]
        assert any(distance(q, wall) <= 1e-6 and distance(ahead, wall) < distance(q, wall) for wall in EXACT_WALLS)
    return end


coordinate = st.floats(-0.2, 0.2) | st.sampled_from(
    [0.0, -0.0, 0.2, -0.2, 0.1, A / 2, -A / 2, 1e-7, -1e-9, 1e-17, 5e-324]
)
nudge = st.sampled_from([0.0, 0.0, 0.0, 1e-7, -1e-7, 2e-7, -5e-8, 1e-12, -1e-12, 1e-16])
landmark = st.tuples(st.sampled_from([0.0, A, 0.5, B, 1.0]), st.sampled_from([0.0, A, 0.5, B, 1.0]), nudge, nudge)
aimed = st.tuples(landmark, st.sampled_from([0.5, 1.0, 1.5, 3.0]))  # at or past a wall's end, a corner, a wall's middle


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)) | st.just(START),
    st.lists(st.tuples(coordinate, coordinate) | aimed, min_size=1, max_size=20),
)
def test_maze_moves_stop_at_the_first_wall(start, actions):
    position = np.array(start)
    if any(distance(exact(position), wall) <= 1e-6 for wall in EXACT_WALLS):
        return
    for action in actions:
        if isinstance(action[0], tuple):
            (x, y, dx, dy), reach = action
            action = np.clip((np.array([x + dx, y + dy]) - position) * reach, -0.2, 0.2)
        position = check_move(position, np.array(action))


def test_maze_long_random_walk():
    rng, position, cells = np.random.default_rng(0), START, set()
    for _ in range(1500):
        position = check_move(position, rng.uniform(-0.2, 0.2, 2).astype(np.float32).astype(np.float64))
        cells.add(tuple((3 * position).astype(int)))
    assert len(cells) == 9  # every cell of the 3x3 grid can be reached


@pytest.mark.parametrize(
    "start, action, end",
    [
        ((0.5, 0.6), (0, 0.2), (0.5, B)),  # top wall, from inside, outside, aslant
        ((0.5, 0.7), (0, -0.2), (0.5, B)),
        ((0.5, B - 0.1), (0.1, 0.2), (0.55, B)),
        ((0.5, 0.4), (0, -0.2), (0.5, A)),  # bottom wall
        ((0.5, 0.3), (0, 0.2), (0.5, A)),
        ((0.6, 0.5), (0.2, 0), (B, 0.5)),  # right wall
        ((0.8, 0.5), (-0.2, 0), (B, 0.5)),
        ((0.1, 0.5), (-0.2, 0), (0, 0.5)),  # perimeter
        ((0.9, 0.5), (0.2, 0), (1, 0.5)),
        ((0.5, 0.1), (0, -0.2), (0.5, 0)),
        ((0.5, 0.9), (0, 0.2), (0.5, 1)),
        ((0.9, 0.9), (0.2, 0.2), (1, 1)),
        ((0.2, B), (0.2, 0), (A, B)),  # wall ends, head-on, aslant, in passing
        ((0.2, A), (0.2, 0), (A, A)),
        ((0.25, B - (A - 0.25)), (0.2, 0.2), (A, B)),
        ((A, 0.6), (0, 0.2), (A, B)),
        ((A, 0.3), (0, 0.2), (A, A)),
        ((0.6, 0.6), (0.2, 0.2), (B, B)),  # corners, from inside, outside, in passing
        ((0.6, 0.4), (0.2, -0.2), (B, A)),
        ((0.75, 0.75), (-0.2, -0.2), (B, B)),
        ((0.75, 0.25), (-0.2, 0.2), (B, A)),
        ((B - 0.1, B + 0.1), (0.2, -0.2), (B, B)),
        ((B, 0.8), (0, -0.2), (B, B)),
        ((0.8, A), (-0.2, 0), (B, A)),
    ],
)
def test_maze_contact(start, action, end):
    contact = check_move(np.array(start), np.array(action, float))
    np.testing.assert_allclose(contact, end, rtol=0, atol=1e-6)
    np.testing.assert_allclose(check_move(contact, np.array(action, float)), contact, rtol=0, atol=1e-15)
    for away in (-0.9 * np.array(action), np.zeros(2)):
        assert (check_move(contact, away) == contact + away).all()
    for direction in np.ndindex(3, 3):
        check_move(contact, 0.1 * np.array(direction) - 0.1)


@pytest.mark.parametrize(
    "start, press, slide, end",
    [
        ((0.5, 0.6), (0, 0.2), (-0.2, 0), None),  # None: nothing stops the slide
        ((0.5, 0.6), (0, 0.2), (0.2, 0), (B, B)),
        ((0.6, 0.8), (0, -0.2), (0.2, 0), None),
        ((0.4, 0.2), (0, 0.2), (-0.2, 0), None),
        ((0.8, 0.4), (-0.2, 0), (0, -0.2), None),
        ((0.6, 0.4), (0.2, 0), (0, -0.2), (B, A)),
        ((0.5, 0.1), (0, -0.2), (0.2, 0), None),
        ((0.9, 0.9), (0.2, 0), (0, 0.2), (1, 1)),
        ((0.2, B), (0.2, 0), (0, 0.2), None),
        ((0.6, 0.6), (0.2, 0.2), (-0.2, 0), None),
        ((0.6, 0.6), (0.2, 0.2), (0, -0.2), None),
    ],
)
def test_maze_slides_along_walls(start, press, slide, end):
    contact, slide = check_move(np.array(start), np.array(press, float)), np.array(slide, float)
    expected, tolerance = (contact + slide, 0) if end is None else (end, 1e-6)
    np.testing.assert_allclose(check_move(contact, slide), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "start, action",
    [
        ((A - 1e-6, 0.6), (0, 0.2)),
        ((B + 1e-6, 0.6), (0, 0.2)),
        ((0.25, 0.25), (0.1, 0.08)),
        ((0.3333331333333333, 0.46666656666666667), (1.5000000000431335e-07, -0.2)),  # grazes, but for rounding
    ],
)
def test_maze_passes_beside_wall_ends(start, action):
    assert (check_move(np.array(start), np.array(action)) == np.array(start) + action).all()


@pytest.mark.parametrize(
    "start, action, success",
    [
        (GOAL - [0.2, 0], (0.1001, 0), True),
        (GOAL - [0.2, 0], (0.0999, 0), False),
        (GOAL + [0, 0.1666], (0, -0.07), True),
        (GOAL - 0.1, (0.2, 0.2), False),  # through the goal and out again
        (START, (0.2, 0.2), False),
    ],
)
def test_maze_reward(start, action, success):
    env = gym.make("maze_env:Maze-v0")
    env.reset()
    env.unwrapped.path = [np.asarray(start)]
    _, reward, terminated, truncated, _ = env.step(np.float32(action))
    assert (reward, terminated, truncated) == (100.0 * success, success, False)


def test_maze_episode():
    env = gym.make("maze_env:Maze-v0")
    for _ in range(2):
        observation, info = env.reset(seed=1)
        assert observation.tolist() == [0.5, 0.5] and observation.dtype == np.float32 and info == {}
        steps = [env.step(np.array([-5, np.inf], np.float32)) for _ in range(50)]  # clipped to (-0.2, 0.2)
        np.testing.assert_allclose(steps[0][0], [0.5 - A / 2, B], atol=1e-6)
        assert [step[1:4] for step in steps] == [(0.0, False, i == 50) for i in range(1, 51)]
    for action in ([0.1], [0.1, np.nan], 0.1, [[0.1, 0.1]]):
        with pytest.raises(ValueError, match="two numbers"):
            env.unwrapped.step(action)


def test_maze_same_actions_same_path():
    paths = []
    for _ in range(2):
        env = gym.make("maze_env:Maze-v0")
        env.reset(seed=3)
        env.action_space.seed(3)
        paths.append([env.step(env.action_space.sample())[0].tolist() for _ in range(50)])
    assert paths[0] == paths[1] and len(set(map(tuple, paths[0]))) > 20


def test_maze_render():
    env = gym.make("maze_env:Maze-v0", render_mode="rgb_array")
    env.reset()
    before = env.render()
    assert before.shape == (480, 480, 3) and before.dtype == np.uint8

    def color(image, x, y):
        return image[479 - int(12 + 456 * y), int(12 + 456 * x)].astype(int)

    def is_blue(rgb):
        return rgb[2] > rgb[0] + 50

    red, green, blue = color(before, *GOAL)
    assert red > green > blue
    for wall in WALLS:
        assert color(before, *wall.mean(axis=0)).max() < 80
    for clear in ((0.4, 0.5), (0.3, 0.55), (0.1, 0.9)):
        assert (color(before, *clear) == 255).all()
    for action in ((-0.2, 0), (0, 0.1)):
        env.step(np.array(action, np.float32))
    after = env.render()
    assert is_blue(color(before, *START)) and not is_blue(color(after, 0.515, 0.5))  # the agent has left
    assert all(is_blue(color(after, x, y)) for x, y in ((0.4, 0.5), (0.3, 0.55), (0.3, 0.6)))
    assert gym.make("maze_env:Maze-v0").unwrapped.render() is None
    env.reset()
    assert (env.render() == before).all()


def test_maze_passes_gymnasiums_checker():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("maze_env:Maze-v0", render_mode="rgb_array").unwrapped)


# Learning; last, so that another process has compiled it by then


def test_it_learns(tmp_path):
    """The README's first taste. Random play returns about -1200; below -250 the pendulum is not held up."""
    train(Args(**TASTE, eval_interval=2500, run_dir=tmp_path))
    returns = [row["return"] for row in read_csv(next(tmp_path.iterdir()) / "eval.csv")]
    assert np.mean(returns) > -250
