"""Fits: which scale, and which zero point, an array of weights is rounded with.

A fit is a function `(w, shape, grid) -> Affine`: weights, the shape of the scale (each axis divides that of `w`), and
the grid. `absmax` is the standard; the others trade the largest weights for the many.
"""

from collections.abc import Callable
from functools import partial
from math import frexp, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress import layout
from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.grids import power_of_two as exact_power
from jaxopt_compress.quantization import numerics
from jaxopt_compress.quantization.numerics import Affine

Shape = tuple[int, ...]
Fit = Callable[[jax.Array, Shape, Grid], Affine]


def absmax(w: jax.Array, shape: Shape, grid: Grid) -> Affine:
    """Fit the largest absolute value to the largest number of the grid: nothing is clipped."""
    return numerics.symmetric(_largest(w, shape), grid)


def minmax(w: jax.Array, shape: Shape, grid: Grid) -> Affine:
    """Fit all codes to the range of the weights, which is widened to contain 0; has a zero point.

    Raises:
      ValueError: a grid that is not of integers.
    """
    grid = _integers("minmax", grid)
    low, high = (layout.reduce_runs(partial(fn, initial=0), w, shape) for fn in (jnp.min, jnp.max))
    return numerics.asymmetric(low, high, grid)


def mean_absolute(w: jax.Array, shape: Shape, grid: Grid) -> Affine:
    """Fit the mean absolute value to the largest number: the scale of least squares for a grid of -1 and 1.

    Reference: Rastegari et al., "XNOR-Net: ImageNet classification using binary convolutional neural networks", 2016.
    """
    count = w.size / max(prod(shape), 1)
    total = layout.reduce_runs(jnp.sum, jnp.abs(numerics.wide(w)), shape)
    return numerics.symmetric(total * (1 / count if count else 0), grid)


def power_of_two(w: jax.Array, shape: Shape, grid: Grid) -> Affine:
    """Fit a power of two, `2^(floor(log2(absmax)) - e)`, where `e` is the exponent of the largest number of the grid.

    What lies above the largest number, less than an octave, is clipped. The exponent stays in the range of E8M0.

    Reference: OCP Microscaling Formats Specification, 2023, section 6.3.
    """
    largest = _largest(w, shape)
    exponent = jnp.frexp(jnp.where(largest > 0, largest, 1).astype(jnp.float32))[1] - 1
    top = frexp(grid.largest)[1] - 1
    scale = jnp.where(largest > 0, exact_power(jnp.clip(exponent - top, -126, 127)), 1)
    return Affine(jnp.where(jnp.isfinite(largest), scale, jnp.nan))


def mse(norm: float = 2.0, steps: int = 100, shrink: float = 0.8) -> Fit:
    """Fit the scale with the least error, of those that clip the largest weights more and more.

    Args:
      norm: the power of the error; GPTQ's code takes 2.4.
      steps: how many clips are tried if all were.
      shrink: which part of them is: the last clips at `1 - shrink` of the largest weight.
    """

    def fit(w: jax.Array, shape: Shape, grid: Grid) -> Affine:
        start = absmax(w, shape, grid)

        def try_one(i, best):
            scale, least = best
            clipped = start.scale * (1 - i / steps)
            found = _distance(w, shape, grid, Affine(clipped), norm)
            return jnp.where(found < least, clipped, scale), jnp.minimum(found, least)

        found = jax.lax.fori_loop(
            1, int(shrink * steps), try_one, (start.scale, _distance(w, shape, grid, start, norm))
        )
        return Affine(found[0])

    return fit


def short(fit: Fit) -> Fit:
    """Fit, and keep scales to the numbers of bfloat16: a file, which compresses zeros, has half the bytes for them."""

    def shortened(w: jax.Array, shape: Shape, grid: Grid) -> Affine:
        affine = fit(w, shape, grid)
        return affine._replace(scale=numerics.short(affine.scale))

    return shortened


class _Turn(NamedTuple):
    """Where half-quadratic splitting stands: scale, zero point, not yet rounded, and the error that they leave."""

    scale: jax.Array
    zero: jax.Array
    error: jax.Array

    @property
    def affine(self) -> Affine:
        return Affine(self.scale, jnp.round(self.zero).astype(jnp.int8))


