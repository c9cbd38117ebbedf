"""A product of two rounded operands: integers inside, floats outside.

Forward: both operands are rounded to codes, the codes are multiplied and added in int32, exactly, and the sum is
scaled once, `sum * (scale_a * scale_b)`. Backward: straight through, 0 where an operand was clipped; the codes, and not
the floats, are kept for it, and products take bfloat16 and add in float32.

`in_floats` is the same on any grid, in the way that is usual: operands are rounded, and multiplied as floats.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.products import Conv, Dot, runs
from jaxopt_compress.quantization import numerics
from jaxopt_compress.quantization.numerics import Affine

Product = Dot | Conv


class Rounding(NamedTuple):
    """How an operand is rounded.

    Attributes:
      grid: to what.
      affine: scale and zero point.
      clips: whether entries may lie outside the range.
      learned: where the range is trained, a function of the operand with the derivatives of its rounding.
    """

    grid: Grid
    affine: Affine
    clips: bool
    learned: Callable[[jax.Array], jax.Array] | None = None

    def rounded(self, x: jax.Array) -> jax.Array:
        """Round in floats, with the gradient of the rounding."""
        return numerics.passthrough(self.smooth(x), jax.lax.stop_gradient(numerics.rounded(x, self.affine, self.grid)))

    def steps(self, x: jax.Array) -> jax.Array:
        """Round, and return how many steps of the scale each number is, with the gradient of that."""
        codes = numerics.codes(jax.lax.stop_gradient(x), self.affine, self.grid)
        smooth = numerics.wide(self.smooth(x)) * (1 / self.affine.scale)
        return numerics.passthrough(smooth, numerics.values(codes, self.affine, self.grid))

    def smooth(self, x: jax.Array) -> jax.Array:
        """Return something with the gradient of the rounding; its value does not count."""
        if self.learned is not None:
            return self.learned(x)
        return numerics.clipped(x, self.affine, self.grid) if self.clips else x


Roundings = tuple[Rounding | None, Rounding | None]


def multiply(
    product: Product,
    a: jax.Array,
    b: jax.Array,
    roundings: Roundings,
    dtype: Any,
    integers: bool = True,
    compute: Any = None,
) -> jax.Array:
    """Multiply in integers where that can be done and is wanted, and else in floats."""
    first, second = roundings
    if integers and first and second and fits_integers(product, first, second):
        return in_integers(product, a, b, (first, second), dtype)
    return in_floats(product, a, b, roundings, dtype, compute)


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
    affines = jax.tree.map(jax.lax.stop_gradient, tuple(r.affine for r in roundings))
    codes = [numerics.codes(jax.lax.stop_gradient(x), r.affine, r.grid) for x, r in zip((a, b), roundings)]
    smooth = [r.smooth(x) for x, r in zip((a, b), roundings)]

    @jax.custom_vjp
    def multiply(smooth, codes, affines):
        del smooth
        total = accumulate(product, codes[0], codes[1], *(affine.zero_point for affine in affines))
        return scaled(product, total, *affines).astype(dtype)

    def forward(smooth, codes, affines):
        return multiply(smooth, codes, affines), (codes, affines, [jnp.zeros((0,), x.dtype) for x in smooth])

    def backward(residuals, g):
        codes, affines, likes = residuals
        found = [_cotangent(product, side, g, codes, affines[1 - side]) for side in (0, 1)]
        return [x.astype(like.dtype) for x, like in zip(found, likes)], None, None

    multiply.defvjp(forward, backward)
    return multiply(smooth, codes, affines)


def fits_integers(product: Product, first: Rounding, second: Rounding) -> bool:
    """Tell whether a product can be done in integers: both grids are, and no scale varies within a sum."""
    for side, rounding in enumerate((first, second)):
        if not isinstance(rounding.grid, Integers) or not _one_scale(product, side, rounding):
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
    """Return the cotangent of one operand: that of the output times the other operand as it was rounded.

    Both products of a matrix product take the same bfloat16 copy of `g`; scaling it for either would cost a pass each.
    """
    steps = codes[1 - side]
    if other.zero_point is not None:
        steps = steps.astype(jnp.int16) - other.zero_point.astype(jnp.int16)
    value = steps.astype(jnp.float32) * other.scale.astype(jnp.float32)
    if isinstance(product, Conv):
        return product.transposed(side, g.astype(jnp.float32), value, codes[side].shape)
    return product.transposed(side, g.astype(jnp.bfloat16), value.astype(jnp.bfloat16))


def in_floats(
    product: Product, a: jax.Array, b: jax.Array, roundings: Roundings, dtype: Any, compute: Any = None
) -> jax.Array:
    """Multiply rounded floats; an operand without a rounding stays as it is.

    Args:
      product: what to do.
      a: the first operand.
      b: the second.
      roundings: of both.
      dtype: of the output.
      compute: a dtype that the operands are cast to, such as bfloat16, with sums in float32. What is rounded with one
        scale for a whole sum is then multiplied in steps of it, which bfloat16 holds exactly, and scaled afterwards.
    """
    pairs = list(zip((a, b), roundings))
    if compute is None:
        parts = [x if r is None else r.rounded(x) for x, r in pairs]
        return product(parts[0], parts[1], sums_of(dtype)).astype(dtype)
    whole = [r is not None and _one_scale(product, side, r) for side, (_, r) in enumerate(pairs)]
    parts = [x if r is None else r.steps(x) if one else r.rounded(x) for (x, r), one in zip(pairs, whole)]
    total = product(parts[0].astype(compute), parts[1].astype(compute), sums_of(dtype))
    for side, (_, r) in enumerate(pairs):
        total = total * product.outward(side, r.affine.scale) if r is not None and whole[side] else total
    return total.astype(dtype)


def sums_of(dtype: Any) -> Any:
    """Return the dtype in which products of floats are added."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _one_scale(product: Product, side: int, rounding: Rounding) -> bool:
    """Tell whether no scale varies within a sum."""
    return all(rounding.affine.scale.shape[axis] == 1 for axis in product.summed(side))
