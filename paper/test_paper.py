"""Tests of paper/: the benchmark, the methods, the probes, the sweeps."""

import csv
import dataclasses
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch

import omnet_sac
from omnet_sac import Args, OMNetSAC, ReplayBuffer, mlp, train
from paper import baselines, probes, speed
from paper.baselines import METHODS, Dropout, EnsembleSAC
from paper.flops import trace
from paper.probes import value_bias
from paper.speed import HEADER, main, measure

torch.set_num_threads(1)  # as in a sweep: sums of two threads round differently


def hand_counted_flop(obs_dim, action_dim, hidden_dim, num_subnets, batch_size, policy_delay):
    """FLOPs per critic update: two per multiplication, and a backward product for every operand that has a gradient."""
    hidden = hidden_dim**2
    actor = obs_dim * hidden_dim + hidden + hidden_dim * 2 * action_dim
    critic = (obs_dim + action_dim) * hidden_dim + hidden + hidden_dim
    target = actor + min(2, num_subnets) * critic
    online = 2 * critic + hidden + hidden_dim  # no gradient reaches the minibatch
    policy = 2 * actor + hidden + hidden_dim * 2 * action_dim
    return 2 * batch_size * (target + online + (policy + num_subnets * 2 * critic) / policy_delay)


@pytest.mark.parametrize(
    "obs_dim, action_dim, flags",
    [
        (11, 3, {"batch_size": 16}),
        (5, 2, {"hidden_dim": 16, "batch_size": 8, "num_subnets": 3, "replay_ratio": 4, "policy_delay": 6}),
        (5, 2, {"hidden_dim": 16, "batch_size": 8, "num_subnets": 1, "replay_ratio": 2, "policy_delay": 1}),
    ],
)
def test_flop_count_is_the_hand_count(obs_dim, action_dim, flags):
    args = Args(**flags)
    products, num_updates = trace(args, OMNetSAC, obs_dim, action_dim)
    sizes = args.hidden_dim, args.num_subnets, args.batch_size, args.policy_delay
    assert products.flop / num_updates == hand_counted_flop(obs_dim, action_dim, *sizes)
    if obs_dim == 11:
        assert round(16 * products.flop / num_updates / 1e6) == 235  # Hopper, the paper's settings, batch 256


def test_rows_are_consistent_and_appended_to_the_csv(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "ROUNDS", 2)
    flags = {"hidden_dim": 16, "batch_size": 16, "replay_ratio": 2, "policy_delay": 4, "compile": False}
    path = tmp_path / "speed.csv"
    for _ in range(2):
        main(speed.Flags(env_id="Pendulum-v1", seconds=0.2, csv=path, **flags))
    assert "ratio_to_floor" in capsys.readouterr().out
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and list(rows[0]) == HEADER.split(",")
    for row in rows:
        assert (row["method"], row["env_id"], row["compiled"]) == ("omnet_sac", "Pendulum-v1", "False")
        updates, steps, ms, gflop, floor, ratio, peak, act = (float(row[name]) for name in HEADER.split(",")[5:])
        assert min(gflop, floor, ratio, act) > 0 and 50 < peak < 20_000
        assert steps * 2 == pytest.approx(updates, rel=1e-3)
        assert ms == pytest.approx(1000 / updates, rel=1e-3)
        assert ratio == pytest.approx(ms / floor, rel=2e-3) and ratio > 1
        assert gflop == pytest.approx(hand_counted_flop(3, 1, 16, 5, 16, 4) / 1e9, rel=1e-3)


