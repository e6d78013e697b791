"""The method, the loop, the checkpoints and the maze, stated exactly: `pytest` takes about three minutes."""

import dataclasses
import errno
import fcntl
import itertools
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import types
import warnings
import zlib
from contextlib import closing, suppress
from fractions import Fraction
from functools import partial
from importlib import metadata
from pathlib import Path
from unittest import mock

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import omnet_sac
from maze_env import GOAL, START, WALLS, move
from omnet_sac import Args, OMNet, OMNetSAC, ReplayBuffer, UsageError, evaluate, load, main, mlp, parse, train

ROOT = Path(__file__).parent
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def what_a_run_changes_in_its_process(monkeypatch):
    """`main` would take the signals away from pytest, `train` flushes denormals to zero, which hypothesis needs, and
    what cannot compile leaves an empty cache to what compiles later."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with mock.patch.dict(os.environ):
        yield
    torch.set_flush_denormal(False)


class Point(gym.Env):
    """A point on a line: observation (position, steps so far), reward -position^2, terminal beyond 1.2."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-0.5, 0.5, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode, _ = render_mode, np.random.random()  # some constructors draw from the global generator

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
    buffer.rows[:, -2] = (buffer.rows[:, -2] > 1).float()
    return buffer


def entries(omnet: OMNet, name: str, omnet_vector: torch.Tensor) -> torch.Tensor:
    """The part of a vector (..., n) that belongs to a parameter of the wrapped network."""
    sizes = [shape.numel() for shape in omnet.shapes.values()]
    return omnet_vector.split(sizes, -1)[list(omnet.shapes).index(name)]


# Streams of random numbers


class TorchInitialised(OMNetSAC):
    """A fork whose networks keep torch's own initialisation."""

    def make_networks(self) -> tuple[OMNet, OMNet]:
        ends = (self.obs_dim + self.action_dim, 1), (self.obs_dim, 2 * self.action_dim)
        layers = [(nn.Linear(i, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, o)) for i, o in ends]
        return tuple(OMNet(nn.Sequential(*net), 5, 0.5, self.mask_generator) for net in layers)


def deviations(mask: torch.Tensor, positive: torch.Tensor, rows: int = 1) -> np.ndarray:
    """By how many standard errors the share of entries in which mask (n,) and positive (n,) agree differs from what
    chance gives: for each shift from -2048 to 2048 places, and of up to 20 rows, that leaves a hundred of them."""
    n = len(mask)
    shifts = np.unique(np.r_[-2048:2049, rows * np.r_[-20:21]])
    shifts = shifts[abs(shifts) <= n - 100]

    def overlap(x, y):  # sum over p of x[p] y[p + shift], by the Fourier transform
        size = 2 ** (2 * n).bit_length()
        product = np.fft.irfft(np.conj(np.fft.rfft(x, size)) * np.fft.rfft(y, size), size)
        return np.round(product)[shifts]

    x, y, one = mask.double().numpy(), positive.double().numpy(), np.ones(n)
    count, of_x, of_y, both = overlap(one, one), overlap(x, one), overlap(one, y), overlap(x, y)
    agree, (a, b) = count - of_x - of_y + 2 * both, (of_x / count, of_y / count)
    chance = a * b + (1 - a) * (1 - b)
    return (agree - count * chance) / (2 * np.sqrt(count * a * (1 - a) * b * (1 - b)))


@pytest.mark.parametrize("agent_class", [OMNetSAC, TorchInitialised])
@pytest.mark.parametrize("seed", range(1, 6))
def test_masks_are_independent_of_the_weights(agent_class, seed):
    agent, worst = agent_class(Args(seed=seed), 11, 3), 0.0
    for omnet in (agent.critic, agent.actor):
        for name, (_, *columns) in omnet.shapes.items():
            for mask in omnet.masks if columns else ():
                weight, mask = (entries(omnet, name, vector) for vector in (omnet.theta, mask))
                worst = max(worst, abs(deviations(mask, weight > 0, *columns)).max())
    assert 3 < worst < 5  # below 3 the many shifts would be no measurement


def test_the_measure_of_independence_finds_a_shift():
    weight = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    mask = torch.cat([weight[700:] < 0, weight[:700] > 0])
    assert abs(deviations(mask, weight > 0)).argmax() == 2048 + 700


def test_no_two_generators_of_a_run_have_one_seed(monkeypatch):
    seeds = []
    monkeypatch.setattr(omnet_sac.torch, "manual_seed", lambda seed: seeds.append(seed))
    agent = make_agent()
    monkeypatch.undo()
    seeds += [g.initial_seed() for g in (agent.mask_generator, agent.generator, agent.act_generator)]
    children = [np.random.SeedSequence(agent.args.seed).spawn(4)[k] for k in range(4)]
    assert seeds == [int(np.random.default_rng(child).integers(2**31)) for child in children]
    assert len(set(seeds)) == 4
    rngs = [omnet_sac.stream(1, name, *key) for name in omnet_sac.STREAMS for key in ((), (0,), (1,), (5000,))]
    assert len({rng.integers(2**63) for rng in rngs}) == len(rngs)


def test_an_agent_is_a_function_of_its_flags_alone():
    one = make_agent()
    torch.rand(7)
    two, other = make_agent(), make_agent(seed=2)
    for get in (lambda a: a.critic.theta, lambda a: a.critic.masks, lambda a: a.actor.masks):
        assert torch.equal(get(one), get(two)) and not torch.equal(get(one), get(other))


# Section 3.1: masks


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_mask_rate_is_binomial_and_layer_norm_is_unmasked(sparsity):
    net = mlp(10, 4, 64)
    omnet = OMNet(net, 5, sparsity, torch.Generator().manual_seed(0))
    linear = torch.cat([torch.full((p.numel(),), name[:4] != "norm") for name, p in net.named_parameters()])
    assert omnet.theta.shape == (sum(p.numel() for p in net.parameters()),)
    assert omnet.masks.unique().tolist() == [0, 1]
    n = int(linear.sum())
    for mask in omnet.masks:
        assert abs(mask[linear].float().sum() - n * (1 - sparsity)) < 5 * math.sqrt(n * sparsity * (1 - sparsity))
        assert mask[~linear].all()
    assert len({tuple(mask.tolist()) for mask in omnet.masks}) == 5
    overlap = (omnet.masks[0] * omnet.masks[1])[linear].float().mean()  # independent: (1 - S)^2
    assert overlap == pytest.approx((1 - sparsity) ** 2, abs=0.03)


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
    outputs = omnet(omnet.theta, omnet.masks, x)
    assert outputs.shape == (4, 8, 3)
    omnet.batched = True  # a GPU's way
    torch.testing.assert_close(outputs, omnet(omnet.theta, omnet.masks, x))
    for mask, out in zip(omnet.masks, outputs):
        torch.testing.assert_close(out, omnet(omnet.theta, mask[None], x)[0])
        nn.utils.vector_to_parameters(omnet.theta * mask, net.parameters())
        torch.testing.assert_close(out, net(x))
        nn.utils.vector_to_parameters(omnet.theta, net.parameters())
    assert not torch.allclose(outputs[0], outputs[1])
    torch.testing.assert_close(OMNet(net, 1, 0.0)(omnet.theta, torch.tensor([0]), x)[0], net(x))


def test_dynamic_masks_are_fresh_at_every_use():
    g = torch.Generator().manual_seed(0)
    omnet = OMNet(mlp(6, 3, 64), 5, 0.5, g, dynamic=True)
    draws = torch.cat([omnet.sample(1, 3, g)[0], omnet.sample(1, 1, g)[0], omnet.masks])
    assert len({tuple(mask.tolist()) for mask in draws}) == 9
    agent = make_agent(dynamic_masks=True)
    obs, g = np.ones(3), torch.Generator().manual_seed(0)
    first, second = (agent.act(obs, 0, g, deterministic=True) for _ in range(2))
    assert not np.array_equal(first, second) and agent.num_actor_subnets == 1
    agent.update(filled_buffer(agent))


def test_sample_draws_distinct_subnetworks_uniformly():
    omnet, g = OMNet(mlp(6, 3, 64), 5, 0.5), torch.Generator().manual_seed(0)
    pairs = [tuple(pair) for pair in omnet.sample(2000, 2, g).tolist()]
    counts = np.array([[pairs.count((i, j)) for j in range(5)] for i in range(5)])
    assert not counts.diagonal().any() and np.abs(counts[~np.eye(5, dtype=bool)] - 100).max() < 5 * math.sqrt(100)
    assert len(omnet.sample(1, 5, g)[0].unique()) == 5 and omnet.sample(3, 9, g).shape == (3, 5)
    x = torch.randn(8, 6)
    assert torch.equal(omnet(omnet.theta, torch.tensor([3, 1]), x), omnet(omnet.theta, omnet.masks[[3, 1]], x))


@pytest.mark.parametrize("dense, kept", [((), "norm"), (("input", "output"), ("norm", "input", "output"))])
def test_what_is_masked(dense, kept):
    omnet = OMNet(mlp(6, 3, 16), 20, 0.5, torch.Generator().manual_seed(0), dense=dense)
    for name in omnet.shapes:
        assert entries(omnet, name, omnet.masks).all() == name.startswith(kept), name
    norms = nn.Sequential(nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.InstanceNorm1d(4, affine=True))
    assert OMNet(norms, 3, 0.9).masks.all()


def test_what_cannot_be_masked_is_refused():
    """Layers with a state that subnetworks would share, and names in `dense` that the network does not have."""
    for layer in (nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)):
        with pytest.raises(ValueError, match="LayerNorm"):
            OMNet(nn.Sequential(nn.Linear(3, 3), layer), 5, 0.5)
    OMNet(nn.BatchNorm1d(3, track_running_stats=False), 5, 0.5)
    with pytest.raises(AttributeError, match="haed"):
        OMNet(mlp(6, 3, 16), 5, 0.5, dense=("haed",))


# Appendix A: the update


