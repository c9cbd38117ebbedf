"""The one definition of rounding to codes, shared by training, encoding and serving.

`round(w * inv_scale)`, never `w / scale`: XLA may turn the division into that product, and the two differ on
rounding boundaries. `round` is half to even. A zero point is added after rounding, as in PyTorch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress import layout
from jaxopt_compress.combinators import passthrough as passthrough
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.grids import Grid, Integers


class Affine(NamedTuple):
    """How codes are turned into numbers: `value = (code - zero_point) * scale`.

    Attributes:
      scale: positive, float32 (float64 for float64); each of its axes divides that of the array.
      zero_point: int8 of the same shape; None where it is 0.
    """

    scale: jax.Array
    zero_point: jax.Array | None = None


def symmetric(largest: jax.Array, grid: Grid) -> Affine:
    """Map the largest absolute value to the largest number of the grid; scale 1 where it is 0 or too small for one."""
    return Affine(_safe(wide(largest) * (1 / grid.largest)))  # XLA would turn a division by a constant into this


def asymmetric(low: jax.Array, high: jax.Array, grid: Integers) -> Affine:
    """Map a range to all codes; it is widened to contain 0, so that 0 is a code (of padding, of a ReLU).

    Reference: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", 2018.
    """
    low, high = jnp.minimum(wide(low), 0), jnp.maximum(wide(high), 0)
    scale = _safe((high - low) * (1 / (grid.highest - grid.lowest)))
    zero = jnp.clip(grid.lowest - jnp.round(low * (1 / scale)), grid.lowest, grid.highest)
    return Affine(scale, zero.astype(jnp.int8))


def codes(w: jax.Array, affine: Affine, grid: Grid) -> jax.Array:
    """Round to codes, clipped to the grid."""
    return grid.round(_shifted(w, affine))


def in_range(w: jax.Array, affine: Affine, grid: Grid) -> jax.Array:
    """Tell which weights have a code of their own, so that clipping does not change them."""
    return grid.inside(_shifted(w, affine))


def encode(w: jax.Array, affine: Affine, grid: Grid) -> Quantized:
    """Return the codes in their stored form."""
    return Quantized.of(codes(w, affine, grid), affine.scale, grid, w.dtype.name, affine.zero_point)


def values(codes: jax.Array, affine: Affine, grid: Grid) -> jax.Array:
    """Return the numbers that codes stand for, in steps of the scale; float32."""
    found = grid.values(codes)
    return (
        found
        if affine.zero_point is None
        else found - layout.spread(affine.zero_point, codes.shape).astype(found.dtype)
    )


def rounded(w: jax.Array, affine: Affine, grid: Grid, dtype: Any = None) -> jax.Array:
    """Return what `encode` decodes to, without packing the codes in between; in another dtype if one is given."""
    name = jnp.dtype(dtype or w.dtype).name
    return Quantized(codes(w, affine, grid), affine.scale, affine.zero_point, grid, name).decode()


def straight_through(w: jax.Array, affine: Affine, grid: Grid, clips: bool = True, cast: Any = None) -> jax.Array:
    """Return what `encode` decodes to, with the gradient 1 where the code is in range, and 0 where it is clipped.

    Args:
      w: what is rounded.
      affine: scales and zero points, which get no gradient.
      grid: to what.
      clips: whether weights may lie out of range; where none can, nothing is compared.
      cast: the dtype in which it is rounded; that of `w` by default.
    """
    seen = w if cast is None else w.astype(cast)
    learns = clipped(w, affine, grid, cast) if clips else w
    return passthrough(learns, jax.lax.stop_gradient(rounded(seen, affine, grid, w.dtype)))


def clipped(w: jax.Array, affine: Affine, grid: Grid, cast: Any = None) -> jax.Array:
    """Return the weights, with the gradient 0 where their rounding clips them."""
    seen = w if cast is None else w.astype(cast)
    return jnp.where(in_range(seen, affine, grid), w, jax.lax.stop_gradient(w))


def _shifted(w: jax.Array, affine: Affine) -> jax.Array:
    """Return weights in steps of the grid; they are integers already where there is a zero point."""
    steps = w.astype(affine.scale.dtype) * layout.spread(1 / affine.scale, w.shape)
    if affine.zero_point is None:
        return steps
    return jnp.round(steps) + layout.spread(affine.zero_point, w.shape).astype(steps.dtype)


def short(scale: jax.Array) -> jax.Array:
    """Round to the numbers of bfloat16, in the dtype that there is."""
    found = jax.lax.reduce_precision(scale, exponent_bits=8, mantissa_bits=7)
    return jnp.where(jnp.isinf(found), scale, found)


def _safe(scale: jax.Array) -> jax.Array:
    return jnp.where(scale < jnp.finfo(scale.dtype).tiny, jnp.ones_like(scale), scale)


def wide(x: jax.Array) -> jax.Array:
    """Return floats in the dtype in which scales are computed: float32, and float64 for float64."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)