def test_peers_that_are_not_installed_are_named_in_one_line(monkeypatch, capsys):
    for module in ("stable_baselines3", "sbx"):
        monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    for name in ("NPROC", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.setenv(name, "")  # restored after the test
    args = Args(env_id="Pendulum-v1", hidden_dim=16, batch_size=16, replay_ratio=1, policy_delay=1, compile=False)
    (row,) = measure([(args, OMNetSAC)], threads=1, seconds=0.1, peers=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert row["method"] == "omnet_sac" and all(name in line for name in ("sb3_sac", "sbx_sac", "sbx_droq"))


def test_what_the_user_can_mend_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as exit:
        main(speed.Flags(threads=0))
    assert exit.value.code == 2 and "--threads" in capsys.readouterr().err


# paper/baselines.py


def small(method: str, **flags):
    """Flags of a run of a method that takes a second."""
    defaults = {"env_id": "Pendulum-v1", "total_timesteps": 120, "learning_starts": 40, "batch_size": 16}
    defaults |= {"hidden_dim": 16, "eval_interval": 50, "eval_episodes": 1, "compile": False}
    return dataclasses.replace(METHODS[method][1], **defaults | flags)


def make(method: str, **flags) -> EnsembleSAC:
    return EnsembleSAC(small(method, **flags), 3, 2)


def filled_buffer(agent, n=64) -> ReplayBuffer:
    buffer = ReplayBuffer(n, 3, 2, "cpu", added=n)
    buffer.rows.copy_(torch.randn(buffer.rows.shape, generator=torch.Generator().manual_seed(0)))
    buffer.rows[:, -1] = (buffer.rows[:, -1] > 1).float()
    return buffer


def test_the_methods_are_the_papers():
    """DESIGN: critics, updates per step, layer norm, dropout, reset."""
    knobs = ["num_critics", "replay_ratio", "policy_delay", "layer_norm", "dropout", "reset_interval", "actor_minimum"]
    table = {name: tuple(getattr(args, k) for k in knobs) for name, (_, args) in METHODS.items() if name != "omnet-sac"}
    assert table == {
        "sac": (2, 1, 1, False, 0.0, 0, True),
        "sac-20": (2, 20, 20, False, 0.0, 0, False),
        "redq": (10, 20, 20, False, 0.0, 0, False),
        "droq": (2, 20, 20, True, None, 0, False),
        "sr-sac": (2, 20, 20, False, 0.0, 100_000, False),
        "sin-sac": (1, 20, 20, False, 0.0, 0, False),
        "sin-droq": (1, 20, 20, True, None, 0, False),
        "sr-sin-sac": (1, 20, 20, False, 0.0, 100_000, False),
    }
    dropout = {m: [make(m, env_id=f"{t}-v4").critic.dropout for t in TASKS] for m in ("droq", "sin-droq")}
    assert dropout == {"droq": [0.001, 0.003, 0.01, 0.03], "sin-droq": [0.001, 0.01, 0.1, 0.01]}


TASKS = "Hopper", "Walker2d", "Ant", "Humanoid"


@pytest.mark.parametrize("method", [m for m in METHODS if m != "omnet-sac"])
def test_which_critics_enter_target_and_losses(method):
    """Q-values are the critics' numbers, so the losses name the critics that were asked."""

    class HandMade(EnsembleSAC):
        def q_value(self, theta, i, obs_action):
            asked.append((theta, len(self.critic(theta, i, obs_action))))
            return super().q_value(theta, i, obs_action)

    asked, agent = [], HandMade(small(method), 3, 2)
    agent.update(filled_buffer(agent))
    num_critics, in_target = agent.args.num_critics, 2 if agent.args.num_critics > 1 or agent.critic.dropout else 1
    *critic, actor = [n for _, n in asked]
    assert critic == [in_target, num_critics] * agent.args.replay_ratio and actor == num_critics
    assert asked[0][0] is agent.theta_target and asked[-1][0] is agent.critic.theta
    assert agent.critic.theta.numel() == num_critics * sum(size.numel() for size in agent.critic.shapes.values())
    grads = agent.critic_adam.v.view(num_critics, -1)
    assert (grads.sum(1) > 0).all(), "every critic learns"
    assert agent.num_actor_subnets == 1 and not any("Norm" in name for name in agent.actor.shapes)
    critics = agent.critic.theta.view(num_critics, -1)
    assert len(critics.unique(dim=0)) == num_critics, "critics start from weights of their own"


def test_target_is_the_minimum_over_two_random_critics_of_redq():
    agent = make("redq")
    pairs = agent.critic.select(5000, 2, torch.Generator().manual_seed(0))
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = torch.bincount((pairs[:, 0] * 10 + pairs[:, 1]), minlength=100).view(10, 10)
    assert (counts[~torch.eye(10, dtype=bool)] - 5000 / 90).abs().max() < 5 * (5000 / 90) ** 0.5
    x = torch.randn(16, 5)
    every, two = agent.critic(agent.critic.theta, ALL, x), agent.critic(agent.critic.theta, torch.tensor([7, 3]), x)
    assert every.shape == (10, 16, 1)
    torch.testing.assert_close(two, every[[7, 3]])


ALL = torch.arange(10)


@pytest.mark.parametrize("method, pooled", [("sac", "amin"), ("sac-20", "mean"), ("redq", "mean")])
def test_actor_climbs_the_minimum_in_sac_and_else_the_mean(method, pooled):
    agent = make(method)
    obs, noise, i = torch.randn(16, 3), torch.randn(16, 2), ALL[: agent.args.num_critics]
    action, log_pi = agent.policy(agent.actor.theta, ALL[:1], obs, noise)
    q = agent.critic(agent.critic.theta, i, torch.cat([obs, action], -1)).squeeze(-1)
    loss, _, alpha = agent.actor_step(obs, ALL[:1], i, noise)
    assert loss.item() == pytest.approx((alpha * log_pi - getattr(q, pooled)(0)).mean().item(), rel=1e-4, abs=1e-6)


def test_dropout_comes_before_layer_norm_before_relu_and_is_active_in_every_pass():
    agent = make("droq", dropout=0.25, hidden_dim=64)
    net = Dropout(mlp(5, 1, 64), 0.25)
    assert [type(layer).__name__ for layer in net.net] == ["Linear", "LayerNorm", "ReLU"] * 2 + ["Linear"]
    x, keep = torch.randn(16, 5), agent.critic.select(1, 1)[0, 0]
    expected = x
    for k in range(2):
        linear, norm = net.net[3 * k], net.net[3 * k + 1]
        expected = torch.relu(norm(linear(expected) * keep[k] / 0.75))
    torch.testing.assert_close(net(x, keep), net.net[6](expected))
    for k, passes in ((1, 2), (2, 2)):  # updates and actor: both critics; target: both, with units of their own
        keep = agent.critic.select(50, k, torch.Generator().manual_seed(0))
        assert keep.shape == (50, passes, 2, 16, 64) and keep.unique().tolist() == [0, 1]
        assert keep.float().mean().item() == pytest.approx(0.75, abs=0.003)
    sin = make("sin-droq", dropout=0.25)
    assert len(sin.critic.select(1, 1)[0]) == 1 and len(sin.critic.select(1, 2)[0]) == 2
    one, two = sin.critic(sin.critic.theta, sin.critic.select(1, 2)[0], torch.randn(16, 5))
    assert not torch.equal(one, two), "the two passes of the target drop other units"


@pytest.mark.parametrize("method", ["sr-sac", "sr-sin-sac"])
def test_reset_is_fresh_at_the_right_step_and_keeps_replay_and_steps(method, tmp_path):
    resets, states = [], []

    class Watched(EnsembleSAC):
        def reset(self):
            before = {name: value.clone() for name, value in self.state_dict().items() if torch.is_tensor(value)}
            first.setdefault("theta", before["critic.theta"])
            super().reset()
            resets.append(self.steps_seen)
            states.append((before, {n: v.clone() for n, v in self.state_dict().items() if torch.is_tensor(v)}))

        def update(self, buffer):
            self.steps_seen = buffer.added
            rows = buffer.rows.clone()
            metrics = super().update(buffer)
            assert torch.equal(buffer.rows, rows)
            return metrics

    first: dict[str, torch.Tensor] = {}
    agent = train(small(method, reset_interval=50, run_dir=tmp_path), Watched)
    assert resets == [50, 100] and agent.gradient_steps == 20 * 80
    for before, after in states:
        for name in ("critic.theta", "actor.theta"):
            assert (before[name] != after[name]).float().mean() > 0.9
        assert torch.equal(after["theta_target"], after["critic.theta"]) and after["log_alpha"] == 0
        assert all((value == 0).all() for name, value in after.items() if "adam.m" in name or "adam.v" in name)
        assert after["critic_adam.beta1_t"] == 1
    assert not torch.equal(states[0][1]["critic.theta"], states[1][1]["critic.theta"]), "fresh, not the same again"


def test_a_resumed_baseline_is_the_uninterrupted_one(tmp_path):
    """With resets, dropout and a probe: all that baselines add to the state of a run."""
    flags = {"dropout": 0.1, "layer_norm": True, "reset_interval": 130, "bias_interval": 100, "gamma": 0.5}
    flags |= {"total_timesteps": 320, "checkpoint_interval": 100, "replay_ratio": 1}

    class Stop(Exception):
        pass

    def stopping(args, obs_dim, action_dim):
        agent = baselines.make_agent(args, obs_dim, action_dim)
        update = agent.update

        def update_or_stop(buffer):
            if buffer.added == 250:
                raise Stop
            return update(buffer)

        agent.update = update_or_stop
        return agent

    whole = small("droq", run_dir=tmp_path / "whole", **flags)
    train(whole, baselines.make_agent)
    with pytest.raises(Stop):
        train(small("droq", run_dir=tmp_path / "killed", **flags), stopping)
    one, two = (tmp_path / name / "Pendulum-v1__droq__1" for name in ("whole", "killed"))
    train(omnet_sac.stored_args(two, whole), baselines.make_agent)
    for name in ("train.csv", "bias.csv"):
        assert (one / name).read_text() == (two / name).read_text()
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True)["agent"] for folder in (one, two))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_bad_knobs_are_one_sentence(capsys):
    for flags in ({"num_critics": 0}, {"dropout": 1.0}, {"num_critics": 3, "dropout": 0.1}, {"reset_interval": -1}):
        with pytest.raises(SystemExit) as exit:
            baselines.main(small("sac-20", **flags))
        assert exit.value.code == 2 and capsys.readouterr().err.count("\n") == 1


