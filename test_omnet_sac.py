"""The method, the loop, the checkpoints and the maze, stated exactly: `pytest` takes about six minutes."""

import copy
import dataclasses
import itertools
import json
import math
import multiprocessing
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
import zlib
from contextlib import suppress
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
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import omnet_sac
from maze_env import GOAL, START, WALLS, move
from omnet_sac import (
    Adam,
    Args,
    ObservationNoise,
    OMNet,
    OMNetSAC,
    ReplayBuffer,
    compile_steps,
    evaluate,
    main,
    mlp,
    train,
    write_checkpoint,
)
from paper import baselines

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
    buffer.rows[:, -2] = (buffer.rows[:, -2] > 1).float()
    return buffer


def linear_entries(agent_or_net) -> torch.Tensor:
    """True (n,) where a parameter belongs to a linear layer of an `mlp`, whose layers 1 and 4 are layer norms."""
    params = agent_or_net.named_parameters()
    return torch.cat([torch.full((p.numel(),), name.split(".")[0] not in "14") for name, p in params])


# Streams of random numbers


class TorchInitialised(OMNetSAC):
    """A fork whose networks keep torch's own initialisation."""

    def make_networks(self) -> tuple[OMNet, OMNet]:
        def net(in_dim, out_dim):
            return nn.Sequential(
                nn.Linear(in_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, out_dim)
            )

        nets = net(self.obs_dim + self.action_dim, 1), net(self.obs_dim, 2 * self.action_dim)
        return tuple(OMNet(net, 5, 0.5, self.mask_generator) for net in nets)


def deviations(mask: torch.Tensor, positive: torch.Tensor) -> np.ndarray:
    """By how many standard errors the share of entries in which mask (n,) and positive (n,) agree differs from what
    chance gives, for each shift of places from -2048 to 2048 that leaves a hundred of them."""
    n = len(mask)
    shifts = np.arange(-min(2048, n - 100), min(2048, n - 100) + 1)

    def overlap(x, y):  # sum over p of x[p] y[p + shift], by the Fourier transform
        size = 2 ** (n + 2048).bit_length()
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
    """Shifts of up to 2048 places, and of up to 20 rows where these are more."""
    agent, worst = agent_class(Args(seed=seed), 11, 3), 0.0
    for omnet in (agent.critic, agent.actor):
        splits = [shape.numel() for shape in omnet.shapes.values()]
        weights = [w for w, shape in zip(omnet.theta.split(splits), omnet.shapes.values()) if len(shape) == 2]
        for mask in omnet.masks:
            masks = [m for m, shape in zip(mask.split(splits), omnet.shapes.values()) if len(shape) == 2]
            for weight, m, columns in zip(
                weights, masks, (shape[1] for shape in omnet.shapes.values() if len(shape) == 2)
            ):
                worst = max(worst, abs(deviations(m, weight > 0)).max())
                for rows in range(-20, 21):
                    shift = rows * columns
                    if abs(shift) > 2048 and len(m) - abs(shift) >= 100:
                        x, y = (m[:-shift], weight[shift:]) if shift > 0 else (m[-shift:], weight[:shift])
                        worst = max(worst, abs(deviations(x, y > 0)[min(2048, len(x) - 100)]))
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
    assert torch.equal(one.critic.theta, two.critic.theta) and torch.equal(one.actor.masks, two.actor.masks)
    assert not torch.equal(one.critic.theta, other.critic.theta) and not torch.equal(one.actor.masks, other.actor.masks)


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


# Any nn.Module


class NormalHead(nn.Linear):
    """Masked: it is a linear layer, whatever its name."""


class MyLN(nn.Module):
    """A layer norm of one's own, of which no type tells."""

    def __init__(self, dim):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.gain * F.layer_norm(x, x.shape[-1:])


