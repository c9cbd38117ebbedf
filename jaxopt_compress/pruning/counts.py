"""From a fraction of zeros to a number of them."""

from typing import Any

import jax.numpy as jnp

MOST = 2**31 - 1  # entries counted together: counts are int32


def zeros_of(fraction: Any, total: int) -> Any:
    """Return `round(fraction * total)`, halves to even: an integer, or an int32 scalar if the fraction is an array."""
    if isinstance(fraction, (int, float)):
        return round(fraction * total)
    zeros = jnp.round(jnp.asarray(fraction, jnp.float32) * total).astype(jnp.int32)
    return jnp.clip(zeros, 0, total)