class Reach(gym.Env):
    """A point in the plane moves by its action; the reward is minus its squared distance to the origin; 10 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-0.3, 0.3, (2,), np.float32)

    def __init__(self, render_mode=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.position = self.position + action
        return self.position.astype(np.float32), -float(self.position @ self.position), False, False, {}


gym.register("Reach-v0", Reach, max_episode_steps=10)


def test_sac_is_the_sac_of_stable_baselines3(tmp_path):
    """Returns of four seeds each after 600 steps, 100 episodes a seed: the same within the standard errors."""
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy

    shared = {"batch_size": 64, "learning_starts": 100, "learning_rate": 3e-3}
    flags = shared | {"env_id": "Reach-v0", "hidden_dim": 32, "total_timesteps": 600, "eval_interval": 0}
    ours, theirs = [], []
    for seed in range(4):
        agent = train(small("sac", **flags, seed=seed, run_dir=tmp_path), EnsembleSAC)
        env = omnet_sac.make_env(agent.args)
        ours.append(np.mean([result[1] for result in omnet_sac.evaluate(agent, env, 100, [seed])]))
        kwargs = shared | {"policy_kwargs": {"net_arch": [32, 32]}, "device": "cpu", "seed": seed}
        model = sb3.SAC("MlpPolicy", gym.make("Reach-v0"), **kwargs).learn(600)
        theirs.append(evaluate_policy(model, model.get_env(), 100)[0])
    difference, error = np.mean(ours) - np.mean(theirs), np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 4)
    assert min(*ours, *theirs) > -3, (ours, theirs)  # standing still returns -6.7
    assert abs(difference) < 3 * error + 0.05, (ours, theirs)


# paper/probes.py


class Steady(gym.Env):
    """Reward 1 in every step, 30 steps: with gamma = 0.5, every return and every bonus can be written down."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(3, np.float32), 1.0, self.t == 30 and self.terminates, False, {}