class Mixed(nn.Module):
    """Several inputs, structured outputs, a buffer, a frozen parameter, scalars, tied weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.arange(1.0, 13.0))
        self.frozen = nn.Parameter(torch.full((12,), 0.5), requires_grad=False)
        self.temperature, self.one = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor([0.9]))
        self.body, self.norm, self.head = nn.Linear(12, 12), MyLN(12), NormalHead(12, 1)
        self.gain = nn.utils.parametrizations.weight_norm(nn.Linear(12, 12))
        self.tied = nn.Linear(12, 12, bias=False)
        self.tied.weight = self.body.weight

    def forward(self, x, y):
        h = self.norm(self.body(x * self.scale) + self.frozen * y)
        return {"q": self.head(h) / self.temperature, "pair": (self.gain(h), self.tied(h) * self.one)}


def entries(omnet: OMNet, name: str, omnet_vector: torch.Tensor) -> torch.Tensor:
    """The part of a vector (..., n) that belongs to a parameter of the wrapped network."""
    sizes = [shape.numel() for shape in omnet.shapes.values()]
    return omnet_vector.split(sizes, -1)[list(omnet.shapes).index(name)]


def test_what_is_masked_follows_types_and_not_names():
    omnet = OMNet(Mixed(), 20, 0.5, torch.Generator().manual_seed(0))
    assert "frozen" not in omnet.shapes and "tied.weight" not in omnet.shapes
    gain = "gain.parametrizations.weight.original0"
    for name in omnet.shapes:
        kept = name in ("temperature", "one", gain)
        assert entries(omnet, name, omnet.masks).all() == kept, name
    chosen = OMNet(Mixed(), 20, 0.5, unmasked=(MyLN, "body", "head.weight"))
    for name in chosen.shapes:
        kept = name.startswith(("temperature", "one", gain, "norm", "body", "head.weight"))
        assert entries(chosen, name, chosen.masks).all() == kept, name
    tied = OMNet(Mixed(), 20, 0.5, unmasked=("tied.weight",))
    assert entries(tied, "body.weight", tied.masks).all(), "the same parameter under another name"
    assert OMNet(
        nn.Sequential(nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.InstanceNorm1d(4, affine=True)), 3, 0.9
    ).masks.all()


def test_a_name_to_leave_unmasked_that_the_network_does_not_have_is_refused():
    with pytest.raises(ValueError, match="there is no haed in body, norm, head, .*head.weight"):
        OMNet(Mixed(), 5, 0.5, unmasked=("body", "haed"))


@pytest.mark.parametrize("batched", [False, True])
def test_several_inputs_and_structured_outputs_on_both_paths(batched, monkeypatch):
    monkeypatch.setattr(OMNet, "batched", batched)
    net, x, y = Mixed(), torch.randn(8, 12), torch.randn(8, 12)
    omnet = OMNet(net, 4, 0.5, torch.Generator().manual_seed(0))
    out = omnet(omnet.theta, torch.tensor([2, 0]), x, y)
    for k, i in enumerate((2, 0)):
        params = {n: entries(omnet, n, omnet.theta * omnet.masks[i]).view(s) for n, s in omnet.shapes.items()}
        expected = torch.func.functional_call(net, params, (x, y))
        torch.testing.assert_close({"q": out["q"][k], "pair": tuple(t[k] for t in out["pair"])}, expected)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_networks_are_never_batched(kind):
    """vmap has no rule for them: on a GPU too they run one after another."""
    omnet, x = OMNet(kind(3, 4), 3, 0.5), torch.randn(5, 2, 3)
    out, _ = omnet(omnet.theta, torch.arange(3), x)
    assert out.shape == (3, 5, 2, 4) and not torch.equal(out[0], out[1])
    for elsewhere, batched in ((omnet, False), (OMNet(mlp(3, 1, 4), 3, 0.5), True)):
        assert elsewhere.to("meta").batched == batched


@pytest.mark.parametrize("batched", [False, True])
def test_dropout_is_reached_by_train_and_eval_on_both_paths(batched, monkeypatch):
    monkeypatch.setattr(OMNet, "batched", batched)
    omnet, x = OMNet(nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5)), 2, 0.0), torch.ones(4, 3)
    one, two = omnet(omnet.theta, torch.arange(2), x)
    assert ((one == 0) != (two == 0)).any(), "each subnetwork drops units of its own"
    one, two = omnet.eval()(omnet.theta, torch.arange(2), x)
    assert torch.equal(one, two) and (one != 0).all()


def test_buffers_move_are_saved_and_frozen_parameters_stay():
    omnet = OMNet(Mixed(), 2, 0.5, torch.Generator().manual_seed(0))
    state = omnet.state_dict()
    assert torch.equal(state["net/scale"], torch.arange(1.0, 13.0)) and state["net/frozen"].tolist() == [0.5] * 12
    other = OMNet(Mixed(), 2, 0.5)
    other.get_buffer("net/scale").zero_()
    other.load_state_dict(state)
    x, y = torch.randn(2, 4, 12, dtype=torch.float64)
    other = other.double()
    out = other(other.theta.double(), torch.arange(2), x, y)
    same = copy.deepcopy(omnet).double()
    torch.testing.assert_close(out["q"], same(same.theta.double(), torch.arange(2), x, y)["q"])
    assert out["q"].dtype == torch.float64
    grad = torch.func.grad(lambda theta: omnet(theta, torch.arange(2), x.float(), y.float())["q"].sum())(omnet.theta)
    assert grad.shape == omnet.theta.shape


@pytest.mark.parametrize(
    "layer, advice",
    [
        (nn.BatchNorm1d(3), "LayerNorm"),
        (nn.InstanceNorm1d(3, track_running_stats=True), "LayerNorm"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), "weight_norm"),
        (nn.utils.spectral_norm(nn.Linear(3, 3)), "weight_norm"),
    ],
    ids=["BatchNorm", "InstanceNorm", "spectral norm", "old spectral norm"],
)
def test_layers_with_a_state_that_subnetworks_would_share_are_refused(layer, advice):
    with pytest.raises(ValueError, match=advice):
        OMNet(nn.Sequential(nn.Linear(3, 3), layer), 5, 0.5)
    OMNet(nn.BatchNorm1d(3, track_running_stats=False), 5, 0.5)


def test_the_three_lines_of_the_docstring():
    lines = [line.strip() for line in OMNet.__doc__.splitlines() if line.startswith("        ")]
    scope = {"OMNet": OMNet, "MyNet": SmallConv, "x": torch.randn(8, 2, 6, 6)}
    assert len(lines) == 3
    exec("\n".join(lines), scope)
    assert scope["outputs"].shape == (2, 8, 3)


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
    agent.target_entropy.fill_(100.0)
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


@pytest.mark.parametrize("input_, output, dense", [(False, True, "0"), (True, False, "6"), (False, False, "06")])
def test_input_and_output_layers_can_be_left_dense_and_nothing_else_changes(input_, output, dense):
    plain, agent = same_agent(), same_agent(mask_input=input_, mask_output=output)
    for one, two in ((plain.critic, agent.critic), (plain.actor, agent.actor)):
        layer = [key[0] for key, size in two.shapes.items() for _ in range(size.numel())]
        chosen = torch.tensor([key in dense for key in layer])
        assert two.masks[:, chosen].all() and torch.equal(two.masks[:, ~chosen], one.masks[:, ~chosen])
        assert torch.equal(one.theta, two.theta) and (two.draw(3)[:, chosen] == 1).all()
    assert torch.equal(plain.generator.get_state(), agent.generator.get_state())


@pytest.mark.parametrize("num_subnets", [1, 2])
def test_few_subnetworks(num_subnets):
    agent = make_agent(num_subnets=num_subnets)
    agent.update(filled_buffer(agent))
    assert agent.critic.select(1, 2).shape[1] == num_subnets  # with one, the minimum is over that one


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
    assert {p.name.split(".")[0] for p in folder.iterdir() if p.name != ".lock"} == {
        "args",
        "eval",
        "train",
        "events",
        "checkpoint",
    }
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


def test_replay_ratio_and_learning_starts(tmp_path):
    agent = train(small(run_dir=tmp_path, replay_ratio=3))
    assert agent.gradient_steps == 3 * (120 - 40) and len(agent.acted if hasattr(agent, "acted") else []) == 0


def test_evaluation_cycles_through_the_subnetworks_and_repeats():
    agent, env = make_agent(2, 1), gym.wrappers.RescaleAction(gym.make("Point-v0"), np.float32(-1), np.float32(1))
    first, second, other = (evaluate(agent, env, 7, np.random.default_rng(seed)) for seed in (3, 3, 4))
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
        agents.append(OMNetSAC(Args(**TASTE, device=device), 3, 1))
        if compiled:
            compile_steps(agents[-1])
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


# The GPU's way, tested on a CPU: memory that is overwritten, waits, CUDA graphs, two devices


def same_agent(**flags) -> OMNetSAC:
    """An agent that has the same parameters at every call."""
    torch.manual_seed(0)
    return make_agent(**flags)


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


class Operations(TorchDispatchMode):
    """Names of the operations that were called."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_subnetwork_needs_no_batched_product(dynamic, monkeypatch):
    monkeypatch.setattr(OMNet, "batched", True)
    omnet, x = OMNet(mlp(6, 3, 16), 5, 0.5, dynamic=dynamic), torch.randn(8, 6)
    for k in (1, 2, 5):
        with Operations() as operations:
            out = omnet(omnet.theta, omnet.select(1, k)[0], x)
        products = sum("bmm" in name for name in operations.names)  # also baddbmm
        assert out.shape == (k, 8, 3) and products == (0 if k == 1 else 3)  # three linear layers


def test_compiled_steps_suit_cuda_graphs(monkeypatch):
    """Inductor skips the CUDA graph of a step that changes an input which is not a parameter or a buffer."""
    from torch._inductor.compile_fx import compile_fx

    monkeypatch.setattr(OMNet, "batched", True)
    agent, graphs = same_agent(replay_ratio=1, policy_delay=1), []

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
    assert "not possible here" in said and omnet_sac.first_line(error) in said
    assert agent.update(filled_buffer(agent)) == eager.update(filled_buffer(eager)) and len(calls) == call


