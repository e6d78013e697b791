#!/usr/bin/env bash
# rejax 0.1.3 (its newest release), optax 0.2.8, jax 0.10.2.
# Guess: `max_grad_norm` bounds the norm of the gradient, as the flag of that name does in PPO everywhere.
# Seen: in PPO, DQN, SAC and TD3 it bounds each entry: a gradient of n entries may have the norm sqrt(n) max_grad_norm, and
# its direction changes.
#   max_grad_norm 1: the gradient [3, 4] becomes [1, 1], of norm 1.41, not [0.6, 0.8]
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q rejax==0.1.3 gymnax==1.0.1 optax==0.2.8 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/bin/python" - <<'END'
import jax
import jax.numpy as jnp
import optax
import rejax

agents = {"ppo": "CartPole-v1", "dqn": "CartPole-v1", "sac": "Pendulum-v1", "td3": "Pendulum-v1"}
for name, env in agents.items():
    agent = rejax.get_algo(name).create(env=env, max_grad_norm=1.0)
    state = agent.init_state(jax.random.PRNGKey(0))
    tx = next(getattr(state, field) for field in ("actor_ts", "q_ts") if hasattr(state, field)).tx
    _, after = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)), jnp.zeros(2))
    (adam,) = [s for s in jax.tree.leaves(after, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    clipped = adam.mu / 0.1  # Adam's first moment after a step, over 1 - beta1
    print(name, clipped, "norm", optax.global_norm(clipped))
    assert jnp.allclose(clipped, jnp.ones(2))
END