class Terminating(Steady):
    terminates = True


class Truncated(Steady):
    terminates = False


gym.register("Terminating-v0", Terminating)
gym.register("Truncated-v0", Truncated, max_episode_steps=30)


@pytest.mark.parametrize("env_id, num_usable", [("Terminating-v0", 30), ("Truncated-v0", 21)])
def test_value_bias_is_q_minus_the_soft_return_that_followed(env_id, num_usable):
    """In an environment without states, against the sum written out; 2^-9 is the first power below BIAS_TAIL."""
    args = small("sac-20", env_id=env_id, gamma=0.5)
    agent = EnsembleSAC(args, 3, 2)
    agent.log_alpha.fill_(-100.0)  # no bonus
    bias = value_bias(args, agent, 0)
    returns = [sum(0.5**k for k in range(30 - t)) for t in range(num_usable)]
    assert bias["states"] % num_usable == 0 and bias["states"] >= 1000
    assert bias["return"] == pytest.approx(np.mean(returns), rel=1e-5)

    class Seven(EnsembleSAC):
        def q_value(self, theta, i, obs_action):
            return torch.full((2, len(obs_action)), 7.0)

    agent = Seven(args, 3, 2)
    agent.log_alpha.fill_(-100.0)
    bias = value_bias(args, agent, 0)
    assert bias["mean"] == pytest.approx(7 - np.mean(returns), rel=1e-5)
    assert bias["std"] == pytest.approx(np.std(returns), rel=2e-2, abs=1e-6)
    assert bias["normalised_mean"] == pytest.approx(bias["mean"] / bias["return"], rel=1e-5)
    agent.log_alpha.fill_(0.0)  # the bonus: entropy of every later action, here that of one fixed Gaussian
    with_bonus = value_bias(args, agent, 0)
    _, log_pi = agent.policy(agent.actor.theta, ALL[:1], torch.zeros(20000, 3), torch.randn(20000, 2))
    expected = np.mean([sum(0.5**k for k in range(1, 30 - t)) for t in range(num_usable)]) * -log_pi.mean().item()
    assert with_bonus["return"] - bias["return"] == pytest.approx(expected, abs=0.15)