def test_a_compilation_can_be_stopped(monkeypatch):
    def compiled(step, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(KeyboardInterrupt):
        omnet_sac.compile_steps(make_agent())


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
    if kind in baselines.METHODS:
        args, make = dataclasses.replace(baselines.METHODS[kind][1], **flags), baselines.make_agent
    else:
        args, make = small(**flags, dynamic_masks=kind == "dynamic masks"), OMNetSAC
    torch.manual_seed(0)
    agent, buffer, again = make(args, 3, 2), ReplayBuffer(2, 3, 2, device), ReplayBuffer(2, 3, 2, device)
    waits, tensors = [], {}
    for k in range(3):
        before, obs = mode.waits, np.full(3, k)
        action = agent.act(obs, 0)
        buffer.add(obs, action, 1.0, obs + 1, k == 2, False)
        metrics = agent.update(buffer)
        omnet_sac.check_finite(k, **metrics)
        waits.append(mode.waits - before)
        tensors |= {f"{name} {k}": torch.tensor(x) for name, x in ({"action": action} | metrics).items()}
    again.load_state_dict(buffer.state_dict())
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
    kinds = ["omnet", "dynamic masks", "redq", "droq", "sac"]
    code = f"import {Path(__file__).stem} as tests; tests.on_a_second_device(*{kinds})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert results == [[kind, [4, 4, 4], []] for kind in kinds]  # observation, action, transition, metrics


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


FORKS = ["residual", "balanced", "n-step", "quantile", "normalised", "td3"]  # in the README's order


@pytest.mark.parametrize("name", FORKS)
def test_the_forks_in_the_readme_apply_and_run(name, tmp_path):
    diffs = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(diffs) == len(FORKS)
    diff, source = diffs[FORKS.index(name)], (ROOT / "omnet_sac.py").read_text()
    assert sum(line.startswith("+") and len(line) > 1 for line in diff.splitlines()) <= 10
    for hunk in diff.split("@@\n"):
        old, new = (
            "".join(f"{x[1:]}\n" for x in hunk.splitlines() if x[:1] in keep) for keep in ((" ", "-"), (" ", "+"))
        )
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    fork = types.ModuleType("fork")
    sys.modules["fork"] = fork
    exec(source, vars(fork))
    agent = fork.train(fork.Args(**vars(small(run_dir=tmp_path))))
    assert agent.gradient_steps == 160 and agent.theta_target.isfinite().all()
    masks = {n: entries(agent.critic, n, agent.critic.masks) for n in agent.critic.shapes}
    if name == "balanced":  # of 5 subnetworks, 2 or 3 have a parameter at S = 0.5
        assert agent.critic.masks.sum(0).unique().tolist() == [2, 3, 5]
    if name == "hidden":
        assert [bool(mask.all()) for n, mask in masks.items() if "weight" in n] == [True, True, False, True, True]
    if name == "n-step":
        check_n_step(fork.ReplayBuffer)
    if name == "quantile":
        target = agent.td_target(torch.randn(16, 8), ALL[:2], ALL[:1], torch.randn(16, 1))
        assert target.shape == (16, 25) and agent.q_value(agent.critic.theta, ALL, torch.randn(16, 3)).shape == (5, 16)
    if name == "normalised":
        saved = torch.load(next(tmp_path.rglob("checkpoint.pt")), weights_only=True)["agent"]
        assert torch.equal(saved["obs_mean"], agent.obs_mean) and agent.obs_mean.any() and (agent.obs_std != 1).all()


def check_n_step(buffer_class):
    """Against rewards summed up by hand, in a ring that has gone round: episodes of 4 steps, the third terminates."""
    buffer = buffer_class(10, 1, 1, "cpu")
    for t in range(13):
        last = t % 4 == 3
        buffer.add([t], [0], float(t), [t + 0.5], last and t == 11, last and t != 11)
    for obs, _, reward, next_obs, terminated, _ in buffer.sample(1, 200, torch.Generator().manual_seed(0))[0].tolist():
        t = int(obs)
        until = min(t + 2, t - t % 4 + 3, 12)  # of the same episode, and there already
        assert reward == pytest.approx(sum(0.99 ** (k - t) * k for k in range(t, until + 1)))
        assert next_obs == until + 0.5
        assert 1 - terminated == pytest.approx(0.99 ** (until - t) * (until != 11), abs=1e-6)


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


RUN = "--no-compile --env-id Hopper-v4 --total-timesteps 400 --learning-starts 40 --checkpoint-interval 40 "
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
    write_checkpoint(path, state)


def with_checksum(path: Path, data: bytes):
    path.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))


