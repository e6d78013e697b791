"""Tests of paper/speed.py: the FLOPs against the hand count, the table and its arithmetic."""

import csv
import sys

import pytest

from omnet_sac import Args
from paper import speed
from paper.speed import HEADER, OMNetSAC, main, measure, trace


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
    (row,) = measure(args, OMNetSAC, threads=1, seconds=0.1, peers=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert row["method"] == "omnet_sac" and all(name in line for name in ("sb3_sac", "sbx_sac", "sbx_droq"))


def test_what_the_user_can_mend_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as exit:
        main(speed.Flags(threads=0))
    assert exit.value.code == 2 and "--threads" in capsys.readouterr().err