def test_diversity_of_hand_made_critics_and_actors():
    """Three critics and two actors at four states, every number written out."""
    q_pi = torch.tensor([1.0, 2.0, 3.0, -10.0])  # mean -1
    error = torch.tensor([1.0, -1.0, 1.0, -1.0])
    q = q_pi + torch.stack([error, 2 * error, -error])
    actions = torch.zeros(2, 4, 2)
    actions[1, 0] = torch.tensor([3.0, 4.0])
    found = {name: value.item() for name, value in probes.diversity(q, q_pi, actions).items()}
    assert found == pytest.approx(
        {
            "normalised_spread": (7 / 3) ** 0.5,  # of 1, 2, -1, with the mean 2/3: (1/9 + 16/9 + 25/9) / 2
            "normalised_gap": (0.5 + 1 + 1.5) / 3,  # half of |1 - 2|, |1 + 1|, |2 + 1|
            "error_correlation": (1 - 1 - 1) / 3,
            "action_distance": 5 / 4,
        }
    )
    least = torch.stack([torch.minimum(q[i], q[j]) for i, j in ((0, 1), (0, 2), (1, 2))]).mean()
    assert found["normalised_gap"] == pytest.approx((q.mean() - least).item())
    assert probes.diversity(q[:1], q_pi, actions[:1]) == {}


def test_diversity_of_equal_subnetworks_is_zero_and_of_masked_ones_is_not():
    columns = set(probes.BIAS_COLUMNS.split(",")[-4:])
    flags = {"env_id": "Terminating-v0", "gamma": 0.5}
    for sparsity, differ in ((0.0, False), (0.5, True)):
        args = small("omnet-sac", sparsity=sparsity, **flags)
        agent = OMNetSAC(args, 3, 2)
        agent.actor.theta.normal_()  # all observations are 0: biases that are not
        bias = value_bias(args, agent, 0)
        assert columns <= bias.keys()
        assert [bias[name] > 0 for name in columns - {"error_correlation"}] == [differ] * 3
    redq, sin_sac = (
        value_bias(args, EnsembleSAC(args, 3, 2), 0) for args in (small(m, **flags) for m in ("redq", "sin-sac"))
    )
    assert columns - redq.keys() == {"action_distance"} and columns.isdisjoint(sin_sac)


@pytest.mark.parametrize(
    "flags, dense",
    [({"mask_input": False}, "0"), ({"mask_output": False}, "6"), ({"mask_input": False, "mask_output": False}, "06")],
)
@pytest.mark.parametrize("where", ["both", "critic", "actor"])
def test_layers_can_be_left_dense_and_nothing_else_changes(flags, dense, where):
    torch.manual_seed(0)
    plain = OMNetSAC(small("omnet-sac"), 3, 2)
    torch.manual_seed(0)
    agent = baselines.OMNetVariant(small("omnet-sac", **flags, dense_in=where), 3, 2)
    for name in ("critic", "actor"):
        one, two = getattr(plain, name), getattr(agent, name)
        layer = [key[0] for key, size in two.shapes.items() for _ in range(size.numel())]
        chosen = torch.tensor([key in dense and where in ("both", name) for key in layer])
        assert two.masks[:, chosen].all() and torch.equal(two.masks[:, ~chosen], one.masks[:, ~chosen])
        assert torch.equal(one.theta, two.theta) and (two.draw(3)[:, chosen] == 1).all()
    assert torch.equal(plain.generator.get_state(), agent.generator.get_state())


def test_balanced_masks_share_every_parameter_alike():
    agent = baselines.OMNetVariant(small("omnet-sac", balanced_masks=True, hidden_dim=64), 3, 2)
    layer = [key[0] for key, size in agent.critic.shapes.items() for _ in range(size.numel())]
    linear = torch.tensor([key not in "14" for key in layer])
    counts = agent.critic.masks.sum(0)
    assert set(counts[linear].tolist()) == {2, 3} and (counts[~linear] == 5).all()
    assert agent.critic.masks[:, linear].float().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("method", ["omnet-sac", "sac-20"])