DAMAGE = {
    "code": (lambda path: write_checkpoint(path, {"agent": Evil(path.parent / "evil")}), "run code"),
    "pickled code": (lambda path: with_checksum(path, pickle.dumps(Evil(path.parent / "evil"), 2)), "damaged"),
    "half a file": (lambda path: os.truncate(path, path.stat().st_size // 2), "damaged"),
    "empty": (lambda path: os.truncate(path, 0), "damaged"),
    "text": (lambda path: path.write_text("step,return\n1,2\n"), "damaged"),
    "missing": (lambda path: path.unlink(), ""),
    "tensor": (lambda path: write_checkpoint(path, torch.zeros(3)), "damaged"),
    "environment": (partial(edit, lambda s: s["about"]["args"].update(env_id="Ant-v4")), "env_id = Ant-v4", "Point"),
    "width": (partial(edit, lambda s: s["about"]["args"].update(hidden_dim=32)), "hidden_dim = 32", "16"),
    "version": (
        partial(edit, lambda s: s["about"]["versions"].update(torch="1.0")),
        "torch = 1.0",
        torch.__version__.split("+")[0],
    ),
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


def test_a_run_from_another_device_is_evaluated_and_goes_on(finished, tmp_path, capsys):
    """The state of a generator on a GPU, 16 bytes, means nothing on a CPU."""
    folder = shutil.copytree(finished, tmp_path / "run")
    gpu = torch.zeros(16, dtype=torch.uint8)
    edit(
        lambda state: state["agent"]["_extra_state"].update(generator=gpu, act_generator=gpu), folder / "checkpoint.pt"
    )
    main(Args(evaluate=folder, eval_episodes=1))
    main(Args(resume=folder, total_timesteps=80))
    assert "not the exact same run" in capsys.readouterr().out
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 80


def test_out_of_memory_is_one_sentence_that_says_how_much_was_asked(tmp_path, capsys):
    class Greedy(OMNetSAC):
        def update(self, buffer):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")

    words = "Tried to allocate 2.00 GiB", "checkpoint of step 0", "--resume"
    assert_fails(capsys, small(run_dir=tmp_path), 1, *words, make_agent=Greedy)


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
        ("needs 32000.0 GB, ", {"total_timesteps": 10**12, "buffer_size": 10**12}),
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
    def state():
        files = [path for path in finished.iterdir() if path.name != ".lock"]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    assert_fails(capsys, small(run_dir=finished.parent), 2, f"--resume {finished}", "--run-dir")
    assert state() == before


def test_bad_input_from_the_shell(tmp_path):
    result = cli("--env-id=Antt-v4", "--run-dir", tmp_path)
    assert result.returncode == 2 and not result.stdout and not list(tmp_path.iterdir())
    assert result.stderr.strip().startswith("error: --env-id Antt-v4") and result.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("flags", [["--hidden-dim", "x"], ["--total-timesteps", "3e5"], ["--matmul-precision", "low"]])
def test_flags_that_do_not_parse(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(Args, args=flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


def test_whole_numbers_may_be_written_with_an_exponent(monkeypatch):
    words = "--total-timesteps 1e5 --learning-rate 1e-3 --gamma 1e0 --seed 3"
    monkeypatch.setattr(sys, "argv", ["omnet_sac.py", *words.split()])
    assert omnet_sac.parse(Args) == Args(total_timesteps=100_000, learning_rate=1e-3, gamma=1.0, seed=3)


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


def lasting_threads(process: psutil.Process) -> int:
    """How many threads are there now and in half a second: TensorBoard's writer, though joined, may be seen ending."""
    now = {thread.id for thread in process.threads()}
    time.sleep(0.5)
    return len(now & {thread.id for thread in process.threads()})


def test_twenty_runs_in_one_process_leave_memory_files_and_threads_as_they_were(tmp_path):
    process, after = psutil.Process(), {}
    for runs in range(1, 21):
        train(small(run_dir=tmp_path, seed=runs, total_timesteps=50, eval_episodes=1, replay_ratio=1))
        if runs in (5, 20):
            after[runs] = (process.memory_info().rss / 1e6, process.num_fds(), lasting_threads(process))
    print(f"MB, open files, threads after run 5: {after[5]}, after run 20: {after[20]}")
    assert after[20][0] - after[5][0] < 10 and after[20][1] <= after[5][1] and after[20][2] <= after[5][2]


def edit_flags(folder: Path, **flags):
    """Stores other flags in args.json."""
    about = json.loads((folder / "args.json").read_text())
    about["args"] |= flags
    (folder / "args.json").write_text(json.dumps(about))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def assert_refused(capsys, args: Args, code: int, *words: str, make_agent=OMNetSAC) -> str:
    """`assert_fails`, and the folder is as it was."""
    folder = args.resume or args.evaluate
    before = contents(folder)
    sentence = assert_fails(capsys, args, code, *words, make_agent=make_agent)
    assert contents(folder) == before
    return sentence


def kebab(name: str) -> str:
    return "--" + name.replace("_", "-")


class Halt(Exception):
    """The end of a run by a crash."""


def diary(args, obs_dim, action_dim, folder: Path, halt: int = 0) -> OMNetSAC:
    """An agent that keeps a CSV file of its own in the folder, as probes do, and crashes at step `halt`."""
    agent, path = OMNetSAC(args, obs_dim, action_dim), folder / "bias.csv"
    update = agent.update

    def update_and_record(buffer):
        if buffer.added == halt:
            raise Halt
        metrics = update(buffer)
        if buffer.added % 5 == 0:
            with path.open("a") as file:
                header = "" if file.tell() else "step,q_value\n"
                file.write(f"{header}{buffer.added},{metrics['q_value']:.8g}\n")
        return metrics

    agent.update = update_and_record
    return agent


def brief(**flags) -> Args:
    """A run of half a second with several checkpoints."""
    return small(**{"checkpoint_interval": 25, "replay_ratio": 1, "eval_episodes": 2} | flags)


def diary_run(run_dir: Path, halt: int = 0, **flags) -> Path:
    args = brief(run_dir=run_dir, **flags)
    folder = omnet_sac.run_folder(args)
    try:
        train(args, partial(diary, folder=folder, halt=halt))
    except Halt:
        assert halt
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run to step 120 with a bias.csv."""
    return diary_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def crashed(tmp_path_factory) -> Path:
    """The same run crashed at step 115, some rows after its last checkpoint."""
    folder = diary_run(tmp_path_factory.mktemp("crashed"), halt=115)
    step = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert 50 < step < min(last_step(folder / name) for name in ("train.csv", "bias.csv"))
    return folder


@pytest.fixture
def halted(crashed, tmp_path) -> Path:
    """`crashed`, to be changed."""
    return shutil.copytree(crashed, tmp_path / "halted" / crashed.name)


@pytest.fixture
def done(finished, tmp_path) -> Path:
    """`finished`, to be changed."""
    return shutil.copytree(finished, tmp_path / "done" / finished.name)


FORK, REAL_SIGNAL = multiprocessing.get_context("fork"), signal.signal


def child(run, log: Path) -> multiprocessing.Process:
    """A process of its own for `run()`, its output in log.out and log.err, its signals its own."""

    def body():
        signal.signal = REAL_SIGNAL
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = log.with_suffix({1: ".out", 2: ".err"}[number]).open("w", buffering=1)
            os.dup2(file.fileno(), number)
            setattr(sys, name, file)
        run()

    process = FORK.Process(target=body)
    process.start()
    return process


# One writer per run folder


@pytest.fixture
def live(tmp_path):
    """A process in the middle of a run; its folder, and the event that lets it go on."""
    here, go_on = FORK.Event(), FORK.Event()

    class Waits(OMNetSAC):
        def update(self, buffer):
            if buffer.added == 80:
                here.set()
                go_on.wait(60)
            return super().update(buffer)

    args = brief(run_dir=tmp_path / "live")
    process = child(partial(main, args, Waits), tmp_path / "live")
    assert here.wait(60)
    yield process, omnet_sac.run_folder(args), go_on
    process.kill()
    process.join()


@pytest.mark.parametrize("how", ["resume", "again"])
def test_a_second_process_on_a_live_run_is_refused_and_the_run_loses_nothing(how, live, whole, capsys):
    process, folder, go_on = live
    args = Args(resume=folder) if how == "resume" else brief(run_dir=folder.parent)
    before = contents(folder)
    assert_fails(capsys, args, 2, str(process.pid), str(folder))
    assert contents(folder) == before
    main(Args(evaluate=folder, eval_episodes=1))  # to look is allowed
    go_on.set()
    process.join(60)
    assert process.exitcode == 0
    assert_same_run(whole, folder)


def test_the_lock_of_a_killed_process_does_not_block(live, whole):
    process, folder, _ = live
    process.kill()
    process.join()
    assert (folder / ".lock").exists()
    (folder / ".lock").write_text(str(os.getppid()))  # its pid may be another process's by now
    main(Args(resume=folder))
    assert_same_run(whole, folder)


@pytest.mark.parametrize("apart", [0, 0.02])
def test_of_two_fresh_starts_one_runs_and_one_is_refused(apart, whole, tmp_path):
    barrier = FORK.Barrier(2)
    args = brief(run_dir=tmp_path)
    folder = omnet_sac.run_folder(args)

    def start(seconds):
        barrier.wait(60)
        time.sleep(seconds)
        main(args)

    pair = {child(partial(start, k * apart), tmp_path / f"log{k}"): tmp_path / f"log{k}.err" for k in (0, 1)}
    for process in pair:
        process.join(60)
    winner, loser = sorted(pair, key=lambda process: process.exitcode)
    assert (winner.exitcode, loser.exitcode) == (0, 2)
    *_, sentence = pair[loser].read_text().strip().splitlines()
    assert sentence.startswith("error: ") and str(winner.pid) in sentence and str(folder) in sentence
    assert_same_run(whole, folder)


# What an environment gives is copied at once


class Alias(Point):
    """Point, which gives the same arrays at every step, in every instance, and overwrites the actions it is given."""

    dtype, reward = np.float64, np.zeros(())

    def given(self, obs):
        self.obs[:] = obs
        return self.obs

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return self.given(obs), info

    def step(self, action):
        obs, reward, *rest = super().step(action)
        action[:] = 0.5
        self.reward[()] = reward
        return self.given(obs), self.reward, *rest


for bits, dtype in ((32, np.float32), (64, np.float64)):
    space = gym.spaces.Box(-np.inf, np.inf, (2,), dtype)
    alias = type(f"Alias{bits}", (Alias,), {"observation_space": space, "obs": np.zeros(2, dtype)})
    gym.register(f"Alias{bits}-v0", alias, max_episode_steps=10)


@pytest.mark.parametrize("bits", [32, 64])
def test_an_environment_that_reuses_its_arrays_gives_the_run_of_one_that_does_not(bits, tmp_path):
    args = [brief(env_id=env_id, run_dir=tmp_path) for env_id in ("Point-v0", f"Alias{bits}-v0")]
    honest, reused = (train(a, Recorder).buffer.rows for a in args)
    assert (reused[:, :2] != reused[:, 4:6]).any(1).all()  # obs, next_obs
    torch.testing.assert_close(reused[:, 4], reused[:, 0] + 0.5 * reused[:, 2])
    torch.testing.assert_close(reused[:, 3], -reused[:, 4].square())
    assert torch.equal(reused, honest)
    assert_same_run(*map(omnet_sac.run_folder, args))


@pytest.mark.parametrize("bits", [32, 64])
def test_evaluation_and_probes_do_not_depend_on_who_owns_the_arrays(bits, monkeypatch):
    probes = pytest.importorskip("paper.probes")
    monkeypatch.setattr(probes, "BIAS_STATES", 20)
    honest, reused = args = [small(env_id=env_id, gamma=0.5) for env_id in ("Point-v0", f"Alias{bits}-v0")]
    agent = OMNetSAC(honest, 2, 1)
    for measure in (
        lambda a: evaluate(agent, omnet_sac.make_env(a), 7, np.random.default_rng(1)),
        lambda a: np.float32(probes.trajectories(a, agent)).tolist(),
        lambda a: probes.value_bias(a, agent, 60),
    ):
        one, two = map(measure, args)
        assert one == two


# A checkpoint is what was written, and so are the files that it counts on


def test_a_single_flipped_bit_in_a_checkpoint_is_refused(done, capsys):
    path, rng = done / "checkpoint.pt", np.random.default_rng(0)
    good = path.read_bytes()
    assert torch.load(path, weights_only=True)["step"] == 60  # by torch alone
    for k, bit in enumerate(rng.integers(8 * len(good), size=50).tolist()):
        path.write_bytes(good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :])
        assert_fails(capsys, Args(**{("resume", "evaluate")[k % 2]: done}), 1, "checkpoint.pt", "damaged")
    path.write_bytes(good)
    main(Args(resume=done))


FIELDS = ["about", "agent", "buffer", "rng", "step", "seconds"]


def test_a_checkpoint_has_these_fields(finished):
    assert {*FIELDS} < torch.load(finished / "checkpoint.pt", weights_only=True).keys()  # and what is known of CSVs


def test_a_checkpoint_with_a_field_missing_or_of_the_wrong_type_is_refused(done, capsys):
    path = done / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    damaged = [{k: v for k, v in state.items() if k != name} for name in state]
    damaged += [state | {name: x} for name in state for x in ("x", None, []) if type(x) is not type(state[name])]
    for name in ("about", "agent", "buffer", "rng"):
        inner = {key: value for key, value in state[name].items() if key != "code"}  # which is for people alone
        damaged += [state | {name: {k: v for k, v in inner.items() if k != key}} for key in inner]
        damaged += [state | {name: inner | {key: "x"}} for key in inner if not isinstance(inner[key], str)]
    for spoilt in damaged:
        omnet_sac.write_checkpoint(path, spoilt)
        assert_refused(capsys, Args(resume=done), 1, "checkpoint.pt")
    omnet_sac.write_checkpoint(path, state)
    main(Args(resume=done))


def flip_a_digit(path: Path):
    data = bytearray(path.read_bytes())
    data[data.index(b"\n") + 1] ^= 1  # of the first row's step
    path.write_bytes(data)


CSV_DAMAGE = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "headless": lambda path: path.write_bytes(path.read_bytes().split(b"\n", 1)[1]),
    "shortened": lambda path: os.truncate(path, path.read_bytes().index(b"\n") + 4),
    "edited": flip_a_digit,
    "binary": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
}


@pytest.mark.parametrize("name", ["train.csv", "eval.csv", "bias.csv"])
@pytest.mark.parametrize("damage", CSV_DAMAGE)
def test_a_csv_that_is_not_what_was_written_is_refused(damage, name, halted, capsys):
    CSV_DAMAGE[damage](halted / name)
    assert_refused(capsys, Args(resume=halted), 1, str(halted / name))


@pytest.mark.parametrize("junk", [b"", b"junk\n", b"9", b"\xff\x00\n,,\n", b"70,0,-1.5,10\n" * 3], ids=repr)
def test_what_a_csv_holds_beyond_the_checkpoint_is_cut(junk, halted, whole):
    for path in halted.glob("*.csv"):
        path.write_bytes(path.read_bytes() + junk)
    main(Args(resume=halted), partial(diary, folder=halted))
    assert_same_run(whole, halted)
    assert (whole / "bias.csv").read_bytes() == (halted / "bias.csv").read_bytes()


def test_a_csv_that_the_checkpoint_does_not_know_is_cut_to_nothing(whole, tmp_path):
    """The run crashed before the first checkpoint after the probe's first row."""
    folder = diary_run(tmp_path, halt=49)
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] < 45 == last_step(folder / "bias.csv")
    (folder / "probe.csv").write_text("junk")
    main(Args(resume=folder), partial(diary, folder=folder))
    assert_same_run(whole, folder)
    assert (whole / "bias.csv").read_bytes() == (folder / "bias.csv").read_bytes()
    assert not (folder / "probe.csv").exists() or not (folder / "probe.csv").stat().st_size


def test_csv_rows_are_on_the_disk_before_the_checkpoint_that_counts_on_them(tmp_path, monkeypatch):
    fsync, replace, synced, checkpoints = os.fsync, os.replace, {}, []

    def watched_fsync(file):
        number = file if isinstance(file, int) else file.fileno()
        synced[os.readlink(f"/proc/self/fd/{number}")] = os.fstat(number).st_size
        fsync(file)

    def watched_replace(source, target):
        if Path(target).name == "checkpoint.pt":
            rows = {str(path): path.stat().st_size for path in Path(target).parent.glob("*.csv")}
            checkpoints.append({*rows.items()} <= {*synced.items()})
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    diary_run(tmp_path)
    assert len(checkpoints) >= 3 and all(checkpoints)


@pytest.mark.parametrize("name", ["train.csv", "eval.csv", "bias.csv"])
def test_without_a_checkpoint_rows_are_never_cut(name, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / whole.name)
    (folder / "checkpoint.pt").unlink()
    for path in {*folder.glob("*.csv")} - {folder / name}:
        path.write_text(path.read_text().split("\n")[0] + "\n")
    before = contents(folder)
    with pytest.raises(SystemExit) as stop:
        main(Args(resume=folder))
    assert stop.value.code in (1, 2) and "checkpoint.pt" in capsys.readouterr().err.splitlines()[-1]
    assert contents(folder) == before


@pytest.mark.parametrize("left", ["header", "nothing", "no file"])
def test_without_a_checkpoint_and_without_rows_a_run_starts_at_its_start(left, finished, done):
    (done / "checkpoint.pt").unlink()
    for path in done.glob("*.csv"):
        path.write_text(path.read_text().split("\n")[0] + "\n" if left == "header" else "")
        path.unlink() if left == "no file" else None
    main(Args(resume=done))
    assert_same_run(finished, done)


def test_the_buffer_is_saved_without_a_copy_and_only_as_far_as_it_is_filled(tmp_path):
    buffer = ReplayBuffer(100_000, 2, 1, "cpu", added=10)
    buffer.rows[:10] = torch.randn(10, 8)
    state = buffer.state_dict()
    assert state["rows"].data_ptr() == buffer.rows.data_ptr() and state["rows"].shape == (10, 8)
    torch.save(state, tmp_path / "buffer.pt")
    assert (tmp_path / "buffer.pt").stat().st_size < 10_000
    other = ReplayBuffer(20, 2, 1, "cpu")
    other.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    assert torch.equal(other.rows[:10], buffer.rows[:10]) and len(other) == 10


# Flags beside --resume and --evaluate


DIFFERENT = {"env_id": "Pendulum-v1", "seed": 2, "learning_starts": 41, "replay_ratio": 3, "policy_delay": 3}
DIFFERENT |= {"batch_size": 17, "buffer_size": 99, "gamma": 0.9, "tau": 0.1, "learning_rate": 1e-3, "hidden_dim": 17}
DIFFERENT |= {"target_entropy": -2.0, "num_subnets": 4, "sparsity": 0.3, "dynamic_masks": True, "actor_subnets": False}
DIFFERENT |= {"mask_input": False, "mask_output": False}
DIFFERENT |= {"obs_noise": 0.1, "eval_interval": 49, "matmul_precision": "high", "max_episode_steps": 9}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_flag_that_differs_from_the_stored_one_is_refused_by_name(name, finished, capsys):
    flag = {name: DIFFERENT[name]}
    assert_refused(capsys, Args(resume=finished, **flag), 2, kebab(name))
    if name != "seed":  # the seed of the evaluation
        assert_refused(capsys, Args(evaluate=finished, **flag), 2, kebab(name))


@pytest.mark.parametrize("name, value", [("total_timesteps", 99), ("checkpoint_interval", 7), ("track", True)])
def test_evaluate_refuses_the_flags_of_a_training(name, value, finished, capsys):
    assert_refused(capsys, Args(evaluate=finished, **{name: value}), 2, kebab(name))


@pytest.mark.parametrize(
    "stored, given",
    [
        ({"sparsity": 0.3}, "--sparsity 0.5"),
        ({"sparsity": 0.3}, "--sparsity=0.5"),
        ({"num_subnets": 4}, "--num_subnets 5"),
        ({"dynamic_masks": True}, "--no-dynamic-masks"),
        ({"actor_subnets": False}, "--actor-subnets"),
    ],
)
@pytest.mark.parametrize("how", ["resume", "evaluate"])
def test_a_default_given_on_the_command_line_is_given(how, stored, given, done, monkeypatch, capsys):
    edit_flags(done, **stored)
    flags = [f"--{how}", str(done), *given.split()]
    monkeypatch.setattr(sys, "argv", ["omnet_sac.py", *flags])
    assert_refused(capsys, tyro.cli(Args, args=flags), 2, next(iter(stored)).replace("_", "-"))


def test_flags_that_repeat_the_stored_ones_are_no_harm(finished, done, capsys):
    main(small(resume=done, total_timesteps=60))
    assert_same_run(finished, done)
    main(small(evaluate=done, total_timesteps=60, eval_episodes=2, seed=3))
    assert "over 1 episodes" in capsys.readouterr().out


def test_a_float_flag_may_be_an_int(tmp_path):
    args = small(gamma=1, obs_noise=0, target_entropy=-1, total_timesteps=45, run_dir=tmp_path)
    train(args)
    main(Args(resume=omnet_sac.run_folder(args)))


def test_total_timesteps_extends_a_run_to_the_run_of_that_length(halted, tmp_path):
    longer = diary_run(tmp_path / "longer", total_timesteps=150)
    main(Args(resume=halted, total_timesteps=150), partial(diary, folder=halted))
    assert_same_run(longer, halted)
    assert json.loads((halted / "args.json").read_text())["args"]["total_timesteps"] == 150
    main(Args(resume=halted))  # by the flags that are stored now
    assert_same_run(longer, halted)


def test_a_finished_run_is_extended(finished, done):
    main(Args(resume=done, total_timesteps=90))
    assert (done / "train.csv").read_text().startswith((finished / "train.csv").read_text())
    assert torch.load(done / "checkpoint.pt", weights_only=True)["step"] == 90
    assert {row["step"] for row in read_csv(done / "eval.csv")} == {50}


@pytest.mark.parametrize("off", [-20, -1, 0])
def test_total_timesteps_must_exceed_what_is_done(off, halted, capsys):
    step = torch.load(halted / "checkpoint.pt", weights_only=True)["step"]
    assert_refused(capsys, Args(resume=halted, total_timesteps=step + off), 2, "--total-timesteps", str(step))


def test_flags_that_change_nothing_that_is_learned_are_applied(halted, whole, monkeypatch, capsys):
    seen, replace = [], os.replace
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: seen.append("track")))
    monkeypatch.setattr(omnet_sac, "compile_steps", lambda agent: seen.append("compile"))
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(Path(b).name), replace(a, b)))
    assert_refused(capsys, Args(resume=halted, device="nonsense"), 2, "--device nonsense")
    monkeypatch.setattr(sys, "argv", ["omnet_sac.py", "--compile"])
    flags = {"track": True, "capture_video": True, "checkpoint_interval": 1, "eval_episodes": 3}
    before = torch.load(halted / "checkpoint.pt", weights_only=True)["step"]
    main(Args(resume=halted, **flags, total_timesteps=150))
    assert seen.count("track") == seen.count("compile") == 1 and seen.count("checkpoint.pt") >= 4
    assert (halted / "train.csv").read_bytes().startswith((whole / "train.csv").read_bytes())
    rows = [row for row in read_csv(halted / "eval.csv") if row["step"] > before]
    assert [(row["step"], row["episode"]) for row in rows] == [(step, k) for step in (100, 150) for k in range(3)]
    assert list((halted / "videos").glob("*.mp4"))


