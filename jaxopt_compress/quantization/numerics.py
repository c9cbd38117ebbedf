"""The one definition of rounding to integers, shared by training, encoding and serving.

`round(w * inv_scale)`, never `w / scale`: XLA may turn the division into that product, and the two differ on
rounding boundaries. `round` is half to even.
"""

import jax
import jax.numpy as jnp


def largest_code(bits: int) -> int:
    """Return the largest code of the restricted symmetric range: 127 for 8 bits, 7 for 4."""
    return 2 ** (bits - 1) - 1


def absmax_scale(w: jax.Array, bits: int, shared_axes: tuple[int, ...]) -> jax.Array:
    """Fit scales to the largest absolute value along `shared_axes`.

    Args:
      w: floating-point weights.
      bits: the width of a code.
      shared_axes: axes over which one scale is shared; kept with length 1 in the result.

    Returns:
      Positive scales in float32 (float64 for float64), 1 where all weights are zero or too small to have one.
    """
    largest = jnp.max(jnp.abs(w), axis=shared_axes, keepdims=True, initial=0).astype(_wide(w.dtype))
    scale = largest * (1 / largest_code(bits))  # a product: XLA would turn a division by a constant into one
    return jnp.where(scale < jnp.finfo(scale.dtype).tiny, jnp.ones_like(scale), scale)


def codes(w: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """Round to int8 codes, clipped to the restricted range."""
    top = largest_code(bits)
    return jnp.clip(jnp.round(_scaled(w, scale)), -top, top).astype(jnp.int8)


def in_range(w: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """Tell which weights round to a code inside the range, so that clipping does not change them."""
    return jnp.abs(_scaled(w, scale)) < largest_code(bits) + 0.5  # half to even: the end itself rounds out of range


def _scaled(w: jax.Array, scale: jax.Array) -> jax.Array:
    return w.astype(scale.dtype) * (1 / scale)


def _wide(dtype) -> jnp.dtype:
    return jnp.dtype(dtype) if dtype == jnp.float64 else jnp.dtype(jnp.float32)