def test_probes_leave_training_as_it_is(method, tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "BIAS_STATES", 100)
    plain = {"gamma": 0.5, "replay_ratio": 2, "policy_delay": 2}
    curves = []
    for name, flags in (("plain", plain), ("probed", plain | {"bias_interval": 30, "trajectory_interval": 20})):
        train(small(method, env_id="maze_env:Maze-v0", run_dir=tmp_path / name, **flags), baselines.make_agent)
        (folder,) = (tmp_path / name).iterdir()
        curves.append(torch.load(folder / "checkpoint.pt", weights_only=True))
    torch.testing.assert_close(*(c["agent"] for c in curves), rtol=0, atol=0)
    torch.testing.assert_close(*(c["buffer"] for c in curves), rtol=0, atol=0)
    visits = np.loadtxt(folder / "visits.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(visits[:, 1:], curves[1]["buffer"]["rows"][40:, 5:7], atol=1e-7)
    assert visits[:, 0].tolist() == list(range(41, 121))
    paths = np.loadtxt(folder / "trajectories.csv", delimiter=",", skiprows=1)
    num_subnets = 5 if method == "omnet-sac" else 1
    assert set(paths[:, 0]) == {60, 80, 100, 120} and set(paths[:, 1]) == set(range(num_subnets))
    starts = paths[paths[:, 2] == 0]
    assert len(starts) == 4 * num_subnets and np.allclose(starts[:, 3:], 0.5)


# paper/experiments.py


def same_run(one: Path, two: Path) -> None:
    """Rows but for their seconds, and every number in the checkpoint."""
    assert (one / "train.csv").read_text() == (two / "train.csv").read_text()
    rows = ([line.rsplit(",", 1)[0] for line in (f / "eval.csv").read_text().split("\n")] for f in (one, two))
    assert next(rows) == next(rows)
    a, b = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (one, two))
    torch.testing.assert_close([a["agent"], a["buffer"]], [b["agent"], b["buffer"]], rtol=0, atol=0)


def sweep(run_dir: Path) -> list:
    flags = {"total_timesteps": 420, "replay_ratio": 2, "policy_delay": 2, "checkpoint_interval": 200}
    return [small(method, run_dir=run_dir, **flags) for method in ("sac-20", "omnet-sac")]


def kill_a_worker_in_the_middle(run_dir: Path, killed: list) -> None:
    """SIGKILL for the worker of the first run, once it has a checkpoint to go on from."""
    folder = omnet_sac.run_folder(sweep(run_dir)[0])
    while not (folder / "checkpoint.pt").exists():
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        if "ray::execute" in process.name() or "ray::execute" in " ".join(process.cmdline()):
            process.kill()
            killed.append(process.pid)


RAY = pytest.mark.xdist_group("ray")


@RAY
def test_a_sweep_whose_workers_are_killed_is_the_runs_alone(tmp_path):
    experiments = pytest.importorskip("paper.experiments")
    for args in sweep(tmp_path / "alone"):
        train(args, baselines.make_agent)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_in_the_middle, args=(tmp_path / "sweep", killed), daemon=True)
    killer.start()
    bad = dataclasses.replace(sweep(tmp_path / "sweep")[0], seed=3, batch_size=100)  # more than learning_starts
    flags = experiments.Flags(figures=(), results=tmp_path, num_cpus=0.5)
    failed = experiments.run_all([bad, *sweep(tmp_path / "sweep")], flags)
    killer.join(timeout=10)
    assert (
        killed and list(failed) == [omnet_sac.run_folder(bad)] and "--batch-size" in failed[omnet_sac.run_folder(bad)]
    )
    for one, two in zip(sweep(tmp_path / "alone"), sweep(tmp_path / "sweep")):
        same_run(omnet_sac.run_folder(one), omnet_sac.run_folder(two))


ON_A_CLUSTER = """
import sys, time, ray
from pathlib import Path
from paper.experiments import Flags, is_finished, run_all
from paper.test_paper import sweep
results, address = Path(sys.argv[1]), sys.argv[2]
ray.init(address)
while len(ray.nodes()) < 2:
    time.sleep(0.2)
ray.shutdown()
assert run_all(sweep(results), Flags(figures=(), results=results, ray_address=address)) == {}
assert all(map(is_finished, sweep(results)))
"""