def test_evaluate_and_resume_exclude_each_other(finished, capsys):
    assert_refused(capsys, Args(evaluate=finished, resume=finished), 2, "--evaluate", "--resume")


class Other(Args):
    method = "sixfold"


@pytest.mark.parametrize("how", ["resume", "evaluate"])
def test_a_folder_of_another_method_is_refused(how, finished, done, capsys):
    about = json.loads((done / "args.json").read_text())
    assert about["method"] == "omnet_sac"
    assert_refused(capsys, Other(**{how: done}), 2, "sixfold")
    (done / "args.json").write_text(json.dumps(about | {"method": "sixfold"}))
    assert_refused(capsys, Args(**{how: done}), 2, "sixfold")


def test_what_is_there_already_is_told_by_the_flags_that_differ(finished, capsys):
    sentence = assert_fails(capsys, small(run_dir=finished.parent, sparsity=0.3, gamma=0.9), 2, "sparsity", "gamma")
    assert "--resume" in sentence and not re.search("hidden.dim|num.subnets|eval.interval", sentence)


WRONG = {int: ("x", [], None, 1.5), float: ("x", [], None), bool: ("x", [], None), str: (5, [], None)}
WRONG |= {Path: (5, [], None), float | None: ("x", []), int | None: ("x", [], 1.5)}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Args) if f.name not in ("resume", "evaluate")])
def test_a_stored_flag_of_the_wrong_type_is_refused(name, done, monkeypatch, capsys):
    monkeypatch.setattr(omnet_sac, "compile_steps", lambda agent: None)
    good, kind = (done / "args.json").read_text(), Args.__annotations__[name]
    for value in WRONG.get(kind, WRONG[str]):
        edit_flags(done, **{name: value})
        for how in ("resume", "evaluate"):
            assert_refused(capsys, Args(**{how: done}), 2, str(done))
        (done / "args.json").write_text(good)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"args": []}', '{"args": {"seeds": 1}}', "\0\1"], ids=repr
)
def test_an_args_json_of_anything_else_is_refused(text, done, capsys):
    (done / "args.json").write_text(text)
    for how in ("resume", "evaluate"):
        assert_refused(capsys, Args(**{how: done}), 2, str(done))


