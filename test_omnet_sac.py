"""The method, stated exactly: `pytest` runs all of it in about three minutes on two cores."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import types
import warnings
from fractions import Fraction
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import omnet_sac
from maze_env import GOAL, START, WALLS, move
from omnet_sac import Adam, Args, ObservationNoise, OMNet, OMNetSAC, ReplayBuffer, evaluate, mlp, train

ROOT = Path(__file__).parent
torch.set_num_threads(1)


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
    batched = omnet(omnet.theta, omnet.masks, x)
    assert batched.shape == (4, 8, 3)
    for mask, out in zip(omnet.masks, batched):
        torch.testing.assert_close(out, omnet(omnet.theta, mask, x))
        nn.utils.vector_to_parameters(omnet.theta * mask, net.parameters())
        torch.testing.assert_close(out, net(x))
        nn.utils.vector_to_parameters(omnet.theta, net.parameters())
    assert not torch.allclose(batched[0], batched[1])


def test_one_subnetwork_without_sparsity_is_the_plain_network():
    net, x = mlp(6, 3, 16), torch.randn(8, 6)
    omnet = OMNet(net, num_subnets=1, sparsity=0.0)
    torch.testing.assert_close(omnet(omnet.theta, omnet.masks[0], x), net(x))


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
    index = {tuple(mask.tolist()): i for i, mask in enumerate(omnet.masks)}
    pairs = [tuple(index[tuple(m.tolist())] for m in pair) for pair in omnet.select(2000, 2, g)]
    assert all(i != j for i, j in pairs)
    counts = np.array([[pairs.count((i, j)) for j in range(5)] for i in range(5)])
    assert np.abs(counts[~np.eye(5, dtype=bool)] - 100).max() < 5 * math.sqrt(100)
    assert len(omnet.select(1, 5, g)[0].unique(dim=0)) == 5 and omnet.select(3, 9, g).shape[:2] == (3, 5)


# Appendix A: the update


class HandMade(OMNetSAC):
    """Q-values written by hand: subnetwork k of the critic says `values[k]`, everywhere."""

    values = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])

    def q_value(self, theta, mask, obs_action):
        self.asked = getattr(self, "asked", []) + [(theta, mask)]
        k = [(self.critic.masks == m).all(1).float().argmax().item() for m in mask.view(-1, mask.shape[-1])]
        q = self.values[k][:, None].expand(-1, len(obs_action)) + 0 * theta.sum() + 0 * obs_action.sum()
        return q if mask.dim() == 2 else q[0]


@pytest.mark.parametrize("pair", [(0, 1), (3, 2), (4, 0)])
def test_target_is_the_minimum_over_two_subnetworks_of_the_target_critic(pair):
    agent = HandMade(small(), 3, 2)
    agent.log_alpha.fill_(math.log(0.3))
    batch, noise = filled_buffer(agent).rows[:16], torch.randn(16, 2)
    _, log_pi = agent.policy(agent.actor.theta, agent.actor.masks[4], batch[:, 6:9], noise)
    reward, terminated, q = batch[:, 5], batch[:, 9], agent.values[1]
    target = reward + 0.99 * (1 - terminated) * (agent.values[list(pair)].min() - 0.3 * log_pi)
    loss, q_mean = agent.critic_step(
        batch, agent.critic.masks[1], agent.critic.masks[list(pair)], agent.actor.masks[4], noise
    )
    assert agent.asked[0][0] is agent.theta_target and len(agent.asked[0][1]) == 2
    assert loss.item() == pytest.approx((q - target).square().mean().item(), rel=1e-5) and q_mean == q
    assert terminated.any() and not terminated.all()


def test_update_draws_two_distinct_target_subnetworks_and_fresh_ones_in_every_step():
    seen = []

    class Recorder(OMNetSAC):
        def critic_step(self, batch, mask, target_masks, actor_mask, noise):
            seen.append((mask, target_masks, actor_mask, noise))
            return super().critic_step(batch, mask, target_masks, actor_mask, noise)

    agent = Recorder(small(replay_ratio=20, policy_delay=20), 3, 2)
    agent.update(filled_buffer(agent))
    assert all(len(pair.unique(dim=0)) == 2 for _, pair, _, _ in seen)
    for position in (0, 2):  # critic subnetwork i and actor subnetwork i''
        assert len(torch.stack([s[position] for s in seen]).unique(dim=0)) > 2
    assert len(torch.stack([s[3] for s in seen]).unique(dim=0)) == 20


def test_critic_step_on_subnetwork_i_gives_masked_entries_and_target_no_gradient():
    agent = make_agent(tau=0.0)
    batch, mask, target = filled_buffer(agent).rows[:16], agent.critic.masks[2], agent.theta_target.clone()
    agent.critic_step(batch, mask, agent.critic.masks[:2], agent.actor.masks[0], torch.randn(16, 2))
    grad = agent.critic_adam.m  # after the first step, (1 - beta1) times the gradient
    assert (grad[mask == 0] == 0).all() and (grad[mask == 1] != 0).float().mean() > 0.5
    assert torch.equal(agent.theta_target, target) and (agent.actor_adam.m == 0).all()
    moved = agent.critic.theta != agent.theta_target
    assert moved.any() and not moved[mask == 0].any()


def test_actor_loss_is_the_mean_over_all_subnetworks():
    agent = HandMade(small(), 3, 2)
    obs, noise = torch.randn(16, 3), torch.randn(16, 2)
    _, log_pi = agent.policy(agent.actor.theta, agent.actor.masks[0], obs, noise)
    loss, entropy, alpha = agent.actor_step(obs, agent.actor.masks[0], agent.critic.masks, noise)
    assert loss.item() == pytest.approx((alpha * log_pi.mean() - agent.values.mean()).item(), rel=1e-5)
    assert entropy.item() == pytest.approx(-log_pi.mean().item(), rel=1e-5)
    calls = []
    agent.actor_step = lambda obs, mask, critic_masks, noise: calls.append(critic_masks) or torch.zeros(3)
    agent.update(filled_buffer(agent))
    assert len(calls) == 1 and len(calls[0].unique(dim=0)) == 5


def test_actor_step_leaves_the_critic_alone_and_masked_actor_entries_without_gradient():
    agent = make_agent()
    critic, mask = agent.critic.theta.clone(), agent.actor.masks[3]
    agent.actor_step(torch.randn(16, 3), mask, agent.critic.masks, torch.randn(16, 2))
    assert torch.equal(agent.critic.theta, critic) and (agent.critic_adam.m == 0).all()
    assert (agent.actor_adam.m[mask == 0] == 0).all() and (agent.actor_adam.m[mask == 1] != 0).float().mean() > 0.5


@pytest.mark.parametrize("env_id, target", [("Hopper-v4", -1), ("Ant-v5", -4), ("maze_env:Maze-v0", -2)])
def test_alpha_rises_below_the_target_entropy_and_falls_above(env_id, target):
    agent = make_agent(env_id=env_id)
    assert agent.target_entropy == target and make_agent(target_entropy=0.0).target_entropy == 0
    agent.target_entropy = 100.0
    agent.actor_step(torch.randn(16, 3), agent.actor.masks[0], agent.critic.masks, torch.randn(16, 2))
    assert agent.log_alpha.item() == pytest.approx(agent.args.learning_rate, rel=1e-3)


def test_log_pi_is_that_of_a_squashed_gaussian():
    agent = make_agent()
    obs, noise, mask = torch.randn(64, 3), 2 * torch.randn(64, 2), agent.actor.masks[1]
    action, log_pi = agent.policy(agent.actor.theta, mask, obs, noise)
    mean, log_std = agent.actor(agent.actor.theta, mask, obs).double().chunk(2, -1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    expected = torch.tanh(mean + log_std.exp() * noise.double())
    torch.testing.assert_close(action.double(), expected, atol=1e-6, rtol=1e-5)
    inside = (expected.abs() < 0.999).all(-1)
    assert inside.sum() > 20
    torch.testing.assert_close(
        log_pi.double()[inside], squashed.log_prob(expected).sum(-1)[inside], atol=1e-4, rtol=1e-4
    )
    far, far_log_pi = agent.policy(agent.actor.theta, mask, obs, torch.full((64, 2), 50.0))
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
    agent.critic_step(
        filled_buffer(agent).rows[:16],
        *[agent.critic.masks[0], agent.critic.masks[:2]],
        agent.actor.masks[0],
        torch.randn(16, 2),
    )
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
    for subnet, time in agent.acted:
        episodes += [[]] if time <= previous else []
        episodes[-1].append(subnet)
        previous = time
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
TASTE = {"env_id": "Pendulum-v1", "hidden_dim": 64, "total_timesteps": 2500, "learning_starts": 500}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_compiled_and_eager_updates_are_the_same(device):
    """After 100 updates on the same random numbers, float32 rounding apart (6e-8 on a CPU)."""
    agents = []
    for compiled in (True, False):
        torch.manual_seed(0)
        agents.append(OMNetSAC(Args(**TASTE, compile=compiled, device=device), 3, 1))
        for _ in range(5):
            metrics = agents[-1].update(filled_buffer(agents[-1]))
    assert agents[0].gradient_steps == 100 and "critic_steps" in vars(agents[0]) and metrics["alpha"] < 1
    one, other = (dict(agent.named_parameters()) | dict(agent.named_buffers()) for agent in agents)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-5, msg=name)


def test_it_learns(tmp_path):
    """The README's first taste. Random play returns about -1200; below -250 the pendulum is not held up."""
    train(Args(**TASTE, eval_interval=2500, run_dir=tmp_path))
    returns = [row["return"] for row in read_csv(next(tmp_path.iterdir()) / "eval.csv")]
    assert np.mean(returns) > -250


# The command line


def cli(*flags, **popen) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "omnet_sac.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **popen)


TINY = [
    *[
        "--env-id",
        "Pendulum-v1",
        "--hidden-dim",
        "8",
        "--batch-size",
        "8",
        "--learning-starts",
        "20",
        "--total-timesteps",
        "30",
    ]
]


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