@RAY
def test_a_sweep_on_a_cluster_of_two_nodes(tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    options = {"env": env | {"RAY_USAGE_STATS_ENABLED": "0"}, "cwd": Path(__file__).parent.parent}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    head = ["--head", "--port", str(port), "--node-ip-address", "127.0.0.1", "--include-dashboard", "false"]
    quiet = options | {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    nodes = [subprocess.Popen([*start, *head], **quiet)]
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert nodes[0].poll() is None
            time.sleep(0.2)
        nodes.append(subprocess.Popen([*start, "--address", f"127.0.0.1:{port}"], **quiet))
        script = [sys.executable, "-c", ON_A_CLUSTER, str(tmp_path), f"127.0.0.1:{port}"]
        subprocess.run(script, **options, check=True, timeout=300)
    finally:
        for node in nodes[::-1]:
            node.terminate()
            node.wait(timeout=60)


def test_dry_run_prints_each_missing_run_once_and_what_it_costs(tmp_path, capsys):
    experiments = pytest.importorskip("paper.experiments")
    flags = experiments.Flags(("fig9a", "fig9b"), ("Hopper-v4",), seeds=2, total_timesteps=10_000, results=tmp_path)
    flags = dataclasses.replace(flags, dry_run=True)
    experiments.main(flags)
    *commands, summary = capsys.readouterr().out.splitlines()
    assert len(set(commands)) == len(commands) == 2 * (1 + 4 + 5) and summary.startswith("20 runs to do, 0 finished")
    assert "python -m paper.baselines omnet-sac --total-timesteps 10000 --num-subnets 8 " in "\n".join(commands)
    gflop = 20 * 5_000 * 4.692  # of Hopper, 235 MFLOP per update
    assert float(re.search(r"([\d.]+) PFLOP", summary)[1]) == pytest.approx(gflop / 1e6, abs=0.01)
    args = experiments.figure_runs(flags)[0]
    folder = omnet_sac.run_folder(args)
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(omnet_sac.describe(args)))
    experiments.main(flags)
    assert f"omnet-sac --resume {folder}" in capsys.readouterr().out
    (folder / "eval.csv").write_text("step,episode,subnet,return,length,seconds\n10000,0,0,1.0,10,1.0\n")
    experiments.main(flags)
    assert capsys.readouterr().out.splitlines()[-1].startswith("19 runs to do, 1 finished")
    with pytest.raises(SystemExit) as exit:
        experiments.main(dataclasses.replace(flags, total_timesteps=20_000))
    assert exit.value.code == 2 and "of 10000 steps, not of 20000" in capsys.readouterr().err


def test_every_figure_can_be_asked_for(tmp_path):
    experiments = pytest.importorskip("paper.experiments")
    names = ["fig2a", "fig2b", "fig3", "fig4", "fig5-7", "fig8", "fig9a", "fig9b", "fig10", "fig11"]
    names += ["bias-all-tasks", "noise-all-tasks"]
    assert list(experiments.FIGURES) == names
    for name in names:
        runs = experiments.figure_runs(experiments.Flags((name,), results=tmp_path))
        assert len(runs) == 10 * len(experiments.FIGURES[name].env_ids) * len(experiments.FIGURES[name].variants)
        for args in runs:
            omnet_sac.check_args(args)


# paper/figures.py


def write_run(folder: Path, returns: dict[int, list[float]], **files: str) -> None:
    folder.mkdir(parents=True)
    rows = [f"{step},{k},0,{value},10,1.0\n" for step, values in returns.items() for k, value in enumerate(values)]
    (folder / "eval.csv").write_text("step,episode,subnet,return,length,seconds\n" + "".join(rows))
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)


def test_score_is_the_mean_over_the_last_sixth(tmp_path):
    write_run(tmp_path / "run", {step: [step, step + 2] for step in range(5_000, 300_001, 5_000)})
    figures = pytest.importorskip("paper.figures")
    assert figures.score(tmp_path / "run") == np.mean(range(255_000, 300_001, 5_000)) + 1


def test_published_curves_are_scored_over_the_same_steps(tmp_path):
    figures = pytest.importorskip("paper.figures")
    folder = tmp_path / "omnet_sac" / "Hopper-v4__omnet_sac__1"
    write_run(folder, {step: [step / 10] for step in range(5_000, 40_001, 5_000)})
    write_run(folder.with_name("Ant-v4__omnet_sac__1"), {step: [0] for step in range(5_000, 20_001, 5_000)})
    table = figures.draw_curves("fig2a", tmp_path).splitlines()
    assert table[2] == "| Hopper-v4 | OMNet | 1 | 40,000 | 3750 | 3750 |"
    means = [1847.8 + (2484.7 - 1847.8) * (step - 33_332) / (49_998 - 33_332) for step in (35_000, 40_000)]
    assert f"| Hopper-v4 | REDQ-20, published | 10 | 40,000 | {np.mean(means):.0f} |  |" in table
    assert sum("published" in line and "| Hopper-v4 | " in line for line in table) == 2
    assert sum("published" in line and "| Ant-v4 | " in line and "| 20,000 |" in line for line in table) == 2