# Signals


@pytest.fixture(scope="module")
def hopper(tmp_path_factory) -> Path:
    """The run of RUN, uninterrupted."""
    args = tyro.cli(Args, args=[*RUN.split(), str(tmp_path_factory.mktemp("hopper"))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)
        main(args)
    return omnet_sac.run_folder(args)


@pytest.mark.parametrize("call, times, signum", [(15, 1, 2), (15, 2, 15), (80, 1, 15), (250, 2, 2)])  # 80: evaluates
def test_a_signal_ends_the_run_with_the_episode_and_a_second_one_at_once(call, times, signum, hopper, tmp_path):
    """Signals come from within the `call`-th step of the environment on."""
    args = tyro.cli(Args, args=[*RUN.split(), str(tmp_path)])
    folder, log, calls = omnet_sac.run_folder(args), tmp_path / "log", FORK.Value("i")
    heard, step = tmp_path / "heard", gym.wrappers.TimeLimit.step
    heard.touch()

    def counted(self, action):
        calls.value += 1
        if calls.value == call + 1:
            heard.write_text(log.with_suffix(".err").read_text() + log.with_suffix(".out").read_text())
        if 0 <= calls.value - call < times:
            os.kill(os.getpid(), signum)
        return step(self, action)

    def run():
        gym.wrappers.TimeLimit.step = counted
        main(args)

    process = child(run, log)
    process.join(60)
    stderr = log.with_suffix(".err").read_text()
    assert process.exitcode == 128 + signum and "Traceback" not in stderr, stderr
    assert "stopping at the end of this episode" in heard.read_text()
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    last = stderr.strip().splitlines()[-1]
    assert re.search(rf"step {saved}\b", last) and f"--resume {folder}" in last
    if times == 1:
        assert saved == last_step(folder / "train.csv") > 0 and calls.value > call
    else:
        assert calls.value == call + 1 and (saved == 0 if call == 15 else saved > 0)
    main(Args(resume=folder))
    assert_same_run(hopper, folder)


def test_a_signal_whose_exit_is_swallowed_while_compiling_ends_the_run_after_an_episode(tmp_path, monkeypatch):
    stop = omnet_sac.Stop()

    def swallow(agent):
        with suppress(SystemExit):
            stop(signal.SIGINT, None)

    monkeypatch.setattr(omnet_sac, "compile_steps", swallow)
    args = tyro.cli(Args, args=[*RUN.removeprefix("--no-compile").split(), str(tmp_path)])
    omnet_sac.train(args, stop=stop)
    folder = omnet_sac.run_folder(args)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert (folder / "train.csv").read_text().count("\n") == 2 and 0 < saved == last_step(folder / "train.csv")
    with pytest.raises(SystemExit):
        stop(signal.SIGINT, None)


# Environments of all kinds, the bad ones too


class Endless(Point):
    """Stays within its bounds, and nothing ends it."""

    def step(self, action):
        obs, reward, *_ = super().step(action)
        self.position = float(np.clip(self.position, -1, 1))
        return obs, reward, False, False, {}


class EndsItself(Endless):
    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, False, self.steps == 8, {}


gym.register("Endless-v0", Endless)
gym.register("EndsItself-v0", EndsItself)


@pytest.mark.parametrize("env_id, most", [("Endless-v0", 7), ("Point-v0", 4), ("EndsItself-v0", 5)])
def test_max_episode_steps_cuts_episodes(env_id, most, tmp_path, capsys):
    agent = train(brief(env_id=env_id, max_episode_steps=most, run_dir=tmp_path), Recorder)
    folder, out = next(tmp_path.iterdir()), "".join(capsys.readouterr())
    for name in ("train.csv", "eval.csv"):
        lengths = [row["length"] for row in read_csv(folder / name)]
        assert max(lengths) == most
    cut = agent.buffer.rows[:, 5] == most  # next_obs is (position, steps so far)
    beyond = (agent.buffer.rows[cut, 4].abs() > 1.2) & (env_id == "Point-v0")  # the only one that terminates
    assert cut.any() and beyond.float().equal(agent.buffer.rows[cut, 6]) and agent.buffer.rows[cut, 7].all()
    assert "--max-episode-steps" not in out


def test_an_environment_without_a_time_limit_is_told_at_the_start(tmp_path, capsys):
    train(brief(env_id="EndsItself-v0", total_timesteps=60, run_dir=tmp_path / "a"))
    assert "".join(capsys.readouterr()).count("--max-episode-steps") == 1
    train(brief(total_timesteps=60, run_dir=tmp_path / "b"))  # Point-v0 has a limit of its own
    assert "--max-episode-steps" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "total, interval, steps",
    [(45, 50, [45]), (50, 50, [50]), (60, 50, [50]), (99, 50, [50]), (120, 50, [50, 100]), (45, 0, [])],
)
def test_a_run_too_short_for_an_evaluation_has_one_at_its_end(total, interval, steps, tmp_path):
    train(brief(total_timesteps=total, eval_interval=interval, run_dir=tmp_path))
    rows = read_csv(next(tmp_path.iterdir()) / "eval.csv")
    assert [(row["step"], row["episode"]) for row in rows] == [(step, k) for step in steps for k in range(2)]


