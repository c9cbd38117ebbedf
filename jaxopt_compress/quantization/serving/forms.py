"""How the weight of one product is stored for serving: as a matrix, one output after the other."""

import jax
import jax.numpy as jnp

from jaxopt_compress.encoded import Quantized
from jaxopt_compress.grids import Grid
from jaxopt_compress.products import Dot
from jaxopt_compress.quantization.numerics import Affine


def stored(how: Dot, side: int, codes: jax.Array, affine: Affine, grid: Grid, dtype: str) -> Quantized:
    """Store the codes of an operand as `(batch, out, in)`, with scales of as many axes."""
    parts = [how.matrix(side, leaf) for leaf in (codes, affine.scale)]
    zero = None if affine.zero_point is None else how.matrix(side, affine.zero_point)
    return Quantized.of(parts[0], parts[1], grid, dtype, zero)


def sums(weight: Quantized) -> jax.Array:
    """Add up the codes of each output, less those that stand for 0: what a zero point of activations is worth."""
    found = jnp.sum(weight.codes.astype(jnp.int32), axis=2, keepdims=True)
    if weight.zero_point is None:
        return found
    return found - weight.shape[2] * weight.zero_point.astype(jnp.int32)


def outward(how: Dot, side: int, found: jax.Array, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Give what comes out, `(batch, rows, outs)`, the shape that the product has.

    Args:
      how: the product.
      side: which operand the weight is.
      found: of the rows of `x`.
      x: the other operand, as it was.
      shape: of the weight as it was.
    """
    if side == 0:
        found = jnp.swapaxes(found, 1, 2)
    shapes = (shape, x.shape) if side == 0 else (x.shape, shape)
    batch = [shapes[0][axis] for axis in how.batch[0]]
    return found.reshape([*batch, *(shapes[s][axis] for s in (0, 1) for axis in how.free(s))])