class HandMade(OMNetSAC):
    """Q-values written by hand: subnetwork k of the critic says `values[k]`, everywhere."""

    values = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])

    def q_value(self, theta, masks, obs_action):
        self.asked = getattr(self, "asked", []) + [(theta, masks)]
        which = masks if masks.dim() == 1 else (masks[:, None] == self.critic.masks).all(-1).int().argmax(1)
        return self.values[which][:, None].expand(-1, len(obs_action)) + 0 * theta.sum() + 0 * obs_action.sum()


@pytest.mark.parametrize("pair", [(0, 1), (3, 2), (4, 0)])
def test_target_is_the_minimum_over_two_subnetworks_of_the_target_critic(pair):
    agent = HandMade(small(), 3, 2)
    agent.log_alpha.fill_(math.log(0.3))
    batch, noise = filled_buffer(agent).rows[:16], torch.randn(16, 2)
    masks, actor_mask = agent.critic.masks, agent.actor.masks[4:]
    _, log_pi = agent.policy(agent.actor.theta, actor_mask, batch[:, 6:9], noise)
    reward, terminated, q = batch[:, 5], batch[:, 9], agent.values[1]
    target = reward + 0.99 * (1 - terminated) * (agent.values[list(pair)].min() - 0.3 * log_pi)
    loss, q_mean = agent.critic_step(batch, masks[1:2], masks[list(pair)], actor_mask, noise)
    assert agent.asked[0][0] is agent.theta_target and len(agent.asked[0][1]) == 2
    assert loss.item() == pytest.approx((q - target).square().mean().item(), rel=1e-5) and q_mean == q
    assert terminated.any() and not terminated.all()


def test_update_draws_two_distinct_target_subnetworks_and_fresh_ones_in_every_step():
    seen, agent = [], make_agent(replay_ratio=20, policy_delay=20)
    step = agent.critic_step
    agent.critic_step = lambda batch, *inputs: seen.append(inputs) or step(batch, *inputs)
    agent.update(filled_buffer(agent))
    assert all(len(pair.unique(dim=0)) == 2 for _, pair, _, _ in seen)
    for position in (0, 2):  # critic subnetwork i and actor subnetwork i''
        assert len(torch.stack([s[position] for s in seen]).unique(dim=0)) > 2
    assert len(torch.stack([s[3] for s in seen]).unique(dim=0)) == 20


def test_critic_step_on_subnetwork_i_gives_masked_entries_no_gradient_and_the_target_a_polyak_step():
    agent = make_agent(tau=0.25)
    batch, mask, before = filled_buffer(agent).rows[:16], agent.critic.masks[2], agent.critic.theta.clone()
    agent.critic_step(batch, mask[None], agent.critic.masks[:2], agent.actor.masks[:1], torch.randn(16, 2))
    grad = agent.critic_adam.m  # after the first step, (1 - beta1) times the gradient
    assert (grad[mask == 0] == 0).all() and (grad[mask == 1] != 0).float().mean() > 0.5
    moved = agent.critic.theta != before
    assert moved.any() and not moved[mask == 0].any() and (agent.actor_adam.m == 0).all()
    torch.testing.assert_close(agent.theta_target, 0.75 * before + 0.25 * agent.critic.theta)


def test_actor_loss_is_the_mean_over_all_subnetworks():
    agent = HandMade(small(), 3, 2)
    obs, noise, mask = torch.randn(16, 3), torch.randn(16, 2), agent.actor.masks[:1]
    _, log_pi = agent.policy(agent.actor.theta, mask, obs, noise)
    loss, entropy, alpha = agent.actor_step(obs, mask, agent.critic.masks, noise)
    assert loss.item() == pytest.approx((alpha * log_pi.mean() - agent.values.mean()).item(), rel=1e-5)
    assert entropy.item() == pytest.approx(-log_pi.mean().item(), rel=1e-5)
    calls = []
    agent.actor_step = lambda obs, mask, all_masks, noise: calls.append(all_masks) or torch.zeros(3)
    agent.update(filled_buffer(agent))
    (all_masks,) = calls
    assert sorted(all_masks.tolist()) == [0, 1, 2, 3, 4]


def test_actor_step_leaves_the_critic_alone_and_masked_actor_entries_without_gradient():
    agent = make_agent()
    critic, mask = agent.critic.theta.clone(), agent.actor.masks[3]
    agent.actor_step(torch.randn(16, 3), mask[None], agent.critic.masks, torch.randn(16, 2))
    assert torch.equal(agent.critic.theta, critic) and (agent.critic_adam.m == 0).all()
    assert (agent.actor_adam.m[mask == 0] == 0).all() and (agent.actor_adam.m[mask == 1] != 0).float().mean() > 0.5


@pytest.mark.parametrize("env_id, target", [("Hopper-v4", -1), ("Ant-v5", -4), ("maze_env:Maze-v0", -2)])
def test_alpha_rises_below_the_target_entropy_and_falls_above(env_id, target):
    agent = make_agent(env_id=env_id)
    assert agent.target_entropy == target and make_agent(target_entropy=0.0).target_entropy == 0
    agent.target_entropy.fill_(100.0)
    agent.actor_step(torch.randn(16, 3), agent.actor.masks[:1], agent.critic.masks, torch.randn(16, 2))
    assert agent.log_alpha.item() == pytest.approx(agent.args.learning_rate, rel=1e-3)