def raising(error: Exception):
    def method(self, *args, **kwargs):
        raise error

    return method


ERRORS = [RuntimeError, AttributeError, KeyError, AssertionError, OSError, TypeError, NotImplementedError]
ERRORS = [error("the first line\nthe second: repair it with\n    the third") for error in ERRORS]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_environment_that_cannot_be_drawn_is_refused_before_training(error, tmp_path, capsys):
    gym.register("NoScreen-v0", point(render=raising(error)), max_episode_steps=10)
    args = small(env_id="NoScreen-v0", run_dir=tmp_path / "runs", capture_video=True)
    assert_fails(capsys, args, 2, "--capture-video", "MUJOCO_GL", "the first line")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_an_environments_constructor_raises_is_one_sentence_with_all_its_text(error, tmp_path, capsys):
    gym.register("Broken-v0", point(__init__=raising(error)))
    words = "--env-id Broken-v0", "the first line", "the second: repair it with", "the third"
    assert_fails(capsys, small(env_id="Broken-v0", run_dir=tmp_path / "runs"), 2, *words)
    assert not list(tmp_path.iterdir())


def test_a_constructor_without_render_mode(tmp_path, capsys):
    gym.register("Bare-v0", point(__init__=lambda self: None), max_episode_steps=10)
    args = small(env_id="Bare-v0", run_dir=tmp_path)
    assert_fails(capsys, dataclasses.replace(args, capture_video=True), 2, "Bare-v0")
    assert not list(tmp_path.iterdir())
    train(args)