def test_interquartile_mean_and_stratified_bootstrap():
    figures = pytest.importorskip("paper.figures")
    assert figures.iqm(np.array([0, 1, 2, 100.0])) == 1.5
    values = np.random.default_rng(0).normal(size=41)
    assert figures.iqm(values) == pytest.approx(np.mean(np.repeat(np.sort(values), 4)[41:123]))
    groups = [np.random.default_rng(k).normal(10 * k, 1, 100) for k in range(2)]
    low, high = figures.bootstrap(groups, lambda sample: np.mean([group.mean() for group in sample]))
    exact = 1.96 * (0.5 * (groups[0].var() + groups[1].var()) / 2 / 100) ** 0.5  # no spread between the groups in it
    assert (high - low) / 2 == pytest.approx(exact, rel=0.1)
    assert figures.interval([1.0], digits=1) == "1.0" and figures.interval([2.0, 2.0]) == "2 [2, 2]"


def test_numbers_of_the_maze(tmp_path):
    figures = pytest.importorskip("paper.figures")
    returns = {200 * k: [0, 0, 100, 100, 100] if k == 3 else [100.0 * (k == 1 or k > 4)] * 5 for k in range(1, 11)}
    visits = "step,obs_0,obs_1\n1,0.01,0.01\n2,0.02,0.02\n3,0.99,0.99\n4,0.5,0.66666657\n5,0.5,0.66666677\n"
    train = "step,subnet,return,length\n950,1,100.0,40\n1000,0,0.0,50\n1030,2,100.0,30\n1070,2,100.0,40\n"
    write_run(tmp_path / "run", returns, visits=visits, train=train)
    assert figures.steps_to_success(tmp_path / "run") == 1000, "the first success that lasts"
    assert figures.first_success(tmp_path / "run", 1000) == 30, "one of the warm-up does not count"
    assert figures.first_success(tmp_path / "run", 1050) == 20 and figures.first_success(tmp_path / "run", 1070) == 0
    grid = figures.visitation(tmp_path / "run", 3)
    assert grid[0, 0] == pytest.approx(2 / 3) and grid[29, 29] == pytest.approx(1 / 3) and grid.shape == (30, 30)
    grid = figures.visitation(tmp_path / "run", 5)
    assert grid[15, 19] == grid[15, 20] == 0.2, "a wall between two cells"
    still, moving = np.zeros((1, 2)), np.array([[0.0, 0.0], [0.3, 0.4]])
    assert figures.divergence([still, moving, moving], length=3) == pytest.approx(2 / 3 * 0.5 * 2 / 3)


def test_every_figure_is_drawn_from_raw_files(tmp_path, capsys):
    figures = pytest.importorskip("paper.figures")
    rng = np.random.default_rng(0)
    xy = [f"{x:.3f},{y:.3f}\n" for x, y in rng.uniform(size=(1000, 2))]
    visits = "step,obs_0,obs_1\n" + "".join(f"{1001 + k},{text}" for k, text in enumerate(xy))
    paths = [
        f"{step},{i},{t},{xy[step // 200 + 7 * i + t]}"
        for step in range(1200, 3001, 200)
        for i in range(5)
        for t in (0, 1)
    ]
    bias = "step,normalised_mean\n5000,0.5\n10000,0.7\n"
    files = {"visits": visits, "trajectories": "step,subnet,t,obs_0,obs_1\n" + "".join(paths), "bias": bias}
    files["train"] = "step,subnet,return,length\n1050,0,0.0,50\n1090,0,100.0,40\n"
    for figure in figures.FIGURES.values():
        for variant in figure.variants.values():
            for env_id in figure.env_ids[:1]:
                for seed in (1, 2):
                    folder = tmp_path / variant.name / f"{env_id.replace(':', '-')}__x__{seed}"
                    if not folder.exists():
                        write_run(folder, {s: [float(s)] for s in range(1000, 12_001, 1000)}, **files)
    for name in figures.FIGURES:
        figures.main(figures.Flags((name,), results=tmp_path))
        table = (tmp_path / "figures" / f"{name}.md").read_text()
        assert table.startswith("| ") and table in capsys.readouterr().out
        for title in figures.FIGURES[name].variants:
            assert title in table
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == set(figures.FIGURES) - {"fig5-7"} | {"fig5", "fig6", "fig7"}
    with pytest.raises(SystemExit):
        figures.main(figures.Flags(("fig4",), results=tmp_path / "nothing"))
    assert "python -m paper.experiments fig4" in capsys.readouterr().err