def half_quadratic(norm: float = 0.7, steps: int = 20, beta: float = 10.0, growth: float = 1.01) -> Fit:
    """Fit the scale and the zero point with the least error, in a norm that pays little heed to outliers.

    With codes `q`, and `e` the part of an error that is an outlier's, in turns

        e = shrink(w / s - (q - z)),    z = mean(q - (w / s - e)),    s = <w - s e, q - z> / <q - z, q - z>

    where `shrink(x) = sign(x) max(|x| - |x|^(norm - 1) / beta, 0)`. The best turn is taken, with its zero point
    rounded; the first is `minmax`, so that nothing becomes worse.

    Args:
      norm: the power of the error.
      steps: how many turns.
      beta: how much of an error is an outlier's: all of it for a large one.
      growth: what `beta` is multiplied by after every turn.

    Raises:
      ValueError: no positive norm, no turns; when it is called, a grid that is not of integers.

    Reference: Badri and Shaji, "Half-quadratic quantization of large machine learning models", 2023. There scales stay
    those of `minmax`, and zero points are no integers; to round only these would gain nothing, the scales gain more.
    """
    if norm <= 0 or steps < 1:
        raise ValueError(f"`half_quadratic`: `norm` is above 0, `steps` is at least 1; got {norm}, {steps}.")

    def fit(w: jax.Array, shape: Shape, grid: Grid) -> Affine:
        integers, begin = _integers("half_quadratic", grid), minmax(w, shape, grid)
        zero = jnp.zeros_like(begin.scale) if begin.zero_point is None else numerics.wide(begin.zero_point)
        first = _Turn(begin.scale, zero, _distance(w, shape, grid, begin, norm))

        def turn(i: Any, carry: tuple[_Turn, _Turn]) -> tuple[_Turn, _Turn]:
            last, best = carry
            shrink = partial(_shrunk, norm=norm, beta=beta * growth ** i.astype(jnp.float32))
            now = _split(numerics.wide(w), shape, integers, last, shrink)
            now = now._replace(error=_distance(w, shape, grid, now.affine, norm))
            return now, jax.tree.map(lambda a, b: jnp.where(now.error < best.error, a, b), now, best)

        return jax.lax.fori_loop(0, steps, turn, (first, first))[1].affine

    return fit


def _split(w: jax.Array, shape: Shape, grid: Integers, last: _Turn, shrink: Callable) -> _Turn:
    """Return the zero point, and then the scale, of least squares of what is no outlier's error."""
    total = partial(layout.reduce_runs, jnp.sum, shape=shape)
    spread = partial(layout.spread, shape=w.shape)
    steps, zero = w * spread(1 / last.scale), spread(last.zero)
    codes = jnp.clip(jnp.round(steps + zero), grid.lowest, grid.highest)
    outlying = shrink(steps - (codes - zero))
    zero = total(codes - (steps - outlying)) * (prod(shape) / max(w.size, 1))
    zero = jnp.clip(zero, grid.lowest, grid.highest)
    levels = codes - spread(zero)
    along, square = total(levels * (steps - outlying)), total(levels * levels)
    solved = (along > 0) & (square > 0)
    return last._replace(scale=last.scale * jnp.where(solved, along / jnp.where(solved, square, 1), 1), zero=zero)


def _shrunk(x: jax.Array, norm: float, beta: jax.Array) -> jax.Array:
    size = jnp.abs(x)
    return jnp.sign(x) * jnp.maximum(size - jnp.where(size > 0, size, 1) ** (norm - 1) / beta, 0)


def _distance(w: jax.Array, shape: Shape, grid: Grid, affine: Affine, norm: float) -> jax.Array:
    off = jnp.abs(numerics.wide(numerics.rounded(w, affine, grid)) - numerics.wide(w))
    return layout.reduce_runs(jnp.sum, off**norm, shape)


def _integers(call: str, grid: Grid) -> Integers:
    if not isinstance(grid, Integers):
        raise ValueError(f"`{call}`: only integers have a zero point; got {grid}.")
    return grid


def _largest(w: jax.Array, shape: Shape) -> jax.Array:
    return layout.reduce_runs(partial(jnp.max, initial=0), jnp.abs(w), shape)
