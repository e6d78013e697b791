#!/usr/bin/env bash
# skrl 2.1.1.
# Guess: SAC's policy is a Gaussian squashed by tanh, and its log-density has tanh's correction.
# Seen: skrl has no squashed Gaussian; a SAC policy of its GaussianMixin, told clip_actions=True, cuts actions at the
# bounds and gives them the density of the Gaussian that was not cut, so the entropy that is tuned is not the
# policy's.
#   Normal(0, 1) in [-1, 1]: 32% of the actions at a bound, density 0.242 to 0.242
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q 'skrl[torch]==2.1.1' torch==2.13.0 gymnasium==1.4.0 numpy==2.4.6
"$dir/bin/python" - <<'END'
import gymnasium as gym
import torch
from skrl.models.torch import GaussianMixin, Model

BOX = gym.spaces.Box(-1, 1, (1,))


class Policy(GaussianMixin, Model):
    def __init__(self):
        Model.__init__(self, observation_space=BOX, action_space=BOX, device="cpu")
        GaussianMixin.__init__(self, clip_actions=True)

    def compute(self, inputs, role=""):
        zeros = torch.zeros_like(inputs["observations"])
        return zeros, {"log_std": zeros}


torch.manual_seed(0)
actions, outputs = Policy().act({"observations": torch.zeros(10_000, 1)})
at_bound = actions.abs() == 1
density = outputs["log_prob"][at_bound].exp()
print(f"{at_bound.float().mean():.0%} of the actions at a bound, density {density.min():.3f} to {density.max():.3f}")
assert 0.30 < at_bound.float().mean() < 0.34 and (density - 0.242).abs().max() < 1e-3
END
