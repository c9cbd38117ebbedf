"""An MLP with 10M parameters in plain JAX."""

from typing import Any

import jax
import jax.numpy as jnp

WIDTHS = (1024, 2304, 2304, 1024, 10)


def init(key: jax.Array, widths=WIDTHS) -> dict[str, Any]:
    """Make the parameters of the MLP."""
    keys = jax.random.split(key, len(widths))
    return {
        f"dense_{i}": {"kernel": jax.random.normal(k, (n, m)) * (2 / n) ** 0.5, "bias": jnp.zeros(m)}
        for i, (k, n, m) in enumerate(zip(keys, widths[:-1], widths[1:], strict=False))
    }


def forward(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Apply the MLP."""
    for i in range(len(params)):
        x = x @ params[f"dense_{i}"]["kernel"] + params[f"dense_{i}"]["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x
