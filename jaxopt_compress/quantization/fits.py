"""Fits: which scale, and which zero point, an array of weights is rounded with.

A fit is a function `(w, shape, grid) -> Affine`: weights, the shape of the scale (each axis divides that of `w`), and
the grid. `absmax` is the standard; the others trade the largest weights for the many.
"""

from collections.abc import Callable
from functools import partial
from math import frexp, prod

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
    if not isinstance(grid, Integers):
        raise ValueError(f"`minmax`: only integers have a zero point; got {grid}.")
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

        def error(affine: Affine) -> jax.Array:
            off = jnp.abs(numerics.wide(numerics.rounded(w, affine, grid)) - numerics.wide(w))
            return layout.reduce_runs(jnp.sum, off**norm, shape)

        def try_one(i, best):
            scale, least = best
            clipped = start.scale * (1 - i / steps)
            found = error(Affine(clipped))
            return jnp.where(found < least, clipped, scale), jnp.minimum(found, least)

        found = jax.lax.fori_loop(1, int(shrink * steps), try_one, (start.scale, error(start)))
        return Affine(found[0])

    return fit


def _largest(w: jax.Array, shape: Shape) -> jax.Array:
    return layout.reduce_runs(partial(jnp.max, initial=0), jnp.abs(w), shape)