def test_log_pi_is_that_of_a_squashed_gaussian():
    agent = make_agent()
    obs, noise, mask = torch.randn(64, 3), 2 * torch.randn(64, 2), agent.actor.masks[1:2]
    action, log_pi = agent.policy(agent.actor.theta, mask, obs, noise)
    mean, log_std = agent.actor(agent.actor.theta, mask, obs)[0].double().chunk(2, -1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    expected = torch.tanh(mean + log_std.exp() * noise.double())
    torch.testing.assert_close(action.double(), expected, atol=1e-6, rtol=1e-5)
    inside = (expected.abs() < 0.999).all(-1)
    assert inside.sum() > 20
    log_prob = squashed.log_prob(expected).sum(-1)
    torch.testing.assert_close(log_pi.double()[inside], log_prob[inside], atol=1e-4, rtol=1e-4)
    far, far_log_pi = agent.policy(agent.actor.theta, mask, obs, torch.full((64, 2), 50.0))
    assert far_log_pi.isfinite().all() and far.abs().max() <= 1


def test_adam_is_adam():
    theta = torch.randn(50)
    reference = nn.Parameter(theta.clone())
    adam, expected = omnet_sac.Adam(theta, 1e-2), torch.optim.Adam([reference], lr=1e-2)
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
    adams = agent.critic_adam, agent.actor_adam, agent.alpha_adam
    taken = [round(math.log(adam.beta2_t) / math.log(0.999)) for adam in adams]
    assert taken == [3 * replay_ratio, actor_steps, actor_steps] and agent.gradient_steps == 3 * replay_ratio
    assert torch.equal(agent.theta_target, agent.critic.theta)  # tau = 1


def test_plain_actor_and_few_subnetworks():
    agent = make_agent(actor_subnets=False)
    assert agent.num_actor_subnets == 1 and agent.actor.masks.all() and not agent.critic.masks.all()
    agent.update(filled_buffer(agent))
    for num_subnets in (1, 2):
        agent = make_agent(num_subnets=num_subnets)
        agent.update(filled_buffer(agent))
        assert agent.critic.sample(1, 2).shape[1] == num_subnets  # with one, the minimum is over that one


@pytest.mark.parametrize("dense", [{"input"}, {"output"}, {"input", "output"}])
def test_input_and_output_layers_can_be_left_dense_and_nothing_else_changes(dense):
    plain, agent = same_agent(), same_agent(**{f"mask_{layer}": False for layer in dense})
    for one, two in ((plain.critic, agent.critic), (plain.actor, agent.actor)):
        layer = [key.split(".")[0] for key, size in two.shapes.items() for _ in range(size.numel())]
        chosen = torch.tensor([key in dense for key in layer])
        assert two.masks[:, chosen].all() and torch.equal(two.masks[:, ~chosen], one.masks[:, ~chosen])
        assert torch.equal(one.theta, two.theta) and (two.draw(3)[:, chosen] == 1).all()
    assert torch.equal(plain.generator.get_state(), agent.generator.get_state())


# Replay


def test_replay_buffer_wraps_around_and_samples_what_it_holds():
    buffer = ReplayBuffer(4, 2, 1, "cpu")
    for i in range(6):
        buffer.add(np.full(2, i, np.float64), np.array([i / 10], np.float32), -i, np.full(2, i + 1.0), i == 5, i == 4)
    assert len(buffer) == 4 and buffer.rows.dtype == torch.float32
    assert buffer.rows[:, 0].tolist() == [4, 5, 2, 3]
    torch.testing.assert_close(buffer.rows[1], torch.tensor([5, 5, 0.5, -5, 6, 6, 1, 0]))
    assert buffer.rows[0, -2:].tolist() == [0, 1]
    generator = torch.Generator().manual_seed(0)
    sample = buffer.sample(50, 8, generator)
    assert sample.shape == (50, 8, 8)
    counts = torch.bincount(sample[..., 0].flatten().long())[2:]
    assert len(counts) == 4 and (counts - 100).abs().max() < 50
    assert not torch.equal(sample, buffer.sample(50, 8, generator))  # the generator advances
    other = ReplayBuffer(9, 2, 1, "cpu")
    other.extend(buffer.rows[:3].numpy())
    assert torch.equal(other.rows[:3], buffer.rows[:3]) and other.crc == zlib.crc32(buffer.rows[:3].numpy())
    assert set(other.sample(1, 99, generator)[..., 0].flatten().tolist()) == {4.0, 5.0, 2.0}


# The loop


class Recorder(OMNetSAC):
    """Keeps what the loop asks of the agent."""

    def __init__(self, *args):
        super().__init__(*args)
        self.acted, self.buffer = [], None

    def act(self, obs, subnet, generator=None, deterministic=False):
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
    assert train(small(run_dir=tmp_path, replay_ratio=3)).gradient_steps == 3 * (120 - 40)
    folder = tmp_path / "Point-v0__omnet_sac__1"
    names = {p.name.split(".")[0] for p in folder.iterdir() if p.name != ".lock"}
    assert names == {"args", "eval", "train", "events", "checkpoint", "replay"}
    about = json.loads((folder / "args.json").read_text())
    assert about["args"]["batch_size"] == 16 and about["args"].keys() == {f.name for f in dataclasses.fields(Args)}
    assert about["versions"].keys() == {"torch", "gymnasium", "mujoco", "numpy"}
    assert (folder / "eval.csv").read_text().startswith("step,episode,subnet,return,length,seconds\n")
    rows = read_csv(folder / "eval.csv")
    expected = [(step, k, k % 5) for step in (50, 100) for k in range(6)]
    assert [(row["step"], row["episode"], row["subnet"]) for row in rows] == expected
    assert (folder / "train.csv").read_text().startswith("step,subnet,return,length\n")
    steps = np.diff([0] + [r["step"] for r in read_csv(folder / "train.csv")])
    assert steps.tolist() == [r["length"] for r in read_csv(folder / "train.csv")]
    rows = np.fromfile(folder / "replay.f32", np.float32).reshape(120, 8)  # obs, action, reward, next_obs, ends
    assert np.allclose(rows[:, 3], -(rows[:, 4] ** 2))


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
    assert torch.equal(rows[:-1, 7].bool(), next_obs[:-1, 1] == 10) and rows[-1, 7] == 1  # the run's end cuts off too


def test_same_seed_same_run_and_evaluation_leaves_training_alone(tmp_path):
    runs = {"a": {}, "b": {}, "no_eval": {"eval_interval": 0}, "other": {"seed": 2}}
    agents = {name: train(small(run_dir=tmp_path / name, **flags)) for name, flags in runs.items()}
    a, b, no_eval, other = (next((tmp_path / name).iterdir()) for name in runs)
    assert (a / "train.csv").read_bytes() == (b / "train.csv").read_bytes() == (no_eval / "train.csv").read_bytes()
    assert read_csv(a / "eval.csv", "seconds") == read_csv(b / "eval.csv", "seconds")
    assert (a / "train.csv").read_bytes() != (other / "train.csv").read_bytes()
    assert torch.equal(agents["a"].critic.theta, agents["no_eval"].critic.theta)
    assert not torch.equal(agents["a"].critic.theta, agents["other"].critic.theta)


def test_evaluation_cycles_through_the_subnetworks_and_repeats():
    agent, env = make_agent(2, 1), gym.wrappers.RescaleAction(gym.make("Point-v0"), np.float32(-1), np.float32(1))
    first, second, other = (evaluate(agent, env, 7, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == second != other and [subnet for subnet, _, _ in first] == [0, 1, 2, 3, 4, 0, 1]


def test_observation_noise_is_constant_in_an_episode_fresh_across_and_bounded():
    env, sigmas = gym.make("Point-v0"), []
    for seed in range(200):
        noise = []
        for _, _, _, next_obs, _, _ in omnet_sac.episode(env, seed, 0.3, lambda obs: np.zeros(1, np.float32)):
            noise.append(next_obs - [env.unwrapped.position, env.unwrapped.steps])
        np.testing.assert_allclose(noise, np.tile(noise[0], (10, 1)), atol=1e-12)
        sigmas.append(noise[0])
    sigmas = np.array(sigmas)
    assert 0.28 < sigmas.max() <= 0.3 and -0.3 <= sigmas.min() < -0.28 and abs(sigmas.mean()) < 0.05
    assert abs(np.corrcoef(sigmas.T)[0, 1]) < 0.3 and len(np.unique(sigmas)) == 400  # one value per dimension


def test_observation_noise_in_training_and_evaluation(tmp_path):
    seen = []

    class Watched(Recorder):
        def act(self, obs, *args, deterministic=False, **kwargs):
            seen.append((deterministic, obs[1] - round(obs[1])))
            return super().act(obs, *args, deterministic=deterministic, **kwargs)

    agent = train(small(run_dir=tmp_path, obs_noise=0.2), Watched)
    time_noise = agent.buffer.rows[:, 1] - agent.buffer.rows[:, 1].round()
    assert 0.05 < time_noise.abs().max() <= 0.2
    assert all(0.05 < max(abs(x) for when, x in seen if when == evaluation) <= 0.2 for evaluation in (False, True))


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


OBS_DIM = {"Strange-v0": 7, "Hopper-v4": 11, "Hopper-v5": 11, "gymnasium.envs.classic_control:Pendulum-v1": 3}


@pytest.mark.parametrize("env_id", OBS_DIM)
def test_environments_of_all_kinds(env_id, tmp_path):
    assert train(small(env_id=env_id, run_dir=tmp_path, total_timesteps=60)).obs_dim == OBS_DIM[env_id]
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
        agents.append(OMNetSAC(Args(**TASTE, device=device), 3, 1))
        if compiled:
            omnet_sac.compile_steps(agents[-1])
    for _ in range(5):
        metrics = [agent.update(filled_buffer(agent)) for agent in agents]
    assert agents[0].gradient_steps == 100 and "critic_step" in vars(agents[0]) and metrics[0]["alpha"] < 1
    assert_same_state(*agents)
    for subnet, deterministic in ((0, True), (4, True), (2, False)):
        actions = [agent.act(np.ones(3), subnet, deterministic=deterministic) for agent in agents]
        np.testing.assert_allclose(*actions, atol=1e-6)

    for agent in agents:  # what one might schedule is no number frozen in the compiled code
        agent.gamma.fill_(0.5)
        agent.tau.fill_(0.3)
        agent.target_entropy.fill_(3.0)
        agent.actor_adam.learning_rate.fill_(1e-2)
        agent.critic_adam.learning_rate.zero_()
        critic = agent.critic.theta.clone()
        agent.update(filled_buffer(agent))
        assert torch.equal(agent.critic.theta, critic)
    assert_same_state(*agents)


def assert_same_state(one: OMNetSAC, other: OMNetSAC):
    one, other = (dict(agent.named_parameters()) | dict(agent.named_buffers()) for agent in (one, other))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-5, msg=name)


def same_agent(**flags) -> OMNetSAC:
    """An agent that has the same parameters at every call."""
    torch.manual_seed(0)
    return make_agent(**flags)


@pytest.mark.parametrize(
    "error",
    [
        *(RuntimeError("no"), AssertionError("capture"), torch.OutOfMemoryError("out of memory"), OSError(28, "full")),
        torch._inductor.exc.InductorError(ValueError("no"), None),
        torch._dynamo.exc.FailOnRecompileLimitHit("limit"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("call", [1, 3])  # CUDA graphs: the first call warms up, the second records, the third replays
def test_whatever_a_compiler_raises_the_run_goes_on_eagerly(error, call, monkeypatch, capsys):
    calls = []

    def compiled(step, **_):
        def broken(*inputs):
            calls.append(step)
            if len(calls) == call:
                raise error
            return step(*inputs)

        return broken

    monkeypatch.setattr(torch, "compile", compiled)
    agent, eager = same_agent(replay_ratio=4), same_agent(replay_ratio=4)
    omnet_sac.compile_steps(agent)
    said = capsys.readouterr().out
    assert "not possible here" in said and omnet_sac.one_line(error) in said
    assert agent.update(filled_buffer(agent)) == eager.update(filled_buffer(eager)) and len(calls) == call


def test_a_compiler_cache_that_cannot_be_written_means_eager(monkeypatch, capsys):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/proc/nowhere")
    omnet_sac.compile_steps(agent := make_agent())
    assert capsys.readouterr().out.count("not possible here") == 1 and "critic_step" not in vars(agent)


def test_a_compilation_can_be_stopped(monkeypatch):
    monkeypatch.setattr(torch, "compile", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        omnet_sac.compile_steps(make_agent())


# The command line


TINY = "--env-id Pendulum-v1 --hidden-dim 8 --batch-size 8 --learning-starts 20 --total-timesteps 30"


def test_without_a_compiler_the_run_goes_on_eagerly(tmp_path):
    env = os.environ | {"PATH": "/nowhere", "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, ROOT / "omnet_sac.py", *TINY.split(), "--run-dir", tmp_path]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "Pendulum-v1__omnet_sac__1" / "checkpoint.pt").exists()
    assert done.stdout.count("not possible here") == 1 and "Traceback" not in done.stderr


def test_a_copied_file_names_the_pins_of_requirements():
    """Inline script metadata (PEP 723): `uv run omnet_sac.py` needs no other file."""
    block = re.match(r"# /// script\n((?:# .*\n)+)# ///\n", (ROOT / "omnet_sac.py").read_text())[1]
    metadata = tomllib.loads(re.sub("^# ", "", block, flags=re.M))
    pins = [pin for pin in (ROOT / "requirements.txt").read_text().split() if not re.match("pytest|hypothesis", pin)]
    assert metadata == {"requires-python": ">=3.11,<3.14", "dependencies": pins}


def test_the_hook_and_the_loading_in_the_readme(tmp_path, monkeypatch):
    """A method of one's own by `main`, and an agent loaded in three lines."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    hook, load = (next(b for b in blocks if text in b) for text in ("class MyIdea", "from omnet_sac import load"))
    (tmp_path / "my_idea.py").write_text(hook)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for flags in ([*TINY.split(), "--no-compile"], ["--evaluate", "runs/Pendulum-v1__my_idea__1"]):
        command = [sys.executable, "my_idea.py", *flags]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    train(small(env_id="Hopper-v4", total_timesteps=60, run_dir=Path("runs")))
    scope: dict = {}
    exec(load, scope)
    assert scope["action"].shape == (3,) and scope["args"].hidden_dim == 16 and np.abs(scope["action"]).max() <= 1
    again = scope["agent"].act(scope["env"].reset(seed=0)[0], subnet=0, deterministic=True)
    assert np.array_equal(again, scope["action"])


# A run is never lost


def run(*words, default: Args | None = None, make_agent=OMNetSAC):
    """The command line `words`, beside flags whose defaults are `default`."""
    main(default, make_agent, [*map(str, words)])


def brief(**flags) -> Args:
    """A run of a fraction of a second with several checkpoints."""
    return small(**{"checkpoint_interval": 25, "replay_ratio": 1, "eval_episodes": 2, "num_subnets": 2} | flags)


class Halt(Exception):
    """The end of a run by a crash."""


def diary(args, obs_dim, action_dim, halt: int = 0, make_agent=OMNetSAC) -> OMNetSAC:
    """An agent that keeps a CSV file of its own in the folder, as probes do, and crashes at step `halt`."""
    agent = make_agent(args, obs_dim, action_dim)
    update, path = agent.update, (args.resume or omnet_sac.run_folder(args)) / "diary.csv"

    def update_and_record(buffer):
        if buffer.added == halt:
            raise Halt
        metrics = update(buffer)
        if buffer.added % 5 == 0:
            omnet_sac.append_csv(path, (buffer.added, metrics["q_value"]), columns="step,q_value")
        return metrics

    agent.update = update_and_record
    return agent


def diary_run(run_dir: Path, halt: int = 0, **flags) -> Path:
    args = brief(run_dir=run_dir, **flags)
    with suppress(Halt):
        train(args, partial(diary, halt=halt))
    return omnet_sac.run_folder(args)


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def edit(change, folder: Path):
    state = checkpoint(folder)
    change(state)
    torch.save(state, folder / "checkpoint.pt")


def replay(folder: Path) -> np.ndarray:
    """Rows (steps, 8) of Point: observation, action, reward, next observation, terminated, truncated."""
    return np.fromfile(folder / "replay.f32", np.float32).reshape(-1, 8)


def last_step(csv: Path) -> int:
    return int(read_csv(csv)[-1]["step"])


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but the lock and TensorBoard's, which a thread writes."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".lock", "events"))]
    return {path: path.read_bytes() for path in files}


def assert_same_run(one: Path, two: Path):
    """Every row of each file and every number in the checkpoint but the seconds, bit for bit."""
    a, b = checkpoint(one), checkpoint(two)
    for name in [path.name for path in two.glob("*.csv")]:
        texts = (one / name).read_text(), (two / name).read_text(), a["csv"][name], b["csv"][name]
        assert len({re.sub(r",[-\d.]+$", "", x, flags=re.M) if name == "eval.csv" else x for x in texts}) == 1, name
    assert (one / "replay.f32").read_bytes() == (two / "replay.f32").read_bytes()
    torch.testing.assert_close(a["agent"], b["agent"], rtol=0, atol=0)
    assert all(a[name] == b[name] for name in ("rng", "step", "crc"))


def assert_fails(capsys, code: int, said: str, *words, folder: Path | None = None, **given) -> str:
    """The command ends with this code, in one sentence in which the pattern `said` is found; `folder` is as it was."""
    before = folder and contents(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*words, **given)
    *bar, sentence = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == code and sentence.startswith("error: ") and len(sentence) < 900, sentence
    assert re.search(said, sentence), sentence
    assert not any("error" in line.lower() for line in bar) and (code == 1 or not bar), bar
    assert (folder and contents(folder)) == before
    return sentence


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run to step 120."""
    return diary_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def crashed(tmp_path_factory) -> Path:
    """The same run crashed at step 113, its evaluation at 100 and some rows after its last checkpoint."""
    folder = diary_run(tmp_path_factory.mktemp("crashed"), halt=113)
    assert 60 < checkpoint(folder)["step"] < 100 < min(last_step(folder / name) for name in ("train.csv", "diary.csv"))
    return folder


@pytest.fixture
def halted(crashed, tmp_path) -> Path:
    """`crashed`, to be changed."""
    return shutil.copytree(crashed, tmp_path / "halted" / crashed.name)


@pytest.fixture
def done(whole, tmp_path) -> Path:
    """`whole`, to be changed."""
    return shutil.copytree(whole, tmp_path / "done" / whole.name)


FORK, REAL_SIGNAL = multiprocessing.get_context("fork"), signal.signal


def child(run, log: Path) -> multiprocessing.Process:
    """A process of its own for `run()`, what it says in `log`, its signals its own."""

    def body():
        signal.signal, file = REAL_SIGNAL, log.open("w", buffering=1)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        run()

    process = FORK.Process(target=body)
    process.start()
    return process


def interrupt(words: tuple, how: str | signal.Signals, when: int, log: Path):
    """Starts a run that is killed in its `when`-th "write" of a checkpoint, or gets a signal within 50 ms after the
    `when`-th step of an environment."""

    def body():
        steps, writes, step, replace = itertools.count(1), itertools.count(1), gym.wrappers.TimeLimit.step, os.replace

        def counted(self, action):
            if how != "write" and next(steps) == when:
                threading.Timer(int.from_bytes(os.urandom(1)) / 5000, os.kill, (os.getpid(), how)).start()
            return step(self, action)

        def replace_or_die(source, target):
            if how == "write" and next(writes) == when:
                os.truncate(source, os.path.getsize(source) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        gym.wrappers.TimeLimit.step, os.replace = counted, replace_or_die
        run(*words)

    process = child(body, log)
    process.join(300)
    assert process.exitcode == (-9 if how in ("write", signal.SIGKILL) else 128 + how), log.read_text()
    assert not re.search("Traceback|not possible", log.read_text())  # compiled is compiled


EAGER = "--no-compile --env-id Hopper-v4 --total-timesteps 260 --learning-starts 200 --checkpoint-interval 30 "
EAGER += "--eval-interval 70 --eval-episodes 2 --batch-size 16 --hidden-dim 8 --replay-ratio 1 --policy-delay 2 "
EAGER += "--num-subnets 2 --buffer-size 150 --obs-noise 0.01 --run-dir"
COMPILED = "--env-id Pendulum-v1 --hidden-dim 64 --total-timesteps 400 --learning-starts 260 --checkpoint-interval 30 "
COMPILED += "--replay-ratio 2 --policy-delay 2 --max-episode-steps 20 --eval-interval 0 --run-dir"  # TASTE's shapes
KILLS = [("write", 1), (signal.SIGKILL, 130), ("write", 2), (signal.SIGKILL, 90), (signal.SIGTERM, 90)]
compiler = pytest.mark.skipif(not shutil.which("g++"), reason="without a C++ compiler there are no compiled runs")


@pytest.mark.parametrize(
    "flags, kills",
    [(EAGER, KILLS), pytest.param(COMPILED, [(signal.SIGKILL, 340)], marks=[compiler, COMPILES_TASTE])],
    ids=["eager", "compiled"],
)
def test_a_run_killed_again_and_again_is_the_uninterrupted_run(flags, kills, tmp_path, capsys):
    whole, folder = (tmp_path / name / f"{flags.split('--env-id ')[1].split()[0]}__omnet_sac__1" for name in "ab")
    run(*flags.split(), whole.parent)
    words = *flags.split(), folder.parent
    for how, when in kills:
        interrupt(words, how, when, tmp_path / "log")
        assert how != "write" or (folder / "checkpoint.pt.tmp").exists()
        assert (folder / ".lock").exists()  # a killed process leaves it, which blocks nobody
        words = ("--resume", folder) if (folder / "checkpoint.pt").exists() else words
    run(*words)
    assert "not possible" not in capsys.readouterr().out
    assert_same_run(whole, folder)


# Learning; here, as another process has compiled it by now


def test_it_learns(tmp_path):
    """The README's first taste. Random play returns about -1200; below -250 the pendulum is not held up."""
    train(Args(**TASTE, eval_interval=2500, run_dir=tmp_path))
    returns = [row["return"] for row in read_csv(next(tmp_path.iterdir()) / "eval.csv")]
    assert np.mean(returns) > -250


# Checkpoints of unknown origin


DAMAGE = {
    "code": lambda path: torch.save({"agent": torch.nn.Linear(1, 1)}, path),
    "half a file": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_text("step,return\n1,2\n"),
    "list": lambda path: torch.save([], path),
    "network": lambda path: edit(lambda state: state["agent"].update(theta_target=torch.zeros(3)), path.parent),
}
for name in ("about", "agent", "step", "crc", "csv", "rng", "seconds"):
    DAMAGE[f"no {name}"] = lambda path, name=name: edit(lambda state: state.pop(name), path.parent)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_is_not_this_runs_is_refused(damage, done, capsys):
    DAMAGE[damage](done / "checkpoint.pt")
    for how in ("--resume", "--evaluate"):
        sentence = assert_fails(capsys, 1, "checkpoint.pt cannot be used", how, done, folder=done)
        assert "MUJOCO_GL" not in sentence


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_changes_no_number(done):
    path, agent = done / "checkpoint.pt", OMNetSAC(brief(), 2, 1)
    good, state, refused = path.read_bytes(), omnet_sac.read_checkpoint(done), 0
    for bit in np.random.default_rng(0).integers(8 * len(good), size=50).tolist():
        path.write_bytes(good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :])
        try:
            flipped = omnet_sac.read_checkpoint(done, agent)
        except omnet_sac.RunError as error:
            refused += "checkpoint.pt cannot be used" in str(error)
        else:
            torch.testing.assert_close(flipped.pop("agent"), state["agent"], rtol=0, atol=0)
            assert flipped == {name: state[name] for name in state if name != "agent"}
    assert refused >= 40


def test_evaluate_gives_returns_per_subnetwork(whole, capsys):
    before = contents(whole)
    run("--evaluate", whole, "--eval-episodes", 3, "--seed", 3)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{whole}, step 120: mean return ") and contents(whole) == before
    said = [rf"subnetwork {k}: -?[\d.]+ \+- [\d.]+ over {count} episodes" for k, count in ((0, 2), (1, 1))]
    assert len(lines) == 2 and all(map(re.fullmatch, said, lines))
    for words in ("--eval-episodes 0", "--device nonsense", "--seed -1"):
        assert_fails(capsys, 2, words, "--evaluate", whole, *words.split(), folder=whole)


def test_a_finished_run_resumes_to_itself_and_goes_on_when_it_is_made_longer(whole, done):
    run("--resume", done, "--env-id", "Point-v0", "--num-subnets", 2, "--no-compile")  # as stored: no harm
    assert_same_run(whole, done)
    run("--resume", done, "--total-timesteps", 130)
    for name in ("train.csv", "replay.f32"):
        assert (done / name).read_bytes().startswith((whole / name).read_bytes())
    assert checkpoint(done)["step"] == 130 == len(replay(done))


@pytest.mark.parametrize("clock", [lambda: 1.7e9, iter(range(10**9, 0, -1)).__next__], ids=["frozen", "backwards"])
def test_a_strange_clock_and_a_start_stopped_before_the_first_step(clock, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", clock)
    args = brief(run_dir=str(tmp_path))  # a string will do
    with pytest.raises(SystemExit):
        train(args, lambda *_: sys.exit(130))
    train(args)
    assert_same_run(whole, tmp_path / whole.name)


# Bad input never costs more than a sentence


def point(**attributes):
    return type("Variant", (Point,), attributes)


def box(low, high, dtype=np.float32):
    return point(action_space=gym.spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype))


BAD = {"Unbounded": box([-np.inf], [np.inf]), "HalfBounded": box([0], [np.inf]), "Integers": box([0], [3], np.int32)}
BAD |= {"HalfFixed": box([0, 1], [1, 1]), "Overflow": box([-3e38], [3e38])}
BAD["Sequence"] = point(observation_space=gym.spaces.Sequence(gym.spaces.Discrete(2)))
BAD["Vector"] = point(step=lambda self, action: (np.zeros(2), np.ones(3), False, False, {}))
for wrap in (gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward):
    BAD[wrap.__name__] = lambda wrap=wrap: gym.wrappers.FlattenObservation(wrap(Point()))
for name, entry_point in BAD.items():
    gym.register(f"{name}-v0", entry_point)
POSITIVE = "learning_starts replay_ratio policy_delay batch_size buffer_size hidden_dim eval_episodes num_subnets "
POSITIVE += "total_timesteps checkpoint_interval learning_rate max_episode_steps tau"
NO_NUMBERS = "gamma tau learning_rate obs_noise sparsity target_entropy"


def kebab(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize(
    "said, flags",
    [
        *[(f"{kebab(name)} {value}.*must", {name: value}) for name in POSITIVE.split() for value in (0, -5)],
        *[(f"{kebab(x)} .*must", {x: v}) for x in NO_NUMBERS.split() for v in (math.nan, math.inf, -math.inf)],
        *[(f"{kebab(name)} -1", {name: -1}) for name in ("sparsity", "gamma", "seed", "obs_noise", "eval_interval")],
        *[(f"{kebab(name)} 1.01", {name: 1.01}) for name in ("sparsity", "gamma", "tau")],
        ("--batch-size 41.*batch_size <= learning_starts", {"batch_size": 41}),
        ("--total-timesteps 40.*learning_starts < total_timesteps", {"total_timesteps": 40}),
        *[("finite, different bounds", {"env_id": f"{name}-v0"}) for name in [*BAD][:5]],
        *[(f"{name}.*normalise in the agent", {"env_id": f"{name}-v0"}) for name in BAD if "Normalize" in name],
        ("observations must flatten", {"env_id": "Sequence-v0"}),
        ("--env-id Vector-v0: ", {"env_id": "Vector-v0"}),
        ("--env-id Hoper-v4.*Hopper", {"env_id": "Hoper-v4"}),
        ("no_such_module", {"env_id": "no_such_module:Maze-v0"}),
        (r"Discrete\(2\)", {"env_id": "CartPole-v1"}),
        ("--device cuda:99 cannot be used here, try --device cpu", {"device": "cuda:99", "capture_video": True}),
        ("--device nonsense cannot be used here, try --device cpu", {"device": "nonsense"}),
        ("needs 32000.0 GB", {"total_timesteps": 10**12, "buffer_size": 10**12}),
        *[(f"--run-dir {name[:9]}", {"run_dir": Path(name)}) for name in ("file/runs", "/proc/runs", "x" * 256)],
        ("(?i)moviepy is not installed", {"capture_video": True}),
        *[("nowhere holds no checkpoint", {name: Path("nowhere")}) for name in ("resume", "evaluate")],
    ],
    ids=str,
)
def test_bad_input_costs_one_sentence_and_writes_nothing(said, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "moviepy", None) if "moviepy" in said else None
    Path("file").touch()
    assert_fails(capsys, 2, said, default=small(**flags))
    assert [*tmp_path.rglob("*")] == [tmp_path / "file"]


def test_an_environment_in_the_current_folder_is_found_and_a_module_that_registers_nothing_told(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = "'Mine-v0', 'gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=9"
    Path("mine.py").write_text(f"import gymnasium\ngymnasium.register({spec})")
    Path("silent.py").write_text("")
    run(default=brief(env_id="mine:Mine-v0", total_timesteps=45))
    assert sys.path[-1] == str(tmp_path)  # last, so that it shadows nothing
    assert Path("runs/mine-Mine-v0__omnet_sac__1/checkpoint.pt").exists()
    assert_fails(capsys, 2, "importing silent registers no Task-v0", default=small(env_id="silent:Task-v0"))


def test_the_words_of_the_command_line(done, monkeypatch, capsys):
    for word in ("--hidden-dim=x", "--total-timesteps=1e400", "--matmul-precision=low", "--nonsense"):
        with pytest.raises(SystemExit) as stop:
            run(word)
        assert stop.value.code == 2 and word.split("=")[0] in capsys.readouterr().err
    expected = Args(total_timesteps=100_000, learning_rate=1e-3, gamma=1.0, seed=3, run_dir=Path("1e3"))
    words = "--total-timesteps 1e5 --learning-rate 1e-3 --gamma 1e0 --seed 3 --run-dir 1e3"
    assert parse(Args(), words.split()) == expected
    assert parse(Args(), re.sub("(?<=\\w) (?!--)", "=", words.replace("l-t", "l_t")).split()) == expected
    monkeypatch.setenv("HOME", str(done.parent))
    for words in (["--run-dir=~/x"], ["--run-dir", "~/x"]):
        assert parse(Args(), words).run_dir == done.parent / "x"
    assert parse(Args(), [f"--resume=~/{done.name}"]).resume == done
    assert parse(Args(), ["--evaluate", f"~/{done.name}"]).evaluate == done


# What goes wrong in the midst of a run


def spoil(agent, patch, kind: str, what=None, value=None):
    """A fault: a full disk, no memory, an environment that gives a value from now on, or NaN in a parameter."""
    if kind == "disk":  # no file can grow beyond this size
        resource.setrlimit(resource.RLIMIT_FSIZE, (what, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    elif kind == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")
    elif kind == "parameter":
        agent.state_dict()[what].view(-1)[0] = torch.nan
    else:
        real = getattr(Point, kind)

        def wrong(self, *args, **kwargs):
            result = real(self, *args, **kwargs)
            return *result[:what], np.full_like(result[what], value), *result[what + 1 :]

        patch.setattr(Point, kind, wrong)


NAMES = ["critic.theta", "actor.theta", "theta_target", "log_alpha", "critic_adam.v"]


@pytest.mark.parametrize(
    "said, fault",
    [("File too large", ("disk", limit)) for limit in (20_000, 2000, 1)]  # of checkpoint, replay.f32, train.csv
    + [("observation is not finite", ("reset", 0, np.nan)), ("Tried to allocate 2.00 GiB", ("memory",))]
    + [("observation is not finite", ("step", 0, value)) for value in (np.nan, -np.inf, 1e39)]
    + [("reward is not finite", ("step", 1, value)) for value in (np.nan, -np.inf, 1e39)]  # infinite in float32
    + [(r"step 9\d: .* is not finite", ("parameter", name)) for name in NAMES],
    ids=str,
)
def test_what_goes_wrong_is_one_sentence_and_the_last_checkpoint_is_good(said, fault, tmp_path, monkeypatch, capsys):
    class Faulty(OMNetSAC):
        def update(self, buffer):
            metrics = super().update(buffer)
            if buffer.added == 90:
                spoil(self, patch, *fault)
            return metrics

    args = brief(total_timesteps=100, learning_starts=80, checkpoint_interval=20, eval_interval=0, run_dir=tmp_path)
    folder, unlimited = omnet_sac.run_folder(args), resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        try:
            assert_fails(capsys, 1, f"{said}.*go on with --resume {folder}$", default=args, make_agent=Faulty)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert 20 <= checkpoint(folder)["step"] <= 90
    run("--resume", folder)
    assert checkpoint(folder)["step"] == 100


def test_many_runs_in_one_process_leave_memory_files_and_threads_as_they_were(tmp_path):
    process, after = psutil.Process(), {}
    for runs in range(1, 13):
        train(brief(run_dir=tmp_path, seed=runs, total_timesteps=50, eval_episodes=1))
        if runs in (4, 12):
            now = {thread.id for thread in process.threads()}
            time.sleep(0.5)  # TensorBoard's writer, though joined, may be seen ending
            lasting = now & {thread.id for thread in process.threads()}
            after[runs] = np.array([process.memory_info().rss / 1e6, process.num_fds(), len(lasting)])
    assert (after[12] - after[4] <= [10, 0, 0]).all(), after


# One writer per run folder


@pytest.fixture
def live(tmp_path):
    """A process in the middle of a run; its folder, the event that lets it go on, and where it says what."""
    here, go_on = FORK.Event(), FORK.Event()

    class Waits(OMNetSAC):
        def update(self, buffer):
            if buffer.added == 90:
                here.set()
                go_on.wait(60)
            return super().update(buffer)

    args = brief(run_dir=tmp_path / "live")
    process = child(partial(run, default=args, make_agent=Waits), tmp_path / "log")
    assert here.wait(60)
    yield process, omnet_sac.run_folder(args), go_on, tmp_path / "log"
    process.kill()
    process.join()


def test_a_second_process_on_a_live_run_is_refused_and_the_run_loses_nothing(live, whole, capsys):
    process, folder, go_on, _ = live
    said = f"{folder} is being written by another process"
    assert_fails(capsys, 2, said, "--resume", folder, folder=folder)
    assert_fails(capsys, 2, said, default=brief(run_dir=folder.parent), folder=folder)
    run("--evaluate", folder, "--eval-episodes", 1)  # to look is allowed
    go_on.set()
    process.join(60)
    assert process.exitcode == 0
    assert_same_run(whole, folder)


@pytest.mark.parametrize("what", ["begun anew", "removed"])
def test_a_folder_that_is_removed_while_its_run_goes_on_is_not_that_runs_any_more(what, live, whole):
    process, folder, go_on, log = live
    shutil.rmtree(folder)
    if what == "begun anew":
        train(brief(run_dir=folder.parent))
    go_on.set()
    process.join(60)
    said = log.read_text()
    assert process.exitcode == 2 and "Traceback" not in said and "kept" not in said
    assert f"error: {folder} was {what}" in said.splitlines()[-1]
    assert_same_run(whole, folder) if what == "begun anew" else None


def test_of_two_fresh_starts_one_runs_and_one_is_refused(whole, tmp_path):
    args, barrier = brief(run_dir=tmp_path), FORK.Barrier(2)

    def start():
        barrier.wait(60)
        run(default=args)

    pair = {child(start, tmp_path / f"log{k}"): tmp_path / f"log{k}" for k in (0, 1)}
    for process in pair:
        process.join(60)
    winner, loser = sorted(pair, key=lambda process: process.exitcode)
    assert (winner.exitcode, loser.exitcode) == (0, 2)
    assert pair[loser].read_text().strip().splitlines()[-1].startswith(f"error: {omnet_sac.run_folder(args)} ")
    assert_same_run(whole, omnet_sac.run_folder(args))


@pytest.mark.filterwarnings("ignore:.*soft")
def test_without_locks_in_the_file_system_the_sentence_names_host_and_process(halted, whole, monkeypatch, capsys):
    def no_flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    (halted / ".lock").write_text("4711\nnode17\n")
    assert_fails(capsys, 2, rf"another process 4711 node17.*remove {halted}/.lock", "--resume", halted, folder=halted)
    (halted / ".lock").unlink()
    run("--resume", halted, make_agent=diary)
    assert_same_run(whole, halted)


# The files beside the checkpoint


def flip_a_digit(path: Path):
    data = bytearray(path.read_bytes())
    data[data.index(b"\n") + 1] ^= 1  # in a CSV file, of the first row's step
    path.write_bytes(data)


CSV_DAMAGE = {
    "missing": Path.unlink,
    "shortened": lambda path: os.truncate(path, path.read_bytes().index(b"\n") + 4),
    "edited": flip_a_digit,
    "binary": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"70,0,-1.5,10\n9\xff,"),
}


@pytest.mark.parametrize("damage", CSV_DAMAGE)
def test_csv_files_are_healed_and_replay_rows_beyond_the_checkpoint_are_cut(damage, halted, whole):
    for path in halted.glob("*.csv"):
        CSV_DAMAGE[damage](path)
    (halted / "probe.csv").write_text("begun after the checkpoint")
    with (halted / "replay.f32").open("ab") as file:
        file.write(b"junk" * 99)
    run("--resume", halted, make_agent=diary)
    assert_same_run(whole, halted)
    assert not (halted / "probe.csv").exists()


@pytest.mark.parametrize("size", [1000, 32 * 91 - 1, 0, None], ids=str)  # the checkpoint is at step 91
def test_damaged_replay_rows_are_refused(size, halted, capsys):
    path = halted / "replay.f32"
    flip_a_digit(path) if size is None else os.truncate(path, size)
    assert_fails(capsys, 1, "replay.f32 is damaged, the run cannot go on", "--resume", halted, folder=halted)


def test_a_checkpoint_costs_what_is_new_and_a_resume_no_second_copy_of_the_rows(tmp_path):
    """By the peak of the process's memory; the rows are 66 MB."""

    def peak(function, *args) -> float:
        Path("/proc/self/clear_refs").write_text("5")
        before = psutil.Process().memory_info().rss
        function(*args)
        return (int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 - before) / 1e6

    agent, rng, rows = OMNetSAC(small(hidden_dim=4), 125, 1), np.random.default_rng(0), np.ones((4096, 254), np.float32)
    with (tmp_path / "replay.f32").open("wb") as file:
        buffer = ReplayBuffer(16 * 4096, 125, 1, "cpu")
        buffer.file = file
        for _ in range(16):
            buffer.extend(rows)
            file.write(rows)
        about = omnet_sac.describe(agent.args)
        assert peak(omnet_sac.save_checkpoint, tmp_path, about, agent, buffer, rng, 0.0) < 10
    assert (tmp_path / "checkpoint.pt").stat().st_size < 300_000
    again = ReplayBuffer(16 * 4096, 125, 1, "cpu")
    assert peak(omnet_sac.restore, tmp_path, agent, again, rng) < 20  # the rows themselves are there already
    assert torch.equal(again.rows, buffer.rows) and again.crc == buffer.crc


# Flags beside --resume and --evaluate


DIFFERENT = "--env-id Pendulum-v1 --seed 2 --learning-starts 41 --replay-ratio 3 --policy-delay 3 --batch-size 17 "
DIFFERENT += "--buffer-size 99 --gamma 0.9 --tau 0.1 --learning-rate 1e-3 --hidden-dim 17 --target-entropy -2.0 "
DIFFERENT += "--num-subnets 4 --sparsity 0.3 --dynamic-masks --no-actor-subnets --no-mask-input --no-mask-output "
DIFFERENT += "--obs-noise 0.1 --eval-interval 49 --matmul-precision high --max-episode-steps 9 --run-dir x "


def test_flags_that_are_refused_beside_resume_and_evaluate(whole, capsys):
    flags = re.findall(r"--\S+(?: (?!--)\S+)?", DIFFERENT)
    names = {flag.split()[0].removeprefix("--no").strip("-").replace("-", "_") for flag in flags}
    free = {*omnet_sac.RESUMABLE, "resume", "evaluate"}
    assert names | free == {field.name for field in dataclasses.fields(Args)} and not names & free
    for how, more in (("--resume", []), ("--evaluate", ["--total-timesteps 99", "--checkpoint-interval 7", "--track"])):
        for flag in flags + more:
            if not (how == "--evaluate" and "--seed" in flag):  # the seed of the evaluation
                with pytest.raises(UsageError, match=flag.split()[0].replace("--no-", "--") + ".*may be given here"):
                    parse(Args(), [how, str(whole), *flag.split()])
    assert_fails(capsys, 2, "--sparsity 0.3: .* 0.5", "--resume", whole, "--sparsity", 0.3, folder=whole)
    assert_fails(capsys, 2, "--resume .*--evaluate", "--evaluate", whole, "--resume", whole, folder=whole)
    other = type("Other", (Args,), {"method": "sixfold"})()
    for how in ("--resume", "--evaluate"):
        assert_fails(capsys, 2, "a run of omnet_sac .*sixfold", how, whole, folder=whole, default=other)


def test_a_default_given_on_the_command_line_is_given(done):
    stored = {"sparsity": 0.3, "num_subnets": 4, "dynamic_masks": True, "actor_subnets": False}
    edit(lambda state: state["about"]["args"].update(stored), done)
    for words in ("--sparsity 0.5", "--sparsity=0.5", "--num_subnets 5", "--no-dynamic-masks", "--actor-subnets"):
        for how in ("--resume", "--evaluate"):
            with pytest.raises(UsageError, match="may be given here"):
                parse(Args(), [how, str(done), *words.split()])
            parse(Args(), [how, str(done), "--sparsity", "0.3"])


def test_total_timesteps_extends_a_run_to_the_run_of_that_length(halted, tmp_path, monkeypatch, capsys):
    seen, replace = [], os.replace
    monkeypatch.setattr(omnet_sac, "compile_steps", lambda agent: seen.append("compile"))
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(Path(b).name), replace(a, b)))
    for off in (-20, -1, 0):
        step, words = checkpoint(halted)["step"], ("--resume", halted, "--total-timesteps")
        assert_fails(capsys, 2, f"--total-timesteps.* {step}$", *words, step + off, folder=halted)
    run(*words, 150, "--checkpoint-interval", 1, "--eval-episodes", 3, "--compile", make_agent=diary)
    assert seen.count("compile") == 1 and seen.count("checkpoint.pt") >= 6
    rows = [(row["step"], row["episode"]) for row in read_csv(halted / "eval.csv")]
    assert rows == [(50, 0), (50, 1), *itertools.product((100, 150), (0, 1, 2))]
    (halted / "eval.csv").unlink()
    run("--resume", halted, "--no-compile")  # else by the flags that are stored now
    assert json.loads((halted / "args.json").read_text())["args"]["total_timesteps"] == 150
    longer = diary_run(tmp_path / "longer", total_timesteps=150)
    (halted / "eval.csv").unlink()
    assert_same_run(longer, halted)


# Signals


@pytest.mark.parametrize(
    "call, times, signum",
    [(15, 1, signal.SIGINT), (55, 1, signal.SIGTERM), (90, 1, signal.SIGHUP), (90, 1, signal.SIGUSR1)]
    + [(15, 2, signal.SIGTERM), (90, 2, signal.SIGINT)],  # 55: evaluates
)
def test_a_signal_ends_the_run_with_the_episode_and_a_second_one_at_once(call, times, signum, whole, tmp_path):
    """Signals come from within the `call`-th step of the environment on."""
    args, log, heard, calls = brief(run_dir=tmp_path), tmp_path / "log", tmp_path / "heard", FORK.Value("i")
    folder, step = omnet_sac.run_folder(args), Point.step

    def counted(self, action):
        calls.value += 1
        if calls.value == call + 1:
            heard.write_text(log.read_text())
        if 0 <= calls.value - call < times:
            os.kill(os.getpid(), signum)
        return step(self, action)

    def make_agent(*args):
        Point.step = counted
        return OMNetSAC(*args)

    process = child(partial(run, default=args, make_agent=make_agent), log)
    process.join(60)
    stderr, saved = log.read_text(), checkpoint(folder)["step"]
    assert process.exitcode == 128 + signum and "Traceback" not in stderr, stderr
    assert "stopping at the end of this episode" in heard.read_text()
    assert re.search(f"\nstopped; .*--resume {folder}$", stderr.strip())
    if times == 1:
        assert saved == last_step(folder / "train.csv") > 0 and calls.value > call
    else:
        assert calls.value == call + 1 and (saved == 0 if call == 15 else saved > 0)
    run("--resume", folder)
    assert_same_run(whole, folder)


def test_a_signal_whose_exit_is_swallowed_while_compiling_ends_the_run_after_an_episode(tmp_path, monkeypatch):
    stop = omnet_sac.Stop()

    def swallow(agent):
        with suppress(SystemExit):
            stop(signal.SIGINT, None)

    monkeypatch.setattr(omnet_sac, "compile_steps", swallow)
    train(brief(compile=True, run_dir=tmp_path), stop=stop)
    folder = next(tmp_path.iterdir())
    assert [row["step"] for row in read_csv(folder / "train.csv")] == [checkpoint(folder)["step"]] != [0]
    with pytest.raises(SystemExit):
        stop(signal.SIGINT, None)


# Environments of all kinds, the bad ones too


class Alias(Point):
    """Gives the same arrays at every step, in every instance, and overwrites the actions it is given."""

    obs, reward = np.zeros(2), np.zeros(())

    def reset(self, **kwargs):
        self.obs[:], info = super().reset(**kwargs)
        return self.obs, info

    def step(self, action):
        self.obs[:], self.reward[()], *rest = super().step(action)
        action[:] = 0.5
        return self.obs, self.reward, *rest


def global_reset(self, **kwargs):
    Point.reset(self, **kwargs)
    self.position = np.random.uniform(-1, 1)
    return np.array([self.position, 0.0]), {}


def moved(move):
    """Point, of which each step begins with another move."""

    def step(self, action):
        self.position += move(self, action[0])
        return Point.step(self, action)

    return point(step=step)


def drift(self, action) -> float:
    self.drift = getattr(self, "drift", 0.0) + float(action) / 10
    return self.drift


def log(self, action) -> float:
    LOG[self.steps :] = [0.0] if self.steps <= len(LOG) and self.steps in (0, len(LOG)) else []
    return LOG[self.steps]


LIVING, LOG, SIMULATOR = np.random.default_rng(0), [], {}
SEEDS = {
    "Alias": Alias,
    "GlobalReset": point(reset=global_reset),
    "GlobalNoise": moved(lambda self, action: np.random.normal(0, 0.01)),
    "Living": moved(lambda self, action: LIVING.normal(0, 0.01)),  # from episode to episode
    "LeftBehind": moved(drift),  # which reset forgets
    "OneSimulator": point(position=property(lambda _: SIMULATOR["x"], lambda _, x: SIMULATOR.update(x=x))),
    "OneLog": moved(log),  # of all instances
}
for name, entry_point in SEEDS.items():
    gym.register(f"{name}-v0", entry_point, max_episode_steps=10)


def test_an_environment_that_reuses_its_arrays_gives_the_run_of_one_that_does_not(whole, tmp_path, capsys):
    run(default=brief(env_id="Alias-v0", run_dir=tmp_path))
    rows = replay(next(tmp_path.iterdir()))
    assert (rows[:, :2] != rows[:, 4:6]).any(1).all()  # obs, next_obs
    np.testing.assert_allclose(rows[:, 4], rows[:, 0] + 0.5 * rows[:, 2], atol=1e-6)
    np.testing.assert_allclose(rows[:, 3], -(rows[:, 4] ** 2), atol=1e-6)
    assert_same_run(whole, next(tmp_path.iterdir()))
    assert "seeds" not in capsys.readouterr().out


@pytest.mark.parametrize("env_id", ["GlobalReset-v0", "GlobalNoise-v0"])
def test_environments_that_draw_from_the_global_generators_follow_their_seeds(env_id, tmp_path, capsys):
    runs = {"whole": {}, "halted": {"halt": 70}, "never evaluated": {"eval_interval": 0}}
    one, two, never = (
        diary_run(tmp_path / name, env_id=env_id, total_timesteps=80, **np.random.seed(k) or flags)
        for k, (name, flags) in enumerate(runs.items())
    )
    run("--resume", two, make_agent=diary)
    assert_same_run(one, two)
    assert (one / "replay.f32").read_bytes() == (never / "replay.f32").read_bytes()
    assert "seeds" not in capsys.readouterr().out


@pytest.mark.parametrize("env_id", ["Living-v0", "LeftBehind-v0", "OneSimulator-v0"])
def test_seeds_that_are_not_followed_are_told(env_id, tmp_path, capsys):
    run(default=brief(env_id=env_id, run_dir=tmp_path, total_timesteps=45))
    assert capsys.readouterr().out.count(f"{env_id} does not follow its seeds: no run of it can be repeated") == 1


ENVS = ["Point-v0", "Pendulum-v1", "Hopper-v4", "Walker2d-v4", "HalfCheetah-v4", "Ant-v4", "Humanoid-v4", "Hopper-v5"]


@pytest.mark.parametrize("env_id", ENVS)
def test_environments_that_follow_their_seeds_are_told_nothing(env_id, capsys):
    omnet_sac.check_env(small(env_id=env_id))
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize(
    "total, interval, steps", [(45, 50, [45]), (50, 50, [50]), (60, 50, [50]), (120, 50, [50, 100]), (45, 0, [])]
)
def test_evaluations_and_episodes_of_a_given_length(total, interval, steps, tmp_path):
    args = brief(total_timesteps=total, eval_interval=interval, max_episode_steps=4, run_dir=tmp_path)
    train(args)
    folder = next(tmp_path.iterdir())
    rows = replay(folder)
    evaluations = read_csv(folder / "eval.csv")
    assert [(row["step"], row["episode"]) for row in evaluations] == [*itertools.product(steps, range(2))]
    assert all(0 < row["length"] <= 4 for row in evaluations + read_csv(folder / "train.csv"))
    cut = rows[:, 5] == 4  # next_obs is (position, steps so far)
    assert cut.any() and rows[cut, 7].all() and np.array_equal(rows[:, 6] == 1, abs(rows[:, 4]) > 1.2)


def raising(error: BaseException):
    def method(*args, **kwargs):
        raise error

    return method


NO_GL = [AttributeError("'NoneType' object has no attribute 'glGetError'"), RuntimeError("Cannot make an EGL context")]
ERRORS = [RuntimeError, KeyError, AssertionError, OSError, TypeError, NotImplementedError]
ERRORS = [error("the first line\nthe second: repair it with\n    the third") for error in ERRORS] + NO_GL


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["__init__", "reset", "step", "render"])
def test_what_an_environment_raises_at_the_start_is_one_sentence_and_leaves_no_folder(method, error, tmp_path, capsys):
    gym.register("Broken-v0", point(**{method: raising(error)}), max_episode_steps=10)
    args = small(env_id="Broken-v0", run_dir=tmp_path / "runs", capture_video=method == "render")
    said = "MUJOCO_GL=egl.*libegl1" if error in NO_GL else "the first line.*the second: repair it with.*the third"
    assert_fails(capsys, 2, f"--env-id Broken-v0: .*{said}", default=args)
    assert not list(tmp_path.iterdir())
    assert "MUJOCO_GL" not in omnet_sac.one_line(OSError("GLIBC_2.38 not found")), "what a compiler may say"


def test_one_log_for_all_instances_and_a_constructor_without_render_mode(tmp_path, capsys):
    gym.register("Bare-v0", point(__init__=lambda self: None), max_episode_steps=10)
    args = brief(env_id="Bare-v0", run_dir=tmp_path / "runs", total_timesteps=45)
    assert_fails(capsys, 2, "Bare-v0", default=dataclasses.replace(args, capture_video=True))
    assert_fails(capsys, 2, "OneLog-v0: list index out of range", default=dataclasses.replace(args, env_id="OneLog-v0"))
    assert not list(tmp_path.iterdir())
    train(args)


# What others read: TensorBoard, Weights & Biases, videos, versions, the environment's specification


def test_tensorboard_has_every_evaluation_once_after_a_resume(halted):
    for words in ([], ["--total-timesteps", 150]):
        run("--resume", halted, *words, make_agent=diary)
    scalars = EventAccumulator(str(halted)).Reload().Scalars
    assert [event.step for event in scalars("eval/return")] == [50, 100, 150]
    episodes = [row["step"] for row in read_csv(halted / "train.csv")]
    assert [event.step for event in scalars("charts/episodic_return")] == episodes


def test_videos_are_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = brief(run_dir=tmp_path, capture_video=True, total_timesteps=60, eval_interval=60)
    folder = omnet_sac.run_folder(args)

    def recorded() -> list[str]:
        return sorted(re.sub("-episode-0", "", str(path.relative_to(tmp_path))) for path in tmp_path.rglob("*.mp4"))

    train(args)
    first = contents(folder / "videos")
    run("--resume", folder, "--total-timesteps", 120)
    both, before = [f"{folder.name}/videos/step-{step}.mp4" for step in (120, 60)], contents(folder)
    assert recorded() == both and before.items() > first.items()
    with closing(load(folder)[1]) as env:
        for _ in range(2):
            env.reset(seed=0)
            env.step(env.action_space.sample())
    assert recorded() == both
    run("--evaluate", folder, "--eval-episodes", 2)
    assert recorded() == [*both, f"videos/{folder.name}/step-120.mp4"] and contents(folder) == before


def test_other_versions_are_told_and_not_refused(done, capsys):
    edit(lambda state: state["about"]["versions"].update(torch="1.0", mujoco="2.0"), done)
    for words in (["--evaluate", done, "--eval-episodes", 1], ["--resume", done, "--total-timesteps", 130]):
        run(*words)
        told, *more = [line for line in capsys.readouterr().out.splitlines() if "pip install" in line]
        assert not more and "not exactly the same run" in told and {"torch==1.0", "mujoco==2.0"} < {*told.split()}
    load(done)
    assert "pip install" not in capsys.readouterr().out  # what is stored now was made by the versions of today


def test_versions_are_of_the_packages_that_are_imported_and_mujoco_need_not_be_there(tmp_path, monkeypatch):
    real, hidden = metadata.distributions, types.SimpleNamespace(name="torch", version="0.1")  # later on sys.path

    def distributions(**given):
        found = [package for package in [*real(**given), hidden] if package.name != "mujoco"]
        return iter([package for package in found if package.name == given.get("name", package.name)])

    monkeypatch.setattr(metadata, "distributions", distributions)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    args = brief(env_id="Pendulum-v1", total_timesteps=45, eval_interval=0, run_dir=tmp_path)
    run(default=args)
    about = json.loads((omnet_sac.run_folder(args) / "args.json").read_text())
    versions = {name: metadata.version(name).split("+")[0] for name in ("torch", "gymnasium", "numpy")}
    assert about["versions"] == versions and about["method"] == "omnet_sac"


def test_weights_and_biases(tmp_path, monkeypatch, capsys):
    runs, metrics, args = [], [], brief(track=True, run_dir=tmp_path, total_timesteps=60, seed=7)
    folder = omnet_sac.run_folder(args)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert_fails(capsys, 2, "--track .*pip install wandb", default=args)
    wandb = types.SimpleNamespace(init=raising(OSError("no login\nno server")))
    wandb.define_metric = lambda *names, **settings: metrics.append((names, settings))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert_fails(capsys, 2, "--track .*wandb login: no login no server$", default=args)
    wandb.init = lambda **settings: runs.append(settings)
    run(default=args)  # the same command
    run("--resume", folder, "--total-timesteps", 70)
    assert_fails(capsys, 2, f"already: go on with --resume {folder}.*--run-dir", default=args, folder=folder)
    assert len(runs) == 2 and {began["id"] for began in runs} == {checkpoint(folder)["about"]["id"]}
    for began in runs:
        assert began["resume"] == "allow" and began["sync_tensorboard"] and began["name"] == str(folder)
        assert began["group"] == str(folder).removesuffix("__7") and began["config"]["args"]["hidden_dim"] == 16
    assert metrics == [(("*",), {"step_metric": "global_step"})] * 2
    assert omnet_sac.describe(args)["id"] != runs[0]["id"]


def test_an_agent_is_loaded_with_an_environment_that_can_be_written_down(done):
    elsewhere = {"device": "cuda:99", "buffer_size": 10**12, "total_timesteps": 10**12}  # of a larger machine
    edit(lambda state: state["about"]["args"].update(elsewhere), done)
    agent, env, args = load(done, device="cpu")
    assert args.device == "cpu" and torch.equal(agent.actor.theta, checkpoint(done)["agent"]["actor.theta"])
    assert agent.act(env.reset(seed=0)[0], 0, deterministic=True).shape == (1,)
    with pytest.raises(UsageError, match="--device cuda:99"):
        load(done)
    for env_id in ("Pendulum-v1", "Hopper-v4"):
        env = omnet_sac.make_env(small(env_id=env_id))
        again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
        assert (again.observation_space, again.action_space) == (env.observation_space, env.action_space)


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


special = [0.0, -0.0, 0.2, -0.2, 0.1, A / 2, -A / 2, 1e-7, -1e-9, 1e-17, 5e-324]
coordinate = st.floats(-0.2, 0.2) | st.sampled_from(special)
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


# Start, action, end
CONTACTS = {
    "top wall": "0.5 0.6 0 0.2 0.5 B; 0.5 0.7 0 -0.2 0.5 B; 0.5 B-0.1 0.1 0.2 0.55 B",
    "bottom wall": "0.5 0.4 0 -0.2 0.5 A; 0.5 0.3 0 0.2 0.5 A",
    "right wall": "0.6 0.5 0.2 0 B 0.5; 0.8 0.5 -0.2 0 B 0.5",
    "perimeter": "0.1 0.5 -0.2 0 0 0.5; 0.9 0.5 0.2 0 1 0.5; 0.5 0.1 0 -0.2 0.5 0; 0.5 0.9 0 0.2 0.5 1",
    "perimeter's corner": "0.9 0.9 0.2 0.2 1 1",
    "wall ends head-on": "0.2 B 0.2 0 A B; 0.2 A 0.2 0 A A",
    "wall ends aslant, in passing": "0.25 B-(A-0.25) 0.2 0.2 A B; A 0.6 0 0.2 A B; A 0.3 0 0.2 A A",
    "corners from inside": "0.6 0.6 0.2 0.2 B B; 0.6 0.4 0.2 -0.2 B A",
    "corners from outside": "0.75 0.75 -0.2 -0.2 B B; 0.75 0.25 -0.2 0.2 B A",
    "corners in passing": "B-0.1 B+0.1 0.2 -0.2 B B; B 0.8 0 -0.2 B B; 0.8 A -0.2 0 B A",
}


def points(text: str) -> list[np.ndarray]:
    """Of each case its points (k, 2)."""
    return [np.array([eval(word) for word in case.split()], float).reshape(-1, 2) for case in text.split(";")]


@pytest.mark.parametrize("where", CONTACTS)
def test_maze_contact(where):
    for start, action, end in points(CONTACTS[where]):
        contact = check_move(start, action)
        np.testing.assert_allclose(contact, end, rtol=0, atol=1e-6)
        np.testing.assert_allclose(check_move(contact, action), contact, rtol=0, atol=1e-15)
        for away in (-0.9 * action, np.zeros(2)):
            assert (check_move(contact, away) == contact + away).all()
        for direction in np.ndindex(3, 3):
            check_move(contact, 0.1 * np.array(direction) - 0.1)


# Start, action into a wall, action along it; and where that stops
SLIDES = "0.5 0.6 0 0.2 -0.2 0; 0.6 0.8 0 -0.2 0.2 0; 0.4 0.2 0 0.2 -0.2 0; 0.8 0.4 -0.2 0 0 -0.2; 0.5 0.1 0 -0.2 0.2 0"
SLIDES += "; 0.2 B 0.2 0 0 0.2; 0.6 0.6 0.2 0.2 -0.2 0; 0.6 0.6 0.2 0.2 0 -0.2"
STOPPED = "0.5 0.6 0 0.2 0.2 0 B B; 0.6 0.4 0.2 0 0 -0.2 B A; 0.9 0.9 0.2 0 0 0.2 1 1"


def test_maze_slides_along_walls():
    for start, press, slide, *end in points(SLIDES) + points(STOPPED):
        contact = check_move(start, press)
        expected, tolerance = (end[0], 1e-6) if end else (contact + slide, 0)
        np.testing.assert_allclose(check_move(contact, slide), expected, rtol=0, atol=tolerance)


def test_maze_passes_beside_wall_ends():
    passing = "A-1e-6 0.6 0 0.2; B+1e-6 0.6 0 0.2; 0.25 0.25 0.1 0.08"
    grazing = "0.3333331333333333 0.46666656666666667 1.5000000000431335e-07 -0.2"  # but for rounding
    for start, action in points(passing) + points(grazing):
        assert (check_move(start, action) == start + action).all()


def test_maze_reward():
    env = gym.make("maze_env:Maze-v0")
    env.reset()
    cases = [(GOAL - [0.2, 0], (0.1001, 0), True), (GOAL - [0.2, 0], (0.0999, 0), False), (START, (0.2, 0.2), False)]
    cases += [(GOAL + [0, 0.1666], (0, -0.07), True), (GOAL - 0.1, (0.2, 0.2), False)]  # through it and out again
    for start, action, success in cases:
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
    actions = np.random.default_rng(3).uniform(-0.2, 0.2, (50, 2)).astype(np.float32)
    paths = [[env.reset(seed=3)[0].tolist(), *(env.step(a)[0].tolist() for a in actions)] for _ in range(2)]
    assert paths[0] == paths[1] and len(set(map(tuple, paths[0]))) > 20
    for action in ([0.1], [0.1, np.nan], 0.1, [[0.1, 0.1]]):
        with pytest.raises(ValueError, match="two numbers"):
            env.unwrapped.step(action)


def test_maze_render():
    env = gym.make("maze_env:Maze-v0", render_mode="rgb_array")
    env.reset()
    before = env.render()
    assert before.shape == (480, 480, 3) and before.dtype == np.uint8

    def color(image, x, y):
        return image[479 - int(12 + 456 * y), int(12 + 456 * x)].astype(int)

    def is_blue(image, *point):
        return color(image, *point)[2] > color(image, *point)[0] + 50

    red, green, blue = color(before, *GOAL)
    assert red > green > blue and all(color(before, *wall.mean(axis=0)).max() < 80 for wall in WALLS)
    assert all((color(before, *clear) == 255).all() for clear in ((0.4, 0.5), (0.3, 0.55), (0.1, 0.9)))
    for action in ((-0.2, 0), (0, 0.1)):
        env.step(np.array(action, np.float32))
    after = env.render()
    assert is_blue(before, *START) and not is_blue(after, 0.515, 0.5)  # the agent has left
    assert all(is_blue(after, *point) for point in ((0.4, 0.5), (0.3, 0.55), (0.3, 0.6)))
    assert gym.make("maze_env:Maze-v0").unwrapped.render() is None
    env.reset()
    assert (env.render() == before).all()


def test_maze_passes_gymnasiums_checker():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("maze_env:Maze-v0", render_mode="rgb_array").unwrapped)
