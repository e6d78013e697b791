#!/usr/bin/env bash
# rejax 0.1.3 (its newest release), gymnax 1.0.1, jax 0.10.2.
# Guess: what pip installs side by side without a word trains together.
# Seen: pip check finds nothing broken, agents are made, and every `train` raises at its first step: gymnax 1 returns
# terminated and truncated apart, six values, and rejax asks for gymnax>=0.0.9 and unpacks five.
#   ValueError: too many values to unpack (expected 5)
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q rejax==0.1.3 gymnax==1.0.1 optax==0.2.8 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
"$dir/bin/pip" check
JAX_PLATFORMS=cpu "$dir/bin/python" - <<'END'
import jax
import rejax

flags = {"total_timesteps": 256, "eval_freq": 256, "num_envs": 4, "fill_buffer": 64, "batch_size": 16}
agent = rejax.get_algo("sac").create(env="Pendulum-v1", **flags)
try:
    agent.train(jax.random.PRNGKey(0))
except ValueError as error:
    print("ValueError:", error)
    assert "too many values to unpack" in str(error)
else:
    raise SystemExit("it trains now")
END