@pytest.mark.parametrize("env_id", ["Hoper-v2", "Hoper-v3", "Hopper-v3", "Hopper-v2", "Walker2-v3", "HalfCheeta-v3"])
def test_only_environments_that_exist_are_suggested(env_id, tmp_path, capsys):
    sentence = assert_fails(capsys, small(env_id=env_id, run_dir=tmp_path), 2, "did you mean")
    suggested = {*re.findall(r"[\w/]+-v\d+", sentence)} - {env_id}
    assert any(name.endswith(("-v4", "-v5")) for name in suggested)
    for name in suggested:
        with suppress(gym.error.DependencyNotInstalled):
            gym.make(name)


@pytest.mark.parametrize(
    "env_id, module",
    [
        ("FetchReach-v4", "gymnasium_robotics"),
        ("AdroitHandDoor-v1", "gymnasium_robotics"),
        ("PointMaze_UMaze-v3", "gymnasium_robotics"),
        ("dm_control/walker-run-v0", "shimmy"),
    ],
)
def test_the_module_of_a_known_plug_in_is_suggested(env_id, module, tmp_path, capsys):
    assert_fails(capsys, small(env_id=env_id, run_dir=tmp_path), 2, f"{module}:{env_id}")


MY_ENV = """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv
gymnasium.register("Mine-v0", PendulumEnv, max_episode_steps=9)
"""


def test_an_environments_module_in_the_current_folder_is_found(tmp_path):
    (tmp_path / "my_env.py").write_text(MY_ENV)
    (tmp_path / "queue.py").write_text("raise RuntimeError('imported in the place of the standard one')")
    flags = TINY.replace("Pendulum-v1", "my_env:Mine-v0").split()
    result = cli(*flags, "--no-compile", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "my_env-Mine-v0__omnet_sac__1" / "checkpoint.pt").exists()


gym.register("Fixed-v0", point(action_space=gym.spaces.Box(0.25, 0.25, (1,))), max_episode_steps=10)
gym.register("HalfFixed-v0", point(action_space=gym.spaces.Box(np.float32([0, 1]), np.float32([1, 1]))))
gym.register("Huge-v0", point(action_space=gym.spaces.Box(-1e38, 1e38, (1,))), max_episode_steps=10)
gym.register("Overflow-v0", point(action_space=gym.spaces.Box(-3e38, 3e38, (1,))), max_episode_steps=10)
NO_NUMBERS = ["gamma", "tau", "learning_rate", "obs_noise", "sparsity", "target_entropy"]


@pytest.mark.parametrize(
    "words, flags",
    [
        *[(kebab(name), {name: value}) for name in NO_NUMBERS for value in (math.nan, math.inf, -math.inf)],
        ("--num-subnets", {"num_subnets": 10**9}),
        ("--hidden-dim", {"hidden_dim": 10**7}),
        ("--replay-ratio", {"replay_ratio": 10**9}),
        ("--max-episode-steps", {"max_episode_steps": 0}),
        ("--max-episode-steps", {"max_episode_steps": -1}),
        *[(f"--env-id {name}-v0", {"env_id": f"{name}-v0"}) for name in ("Fixed", "HalfFixed", "Huge", "Overflow")],
    ],
    ids=str,
)
def test_numbers_that_no_run_can_work_with_cost_one_sentence_at_once(words, flags, tmp_path, capsys):
    start = time.perf_counter()
    assert_fails(capsys, small(**flags, run_dir=tmp_path / "runs"), 2, words)
    assert not list(tmp_path.iterdir()) and time.perf_counter() - start < 5


# What lies outside


@pytest.mark.parametrize("clock", [lambda: 1.7e9, iter(range(10**9, 0, -1)).__next__], ids=["frozen", "backwards"])
def test_a_clock_that_stands_still_or_goes_back(clock, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", clock)
    train(small(run_dir=tmp_path, total_timesteps=60))
    assert_same_run(finished, tmp_path / finished.name)


def test_run_dir_may_be_a_string(finished, tmp_path):
    train(small(run_dir=str(tmp_path), total_timesteps=60))
    assert_same_run(finished, tmp_path / finished.name)
    main(Args(resume=str(tmp_path / finished.name)))


def test_a_compiler_cache_that_cannot_be_written_means_eager(tmp_path):
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": "/proc/nowhere", "OMP_NUM_THREADS": "1"}
    result = cli(*TINY.split(), "--run-dir", tmp_path, env=env)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    assert result.stdout.count("not possible here") == 1
    assert torch.load(next(tmp_path.rglob("checkpoint.pt")), weights_only=True)["step"] == 30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    args = tyro.cli(Args, args=[*TINY.split(), "--no-compile", "--run-dir", str(tmp_path_factory.mktemp("tiny"))])
    train(args)
    return omnet_sac.run_folder(args)


@pytest.mark.parametrize("closed", [True, False], ids=[">&- 2>&-", "the reader goes away"])
def test_a_process_that_nobody_listens_to_ends_well(closed, tiny, tmp_path):
    command = f"exec {sys.executable} {ROOT}/omnet_sac.py {TINY} --no-compile --run-dir {tmp_path}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    process = subprocess.Popen(["sh", "-c", command + " >&- 2>&-" * closed], **pipes)
    if not closed:
        process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 0
    assert_same_run(tiny, tmp_path / tiny.name)


class Gone:
    """A stream whose reader has gone."""

    encoding = "utf-8"

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    flush = isatty = fileno = lambda self: self.write("")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("stream", [None, Gone()], ids=["closed", "broken"])
def test_a_run_needs_nobody_who_listens(stream, name, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        main(small(run_dir=tmp_path, total_timesteps=60))
    assert_same_run(finished, tmp_path / finished.name)


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
