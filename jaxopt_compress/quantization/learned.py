"""Learned ranges: scales that are trained by gradient descent, next to the weights.

The state of a learned range is an array of floats, of which the loss has a derivative:
`jax.grad(loss, argnums=(0, 1))(params, ranges)`. It starts as NaN, and `q.observe` fills it from the first batch (and,
for weights, from the weights), so that a start that was forgotten shows.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxopt_compress import layout
from jaxopt_compress.combinators import passthrough
from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.quantization import fits, numerics
from jaxopt_compress.quantization.numerics import Affine

Shape = tuple[int, ...]


class Learned(NamedTuple):
    """How a range is trained.

    Attributes:
      init: `(x, shape, grid) -> state`, from what is to be rounded and the shape of its scale.
      affine: `(state, grid) -> Affine`.
      smooth: `(x, state, grid, sharing) -> x2`, with the derivatives of the rounding; its value does not count.
        `sharing` is how many numbers share a scale: of an activation, those of one example.
    """

    init: Callable[[jax.Array, Shape, Grid], Any]
    affine: Callable[[Any, Grid], Affine]
    smooth: Callable[[jax.Array, Any, Grid, float], jax.Array]


class Offset(NamedTuple):
    """The state of a range that may lie to one side of 0.

    Attributes:
      scale: float32.
      offset: float32, of the same shape: the number that the code 0 of an unsigned grid stands for.
    """

    scale: jax.Array
    offset: jax.Array


def lsq(positive: bool = False, fit: fits.Fit | None = None) -> Learned:
    """Learn the step size.

        x_q = s * clip(round(x / s), lowest, highest)
        d x_q / d s = round(x / s) - x / s inside the range, the clipped code outside

    times `1 / sqrt(n * highest)`, where `n` numbers share the scale (of an activation: those of one example, what comes
    after its first axis). The start is `2 mean|x| / sqrt(highest)`.

    Args:
      positive: whether codes start at 0, for what comes after a ReLU: all codes of a grid with
        `restricted=False` are used, with a zero point.
      fit: how the step starts, one of `quantization.fits`; the authors' start if not given. `fits.mse()` is better for
        a net that is trained already and is given little time.

    Reference: Esser et al., "Learned step size quantization", 2020. The public code takes for `n` all weights of a
    layer, here those of a channel where each has its scale.
    """

    def affine(state, grid):
        zero = jnp.full_like(state, grid.lowest, jnp.int8) if positive else None
        return Affine(_above_zero(state), zero)

    def init(x, shape, grid):
        if fit is not None:
            return _start(fit(x, shape, grid).scale * (grid.largest / _top(affine(jnp.ones(shape), grid), grid)))
        count = x.size / max(prod(shape), 1)
        mean = layout.reduce_runs(jnp.sum, jnp.abs(numerics.wide(x)), shape) / max(count, 1)
        return _start(2 * mean / _top(affine(jnp.ones(shape), grid), grid) ** 0.5)

    def smooth(x, state, grid, sharing):
        affine_ = affine(state, grid)
        factor = (sharing * _top(affine_, grid)) ** -0.5
        scale = passthrough(_above_zero(state) * factor, affine_.scale)
        return _step_size(x, scale, jnp.zeros_like(scale), affine_, grid)

    return Learned(init, affine, smooth)


def lsq_plus() -> Learned:
    """Learn the step size and the offset, for activations such as those of GELU or swish.

        x_q = s * clip(round(x / s) + z, lowest, highest) - s * z,    z = lowest - round(offset / s)
        d x_q / d offset = 0 inside the range, 1 outside

    The derivative of `s` is that of `lsq`. The start is the range of the first batch.

    Reference: Bhalgat et al., "LSQ+: improving low-bit quantization through learnable offsets and better
    initialization", 2020; there the offset is no multiple of the step, here it is rounded to one, so that products of
    integers stay exact.
    """

    def affine(state, grid):
        scale = _above_zero(state.scale)
        zero = jnp.clip(grid.lowest - jnp.round(state.offset * (1 / scale)), grid.lowest, grid.highest)
        return Affine(scale, zero.astype(jnp.int8))

    def init(x, shape, grid):
        low = jnp.minimum(layout.reduce_runs(jnp.min, numerics.wide(x), shape), 0)
        high = jnp.maximum(layout.reduce_runs(jnp.max, numerics.wide(x), shape), 0)
        return Offset(_start((high - low) / (grid.highest - grid.lowest)), low)

    def smooth(x, state, grid, sharing):
        affine_ = affine(state, grid)
        factor = (sharing * (grid.highest - grid.lowest)) ** -0.5
        scale = passthrough(_above_zero(state.scale) * factor, affine_.scale)
        offset = passthrough(state.offset * factor, state.offset)
        return _step_size(x, scale, offset, affine_, grid)

    return Learned(init, affine, smooth)


def pact(start: float = 6.0) -> Learned:
    """Learn where activations are clipped, all of them at least 0 as after a ReLU.

        x_q = round of clip(x, 0, alpha);    d x_q / d alpha = 1 where x is above alpha, 0 elsewhere

    The paper decays alpha like weights: add its square to the loss.

    Args:
      start: the first alpha; too large rather than too small.

    Reference: Choi et al., "PACT: parameterized clipping activation for quantized neural networks", 2018.
    """

    def affine(state, grid):
        return Affine(
            _above_zero(state) * (1 / (grid.highest - grid.lowest)), jnp.full_like(state, grid.lowest, jnp.int8)
        )

    def init(x, shape, grid):
        del x, grid
        return jnp.full(shape, start, jnp.float32)

    def smooth(x, state, grid, sharing):
        del sharing
        inside = numerics.in_range(x, affine(state, grid), grid)
        above = jnp.broadcast_to(_above_zero(state), x.shape).astype(x.dtype)
        return jnp.where(inside, x, jnp.where(x > 0, above, stop_gradient(x)))

    return Learned(init, affine, smooth)


def _step_size(x: jax.Array, scale: jax.Array, offset: jax.Array, affine: Affine, grid: Integers) -> jax.Array:
    """Return an array with the derivatives of LSQ+, of which those of LSQ are the ones without an offset."""
    inside = numerics.in_range(x, affine, grid)
    scale, offset = layout.spread(scale, x.shape), layout.spread(offset, x.shape)
    codes = stop_gradient(numerics.codes(x, affine, grid)).astype(scale.dtype)
    if affine.zero_point is not None:
        codes = codes - layout.spread(affine.zero_point, x.shape).astype(scale.dtype)
    steps = stop_gradient(numerics.wide(x) * (1 / scale))
    moves = jnp.where(inside, codes - steps, codes) * scale + jnp.where(inside, jnp.zeros_like(offset), offset)
    return jnp.where(inside, x, stop_gradient(x)) + (moves - stop_gradient(moves)).astype(x.dtype)


def _above_zero(scale: jax.Array) -> jax.Array:
    """Keep a scale that is trained positive; NaN stays NaN."""
    return jnp.maximum(jnp.abs(scale), jnp.finfo(scale.dtype).tiny * 2**20)


def _start(scale: jax.Array) -> jax.Array:
    return jnp.where(scale < jnp.finfo(scale.dtype).tiny * 2**20, jnp.ones_like(scale), scale)


def _top(affine: Affine, grid: Integers) -> int:
    return grid.highest if affine.zero_point is None else grid.highest - grid.lowest
