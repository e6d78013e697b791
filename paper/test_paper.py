"""Tests of paper/: the benchmark, the methods, the probes, the sweeps."""

import ast
import contextlib
import csv
import dataclasses
import functools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from itertools import combinations, groupby, product
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
import tyro

import omnet_sac
import test_omnet_sac as tests
from omnet_sac import Args, OMNetSAC, ReplayBuffer, UsageError, mlp, run_folder, train
from paper import baselines, flops, pack, probes, speed
from paper.baselines import METHODS, Dropout, EnsembleSAC
from paper.flops import trace
from paper.probes import value_bias
from paper.speed import HEADER, main, measure

try:
    from paper import compare, experiments, figures, stats, sweep
except ImportError as error:
    missing = f"pip install -r paper/requirements.txt: {error}"
else:
    missing = ""
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "paper" / "results"
PAPER = pytest.mark.skipif(bool(missing), reason=missing or "all packages are there")
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
        assert (row["method"], row["env_id"], row["compiled"]) == ("omnet-sac", "Pendulum-v1", "False")
        assert row["hidden_dim"] == "16"
        updates, steps, ms, gflop, floor, ratio, peak, act = (float(row[name]) for name in HEADER.split(",")[6:])
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
    (row,) = measure({"omnet-sac": (args, OMNetSAC)}, threads=1, seconds=0.1, peers=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert row["method"] == "omnet-sac" and all(name in line for name in ("sb3_sac", "sbx_sac", "sbx_droq"))


def test_a_method_is_timed_with_flags_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "ROUNDS", 1)
    methods = "omnet-sac", "omnet-sac --num-subnets 1 --hidden-dim 8"
    flags = {"hidden_dim": 16, "batch_size": 16, "replay_ratio": 2, "policy_delay": 4, "compile": False}
    main(speed.Flags(methods, env_id="Pendulum-v1", seconds=0.1, csv=tmp_path / "speed.csv", **flags))
    with (tmp_path / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [*methods] and [row["hidden_dim"] for row in rows] == ["16", "8"]
    counts = hand_counted_flop(3, 1, 16, 5, 16, 4) / 1e9, hand_counted_flop(3, 1, 8, 1, 16, 4) / 1e9
    assert [float(row["gflop_per_update"]) for row in rows] == pytest.approx(counts, rel=1e-3)


@pytest.mark.parametrize(
    "flags, told",
    [
        ({"threads": 0}, "--threads"),
        ({"methods": ("nothing",)}, "there is no 'nothing', but"),
        ({"methods": ("redq --sparsity 2",)}, "--sparsity"),
        ({"methods": ("redq --num-critics 0",)}, "--num-critics"),
        ({"methods": ("redq", "redq --env-id Ant-v4")}, "outside of --methods"),
        ({"csv": Path(__file__)}, "has other columns"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(flags, told, capsys):
    with pytest.raises(SystemExit) as exit:
        main(speed.Flags(**flags))
    assert exit.value.code == 2 and told in capsys.readouterr().err


def test_a_cuda_graph_of_a_product_keeps_its_operands_alive(monkeypatch):
    """A graph knows addresses, not tensors: what is freed may be overwritten by the next capture."""

    class Graph:
        def replay(self):
            replayed.append(self)

    replayed: list[Graph] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    operand = torch.ones(2, 2)
    alive = weakref.ref(operand)
    timed = speed.repeated(functools.partial(torch.mm, operand, operand), "cuda")
    del operand
    timed()
    assert alive() is not None and len(replayed) == 1
    del timed
    assert alive() is None


# paper/baselines.py


def small(method: str, **flags):
    """Flags of a run of a method that takes a second."""
    defaults = {"env_id": "Pendulum-v1", "total_timesteps": 120, "learning_starts": 40, "batch_size": 16}
    defaults |= {"hidden_dim": 16, "eval_interval": 50, "eval_episodes": 1, "compile": False}
    return dataclasses.replace(METHODS[method][1], **defaults | flags)


def make(method: str, **flags) -> EnsembleSAC:
    return EnsembleSAC(small(method, **flags), 3, 2)


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
    agent.update(tests.filled_buffer(agent))
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
    pairs = agent.critic.sample(5000, 2, torch.Generator().manual_seed(0))
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
    action, log_pi = agent.policy(agent.actor.theta, agent.actor.masks, obs, noise)
    q = agent.critic(agent.critic.theta, i, torch.cat([obs, action], -1)).squeeze(-1)
    loss, _, alpha = agent.actor_step(obs, agent.actor.masks, i, noise)
    assert loss.item() == pytest.approx((alpha * log_pi - getattr(q, pooled)(0)).mean().item(), rel=1e-4, abs=1e-6)


def test_dropout_comes_before_layer_norm_before_relu_and_is_active_in_every_pass():
    agent = make("droq", dropout=0.25, hidden_dim=64)
    net = Dropout(mlp(5, 1, 64), 0.25)
    assert [type(layer).__name__ for layer in net.net] == ["Linear", "LayerNorm", "ReLU"] * 2 + ["Linear"]
    x, keep = torch.randn(16, 5), agent.critic.sample(1, 1)[0, 0]
    expected = x
    for k in range(2):
        linear, norm = net.net[3 * k], net.net[3 * k + 1]
        expected = torch.relu(norm(linear(expected) * keep[k] / 0.75))
    torch.testing.assert_close(net(x, keep), net.net[6](expected))
    for k, passes in ((1, 2), (2, 2)):  # updates and actor: both critics; target: both, with units of their own
        keep = agent.critic.sample(50, k, torch.Generator().manual_seed(0))
        assert keep.shape == (50, passes, 2, 16, 64) and keep.unique().tolist() == [0, 1]
        assert keep.float().mean().item() == pytest.approx(0.75, abs=0.003)
    sin = make("sin-droq", dropout=0.25)
    assert len(sin.critic.sample(1, 1)[0]) == 1 and len(sin.critic.sample(1, 2)[0]) == 2
    one, two = sin.critic(sin.critic.theta, sin.critic.sample(1, 2)[0], torch.randn(16, 5))
    assert not torch.equal(one, two), "the two passes of the target drop other units"


def agreement(x: torch.Tensor, y: torch.Tensor) -> float:
    """By how many standard errors the share of equal entries of two vectors of coins differs from one half."""
    return (2 * (x == y).double().mean().item() - 1) * len(x) ** 0.5


def test_critics_dropout_and_minibatches_are_independent():
    """REDQ's ten critics; what DroQ keeps and the minibatches, at every shift within 1000 places."""
    critics = EnsembleSAC(small("redq", hidden_dim=64), 3, 2).critic.theta.view(10, -1)[:, : 64 * 5] > 0
    for one, two in combinations(critics, 2):
        assert abs(agreement(one, two)) < 5

    agent = EnsembleSAC(small("droq", hidden_dim=64, dropout=0.5, batch_size=256), 3, 2)
    buffer = ReplayBuffer(1024, 3, 2, "cpu", added=1024)
    buffer.rows[:, 0] = torch.arange(1024)
    for _ in range(2):
        index = buffer.sample(20, 256, agent.generator)[..., 0].flatten()
        kept = agent.critic.sample(20, 1, agent.generator).flatten()[:50_000]
        for bit in (1, 2, 512):
            coin = index.int() // bit % 2
            for shift in range(1000):
                assert abs(agreement(coin[:4000], kept[shift : shift + 4000])) < 5
                assert abs(agreement(coin[shift : shift + 4000], kept[:4000])) < 5


@pytest.mark.parametrize("method", ["sr-sac", "sr-sin-sac"])
def test_reset_is_fresh_at_the_right_step_and_keeps_replay_and_steps(method, tmp_path):
    resets, states = [], []

    class Watched(EnsembleSAC):
        def reset(self, k):
            before = {name: value.clone() for name, value in self.state_dict().items() if torch.is_tensor(value)}
            first.setdefault("theta", before["critic.theta"])
            super().reset(k)
            resets.append(self.steps_seen)
            states.append((before, {n: v.clone() for n, v in self.state_dict().items() if torch.is_tensor(v)}))

        def update(self, buffer):
            self.steps_seen = buffer.added
            rows = buffer.rows.clone()
            metrics = super().update(buffer)
            assert torch.equal(buffer.rows, rows)
            return metrics

    first: dict[str, torch.Tensor] = {}
    agent = train(small(method, reset_interval=30, run_dir=tmp_path), Watched)
    assert resets == [61, 91], "with the step after it: what is evaluated, in the end too, has been trained"
    assert agent.gradient_steps == 20 * 80
    for before, after in states:
        for name in ("critic.theta", "actor.theta"):
            assert (before[name] != after[name]).float().mean() > 0.9
        assert torch.equal(after["theta_target"], after["critic.theta"]) and after["log_alpha"] == 0
        assert all((value == 0).all() for name, value in after.items() if "adam.m" in name or "adam.v" in name)
        assert after["critic_adam.beta1_t"] == 1
    assert not torch.equal(states[0][1]["critic.theta"], states[1][1]["critic.theta"]), "fresh, not the same again"


@pytest.mark.parametrize("kind", ["omnet-sac", "redq", "droq", "sr-sac"])
def test_a_crashed_run_of_any_method_goes_on_as_if_nothing_had_been(kind, tmp_path, monkeypatch):
    """With probes, resets and dropout; in an environment that reuses its arrays it is the run of one that does not."""
    monkeypatch.setattr(probes, "BIAS_STATES", 9)
    flags = vars(tests.brief(total_timesteps=80, eval_interval=0)) | {"bias_interval": 30, "trajectory_interval": 30}
    flags |= {"sr-sac": {"reset_interval": 45}, "droq": {"reset_interval": 45, "dropout": 0.1}}.get(kind, {})
    for name in ("num_subnets", "sparsity", "actor_subnets", "run_dir", "env_id"):
        del flags[name]
    ids = {"a": "Point-v0", "b": "Alias-v0"}.items()
    default = dataclasses.replace(METHODS[kind][1], **flags)
    one, two = (dataclasses.replace(default, env_id=env_id, run_dir=tmp_path / name) for name, env_id in ids)
    make = functools.partial(tests.diary, make_agent=baselines.make_agent)
    for args, halt in ((one, 0), (two, 70)):
        with contextlib.suppress(tests.Halt):
            train(args, functools.partial(make, halt=halt))
    folder = run_folder(two)
    assert 20 < tests.checkpoint(folder)["step"] < 70
    train(dataclasses.replace(two, resume=folder), make)
    tests.assert_same_run(run_folder(one), folder)
    assert {"bias.csv", "trajectories.csv", "visits.csv"} < {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "method, flags", [("omnet-sac", {"obs_noise": 0.1}), ("omnet-sac", {"dynamic_masks": True}), ("redq", {})]
)
def test_a_packed_run_goes_on_elsewhere_as_if_nothing_had_been(method, flags, tmp_path):
    flags |= {"env_id": "Point-v0", "replay_ratio": 1, "checkpoint_interval": 25, "run_dir": tmp_path / "here"}
    args = small(method, **flags)
    halting = functools.partial(tests.diary, make_agent=baselines.make_agent, halt=70)
    with contextlib.suppress(tests.Halt):
        train(args, halting)
    here, packed, there = run_folder(args), tmp_path / "run.xz", tmp_path / "there" / run_folder(args).name
    pack.main(here, packed)
    assert packed.stat().st_size < (here / "checkpoint.pt").stat().st_size
    pack.main(packed, there)
    count = (there / "replay.f32").stat().st_size
    assert 0 < count < (here / "replay.f32").stat().st_size, "the rows of the checkpoint, without those after it"
    assert (there / "replay.f32").read_bytes() == (here / "replay.f32").read_bytes()[:count]
    for folder in here, there:
        train(dataclasses.replace(args, resume=folder), functools.partial(halting, halt=0))
    tests.assert_same_run(here, there)


def test_what_cannot_be_packed_or_unpacked_is_one_sentence(tmp_path, monkeypatch, capsys):
    args, reset = small("omnet-sac", env_id="Point-v0", replay_ratio=1, run_dir=tmp_path), tests.Point.reset
    train(args, baselines.make_agent)
    folder = run_folder(args)
    capsys.readouterr()
    pack.main(folder, packed := tmp_path / "run.xz")
    (damaged := tmp_path / "damaged.xz").write_bytes(packed.read_bytes()[:-50])
    monkeypatch.setattr(tests.Point, "reset", lambda env, **kwargs: (reset(env, **kwargs)[0] / 2, {}))
    for source, target, code, told in (
        (packed, folder, 2, "exists"),
        (tmp_path, tmp_path / "a.xz", 2, "no checkpoint"),
        (damaged, tmp_path / "b", 1, "cannot be used"),
        (packed, tmp_path / "c", 1, "other numbers"),
    ):
        with pytest.raises(SystemExit) as stop:
            pack.main(source, target)
        assert stop.value.code == code and told in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert not (tmp_path / "c" / "checkpoint.pt").exists()


def test_a_run_of_another_method_is_refused(tmp_path, capsys):
    for method, other in (("omnet-sac", "redq"), ("redq", "sac"), ("redq", "omnet-sac")):
        args = small(method, run_dir=tmp_path / other)
        folder = omnet_sac.run_folder(args)
        train(dataclasses.replace(args, total_timesteps=41), baselines.make_agent)
        with pytest.raises(SystemExit) as exit:
            baselines.main([other, "--resume", str(folder)])
        assert exit.value.code == 2 and f"is a run of {args.method} " in capsys.readouterr().err


def test_bad_knobs_are_one_sentence(tmp_path, capsys):
    for flags in ("--num-critics 0", "--dropout 1", "--num-critics 3 --dropout 0.1", "--reset-interval -1"):
        with pytest.raises(SystemExit) as exit:
            baselines.main(["sac-20", "--env-id", "Pendulum-v1", "--run-dir", str(tmp_path), *flags.split()])
        error = capsys.readouterr().err.strip()
        assert exit.value.code == 2 and flags.split()[-2] in error and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_a_method_is_named_first(capsys):
    for words, code in (([], 0), (["--help"], 0), (["--seed", "1"], 2)):
        with pytest.raises(SystemExit) as exit:
            baselines.main(words)
        assert exit.value.code == code and "sr-sin-sac" in capsys.readouterr().out


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
        ours.append(np.mean([result[1] for result in omnet_sac.evaluate(agent, env, 100, np.random.default_rng(seed))]))
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
    [
        ({"mask_input": False}, ["input"]),
        ({"mask_output": False}, ["output"]),
        ({"mask_input": False, "mask_output": False}, ["input", "output"]),
    ],
)
@pytest.mark.parametrize("where", ["both", "critic", "actor"])
def test_layers_can_be_left_dense_and_nothing_else_changes(flags, dense, where):
    torch.manual_seed(0)
    plain = OMNetSAC(small("omnet-sac"), 3, 2)
    torch.manual_seed(0)
    agent = baselines.OMNetVariant(small("omnet-sac", **flags, dense_in=where), 3, 2)
    for name in ("critic", "actor"):
        one, two = getattr(plain, name), getattr(agent, name)
        layer = [key.split(".")[0] for key, size in two.shapes.items() for _ in range(size.numel())]
        chosen = torch.tensor([key in dense and where in ("both", name) for key in layer])
        assert two.masks[:, chosen].all() and torch.equal(two.masks[:, ~chosen], one.masks[:, ~chosen])
        assert torch.equal(one.theta, two.theta) and (two.draw(3)[:, chosen] == 1).all()
    assert torch.equal(plain.generator.get_state(), agent.generator.get_state())


def test_balanced_masks_share_every_parameter_alike():
    agent = baselines.OMNetVariant(small("omnet-sac", balanced_masks=True, hidden_dim=64), 3, 2)
    layer = [key for key, size in agent.critic.shapes.items() for _ in range(size.numel())]
    linear = torch.tensor([not key.startswith("norm") for key in layer])
    counts = agent.critic.masks.sum(0)
    assert set(counts[linear].tolist()) == {2, 3} and (counts[~linear] == 5).all()
    assert agent.critic.masks[:, linear].float().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("method", ["omnet-sac", "sac-20"])
@PAPER
def test_probes_leave_training_as_it_is(method, tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "BIAS_STATES", 100)
    plain = {"gamma": 0.5, "replay_ratio": 2, "policy_delay": 2}
    curves = []
    for name, flags in (("plain", plain), ("probed", plain | {"bias_interval": 30, "trajectory_interval": 20})):
        train(small(method, env_id="maze_env:Maze-v0", run_dir=tmp_path / name, **flags), baselines.make_agent)
        (folder,) = (tmp_path / name).iterdir()
        curves.append(torch.load(folder / "checkpoint.pt", weights_only=True))
    torch.testing.assert_close(*(c["agent"] for c in curves), rtol=0, atol=0)
    assert curves[0]["crc"] == curves[1]["crc"], "the same transitions"
    rows = np.fromfile(folder / "replay.f32", np.float32).reshape(120, -1)
    visits = np.loadtxt(folder / "visits.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(visits[:, 1:], rows[40:, 5:7], atol=1e-7)
    assert visits[:, 0].tolist() == list(range(41, 121))
    paths = np.loadtxt(folder / "trajectories.csv", delimiter=",", skiprows=1)
    num_subnets = 5 if method == "omnet-sac" else 1
    assert set(paths[:, 0]) == {60, 80, 100, 120} and set(paths[:, 1]) == set(range(num_subnets))
    starts = paths[paths[:, 2] == 0]
    assert len(starts) == 4 * num_subnets and np.allclose(starts[:, 3:], 0.5)


# paper/sweep.py


def run_of(args: Args):
    """The run that has these arguments."""
    method = next(name for name, (_, default) in METHODS.items() if default.method == args.method)
    always = {"env_id", "seed", "run_dir", "total_timesteps", "learning_starts", "eval_interval"}
    fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(args)}
    default = vars(METHODS[method][1])
    return sweep.method_run(method, {k: v for k, v in fields.items() if k in always or v != default[k]})


def two_runs(run_dir: Path) -> list:
    flags = {"total_timesteps": 420, "replay_ratio": 1, "policy_delay": 2, "checkpoint_interval": 200}
    return [small(method, run_dir=run_dir, **flags) for method in ("sac-20", "omnet-sac")]


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            found += [process] if "ray::execute" in " ".join([process.name(), *process.cmdline()]) else []
    return found


def step_of_checkpoint(folder: Path) -> int:
    return omnet_sac.read_checkpoint(folder)["step"] if (folder / "checkpoint.pt").exists() else 0


def kill_in_the_middle(run_dir: Path, killed: list) -> None:
    """SIGKILL for workers, once a run has a checkpoint; then for a run that goes on, and not for its worker."""
    while not step_of_checkpoint(omnet_sac.run_folder(two_runs(run_dir)[0])):  # the first one is of step 0
        time.sleep(0.05)
    for worker in workers():
        runs = worker.children()
        worker.kill()
        gone, alive = psutil.wait_procs(runs, timeout=10)
        killed += [("orphan", p) for p in alive] + [("worker", p) for p in gone]
    while not (resumed := [p for w in workers() for p in w.children() if "--resume" in p.cmdline()]):
        time.sleep(0.05)
    resumed[0].kill()
    killed.append(("run", resumed[0]))


RAY = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def cluster():
    """One Ray for all sweeps of this file."""
    with sweep.cluster(None):
        yield


@RAY
@PAPER
def test_a_sweep_whose_processes_are_killed_is_the_runs_alone(tmp_path, cluster):
    for args in two_runs(tmp_path / "alone"):
        train(args, baselines.make_agent)
    killed: list[tuple] = []
    killer = threading.Thread(target=kill_in_the_middle, args=(tmp_path / "sweep", killed), daemon=True)
    killer.start()
    bad = run_of(dataclasses.replace(two_runs(tmp_path / "sweep")[0], seed=3, batch_size=100))  # above learning_starts
    locked = dataclasses.replace(two_runs(tmp_path / "sweep")[0], seed=4)
    with omnet_sac.locked_replay_file(omnet_sac.run_folder(locked), locked):
        runs = [bad, run_of(locked), *map(run_of, two_runs(tmp_path / "sweep"))]
        failed = sweep.run_all(runs, sweep.Resources(num_cpus=0.5))
    killer.join(timeout=10)
    assert {what for what, _ in killed} == {"worker", "run"}, "a run dies with its worker"
    assert {*failed} == {bad.name, run_of(locked).name} and "must satisfy 0 < batch_size" in failed[bad.name]
    assert "is being written by another process" in failed[run_of(locked).name]
    for one, two in zip(two_runs(tmp_path / "alone"), two_runs(tmp_path / "sweep")):
        tests.assert_same_run(omnet_sac.run_folder(one), omnet_sac.run_folder(two))


ON_A_CLUSTER = """
import sys, time, ray
from pathlib import Path
from paper.sweep import Resources, plan, run_all
from paper.test_paper import run_of, two_runs
results, address = Path(sys.argv[1]), sys.argv[2]
ray.init(address)
while len(ray.nodes()) < 2:
    time.sleep(0.2)
ray.shutdown()
runs = [run_of(args) for args in two_runs(results)]
assert run_all(runs, Resources(ray_address=address)) == {}
assert plan(runs) == ([], {})
"""


@RAY
@PAPER
def test_a_sweep_on_a_cluster_of_two_nodes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    options = {"env": env | {"RAY_USAGE_STATS_ENABLED": "0"}, "cwd": ROOT}
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


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
import ray
from paper import sweep
from paper.test_paper import endless
if sys.argv[2] == "in the background":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell that runs a script does
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as taskset does
with sweep.one_sentence(), sweep.cluster(None):
    assert ray.cluster_resources()["object_store_memory"] < 2e8
    sweep.run_all(endless(Path(sys.argv[1])), sweep.Resources())
"""


def endless(run_dir: Path) -> list:
    return [run_of(small("sac", total_timesteps=10**6, run_dir=run_dir, seed=seed)) for seed in (1, 2)]


@pytest.mark.parametrize("signum, where", [(signal.SIGINT, "in a terminal"), (signal.SIGTERM, "in the background")])
@RAY
@PAPER
def test_a_signal_to_a_sweep_ends_its_runs_after_their_episodes(signum, where, tmp_path):
    """Of two, one runs on the one core that there is; in folders with blanks, and with a long name."""
    (tmp_path / ("t" * 70)).mkdir()
    tmp_path = tmp_path / "my runs"
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    options["env"] = os.environ | {"TMPDIR": str(tmp_path.with_name("t" * 70))}
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path), where], **options)
    while not list(tmp_path.glob("*/train.csv")):
        assert process.poll() is None
        time.sleep(0.1)
    runs = [p for p in psutil.Process(process.pid).children(recursive=True) if "paper.baselines" in p.cmdline()]
    os.killpg(process.pid, signum)  # as a terminal does, and timeout
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "SIGTERM" not in err
    assert err.splitlines()[-1].startswith("stopped: ")
    (folder,) = (path.parent for path in tmp_path.glob("*/args.json"))
    assert step_of_checkpoint(folder) == sweep.last_step(folder / "train.csv") > 0, "after an episode, nothing lost"
    assert len(runs) == 1 and not psutil.wait_procs(runs, timeout=10)[1]
    assert sweep.plan(endless(tmp_path))[0] == endless(tmp_path), "it is to be gone on with"


class Images(Steady):
    observation_space = gym.spaces.Box(-1, 1, (128, 128, 3), np.float32)


gym.register("Images-v0", Images)


@pytest.mark.parametrize(
    "resources, flags, told",
    [
        ({"num_cpus": 1000}, {}, "1000 CPU cores"),
        ({"num_gpus": 100}, {}, "100 GPUs"),
        ({}, {"env_id": "Images-v0", "total_timesteps": 10**6}, "394.0 GB"),  # twice 49152 numbers of 4 bytes a row
        ({"num_cpus": -1}, {}, "not be negative"),
        ({"num_gpus": 1.5}, {}, "be whole"),
    ],
)
@RAY
@PAPER
def test_a_run_that_no_node_can_hold_is_one_sentence_before_the_first_run(resources, flags, told, tmp_path, cluster):
    runs = [run_of(small("sac", run_dir=tmp_path, **flags))]
    with pytest.raises(UsageError, match=told):
        sweep.run_all(runs, sweep.Resources(**resources))
    assert not list(tmp_path.iterdir())


@PAPER
def test_a_cluster_that_does_not_answer_is_one_sentence():
    start = time.time()
    with pytest.raises(UsageError, match="--ray-address 127.0.0.1:9: no Ray cluster"):
        sweep.check_address("127.0.0.1:9")
    assert time.time() - start < 30


@PAPER
def test_a_run_has_the_variables_of_the_sweep_but_not_those_of_its_node(monkeypatch):
    for name in ("TASK_REWARD", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "RAY_AUTH_TOKEN", "TMPDIR"):
        monkeypatch.setenv(name, "x")
    given = sweep.environment()
    assert given["TASK_REWARD"] == "x" and given["OMP_NUM_THREADS"] == "1"
    assert given["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert not given.keys() & {"CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "RAY_AUTH_TOKEN", "TMPDIR"}


@PAPER
def test_flags_are_read_and_written_as_on_the_command_line():
    words = ["--gamma", "0.9", "--no-compile", "--target-entropy", "-3", "--track", "--sizes", "64", "32"]
    words += ["--tau=0.1", "--no-op-max", "30"]
    flags = sweep.flags_of(words)
    assert flags == {
        "gamma": "0.9",
        "compile": False,
        "target_entropy": "-3",
        "track": True,
        "sizes": ["64", "32"],
        "tau": "0.1",
        "no_op_max": "30",
    }
    assert sweep.words_of(flags) == [*words[:-3], "--tau", "0.1", "--no-op-max", "30"]
    assert sweep.flags_of(["--eval-interval=1e3", "--gamma", "1e0"]) == {"eval_interval": "1000", "gamma": "1e0"}
    assert sweep.words_of({"note": "two words", "run_dir": Path("my results")}) == [
        *("--note", "two words"),
        *("--run-dir", "my results"),
    ]
    with pytest.raises(UsageError):
        sweep.flags_of(["0.9"])
    given = ["fig2a", "--seeds", "3", "--hidden-dim", "64", "--dry-run", "--", "--gamma", "0.9"]
    own, training = sweep.split(given, experiments.Flags)
    assert own == ["fig2a", "--seeds", "3", "--dry-run"] and training == ["--hidden-dim", "64", "--gamma", "0.9"]


@PAPER
@pytest.mark.parametrize(
    "words, told",
    [
        ("--env-id Walker2d-v4", "--env-ids"),
        ("--seed=7", "--seeds"),
        ("--run-dir runs", "--results"),
        ("--resume runs/Hopper-v4__sac__1", "again"),
        ("--evaluate runs/Hopper-v4__sac__1", "omnet_sac.py"),
    ],
)
def test_flags_of_a_single_run_are_refused_with_what_a_sweep_has_instead(words, told, tmp_path, capsys):
    flags = experiments.Flags(figures=("fig9a",), seeds=1, results=tmp_path, dry_run=True)
    with pytest.raises(SystemExit) as exit:
        experiments.main(flags, words.split())
    err = capsys.readouterr().err
    assert exit.value.code == 2 and re.split("[ =]", words)[0] in err and told in err
    assert compared("redq", results=tmp_path, words=words.split(), dry_run=True) == 2 and capsys.readouterr().err == err
    assert compared(f"redq {words}", results=tmp_path, dry_run=True) == 2 and capsys.readouterr().err == err


def write_run(folder: Path, returns: dict[int, list[float]], args: Args | None = None, **files: str) -> None:
    """A run folder as if made by these arguments, with the evaluations given."""
    folder.mkdir(parents=True)
    args = args or Args(total_timesteps=max(returns), eval_interval=min(returns))
    (folder / "args.json").write_text(json.dumps(omnet_sac.describe(args)))
    rows = [f"{step},{k},0,{value},10,1.0\n" for step, values in returns.items() for k, value in enumerate(values)]
    (folder / "eval.csv").write_text("step,episode,subnet,return,length,seconds\n" + "".join(rows))
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)


def write_method_run(results: Path, method: str, returns: dict[int, list[float]], folder: str = "", **flags) -> Path:
    """A finished run of a method in `<results>/<folder>`, by default the method's own."""
    args = dataclasses.replace(METHODS[method][1], run_dir=results / (folder or METHODS[method][1].method), **flags)
    args = dataclasses.replace(args, total_timesteps=max(returns), eval_interval=min(returns))
    write_run(omnet_sac.run_folder(args), returns, args)
    return omnet_sac.run_folder(args)


@PAPER
def test_a_run_with_other_flags_is_never_taken_for_the_one_asked_for(tmp_path):
    asked = run_of(small("sac", run_dir=tmp_path / "sac", total_timesteps=100))
    assert sweep.plan([asked]) == ([asked], {}) and sweep.beside(asked) == asked
    folder = tmp_path / "sac" / "Pendulum-v1__sac__1"
    write_run(folder, {50: [1.0], 100: [2.0]}, small("sac", total_timesteps=100, run_dir=tmp_path / "elsewhere"))
    assert sweep.plan([asked]) == ([], {}), "finished"
    longer = run_of(small("sac", run_dir=tmp_path / "sac", total_timesteps=200))
    assert "total_timesteps = 100, not 200" in sweep.plan([longer])[1][longer.name]
    assert sweep.beside(longer).flags["run_dir"] == tmp_path / "sac__total_timesteps_200"
    assert sweep.plan([run_of(small("sac", run_dir=tmp_path / "sac", total_timesteps=50))]) == ([], {}), "its steps are"
    other = run_of(small("sac", run_dir=tmp_path / "sac", total_timesteps=100, gamma=0.5))
    assert sweep.beside(other).flags["run_dir"] == tmp_path / "sac__gamma_0.5"
    unfinished = folder / "eval.csv"
    unfinished.write_text(unfinished.read_text().replace("100,0,0,2.0,10,1.0\n", "100,0,0"))
    assert sweep.plan([asked]) == ([asked], {}) and "--resume" not in asked.command(), "killed before its first"
    (folder / "checkpoint.pt").touch()
    assert asked.command().endswith(f"sac --resume {folder}")


@PAPER
def test_what_is_broken_costs_one_run_alone(tmp_path, capsys):
    runs = [run_of(small("sac", run_dir=tmp_path / "sac", seed=seed)) for seed in (1, 2, 3)]
    for seed, name, text in ((1, "args.json", "{"), (2, "eval.csv", "step,return\n50,1\njunk\n100,2\n")):
        folder = tmp_path / "sac" / f"Pendulum-v1__sac__{seed}"
        write_run(folder, {50: [1.0], 100: [2.0]}, small("sac", seed=seed))
        (folder / name).write_text(text)
    missing, refused = sweep.plan(runs)
    assert missing == runs[2:] and list(refused) == [run.name for run in runs[:2]]
    assert "args.json" in refused[runs[0].name] and "eval.csv" in refused[runs[1].name]
    assert sweep.finished_runs(tmp_path, "sac", "Pendulum-v1", {"batch_size": 16}) == []
    assert capsys.readouterr().err.count("left out: ") == 2


@PAPER
def test_a_run_begun_on_a_cpu_is_not_put_on_a_gpu_without_a_word(tmp_path, capsys):
    write_run(tmp_path / "sac" / "Pendulum-v1__sac__1", {50: [1.0]}, small("sac"))
    (tmp_path / "sac" / "Pendulum-v1__sac__1" / "checkpoint.pt").touch()
    run = run_of(small("sac", run_dir=tmp_path / "sac", device="cuda"))
    assert sweep.plan([run])[0] == [run] and "was begun on cpu and goes on there" in capsys.readouterr().err
    assert "--device" not in run.words


@PAPER
def test_curves_are_of_runs_of_one_size_with_the_most_seeds_then_the_longest(tmp_path):
    def write(seed, steps, folder="omnet_sac", **flags):
        returns = {step: [0.0] for step in range(10, steps + 1, 10)}
        return write_method_run(tmp_path, "omnet-sac", returns, folder, seed=seed, **flags)

    short = [write(seed, 20) for seed in (1, 2, 3)]
    assert sweep.finished_runs(tmp_path, "omnet-sac", "Hopper-v4", {}) == short
    longer = [write(seed, 40, "omnet_sac__total_timesteps_40") for seed in (1, 2)]
    assert sweep.finished_runs(tmp_path, "omnet-sac", "Hopper-v4", {}) == [*longer, short[2]], "cut to 20 steps"
    longer.append(write(3, 40, "omnet_sac__total_timesteps_40"))
    assert sweep.finished_runs(tmp_path, "omnet-sac", "Hopper-v4", {}) == longer
    wide = [write(seed, 40, "omnet_sac__hidden_dim_64", hidden_dim=64) for seed in (1, 2)]
    sparse = write(1, 40, "omnet_sac__sparsity_0.2", sparsity=0.2)
    assert sweep.finished_runs(tmp_path, "omnet-sac", "Hopper-v4", {}) == longer
    assert sweep.finished_runs(tmp_path, "omnet-sac", "Hopper-v4", {"hidden_dim": 64}) == wide
    assert sweep.finished_runs(tmp_path, "omnet-sac", "Hopper-v4", {"sparsity": 0.2}) == [sparse]
    assert sweep.finished_runs(tmp_path, "redq", "Hopper-v4", {}) == []


# paper/experiments.py


@PAPER
def test_dry_run_prints_each_missing_run_once_and_what_it_costs(tmp_path, capsys):
    flags = experiments.Flags(figures=("fig9a", "fig9b"), env_ids=("Hopper-v4",), seeds=2, results=tmp_path)
    flags, words = dataclasses.replace(flags, dry_run=True), ["--total-timesteps", "10000"]

    def printed(words) -> list[str]:
        with pytest.raises(SystemExit) as exit:
            experiments.main(flags, words)
        assert not exit.value.code
        return capsys.readouterr().out.splitlines()

    *commands, summary = printed(words)
    assert len(set(commands)) == len(commands) == 2 * (2 + 4 + 5) and summary.startswith("22 runs to do, 0 finished")
    (command,) = (c for c in commands if "--num-subnets 8 " in c and "--seed 2 " in c)
    assert command.startswith("python -m paper.baselines omnet-sac ") and "--total-timesteps 10000 " in command
    gflop = 22 * 5_000 * 4.692  # of Hopper, 235 MFLOP per update
    assert float(re.search(r"([\d.]+) PFLOP", summary)[1]) == pytest.approx(gflop / 1e6, abs=0.015)
    run = experiments.figure_runs(flags, words)[0]
    args = dataclasses.replace(METHODS["omnet-sac"][1], **run.flags)
    write_run(omnet_sac.run_folder(args), {5_000: [1.0]}, args)
    (run.folder / "checkpoint.pt").touch()
    assert f"omnet-sac --resume {run.folder}" in "\n".join(printed(words))
    with (run.folder / "eval.csv").open("a") as file:
        file.write("10000,0,0,1.0,10,1.0\n")
    assert printed(words)[-1].startswith("21 runs to do, 1 finished")
    *commands, summary = printed(["--total-timesteps", "20000", "--gamma", "0.9"])
    assert summary.startswith("22 runs to do, 0 finished") and all("--gamma 0.9 " in c for c in commands)
    assert f"{tmp_path}/omnet_sac__gamma_0.9__total_timesteps_20000" in commands[0], "beside the other one"
    *commands, summary = printed(["--hidden-dim", "64"])
    assert summary.startswith("22 runs to do, 0 finished") and all("--hidden-dim 64 " in c for c in commands)
    assert f"{tmp_path}/paper_width_64/omnet_sac" in commands[0], "apart from the paper's width"


@PAPER
def test_every_figure_can_be_asked_for_and_in_a_fresh_clone(capsys):
    names = ["fig2a", "fig2b", "fig3", "compute", "fig4", "fig5-7", "fig8", "fig9a", "fig9b", "fig10", "fig11"]
    names += ["bias-all-tasks", "noise-all-tasks", "masks", "controls", "widths", "diversity", "overview", "streams"]
    assert list(experiments.FIGURES) == names and set(experiments.NAMES) == {*names, "fig5", "fig6", "fig7"}
    for protocol in sweep.PROTOCOLS:
        for name in experiments.NAMES:
            figure = experiments.FIGURES[experiments.NAMES[name]]
            runs = experiments.figure_runs(experiments.Flags(figures=(name,), protocol=protocol, seeds=2))
            per_task = 2 * len(figure.variants) * {"fig8": 4, "noise-all-tasks": 4, "widths": 3}.get(name, 1)
            assert len(runs) == per_task * len(getattr(figure, protocol))
            assert sweep.plan(runs)[1] == {}, "no run there is in the way"
            assert len({run.name for run in runs}) == len(runs)
    with pytest.raises(SystemExit) as exit:
        experiments.main(experiments.Flags())
    assert exit.value.code == 2 and "--protocol" in capsys.readouterr().out


@PAPER
def test_results_lie_where_they_are_looked_for(tmp_path):
    def run_dirs(*words, **flags):
        given = experiments.Flags(results=tmp_path, seeds=1, **flags)
        return {str(run.flags["run_dir"].relative_to(tmp_path)) for run in experiments.figure_runs(given, words)}

    assert "redq" in run_dirs(figures=("fig2a",))
    small = {"figures": ("controls", "masks"), "protocol": "small", "env_ids": ("Pendulum-v1",)}
    assert {"small/omnet_sac", "small/omnet_sac__num_subnets_1", "small/droq__dropout_0.0"} < run_dirs(**small)
    assert {"small/omnet_sac__dense_in_critic__mask_input_False", "small/omnet_sac__balanced_masks_True"} < run_dirs(
        **small
    )
    assert "width_256/omnet_sac__policy_delay_4" in run_dirs("--hidden-dim", "256", **small)
    sizes = {"small/sac_20", "width_128/sac_20", "width_256/omnet_sac__actor_subnets_False"}
    assert sizes < run_dirs(figures=("widths",), protocol="small")
    assert {"redq", "paper_width_64/redq"} < run_dirs(figures=("widths",))
    assert {"small/redq", "small/redq__obs_noise_0.03"} < run_dirs(figures=("fig8",), protocol="small")
    resets = run_dirs(figures=("fig2b",), protocol="small", env_ids=("InvertedDoublePendulum-v4",))
    assert "small/sr_sin_sac__reset_interval_2000" in resets


@PAPER
def test_a_tasks_own_dropout_is_the_default_and_not_run_twice(tmp_path):
    def run_dirs(protocol, env_id):
        given = experiments.Flags(
            figures=("fig10", "fig11"), protocol=protocol, env_ids=(env_id,), seeds=1, results=tmp_path
        )
        return {str(run.flags["run_dir"].relative_to(tmp_path)) for run in experiments.figure_runs(given)}

    others = {"droq__dropout_0.003", "droq__dropout_0.01", "droq__dropout_0.03", "droq__dropout_0.1"}
    others |= {"sin_droq__dropout_0.01", "sin_droq__dropout_0.1"}
    assert run_dirs("paper", "Hopper-v4") == {"droq", "sin_droq"} | others, "0.001 by Table 1"
    small = run_dirs("small", "Pendulum-v1")
    assert {"small/droq", "small/sin_droq", "small/droq__dropout_0.001"} < small, "0.01 where the table has none"
    assert not {"small/droq__dropout_0.01", "small/sin_droq__dropout_0.01"} & small
    size = {"env_id": "Pendulum-v1", "hidden_dim": 64}
    run = write_method_run(tmp_path / "small", "droq", {10: [1.0]}, **size)
    results = figures.Results("fig10", figures.Flags(protocol="small", results=tmp_path), [])
    assert results.runs(experiments.DROQ["DroQ p=0.01"], "Pendulum-v1") == [run]


# paper/stats.py and paper/figures.py


@PAPER
def test_score_is_the_mean_over_the_last_sixth(tmp_path):
    write_run(tmp_path / "run", {step: [step, step + 2] for step in range(5_000, 300_001, 5_000)})
    steps, values = stats.stack([stats.curve(tmp_path / "run")])
    assert stats.last_sixth(steps, values) == np.mean(range(255_000, 300_001, 5_000)) + 1


@PAPER
def test_published_curves_are_scored_over_the_same_steps(tmp_path):
    folder = tmp_path / "omnet_sac" / "Hopper-v4__omnet_sac__1"
    write_run(folder, {step: [step / 10] for step in range(5_000, 40_001, 5_000)})
    ant = {step: [0] for step in range(5_000, 20_001, 5_000)}
    write_run(folder.with_name("Ant-v4__omnet_sac__1"), ant, Args(env_id="Ant-v4", total_timesteps=20_000))
    table = figures.draw_curves(figures.Results("fig2a", figures.Flags(results=tmp_path), [])).splitlines()
    assert table[2] == "| Hopper-v4 | OMNet-SAC | 1 | 40,000 | 3750 | 3750 |  | 2250 |  |"
    means = [1847.8 + (2484.7 - 1847.8) * (step - 33_332) / (49_998 - 33_332) for step in (35_000, 40_000)]
    whole = figures.published("REDQ-20", "Hopper-v4", np.arange(5_000, 40_001, 5_000))
    assert whole[-2:] == pytest.approx(means)
    assert (
        f"| Hopper-v4 | REDQ-20, published | 10 | 40,000 | {np.mean(means):.0f} |  |  | {whole.mean():.0f} |  |"
        in table
    )
    assert sum("published" in line and "| Hopper-v4 | " in line for line in table) == 2
    assert sum("published" in line and "| Ant-v4 | " in line and "| 20,000 |" in line for line in table) == 2


@PAPER
def test_no_two_curves_of_a_figure_look_alike():
    looks = [stats.line_style(k) for k in range(63)]
    assert all(a != b for a, b in combinations(looks, 2))
    shown = {name: figure.variants | figure.also for name, figure in experiments.FIGURES.items()}
    assert max(map(len, shown.values())) <= len(looks)
    numbers = {name: figures.numbered(variants) for name, variants in shown.items()}
    assert all(len({*by_title.values()}) == len(by_title) for by_title in numbers.values())
    for title in figures.FAMILIAR:  # in every figure that has it
        assert len({by_title[title] for by_title in numbers.values() if title in by_title}) == 1


def drawn(kind: str, shape: tuple[int, ...], rng) -> tuple[np.ndarray, float]:
    """Seeds of this shape, (seeds, draws), and the mean that they are drawn around."""
    if kind == "two humps":
        return rng.normal(4 * rng.integers(2, size=shape)), 2
    return {"normal": (rng.normal(size=shape), 0), "lognormal": (rng.lognormal(0, 0.5, shape), np.exp(0.125))}[kind]


@PAPER
@pytest.mark.parametrize("seeds", [5, 7, 10])
def test_intervals_hold_the_mean_as_often_as_they_say(seeds):
    def coverage(values, mean):
        below, above = stats.margins([values])
        return ((values.mean(0) - below <= mean) & (mean <= values.mean(0) + above)).mean()

    rng = np.random.default_rng(0)
    for kind in ("normal", "lognormal", "two humps"):
        assert coverage(*drawn(kind, (seeds, 20_000), rng)) >= 0.93, kind
    found = sorted((RESULTS / "earlier_streams" / "small").glob("*/InvertedDoublePendulum-v4__*"))
    methods = [[*runs] for _, runs in groupby(found, lambda run: run.parent)]
    tens = [stats.area(stats.stack([stats.curve(run) for run in runs])[1]) for runs in methods if len(runs) == 10]
    assert len(tens) >= 8
    assert np.mean([coverage(rng.choice(ten, (seeds, 5000)), ten.mean()) for ten in tens]) >= 0.93


@PAPER
def test_margins_are_students_and_welchs_and_wider_towards_the_longer_tail():
    from scipy.stats import t, ttest_ind

    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([[2.0], [4], [9], [11]])
    half = t.interval(0.95, 4, scale=x.std(ddof=1) / 5**0.5)[1]
    assert stats.margins([x]) == pytest.approx((half, half)), "no tail is longer"
    below, above = stats.margins([-np.array([[0.0], [0], [0], [0], [5]])])
    assert above == pytest.approx(t.ppf(0.975, 4)) and below == pytest.approx(
        above + (2 * above**2 + 1) / 6
    )  # error and skewness of the mean are 1
    difference = ttest_ind(x, np.array([2, 4, 9, 11]), equal_var=False).confidence_interval()
    below, above = stats.margins([x[:, None], -y])
    assert (above - 3.5, below + 3.5) == (pytest.approx(difference.high), pytest.approx(-difference.low))
    assert stats.interval([1.0], digits=1) == "1.0" and stats.interval([2.0, 2.0]) == "2 [2, 2]"
    assert stats.interval([1.0, 3.0]) == "2 [-11, 15]" and np.isnan(stats.margins([np.ones(3), np.ones(1)])).all()


@PAPER
def test_interquartile_mean_is_scipys_and_its_interval_tukey_and_mclaughlins():
    from scipy.stats import t

    ten = [4202.0, 4322, 4414, 4707, 5208, 5379, 5565, 5896, 5984, 6101]  # with weights at the edges 5178
    assert stats.iqm_text([np.array(ten)], 1).startswith("5194.8 [")
    even = np.arange(10.0)
    half = t.ppf(0.975, 5) * (np.clip(even, 2, 7).var(ddof=1) * 9 / (6 * 5)) ** 0.5
    assert stats.iqm_text([even], 3) == f"4.500 [{4.5 - half:.3f}, {4.5 + half:.3f}]"
    tasks = [np.array([0.0, 1, 2, 3]), np.array([10.0, 11, 12, 13])]
    assert stats.iqm_text(tasks).startswith("6.50 [") and stats.iqm_text([task[:1] for task in tasks]) == "5.00"


@PAPER
def test_ratios_of_means():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(500):
        low, high = map(float, stats.ratio_text(rng.normal(4, 1, 5), rng.normal(8, 2, 5))[6:-1].split(", "))
        held.append(low <= 0.5 <= high)
    assert 0.93 <= np.mean(held) <= 0.99
    assert stats.ratio_text(np.ones(2), np.zeros(2)) == "" and stats.ratio_text(np.ones(1), np.full(1, 2)) == "0.50"


@PAPER
def test_numbers_of_the_maze(tmp_path):
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


@PAPER
def test_every_figure_is_drawn_from_raw_files(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    xy = [f"{x:.3f},{y:.3f}\n" for x, y in rng.uniform(size=(1000, 2))]
    visits = "step,obs_0,obs_1\n" + "".join(f"{1001 + k},{text}" for k, text in enumerate(xy))
    paths = [
        f"{step},{i},{t},{xy[step // 200 + 7 * i + t]}"
        for step in range(1200, 3001, 200)
        for i in range(5)
        for t in (0, 1)
    ]
    columns = ("normalised_mean", *probes.BIAS_COLUMNS.split(",")[-4:])
    bias = f"step,{','.join(columns)}\n5000,0.5,1,2,3,4\n10000,0.7,1,2,,4\n"
    files = {"visits": visits, "trajectories": "step,subnet,t,obs_0,obs_1\n" + "".join(paths), "bias": bias}
    files["train"] = "step,subnet,return,length\n1050,0,0.0,50\n1090,0,100.0,40\n"
    flags = {"total_timesteps": 12_000, "eval_interval": 1_000}
    returns = {step: [float(step)] for step in range(1000, 12_001, 1000)}
    for figure in figures.FIGURES.values():
        for variant in (*figure.every_variant(), *figure.also.values()):
            for seed in (1, 2):
                args = dataclasses.replace(METHODS[variant.method][1], **flags | variant.flags, seed=seed)
                args = dataclasses.replace(args, env_id=figure.paper[0], run_dir=tmp_path / variant.name)
                if not omnet_sac.run_folder(args).exists():
                    write_run(omnet_sac.run_folder(args), returns, args, **files)
    for variant in experiments.FIGURES["streams"].variants.values():
        shutil.copytree(tmp_path / variant.name, tmp_path / "earlier_streams" / variant.name)
    for name in figures.FIGURES:
        figures.main(figures.Flags((name,), results=tmp_path))
        table = (tmp_path / "figures" / f"{name}.md").read_text()
        assert table.startswith("| ") and table in capsys.readouterr().out
        for title in figures.FIGURES[name].variants | figures.FIGURES[name].also:
            assert f"| {title} " in table
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == set(figures.FIGURES) - {"fig5-7"} | {"fig5", "fig6", "fig7"}
    with pytest.raises(SystemExit):
        figures.main(figures.Flags(("fig4",), results=tmp_path / "nothing"))
    assert "python -m paper.experiments fig4 --protocol small" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        figures.main(figures.Flags())
    assert exit.value.code == 2


@PAPER
def test_a_miniature_is_drawn_from_its_own_folder_with_any_environment(tmp_path, capsys):
    def write(method, scale, env_id="Pendulum-v1", **flags):
        for seed in (1, 2, 3):
            returns = {step: [scale * step + seed] for step in (10, 20)}
            write_method_run(tmp_path / "small", method, returns, env_id=env_id, seed=seed, hidden_dim=64, **flags)

    for method, scale in (("sac", 1), ("omnet-sac", 2), ("redq", 3)):
        write(method, scale)
    write("omnet-sac", 2, env_id="maze_env:Maze-v0")
    figures.main(figures.Flags(("fig3", "fig2a"), protocol="small", results=tmp_path))
    assert {path.name for path in (tmp_path / "small" / "figures").iterdir()} >= {"fig3.png", "fig3.md", "fig2a.png"}
    efficiency, returns = capsys.readouterr().out.split("fig2a")
    normalised = dict(re.findall(r"Pendulum-v1 \| (\S+) \| 3 \|.*\| (\S+) \[.*?\] \|", efficiency))
    assert "Maze" not in returns and "Hopper" not in returns
    rows = {line.split(" | ")[1]: line.split(" | ") for line in efficiency.splitlines() if "| Pendulum" in line}
    assert [rows[title][6].split()[0] for title in ("SAC", "OMNet-SAC", "REDQ")] == ["0.00", "0.50", "1.00"], normalised
    assert float(rows["REDQ"][3]) == 1 and float(rows["OMNet-SAC"][3]) < 0.3
    told = "62 [60, 64] | 62 [60, 64] | 1.00 [0.45, 1.00], p = 0.1 | 47 [45, 49] | 1.00 [0.45, 1.00], p = 0.1"
    assert f"| Pendulum-v1 | REDQ | 3 | 20 | {told} |" in returns


@PAPER
def test_who_is_better_by_score_need_not_be_by_area(tmp_path):
    early, late = ({10: [10], 20: [9], 30: [2]}, {10: [0], 20: [0], 30: [3]})
    runs, omnet = (
        [write_method_run(tmp_path, method, curve, env_id="Pendulum-v1", seed=seed) for seed in (1, 2)]
        for method, curve in (("redq", early), ("omnet-sac", late))
    )
    assert figures.better((runs, omnet)) == "1.00 [0.30, 1.00], p = 0.33"
    assert figures.better((runs, omnet), by_score=True) == "0.00 [0.00, 0.70], p = 0.33"
    assert figures.better((omnet, omnet), by_score=True) == figures.better((runs, [])) == ""


@PAPER
def test_every_task_has_the_same_weight_in_figure_3_and_its_legend_room(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(figures.Results, "save", lambda results, fig, name: sizes.append(fig.get_size_inches()))
    (tmp_path / "small" / "figures").mkdir(parents=True)
    for env_id, omnet in (("Pendulum-v1", [1, 1, 1]), ("MountainCarContinuous-v0", [0])):
        for method, values in (("sac", [0]), ("redq", [1]), ("omnet-sac", omnet)):
            for seed, value in enumerate(values):
                flags = {"env_id": env_id, "seed": seed, "hidden_dim": 64}
                write_method_run(tmp_path / "small", method, {10: [value], 20: [value]}, **flags)
    figures.main(figures.Flags(("fig3",), protocol="small", results=tmp_path))
    table = (tmp_path / "small" / "figures" / "fig3.md").read_text()
    assert "| all 2 | OMNet-SAC | 1 |  |  |  | 0.50 (IQM) |  |" in table, "not that of all four runs, 1"
    assert "| all 2 | REDQ | 1 |  |  |  | 1.00 (IQM) | 0.75 [0.17, 0.99], p = 1 |" in table, (
        "the mean over tasks of a tie and 1"
    )
    fig, axes = figures.panels(["Pendulum-v1"])
    for k in range(30):
        axes[0, 0].plot([0], [0], label=f"method {k}")
    height = fig.get_size_inches()[1]
    figures.finish(figures.Results("fig3", figures.Flags(), []), fig, axes)
    assert sizes[1][1] - height > 30 / 6 * 0.15, "lines of the legend, below the panels"


@PAPER
def test_at_equal_flops_a_method_of_five_times_the_cost_has_a_fifth_of_the_updates(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "gflop_per_step", lambda method, *_, **flags: 5.0 if method == "redq" else 1.0)
    for method in ("omnet-sac", "redq"):
        size = {"env_id": "Pendulum-v1", "hidden_dim": 64, "learning_starts": 10}
        write_method_run(tmp_path / "small", method, {step: [float(step)] for step in range(5, 111, 5)}, **size)
    figures.main(figures.Flags(("compute",), protocol="small", results=tmp_path))
    table = (tmp_path / "small" / "figures" / "compute.md").read_text()
    assert "| Pendulum-v1 | OMNet-SAC | 1 | 0.0001 PFLOP | 60 |  |  |" in table, (
        "returns 10 to 110, after the warm-up of 10"
    )
    assert "| Pendulum-v1 | REDQ | 1 | 0.0001 PFLOP | 20 | 60 | 0.00 [" in table, "100 GFLOP: from 10 to 30"
    assert "time" not in table, "not measured"


@PAPER
def test_at_equal_time_a_method_has_as_many_updates_as_it_was_measured_to_do(tmp_path):
    size = {"env_id": "Pendulum-v1", "hidden_dim": 64, "learning_starts": 10}
    returns = {step: [float(step)] for step in range(5, 111, 5)}
    for method in ("omnet-sac", "redq", "sac-20"):
        write_method_run(tmp_path / "small", method, returns, **size)
    alone = {"num_subnets": 1, "sparsity": 0.0}
    write_method_run(
        tmp_path / "small", "omnet-sac", returns, "omnet_sac__num_subnets_1__sparsity_0.0", **size, **alone
    )
    rows = [("omnet-sac", "Pendulum-v1", 64, 10), ("redq", "Pendulum-v1", 64, 2), ("sb3_sac", "Pendulum-v1", 64, 9)]
    rows += [("omnet-sac --sparsity 0 --num-subnets 1", "Pendulum-v1", 64, 20), ("sac-20", "Hopper-v4", 64, 1)]
    lines = [",".join(map(str, row)) for row in [("method", "env_id", "hidden_dim", "env_steps_per_s"), *rows]]
    lines.append("sac-20,Pendulum-v1,256,1")  # another width
    lines.insert(1, "redq,Pendulum-v1,64,9")  # an earlier measurement, without OMNet
    (tmp_path / "speed.csv").write_text("\n".join(lines) + "\n")
    figures.main(figures.Flags(("compute",), protocol="small", results=tmp_path))
    table = (tmp_path / "small" / "figures" / "compute.md").read_text()
    assert "| Pendulum-v1 | OMNet-SAC | 1 | time of 100 steps | 60 |  |  |" in table
    assert "| Pendulum-v1 | REDQ | 1 | time of 100 steps | 20 | 60 | 0.00 [" in table, "20 steps of 100: from 10 to 30"
    assert "| Pendulum-v1 | no masks | 1 | time of 50 steps | 60 | 35 | 1.00 [" in table, "twice as fast"
    assert table.count("time of") == 3, "SAC-20 was not timed on this task at this width"


@PAPER
def test_widths_are_compared_with_omnet_of_the_same_width(tmp_path):
    for folder, width, omnet, redq in (("small", 64, 1, 2), ("width_128", 128, 3, 3), ("width_256", 256, 5, 4)):
        for method, value in (("omnet-sac", omnet), ("redq", redq)):
            size = {"env_id": "Pendulum-v1", "hidden_dim": width}
            write_method_run(tmp_path / folder, method, {10: [value], 20: [value]}, **size)
    figures.main(figures.Flags(("widths",), protocol="small", results=tmp_path))
    table = (tmp_path / "small" / "figures" / "widths.md").read_text()
    rows = re.findall(r"Pendulum-v1 \| REDQ \| (\d+) \| 1 \| (\d) \| (\S+) \[", table)
    assert rows == [("64", "2", "1.00"), ("128", "3", "0.50"), ("256", "4", "0.00")]


@PAPER
@pytest.mark.parametrize(
    "protocol, words, title",
    [
        ("paper", [], ""),
        ("small", [], ", in miniature"),
        ("small", ["--hidden-dim", "256"], ", in miniature, width 256"),
    ],
)
def test_titles_say_what_is_seen_and_of_what_size_the_runs_are(protocol, words, title):
    results = figures.Results("fig2a", figures.Flags(protocol=protocol), words)
    assert results.title() == "Return while training, methods with several critics" + title


@PAPER
def test_legends_say_how_many_seeds_a_curve_has_in_each_panel(monkeypatch):
    fig, axes = figures.panels(["a", "b"])
    for axis, counts in zip(axes[0], ((4, 1), (2, 1))):
        for k, (label, seeds) in enumerate(zip(("one", "other"), counts)):
            stats.draw(axis, np.arange(3), np.ones((seeds, 3)), k, label)
    axes[0, 0].plot([0, 1], [0, 1], label="published")
    assert [len(axis.collections) for axis in axes[0]] == [1, 0], "a band of four, none of two or one"
    assert [len(axis.lines) for axis in axes[0]] == [3, 4], "of two each"
    stats.legend_below(fig, axes)
    told = [text.get_text() for text in fig.legends[0].get_texts()]
    assert told == ["one (4, 2 seeds)", "other (1 seed)", "published"]
    figures.plt.close(fig)


@PAPER
def test_any_run_folders_are_drawn_by_task_and_by_what_differs(tmp_path, capsys):
    for seed in (1, 2):
        for sparsity in (0.5, 0.8):
            flags = {"env_id": "Pendulum-v1", "seed": seed, "sparsity": sparsity}
            write_method_run(tmp_path, "omnet-sac", {10: [seed], 20: [seed]}, f"of_{sparsity}", **flags)
        write_method_run(tmp_path, "redq", {10_000: [seed]}, "redq", env_id="Hopper-v4", seed=seed)
        write_method_run(tmp_path, "sac", {10: [seed]}, "sac", env_id="Ant-v4", seed=seed, hidden_dim=64)
    folders = sorted(map(str, tmp_path.glob("*/*__*")))
    (tmp_path / "else").mkdir()
    figures.main(figures.Flags((*folders, str(tmp_path / "else"))))
    table = capsys.readouterr().out
    assert re.findall(r"\| (\S+-v\d \| .*?) \| (\d) \| ([\d,]+) \|", table) == [
        ("Pendulum-v1 | omnet_sac, sparsity 0.5", "2", "20"),
        ("Pendulum-v1 | omnet_sac, sparsity 0.8", "2", "20"),
        ("Hopper-v4 | redq", "2", "10,000"),
        ("Ant-v4 | sac", "2", "10"),
    ]
    published = re.findall(r"\| (\S+) \| (\S+), published \| 10 \| 10,000 \| (\d+) \|", table)
    assert {task for task, *_ in published} == {"Hopper-v4"}, "at the paper's width, on tasks that are known"
    means = {method: figures.published(method, "Hopper-v4", np.array([10_000]))[0] for method in figures.PUBLISHED}
    assert {method: int(score) for _, method, score in published} == {m: round(x) for m, x in means.items()}
    assert means.keys() == {"REDQ-20", "SAC", "DroQ-20", "CrossQ", "SimbaV2-UTD2"}
    assert (tmp_path / "curves.png").exists() and f"the curves are in {tmp_path / 'curves.png'}" in table
    longer = write_method_run(tmp_path, "sac", {300_000: [1], 600_000: [1]}, "longer", env_id="Ant-v4", seed=1)
    figures.main(figures.Flags((str(longer),)))
    table = capsys.readouterr().out
    assert table.count("published | 10 | 300,000 |") == 5 and "published | 10 | 600,000 |" not in table
    for words in (("fig2",), (str(tmp_path / "else"),)):
        with pytest.raises(SystemExit) as exit:
            figures.main(figures.Flags(words))
        assert exit.value.code == 2 and "neither a figure nor a run folder" in capsys.readouterr().err


@PAPER
def test_methods_are_compared_at_the_same_noise_and_with_themselves_without(tmp_path):
    for scale, omnet, redq in ((0.0, (4, 4), (10, 10)), (0.01, (3, 5), (2, 4)), (0.1, (2, 2), ())):
        for method, values in (("omnet-sac", omnet), ("redq", redq)):
            for seed, value in enumerate(values):
                flags = {"env_id": "Pendulum-v1", "hidden_dim": 64, "obs_noise": scale, "seed": seed}
                folder = f"{METHODS[method][1].method}_{scale}"
                write_method_run(tmp_path / "small", method, {10: [value], 20: [value]}, folder, **flags)
    figures.main(figures.Flags(("fig8",), protocol="small", results=tmp_path))
    table = (tmp_path / "small" / "figures" / "fig8.md").read_text()
    assert re.findall(r"Pendulum-v1 \| (.*?) \|\n", table) == [
        "OMNet-SAC | 0.0 | 2 | 4 [4, 4] |  |  | 4 [4, 4]",
        "OMNet-SAC | 0.01 | 2 | 4 [-9, 17] |  | 1.00 [-2.18, 4.18] | 4 [-9, 17]",
        "OMNet-SAC | 0.1 | 2 | 2 [2, 2] |  | 0.50 [0.50, 0.50] | 2 [2, 2]",
        "REDQ | 0.0 | 2 | 10 [10, 10] | 1.00 [0.30, 1.00], p = 0.33 |  | 10 [10, 10]",
        "REDQ | 0.01 | 2 | 3 [-10, 16] | 0.25 [0.01, 0.83], p = 0.67 | 0.30 [-0.97, 1.57] | 3 [-10, 16]",
    ]


@PAPER
def test_committed_tables_are_those_of_the_raw_files(monkeypatch):
    monkeypatch.setattr(figures.Results, "save", lambda results, fig, name: figures.plt.close(fig))
    for table in RESULTS.glob("**/figures/*.md"):
        width = ["--hidden-dim", table.parts[-3][6:]] if table.parts[-3].startswith("width_") else []
        root = RESULTS / "earlier_streams" if "earlier_streams" in table.parts else RESULTS
        flags = figures.Flags(protocol="paper" if table.parent.parent == root else "small", results=root)
        assert figures.DRAW[table.stem](figures.Results(table.stem, flags, width)) == table.read_text(), table


def first_runs() -> dict[str, Path]:
    """Of the committed runs on the quick task one for each method and each flag that a variant sets: whole ones, or
    beginnings, which are of no other use."""
    runs = [
        sorted(RESULTS.glob(f"{size}/*/InvertedDoublePendulum-v4__*/args.json")) for size in ("small", "beginnings")
    ]
    folders = [path.parent for path in reversed(sum(reversed(runs), []))]
    return {re.sub("(__[a-z_]+)_[^_]+", r"\1", folder.parent.name): folder for folder in folders}


@pytest.mark.parametrize("variant, folder", first_runs().items())
def test_the_code_of_today_begins_as_the_committed_runs_did(variant, folder, tmp_path):
    default = next(default for _, default in METHODS.values() if f"__{default.method}__" in folder.name)
    flags = json.loads((folder / "args.json").read_text())["args"]
    args = dataclasses.replace(default, **flags)
    steps = args.learning_starts + (16 if "__" in variant else 50)  # 50 of training tell another tau, say
    short = {"total_timesteps": steps, "eval_interval": 0, "bias_interval": 0, "compile": False, "run_dir": tmp_path}
    args = dataclasses.replace(args, **short)
    train(args, baselines.make_agent)
    today, then = (np.loadtxt(run / "train.csv", delimiter=",", skiprows=1) for run in (run_folder(args), folder))
    assert (today[:, 0] > args.learning_starts).sum() >= 2
    assert today == pytest.approx(then[: len(today)], rel=1e-5)  # the committed files have six digits


@pytest.mark.parametrize("seed", [1, 2])
def test_the_code_of_today_begins_as_the_committed_runs_at_the_papers_size_did(seed, tmp_path):
    folder = RESULTS / "beginnings" / "omnet_sac" / f"Hopper-v4__omnet_sac__{seed}"
    args = Args(env_id="Hopper-v4", seed=seed, total_timesteps=5001, compile=False, run_dir=tmp_path)
    train(args)
    for name, last in (("train.csv", -1), ("eval.csv", 5)):  # but for its seconds
        today, then = (np.loadtxt(run / name, delimiter=",", skiprows=1) for run in (run_folder(args), folder))
        assert len(today) >= 10 and today[:, :last] == pytest.approx(then[: len(today), :last], rel=1e-5)


@PAPER
@pytest.mark.parametrize("page, kilobytes", [("README.md", 14), ("paper/README.md", 30)])
def test_pages_have_the_tables_that_the_files_give_and_are_short(page, kilobytes):
    text = (ROOT / page).read_text()
    assert figures.filled(ROOT / page) == text, "python -m paper.figures pages writes them again"
    assert len(text.encode()) <= kilobytes * 1024
    tables = text.count("<!-- end -->")
    assert tables == len(figures.MARKED.findall(text)) and tables >= 11 * (page != "README.md")


@PAPER
def test_a_part_of_a_table_is_that_of_a_task_with_the_columns_named():
    table = stats.markdown("task | method | seeds | area [95%]", [["a", "x", 1, 2], ["b", "y", 3, 4]])
    assert figures.part(table, "b", ["area", "method"]) == "| area [95%] | method |\n| --- | --- |\n| 4 | y |\n"
    assert figures.part(table, "*", ["seeds"]).count("\n") == 4
    for task, column in (("c", "area"), ("a", "score")):
        with pytest.raises(UsageError, match=f"no table of {task} with the columns {column}"):
            figures.part(table, task, [column])


@pytest.mark.parametrize("page", ["README.md", "paper/README.md"])
def test_every_interval_in_the_text_is_in_a_table(page):
    def intervals(text):
        text = re.sub("```.*?```", "", text.replace("−", "-"), flags=re.S)
        return re.findall(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", text)

    tables = [path.read_text() for path in RESULTS.glob("**/figures/*.md")]
    known = np.array([[float(x) for x in numbers] for table in tables for numbers in intervals(table)])
    told = intervals((ROOT / page).read_text())
    assert told
    for numbers in told:
        half_a_digit = 0.5 * 10.0 ** -len(numbers[1].partition(".")[2]) + 1e-9
        assert (abs(known - [float(x) for x in numbers]) <= half_a_digit).all(1).any(), numbers


def test_flops_are_those_of_the_variant():
    def gflop(**flags):
        return flops.gflop_per_step("omnet-sac", "Pendulum-v1", hidden_dim=16, batch_size=16, **flags)

    for flags in ({}, {"num_subnets": 1, "sparsity": 0.0}, {"policy_delay": 4}):
        size = 3, 1, 16, flags.get("num_subnets", 5), 16, flags.get("policy_delay", 20)
        assert gflop(**flags) == pytest.approx(20 * hand_counted_flop(*size) / 1e9)


def test_flops_of_a_script_are_those_of_its_agent():
    script = str(Path(omnet_sac.__file__))
    words = ["--env-id", "Pendulum-v1", "--hidden-dim", "16", "--replay-ratio", "2", "--policy-delay", "6"]
    expected = flops.gflop_per_step("omnet-sac", "Pendulum-v1", hidden_dim=16, replay_ratio=2, policy_delay=6)
    counted = flops.script_gflop_per_step(script, *words, "--learning-starts", "300")
    assert counted == pytest.approx(expected, rel=5e-3), "with the products of acting"
    with pytest.raises(UsageError, match="--gamma"):
        flops.script_gflop_per_step(script, *words, "--gamma", "3")


def test_reasons_are_the_last_error_or_the_last_words():
    assert flops.reason("error: first\nerror: last\n12%|█ | 3/4\n") == "last"
    assert flops.reason("Traceback\n  at\nKeyError: 'x'\n\n") == "KeyError: 'x'"
    assert flops.reason("╭─╮\n│ Unrecognized options: --foo │\n╰─╯\n") == "Unrecognized options: --foo"
    assert flops.reason("") == "it does not say why"


@PAPER
def test_probability_of_improvement_is_that_of_all_pairs_and_of_scipy():
    from scipy.stats import mannwhitneyu

    xs, ys = [np.array([1.0, 2, 3]), np.array([5.0])], [np.array([2.0, 2.5]), np.array([5.0, 4])]
    assert stats.improvement(xs, ys) == ((0 + 0 + 0.5 + 0 + 1 + 1) / 6 + (0.5 + 1) / 2) / 2
    x, y = np.random.default_rng(0).integers(9, size=(2, 20))
    assert stats.improvement([x], [y]) == pytest.approx(mannwhitneyu(x, y).statistic / 400)
    ten = np.arange(10.0)
    assert stats.improvement_text([ten], [ten + 20]) == "0.00 [0.00, 0.21], p < 0.001"
    assert stats.improvement_text([ten[:1]], [ten[:1]]) == "0.50 [0.00, 1.00], p = 1"


@PAPER
@pytest.mark.parametrize("seeds, tasks", [(5, 1), (10, 1), (5, 3)])
def test_intervals_of_probabilities_hold_them_as_often_as_they_say(seeds, tasks):
    from scipy.stats import norm

    rng, bounds = np.random.default_rng(0), {}
    for ahead, spread in ((0, 1), (0.7, 1), (1.5, 1), (3, 1), (1, 3)):
        held = []
        for _ in range(500):
            xs, ys = rng.normal(ahead, 1, (tasks, seeds)), rng.normal(0, spread, (tasks, seeds))
            probability = stats.improvement(xs, ys)
            if probability not in bounds:
                bounds[probability] = stats.improvement_bounds(xs, ys)
            low, high = bounds[probability]
            held.append(low <= norm.cdf(ahead / (1 + spread**2) ** 0.5) <= high)
        assert np.mean(held) >= 0.93, (ahead, spread)


def rankings(seeds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """All ways of dealing the ranks of twice as many seeds to two agents."""
    ranks = range(2 * seeds)
    return [(np.array(x), np.setdiff1d(ranks, x)) for x in combinations(ranks, seeds)]


@PAPER
@pytest.mark.parametrize("seeds", [3, 4, 5])
def test_equal_agents_are_called_different_in_at_most_5_of_100_rankings(seeds):
    from scipy.stats import mannwhitneyu

    decided = 0
    for x, y in rankings(seeds):
        p, told = stats.rank_test([x], [y]), stats.verdict([x], [y])
        assert p == pytest.approx(mannwhitneyu(x, y, method="exact").pvalue)
        decided += told in ("better", "worse")
        low, high = stats.improvement_bounds([x], [y])
        assert (told in ("better", "worse")) == (not low <= 0.5 <= high), "the interval says the same"
    assert decided <= 0.05 * len(rankings(seeds)) and (decided > 0) == (seeds > 3)


@PAPER
def test_p_over_two_tasks_is_that_of_all_rankings_of_both_and_with_ties_scipys():
    from scipy.stats import permutation_test

    ways = [*product(rankings(3), rankings(2))]
    off = {k: abs(stats.improvement(*zip(*ways[k])) - 0.5) for k in range(len(ways))}
    for k in range(0, len(ways), 7):
        expected = np.mean([other >= off[k] - 1e-9 for other in off.values()])
        assert stats.rank_test(*zip(*ways[k])) == pytest.approx(expected)
    x, y = np.array([1, 2, 2, 5, 7]), np.array([2, 2, 0, 1])
    tied = permutation_test((x, y), lambda x, y: abs(stats.improvement([x], [y]) - 0.5), alternative="greater")
    assert stats.rank_test([x], [y]) == pytest.approx(tied.pvalue)


@PAPER
def test_verdicts_do_not_depend_on_the_order_of_contenders():
    rng = np.random.default_rng(0)
    other_way = {"better": "worse", "worse": "better"}
    cases = [([x], [y]) for x, y in rankings(4)]
    cases += [([*rng.integers(6, size=(2, 4))], [*rng.integers(6, size=(2, 5))]) for _ in range(100)]
    for xs, ys in cases:
        told = stats.verdict(xs, ys)
        assert stats.verdict(ys, xs) == other_way.get(told, told)
        low, high = stats.improvement_bounds(xs, ys)
        assert stats.improvement_bounds(ys, xs) == pytest.approx((1 - high, 1 - low))


@PAPER
def test_verdicts_and_the_seeds_that_they_take():
    assert stats.seeds_to_decide(1.0, 1) == 6 and stats.seeds_to_decide(0.75, 1) == 21  # 7.849 / 6 / 0.25, / 0.0625
    assert stats.seeds_to_decide(0.25, 2) == 11 and stats.seeds_to_decide(0.5, 1) == np.inf
    ten = [np.arange(10.0)]
    assert stats.verdict([ten[0] + 20], ten) == "better" and stats.verdict(ten, [ten[0] + 20]) == "worse"
    assert stats.verdict(ten, ten).startswith("undecided: at the effect seen, which is next to none")
    assert stats.verdict([np.array([3.0, 4])], [np.array([1.0, 2])]) == (
        "undecided: about 4 more seeds per task would decide at the effect seen"
    )
    apart = [np.array([3, 5, 6, 8, 9])], [np.array([0, 1, 2, 4, 7])]
    assert stats.verdict(*apart) == "undecided: about 7 more seeds per task would decide at the effect seen"
    assert stats.improvement_text(*apart).endswith(", p = 0.095")


@PAPER
def test_areas_and_the_scale_of_scores(tmp_path):
    assert stats.area(np.array([[1.0, 2, 6], [0, 0, 3]])).tolist() == [3, 1]
    scaled = stats.normalised(np.array([4.0, 10]), zero=np.array([3.0, 5]), one=np.array([8.0, 8]))
    assert scaled.tolist() == [0, 1.5]
    (tmp_path / "eval.csv").write_text("step,return\n1,x\n")
    with pytest.raises(UsageError, match="eval.csv is not a table of numbers"):
        stats.curve(tmp_path)


# paper/compare.py

SCRIPT = """
import argparse, json, sys
from pathlib import Path
parser = argparse.ArgumentParser()
for name in "env-id seed total-timesteps learning-starts eval-interval eval-episodes hidden-dim run-dir".split():
    parser.add_argument(f"--{name}")
parser.add_argument("--gain", default="0")
args = parser.parse_args()
BREAK
folder = Path(args.run_dir) / f"{args.env_id}__script__{args.seed}"
folder.mkdir(parents=True)
(folder / "args.json").write_text(json.dumps({"args": vars(args)}))
rows = [f"{step},0,0,{GAIN + float(args.gain) + int(args.seed)},1,1.0\\n" for step in (10, 20)]
(folder / "eval.csv").write_text("step,episode,subnet,return,length,seconds\\n" + "".join(rows))
"""


TWENTY_STEPS = "--total-timesteps", "20", "--eval-interval", "10"


def compared(*contenders: str, results: Path, words=TWENTY_STEPS, **flags) -> int:
    """Exit code of paper.compare on Pendulum-v1, or on the task given."""
    flags = {"env_ids": ("Pendulum-v1",), "num_cpus": 0.5} | flags
    with pytest.raises(SystemExit) as exit:
        compare.main(
            compare.Flags(contenders=contenders, results=results, reference=results / "none", **flags), list(words)
        )
    return int(exit.value.code or 0)


@RAY
@PAPER
def test_contenders_run_as_processes_and_do_not_mix(tmp_path, monkeypatch, capsys, cluster):
    """Two with one name, one that crashes; then one that changes."""
    monkeypatch.setattr(compare, "gflop", lambda run: 1.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BONUS", "2")  # after the cluster was started
    for folder, gain in ((".", -2), ("one", 8), ("two", -12)):
        (tmp_path / folder).mkdir(exist_ok=True)
        script = SCRIPT.replace("BREAK", "from my_nets import GAIN")
        (tmp_path / folder / ("omnet_sac.py" if folder == "." else "idea.py")).write_text(script)
        (tmp_path / folder / "my_nets.py").write_text(f"import os\nGAIN = {gain} + int(os.environ['BONUS'])\n")
    (tmp_path / "broken.py").write_text(SCRIPT.replace("BREAK", "sys.exit('error: it is broken')"))
    results, flags = tmp_path / "runs", {"seeds": 3, "env_ids": ("Pendulum-v1", "Reach-v0")}
    texts = "one/idea.py", "two/idea.py", "one/idea.py --gain 5", "broken.py"
    assert compared(*texts, results=results, **flags) == 1
    out, err = capsys.readouterr()
    assert err.count("it is broken") >= 6 and "broken.py: no run has finished" in out
    assert (
        "**one/idea.py against omnet_sac.py: better; probability of improvement 1.00 [0.63, 1.00], p = 0.005, 3 seeds"
        in out
    )
    assert "**two/idea.py against omnet_sac.py: worse; " in out and "these are left out of the score" in out
    assert "| one/idea.py --gain 5 | 3 | 17 [15, 19] | 17 [15, 19] | 1.00 [0.45, 1.00], p = 0.1 | 1.00 | 1.00 |" in out
    folders = {path.name.split("-")[0] for path in results.iterdir() if path.is_dir()}
    assert folders == {"omnet_sac", "idea", "broken"} and len(list(results.glob("idea-*"))) == 3
    assert (results / "compare.md").read_text() in out and (results / "compare.png").stat().st_size > 10_000
    (tmp_path / "one" / "my_nets.py").write_text("GAIN = -50\n")
    assert compared("one/idea.py", results=results, **flags) == 0
    assert "**one/idea.py against omnet_sac.py: worse; " in capsys.readouterr().out, "not the runs of what it was"


@PAPER
def test_a_run_is_of_its_program_what_that_imports_and_the_module_of_its_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pendulum = "gymnasium.envs.classic_control:PendulumEnv"
    files = {
        "ideas/idea.py": "import torch, omnet_sac, nets.wide as wide\ndef late():\n    from my_nets import SCALE\n",
        "ideas/my_nets.py": "import idea\n",
        "ideas/nets/wide.py": "from . import deep\nfrom .blocks import Block\n",  # in a folder that has no __init__.py
        "ideas/nets/deep.py": "",
        "ideas/nets/blocks/__init__.py": "Block = 1\n",
        "my_tasks.py": f"import my_rewards, gymnasium as gym\ngym.register('Mine-v0', '{pendulum}')\n",
        "my_rewards.py": "",
    }
    for name, text in (files | {"ideas/other.py": ""}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    idea = compare.contender("ideas/idea.py")
    found = {path.resolve() for path in compare.sources(idea.program, "my_tasks:Mine-v0")}
    assert found == {ROOT / "omnet_sac.py", *(tmp_path / name for name in files)}
    methods = {ROOT / "omnet_sac.py", *(ROOT / "paper" / name for name in ("baselines.py", "probes.py"))}
    assert {*compare.sources(compare.contender("redq").program, "Hopper-v4")} == methods

    def run_dir():
        flags = compare.Flags(contenders=("ideas/idea.py",), env_ids=("my_tasks:Mine-v0",), seeds=1)
        return compare.contender_runs(flags, [idea], TWENTY_STEPS)[idea.text]["my_tasks:Mine-v0"][0].flags["run_dir"]

    before = run_dir()
    (tmp_path / "ideas" / "other.py").write_text("x = 1\n")
    assert run_dir() == before
    for name, text in files.items():
        (tmp_path / name).write_text(text + "x = 1\n")
        assert run_dir() != before, name
        (tmp_path / name).write_text(text)
    (tmp_path / "ideas" / "my_nets.py").write_text("SCALE = \n")
    with pytest.raises(UsageError, match="my_nets.py is no Python"):
        run_dir()


@PAPER
def test_a_worse_fork_is_called_worse_and_a_copy_undecided(tmp_path, monkeypatch, capsys):
    """Real runs of omnet_sac.py on a toy task, made in this process where paper.compare looks for them."""
    shutil.copy(omnet_sac.__file__, tmp_path / "copy.py")
    texts = "omnet_sac.py", f"{tmp_path}/copy.py", "omnet_sac.py --learning-rate 1e-9"
    words = ["--total-timesteps", "300", "--learning-starts", "64", "--eval-interval", "50", "--hidden-dim", "32"]
    words += ["--batch-size", "64", "--replay-ratio", "1", "--policy-delay", "1", "--learning-rate", "3e-3"]
    flags = compare.Flags(contenders=texts, env_ids=("Reach-v0",), seeds=4, results=tmp_path)
    asked = compare.contender_runs(flags, compare.contenders(texts), words)
    for text in ("omnet_sac.py", "omnet_sac.py --learning-rate 1e-9"):
        for run in asked[text]["Reach-v0"]:
            args = tyro.cli(Args, args=sweep.words_of(run.flags))
            train(dataclasses.replace(args, compile=False))
    for run, same in zip(asked[texts[1]]["Reach-v0"], asked[texts[0]]["Reach-v0"]):
        shutil.copytree(same.folder, Path(run.flags["run_dir"]) / same.folder.name)
    monkeypatch.setattr(compare, "gflop", lambda run: 1.0)
    assert compared(*texts, results=tmp_path, words=words, env_ids=("Reach-v0",), seeds=4) == 0
    out = capsys.readouterr().out
    assert "**omnet_sac.py --learning-rate 1e-9 against omnet_sac.py: worse; " in out
    (low, high) = re.search(r"copy.py against omnet_sac.py: undecided: .*? 0.50 \[(\S+), (\S+)\]", out).groups()
    assert float(low) < 0.5 < float(high)


@PAPER
def test_the_scale_of_a_comparison_is_the_repositorys_own_sac_and_redq(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "gflop", lambda run: 1.0)
    texts, words = ("omnet_sac.py", "sin-sac"), (*TWENTY_STEPS, "--batch-size", "16", "--learning-starts", "16")
    size = {"env_id": "Pendulum-v1", "hidden_dim": 64, "learning_starts": 16}
    flags = compare.Flags(
        contenders=texts, env_ids=("Pendulum-v1",), seeds=2, results=tmp_path, reference=tmp_path / "paper"
    )
    for method, value in (("sac", 100.0), ("redq", 200.0)):
        write_method_run(tmp_path / "paper" / "small", method, {10: [value], 20: [value], 30: [1e9]}, **size)
    asked = compare.contender_runs(flags, compare.contenders(texts), list(words))
    for by_task, value in zip(asked.values(), (150, 250)):
        for run in by_task["Pendulum-v1"]:
            name = METHODS[run.method][1].method if run.method else "omnet_sac"
            folder = f"Pendulum-v1__{name}__{run.flags['seed']}"
            args = dataclasses.replace(METHODS[run.method or "sin-sac"][1], **(run.flags if run.method else {}))
            write_run(Path(run.flags["run_dir"]) / folder, {10: [value], 20: [value]}, args)
    before = {path: path.read_bytes() for path in (tmp_path / "paper").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as exit:
        compare.main(flags, list(words))
    out = capsys.readouterr().out
    assert not exit.value.code and "| omnet_sac.py | 0.50 [0.50, 0.50] |  | 1.00 | 1.00 |" in out
    assert (
        "| sin-sac | 1.50 [1.50, 1.50] | 1.00 [0.30, 1.00], p = 0.33 |" in out
        and "| REDQ, reference | 1 | 200 | 200 |" in out
    )
    assert before == {path: path.read_bytes() for path in (tmp_path / "paper").rglob("*") if path.is_file()}


@PAPER
def test_what_compare_cannot_do_is_one_sentence(tmp_path, capsys):
    for texts, told in (
        (("nothing.py",), "neither a script"),
        (("redq --seed 3",), "--seed"),
        (("redq 3",), "3 is neither a flag"),
        (("omnet_sac.py",), "nothing to compare"),
        (("redq --total-timesteps 500",), "learning_starts < total_timesteps"),
    ):
        assert compared(*texts, results=tmp_path, words=()) == 2
        assert told in capsys.readouterr().err.splitlines()[-1]
    assert compared("redq", results=tmp_path, words=("--eval-interval", "many")) == 2
    assert compared("redq", results=tmp_path, env_ids=("Nothing-v9",)) == 2
    with pytest.raises(SystemExit) as exit:
        compare.main(compare.Flags())
    assert exit.value.code == 2 and "contenders" in capsys.readouterr().out


HOUSE = [
    ["omnet_sac"],
    ["probes", "pack"],
    ["baselines"],
    ["flops"],
    ["speed", "sweep", "stats"],
    ["experiments"],
    ["figures"],
]


def test_no_room_imports_upward_and_none_in_a_circle():
    level = {name: k for k, names in enumerate(HOUSE) for name in names}
    below = {name: {other for other in level if level[other] < level[name]} for name in level}
    below["compare"] = {"omnet_sac", "baselines", "flops", "sweep", "stats"}
    for name in (path.stem for path in (ROOT / "paper").glob("*.py") if not path.stem.startswith("test_")):
        tree = ast.parse((ROOT / "paper" / f"{name}.py").read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
        modules = {getattr(node, "module", None) or alias.name for node in nodes for alias in node.names}
        ours = {module.removeprefix("paper.") for module in modules if module.split(".")[0] in ("paper", "omnet_sac")}
        assert ours <= below[name], name
    for path in (ROOT / "omnet_sac.py", ROOT / "test_omnet_sac.py", ROOT / "forks" / "test_forks.py"):
        tree = ast.parse(path.read_text())
        assert not any("paper" in (getattr(node, "module", "") or "") for node in ast.walk(tree)), path
