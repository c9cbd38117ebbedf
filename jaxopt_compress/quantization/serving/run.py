"""Products of activations with stored weights: what `rounded` computes, on codes that are there already."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.encoded import Quantized
from jaxopt_compress.graph import Codes, Site
from jaxopt_compress.grids import Integers
from jaxopt_compress.products import Conv, Dot, product
from jaxopt_compress.quantization import numerics, operands
from jaxopt_compress.quantization.numerics import Affine
from jaxopt_compress.quantization.rounded import (
    Rounding,
    accumulate,
    fits_integers,
    in_floats,
    multiply,
    scaled,
    sums_of,
)
from jaxopt_compress.quantization.schemes import Scheme
from jaxopt_compress.quantization.serving import kernels


def product_of(site: Site, args: Sequence[jax.Array], scheme: Scheme, state: Any, integers: bool) -> jax.Array:
    """Run one product on its state: the stored weight, and the ranges of activations."""
    how, dtype = product(site), site.op.outs[0].aval.dtype
    if site.weight is None or scheme.weight is None:
        first, second = (_rounding(site, how, side, x, scheme, state) for side, x in enumerate(args))
        return multiply(how, args[0], args[1], (first, second), dtype, integers, scheme.compute)
    side, weight = site.weight, state["weight"]
    x = operands.turn(site, scheme, state, 1 - side, args[1 - side])
    rounding = _rounding(site, how, 1 - side, x, scheme, state)
    shape = site.shapes[side]
    if isinstance(how, Conv):
        found = _conv(how, x, weight, rounding, dtype, integers, scheme.compute)
    elif integers and rounding is not None and _in_integers(how, side, weight, rounding):
        found = _dot(how, side, x, weight, rounding, state.get("sums"), shape)
    else:
        found = _float_dot(how, side, x, weight, rounding, scheme.compute, shape)
    return (found + state["bias"] if "bias" in state else found).astype(dtype)


def codes_of(site: Site, side: int, scheme: Scheme, state: Any) -> Codes | None:
    """Return how an operand is rounded that can be given in codes: by one static scale, for a product of integers."""
    grid = scheme.activation
    if scheme.static is None or not isinstance(grid, Integers) or "basis" in state:
        return None
    if site.weight in (None, side) or scheme.weight is None:
        return None
    affine = Affine(state[str(side)]["scale"], state[str(side)].get("zero_point"))
    spread = Rounding(grid, operands.spread(affine, len(site.shapes[side])), clips=True)
    if not _takes_codes(site, state["weight"], spread):
        return None
    of = lambda x: numerics.codes(x, operands.spread(affine, x.ndim), grid)  # noqa: E731
    return Codes(of, 0 if affine.zero_point is None else affine.zero_point, grid.lowest)


def _takes_codes(site: Site, weight: Quantized, rounding: Rounding) -> bool:
    how = product(site)
    if isinstance(how, Conv):
        return fits_integers(how, rounding, Rounding(weight.grid, Affine(weight.scale, weight.zero_point), clips=False))
    return _in_integers(how, site.weight or 0, weight, rounding)


def _codes(x: jax.Array, rounding: Rounding) -> jax.Array:
    """Round, unless what comes is codes already."""
    return x if x.dtype == jnp.int8 else numerics.codes(x, rounding.affine, rounding.grid)


def _rounding(site: Site, how: Dot | Conv, side: int, x: jax.Array, scheme: Scheme, state: Any) -> Rounding | None:
    """Return how an operand that depends on the inputs is rounded: with what is known of it, or with what it is."""
    grid = scheme.activation
    if side == site.weight or grid is None or scheme.static is None:
        return None if side == site.weight else operands.activation(site, how, side, x, scheme, state)
    range_ = state[str(side)]
    return Rounding(grid, operands.spread(Affine(range_["scale"], range_.get("zero_point")), x.ndim), clips=True)


def _conv(
    how: Conv, x: jax.Array, weight: Quantized, rounding: Rounding | None, dtype: Any, integers: bool, compute: Any
):
    affine = Affine(weight.scale, weight.zero_point)
    stored = Rounding(weight.grid, affine, clips=False)
    if integers and rounding is not None and fits_integers(how, rounding, stored):
        codes = _codes(x, rounding)
        total = accumulate(how, codes, weight.codes, rounding.affine.zero_point)
        return scaled(how, total, rounding.affine, affine).astype(dtype)
    return in_floats(how, x, weight.decode(), (rounding, stored), dtype, compute)  # rounds to the same codes again


def _in_integers(how: Dot, side: int, weight: Quantized, rounding: Rounding) -> bool:
    shape = rounding.affine.scale.shape
    one = all(shape[axis] == 1 for axis in how.summed(1 - side)) and weight.scale.shape[2] == 1
    return one and isinstance(weight.grid, Integers) and isinstance(rounding.grid, Integers)


def _dot(
    how: Dot, side: int, x: jax.Array, weight: Quantized, rounding: Rounding, sums: jax.Array | None, shape: Any
) -> jax.Array:
    codes = _codes(x, rounding)
    rows = how.matrix(1 - side, codes)
    total = kernels.multiply(rows, weight, lambda part: part.codes, jnp.int32)
    zero = rounding.affine.zero_point
    scale = how.matrix(1 - side, rounding.affine.scale)
    if weight.zero_point is not None:
        inner = jnp.sum(rows.astype(jnp.int32), axis=2, keepdims=True)
        total = total - inner * jnp.swapaxes(weight.zero_point.astype(jnp.int32), 1, 2)
    if zero is not None and sums is not None:
        total = total - how.matrix(1 - side, zero.astype(jnp.int32)) * jnp.swapaxes(sums, 1, 2)
    found = total.astype(scale.dtype) * (scale * jnp.swapaxes(weight.scale, 1, 2))
    return how.output(side, found, x.shape, shape)


def _float_dot(
    how: Dot, side: int, x: jax.Array, weight: Quantized, rounding: Rounding | None, compute: Any, shape: Any
) -> jax.Array:
    sums, one = sums_of(x.dtype), weight.scale.shape[2] == 1
    dtype = compute or x.dtype
    steps = None if one else lambda part: _steps(part, dtype)
    if compute is None:
        rows = how.matrix(1 - side, x if rounding is None else rounding.rounded(x))
        found = kernels.multiply(rows, weight, lambda part: part.decode(), sums, steps)
        return how.output(side, found, x.shape, shape)
    inner = rounding is not None and all(rounding.affine.scale.shape[axis] == 1 for axis in how.summed(1 - side))
    seen = x if rounding is None else rounding.steps(x) if inner else rounding.rounded(x)
    rows = how.matrix(1 - side, seen.astype(compute))
    unpack = (lambda part: _steps(part, dtype)) if one else lambda part: part.decode().astype(dtype)
    found = kernels.multiply(rows, weight, unpack, sums, steps)
    if rounding is not None and inner:
        found = found * how.matrix(1 - side, rounding.affine.scale)
    found = found * jnp.swapaxes(weight.scale, 1, 2) if one else found
    return how.output(side, found, x.shape, shape)


def _steps(weight: Quantized, dtype: Any) -> jax.Array:
    """Return how many steps of its scale each weight is.

    Where a sum has several scales, integers take no way round by float32: there the TPU compiler would write it out.
    """
    if isinstance(weight.grid, Integers) and weight.zero_point is None and weight.scale.shape[2] > 1:
        return weight.codes.astype(dtype)
    return numerics.values(weight.codes, Affine(weight.scale, weight.zero_point), weight.grid).astype(dtype)
