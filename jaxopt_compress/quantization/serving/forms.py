"""How the weight of one product is stored for serving: as a matrix, one output after the other."""

import jax
import jax.numpy as jnp

from jaxopt_compress.encoded import Quantized
from jaxopt_compress.grids import Grid
from jaxopt_compress.products import Dot
from jaxopt_compress.quantization.numerics import Affine

NATIVE = 4  # bits of the smallest type that TPUs read as it is


def stored(how: Dot, side: int, codes: jax.Array, affine: Affine, grid: Grid, dtype: str, native: bool) -> Quantized:
    """Store the codes of an operand as `(batch, out, in)`, with scales of as many axes.

    Args:
      how: the product.
      side: which operand the weight is.
      codes: one a byte, as the product sees them.
      affine: what they stand for.
      grid: of the codes.
      dtype: of the weight.
      native: whether codes of few bits are arrays of XLA's own types of 4 bits, which TPUs read, or share bytes.
    """
    whole = how.matrix(side, codes)
    scale, zero = (None if x is None else how.matrix(side, _unfolded(how, side, x, codes.shape)) for x in affine)
    if scale is None:
        raise ValueError("`convert`: a weight without scales.")
    if native and grid.bits <= NATIVE:
        kind = jnp.int4 if whole.dtype == jnp.int8 else jnp.uint4
        return Quantized(whole.astype(kind), scale, zero, grid, dtype)
    return Quantized.of(whole, scale, grid, dtype, zero)


def _unfolded(how: Dot, side: int, scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeat scales of groups along the summed axes in front of theirs, so that each serves one run of a row."""
    order = how.contracting[side]
    grouped = [place for place, axis in enumerate(order) if scale.shape[axis] > 1]
    front = order[: max(grouped)] if grouped else ()
    return jnp.broadcast_to(scale, [n if axis in front else scale.shape[axis] for axis, n in enumerate(shape)])


def sums(weight: Quantized) -> jax.Array:
    """Add up the codes of each output, less those that stand for 0: what a zero point of activations is worth."""
    found = jnp.sum(weight.codes.astype(jnp.int32), axis=2, keepdims=True)
    if weight.zero_point is None:
        return found
    return found - weight.shape[2] * weight.zero_point.astype(jnp.int32)
