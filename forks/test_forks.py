"""Each idea is applied to `omnet_sac.py` as it stands, and trains; and does what its two lines say."""

import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from omnet_sac import Args, episode, make_env
from test_omnet_sac import entries, small

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "forks").glob("*.patch")))
def test_forks_apply_and_run(name, tmp_path):
    patch = ROOT / "forks" / f"{name}.patch"
    header, changes = patch.read_text().split("\n\n", 1)
    added = [line for line in changes.splitlines() if re.match(r"\+(?!\+\+)", line) and len(line) > 1]
    assert len(header.splitlines()) == 2 and len(added) <= 10
    shutil.copy(ROOT / "omnet_sac.py", tmp_path)
    subprocess.run(["patch", "-s", "-p1", "-F0", "-i", patch], cwd=tmp_path, check=True)
    assert subprocess.run(["git", "apply", "--check", patch], cwd=ROOT).returncode == 0 or not (ROOT / ".git").exists()
    fork = types.ModuleType("fork")
    sys.modules["fork"] = fork
    exec((tmp_path / "omnet_sac.py").read_text(), vars(fork))
    hidden_only = {"mask_input": False, "mask_output": False} if name == "hidden_only" else {}
    assert {k: getattr(fork.Args(), k) for k in hidden_only} == hidden_only
    agent = fork.train(fork.Args(**vars(small(run_dir=tmp_path)) | hidden_only))
    assert agent.gradient_steps == 160 and agent.theta_target.isfinite().all()
    masks = {n: entries(agent.critic, n, agent.critic.masks) for n in agent.critic.shapes}
    if name == "balanced":  # of 5 subnetworks, 2 or 3 have a parameter at S = 0.5
        assert agent.critic.masks.sum(0).unique().tolist() == [2, 3, 5]
    if name == "hidden_only":
        weights = [bool(mask.all()) for n, mask in masks.items() if "weight" in n]
        assert weights == [True, True, False, True, True]
    if name == "deeper":
        assert agent.critic.shapes["third.weight"] == agent.critic.shapes["hidden.weight"] == (16, 16)
    if name == "n_step":
        check_n_step(fork.ReplayBuffer)
    if name == "quantile":
        masks, x = agent.critic.masks, torch.randn(16, 3)
        inputs = torch.randn(16), torch.randn(16, 2), torch.zeros(16), masks[:2], agent.actor.masks[:1]
        assert agent.td_target(*inputs, torch.randn(16, 1)).shape == (16, 25)
        assert agent.q_value(agent.critic.theta, masks, x).shape == (5, 16)
    if name == "normalised":
        saved = torch.load(next(tmp_path.rglob("checkpoint.pt")), weights_only=True)["agent"]
        assert torch.equal(saved["obs_mean"], agent.obs_mean) and agent.obs_mean.any() and (agent.obs_std != 1).all()


def test_an_environment_with_arguments_and_a_wrapper_of_its_own(monkeypatch):
    monkeypatch.chdir(ROOT)
    env = make_env(Args(env_id="forks.my_env:LazyHopper-v0"))
    plain = make_env(Args())
    rewards = [sum(reward for _, _, reward, *_ in episode(e, 0, 0.0, lambda obs: np.ones(3))) for e in (env, plain)]
    assert 0 < rewards[0] < 0.1 * rewards[1]


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
