#!/usr/bin/env bash
# tensorflow-probability 0.25.0 (its newest release), jax 0.10.2.
# Guess: what pip installs side by side without a word can be imported side by side.
# Seen: pip check finds nothing broken, and TFP's JAX half raises at its first use. The release names no bound on jax,
# which removed in 0.7.0 what it reads. Agents in JAX that take squashed Gaussians from it (SBX does) need tfp-nightly.
#   AttributeError: module 'jax.interpreters.xla' has no attribute 'pytype_aval_mappings'
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q tensorflow-probability==0.25.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
"$dir/bin/pip" check
"$dir/bin/python" - <<'END'
from importlib import metadata

needs = metadata.requires("tensorflow-probability")
assert not [text for text in needs if text.startswith("jax") and "extra" not in text]
try:
    from tensorflow_probability.substrates import jax as tfp

    tfp.distributions.Normal(0.0, 1.0)
except AttributeError as error:
    print("AttributeError:", error)
    assert "pytype_aval_mappings" in str(error)
else:
    raise SystemExit("it works now")
END
