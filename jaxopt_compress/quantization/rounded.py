"""A product of two rounded operands: integers inside, floats outside.

Forward: both operands are rounded to codes, the codes are multiplied and added in int32, exactly, and the sum is
scaled once, `sum * (scale_a * scale_b)`. Backward: straight through, 0 where an operand was clipped; the codes, and not
the floats, are kept for it, and products take bfloat16 and add in float32.

`in_floats` is the same on any grid, in the way that is usual: operands are rounded, and multiplied as floats.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.quantization import numerics
from jaxopt_compress.quantization.numerics import Affine
from jaxopt_compress.quantization.products import Conv, Dot, runs

Product = Dot | Conv


class Rounding(NamedTuple):
    """How an operand is rounded.

    Attributes:
      grid: to what.
      affine: scale and zero point.
      clips: whether entries may lie outside the range.
    """

    grid: Grid
    affine: Affine
    clips: bool


Roundings = tuple[Rounding | None, Rounding | None]


def multiply(product: Product, a: jax.Array, b: jax.Array, roundings: Roundings, dtype: Any, integers: bool = True):
    """Multiply in integers where that can be done and is wanted, and else in floats."""
    first, second = roundings
    if integers and first and second and fits_integers(product, first, second):
        return in_integers(product, a, b, (first, second), dtype)
    return in_floats(product, a, b, roundings, dtype)


def in_integers(
    product: Product, a: jax.Array, b: jax.Array, roundings: tuple[Rounding, Rounding], dtype: Any
) -> jax.Array:
    """Multiply in integers.

    Args:
      product: what to do.
      a: the first operand, of floats.
      b: the second.
      roundings: of both, as `fits_integers` lets through.
      dtype: of the output.
    """

    @jax.custom_vjp
    def multiply(a, b, affines):
        return forward(a, b, affines)[0]

    def forward(a, b, affines):
        triples = [(x, affine, r) for x, affine, r in zip((a, b), affines, roundings)]
        codes = [numerics.codes(x, affine, r.grid) for x, affine, r in triples]
        kept = [numerics.in_range(x, affine, r.grid) if r.clips else None for x, affine, r in triples]
        total = accumulate(product, codes[0], codes[1], *(affine.zero_point for affine in affines))
        out = scaled(product, total, *affines).astype(dtype)
        return out, (codes, kept, affines, [jnp.zeros((0,), x.dtype) for x in (a, b)])

    def backward(residuals, g):
        codes, kept, affines, likes = residuals
        found = [_cotangent(product, side, g, codes, affines[1 - side]) for side in (0, 1)]
        found = [x if mask is None else jnp.where(mask, x, 0) for x, mask in zip(found, kept)]
        return *(x.astype(like.dtype) for x, like in zip(found, likes)), None

    multiply.defvjp(forward, backward)
    return multiply(a, b, jax.tree.map(jax.lax.stop_gradient, tuple(r.affine for r in roundings)))


def fits_integers(product: Product, first: Rounding, second: Rounding) -> bool:
    """Tell whether a product can be done in integers: both grids are, and no scale varies within a sum."""
    for side, rounding in enumerate((first, second)):
        shape = rounding.affine.scale.shape
        if not isinstance(rounding.grid, Integers) or any(shape[axis] != 1 for axis in product.summed(side)):
            return False
    return not (isinstance(product, Conv) and second.affine.zero_point is not None)


def accumulate(
    product: Product, a: jax.Array, b: jax.Array, zero_a: jax.Array | None = None, zero_b: jax.Array | None = None
) -> jax.Array:
    """Multiply codes and add in int32, as if the codes that stand for 0 were 0."""
    if isinstance(product, Conv) and zero_a is not None:
        product, a = product.padded(a, zero_a.reshape(()))
    count = runs(product.summed(1), b.shape)
    zeros = [None if z is None else product.outward(s, z.astype(jnp.int32)) for s, z in ((0, zero_a), (1, zero_b))]
    total = product(a, b, jnp.int32)
    for side, codes in ((0, b), (1, a)):
        if (zero := zeros[side]) is not None:
            sums = jnp.sum(codes.astype(jnp.int32), axis=product.summed(1 - side), keepdims=True)
            total = total - zero * product.outward(1 - side, sums)
    return total if zeros[0] is None or zeros[1] is None else total + count * (zeros[0] * zeros[1])


def scaled(product: Product, total: jax.Array, a: Affine, b: Affine) -> jax.Array:
    """Turn sums of codes into floats: the one place where integers end."""
    scale = product.outward(0, a.scale) * product.outward(1, b.scale)
    return total.astype(scale.dtype) * scale


def _cotangent(product: Product, side: int, g: jax.Array, codes, other: Affine) -> jax.Array:
    """Return the cotangent of one operand, `g` with the scale of the other times the codes of the other."""
    steps = codes[1 - side]
    if other.zero_point is not None:
        steps = steps.astype(jnp.int16) - other.zero_point.astype(jnp.int16)
    g = g.astype(jnp.float32) * product.outward(1 - side, other.scale.astype(jnp.float32))
    if isinstance(product, Conv):
        return product.transposed(side, g, steps.astype(jnp.float32), codes[side].shape)
    return product.transposed(side, g.astype(jnp.bfloat16), steps.astype(jnp.bfloat16))


def in_floats(product: Product, a: jax.Array, b: jax.Array, roundings: Roundings, dtype: Any) -> jax.Array:
    """Multiply rounded floats; an operand without a rounding stays as it is."""
    parts = [
        x if r is None else numerics.straight_through(x, r.affine, r.grid, r.clips) for x, r in zip((a, b), roundings)
    ]
    return product(parts[0], parts[1], _sums(dtype)).astype(dtype)


def _sums(dtype: Any) -> Any:
    return jnp.float64 if dtype == jnp.float64 else jnp.float32
