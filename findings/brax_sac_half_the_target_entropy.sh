#!/usr/bin/env bash
# brax 0.14.2 (its newest release), jax 0.10.2.
# Guess: SAC tunes alpha to an entropy of -dim(A), as in the paper that its loss cites, and as peers do.
# Seen: to -0.5 dim(A), and no flag of `train` changes it: policies stay more random than those of other libraries.
#   dim(A) 1: target -0.5   dim(A) 6: target -3.0
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q brax==0.14.2 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/bin/python" - <<'END'
import inspect

import jax
import jax.numpy as jnp
from brax.training.agents.sac import losses, networks
from brax.training.agents.sac.train import train

assert not [flag for flag in inspect.signature(train).parameters if "entropy" in flag]
for size in (1, 6):
    net = networks.make_sac_networks(3, size)
    alpha_loss, _, _ = losses.make_losses(net, 1.0, 0.99, size)
    key, params = jax.random.PRNGKey(0), net.policy_network.init(jax.random.PRNGKey(1))
    batch = losses.Transition(jnp.ones((512, 3)), None, None, None, None)
    dist = net.policy_network.apply(None, params, batch.observation)
    action = net.parametric_action_distribution.sample_no_postprocessing(dist, key)
    entropy = -net.parametric_action_distribution.log_prob(dist, action).mean()
    target = entropy - alpha_loss(jnp.zeros(()), params, None, batch, key)  # the loss is alpha (entropy - target)
    print(f"dim(A) {size}: target {target:.1f}")
    assert abs(target + 0.5 * size) < 1e-3
END
