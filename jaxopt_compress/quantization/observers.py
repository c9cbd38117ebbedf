"""Observers: the range of activations, from what was seen so far.

An observer is three pure functions over a state of arrays, to be folded over batches, under `jit`, on a mesh or not.
The scales of activations that are known beforehand cost no pass over them when the model runs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.grids import Grid

HALF = 1024  # bins of a histogram on either side of 0


class Observer(NamedTuple):
    """How the range of an activation is found.

    Attributes:
      init: `() -> state`, of nothing seen.
      update: `(state, x) -> state`.
      range: `(state, grid) -> (low, high)`; NaN while nothing was seen, so that a forgotten calibration shows.
    """

    init: Callable[[], Any]
    update: Callable[[Any, jax.Array], Any]
    range: Callable[[Any, Grid], tuple[jax.Array, jax.Array]]


class Extremes(NamedTuple):
    """The lowest and the highest number, float32 scalars; infinity and its negative before the first."""

    low: jax.Array
    high: jax.Array


class Histogram(NamedTuple):
    """How often numbers fell into bins around 0.

    Attributes:
      width: of a bin, a power of two; 0 before the first number.
      counts: float32 of shape (2 * HALF,).
    """

    width: jax.Array
    counts: jax.Array


def minmax() -> Observer:
    """Observe the lowest and the highest number there ever was."""

    def update(state, x):
        now = _extremes(x)
        return Extremes(jnp.minimum(state.low, now.low), jnp.maximum(state.high, now.high))

    return Observer(_unseen, update, _seen_range)


def moving(decay: float = 0.99) -> Observer:
    """Average the lowest and the highest number of each batch; the first batch counts in full.

    Args:
      decay: the weight of what was before; PyTorch's `averaging_constant` is `1 - decay`.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"`moving`: `decay` is at least 0 and below 1; got {decay}.")

    def update(state, x):
        now = _extremes(x)
        mix = lambda old, new: jnp.where(jnp.isinf(old), new, old + (1 - decay) * (new - old))  # noqa: E731
        mixed = Extremes(mix(state.low, now.low), mix(state.high, now.high))
        return mixed if x.size else state

    return Observer(_unseen, update, _seen_range)


def percentile(q: float = 99.99) -> Observer:
    """Observe a histogram; leave out what is rarest at either end.

    Args:
      q: the percentage of numbers that stay in range at each end, to the precision of a bin.
    """
    if not 50 < q <= 100:
        raise ValueError(f"`percentile`: `q` is above 50 and at most 100; got {q}.")

    def range_(state, grid):
        del grid
        reached = jnp.cumsum(state.counts) / jnp.sum(state.counts)
        above = jnp.cumsum(state.counts[::-1])[::-1] / jnp.sum(state.counts)
        low = jnp.argmax(reached > 1 - q / 100)  # the first bin that may not be left out
        high = 2 * HALF - jnp.argmax((above > 1 - q / 100)[::-1])
        edges = jnp.arange(-HALF, HALF + 1, dtype=jnp.float32) * state.width
        return _seen(state, edges[low]), _seen(state, edges[high])

    return Observer(_empty, _count, range_)


def mse(steps: int = 64) -> Observer:
    """Observe a histogram; take the range whose rounding has the least mean square error.

    Ranges are tried as if they were symmetric; an end that nothing comes near is not part of the one returned.

    Args:
      steps: how many ranges are tried.
    """

    def range_(state, grid):
        middles = (jnp.arange(-HALF, HALF, dtype=jnp.float32) + 0.5) * state.width

        def error(top):
            steps, scale = _steps(middles, top, grid)
            return jnp.sum(state.counts * (steps * scale - middles) ** 2)

        return _least(state, error, 0, steps)

    return Observer(_empty, _count, range_)


def entropy(steps: int = 128) -> Observer:
    """Observe a histogram; take the range whose rounding loses the least information.

    What is lost is the Kullback-Leibler divergence of what is rounded from what was seen: of the histogram of absolute
    values with what is clipped in its last bin, and of that with each code's share spread over the bins that fall to
    it, where there was anything. Ranges have at least one bin a code. Bin 0 counts like its neighbour: 0 is a number of
    every grid, so that the many zeros after a ReLU lose nothing. A last bin that was empty would make the divergence
    infinite; a share of 1e-4 that is spread over all bins keeps it finite. A few outliers count for little, as few.

    Args:
      steps: how many ranges are tried.

    Reference: Migacz, "8-bit inference with TensorRT", GPU Technology Conference 2017.
    """

    def range_(state, grid):
        seen = state.counts[HALF:] + state.counts[:HALF][::-1]
        seen = seen.at[0].set(seen[1])
        middles = (jnp.arange(HALF, dtype=jnp.float32) + 0.5) * state.width
        return _least(state, lambda top: _divergence(seen, middles, top, grid), grid.largest * state.width, steps)

    return Observer(_empty, _count, range_)


def _divergence(seen: jax.Array, middles: jax.Array, top: jax.Array, grid: Grid) -> jax.Array:
    """Return the information about absolute values, by bin, that rounding the range to `top` loses."""
    inside = middles < top
    kept = jnp.where(inside, seen, 0)
    clipped = kept.at[jnp.maximum(jnp.sum(inside) - 1, 0)].add(jnp.sum(seen) - jnp.sum(kept))
    steps = _steps(middles, top, grid)[0]
    code = jnp.cumsum(jnp.diff(steps, prepend=steps[:1]) != 0)  # bins are in order, and so what they round to
    there = (kept > 0).astype(jnp.float32)
    share = lambda x: jnp.zeros(HALF).at[code].add(x)[code]  # noqa: E731
    coded = there * share(kept) / jnp.maximum(share(there), 1)
    portion = lambda x: x / jnp.maximum(jnp.sum(x), 1)  # noqa: E731
    p, q = portion(clipped), 1e-4 * portion(inside.astype(jnp.float32)) + (1 - 1e-4) * portion(coded)
    return jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1) / jnp.where(p > 0, q, 1)), 0))


def _steps(x: jax.Array, top: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """Return how many steps each number is rounded to, and the step."""
    scale = jnp.maximum(top * (1 / grid.largest), jnp.finfo(jnp.float32).tiny)
    return grid.values(grid.round(x * (1 / scale))), scale  # never `x / scale`, see `numerics`


def _least(state: Histogram, loss: Callable[[jax.Array], jax.Array], above: Any, steps: int) -> tuple[Any, Any]:
    """Return the range, of `steps` from above some number to all that was seen, where the loss is least."""
    there = state.counts > 0
    edges = jnp.arange(-HALF, HALF + 1, dtype=jnp.float32) * state.width
    low = jnp.min(jnp.where(there, edges[:-1], jnp.inf))
    high = jnp.max(jnp.where(there, edges[1:], -jnp.inf))
    least = jnp.minimum(above, jnp.maximum(-low, high))
    tops = least + (jnp.maximum(-low, high) - least) * jnp.arange(1, steps + 1, dtype=jnp.float32) / steps
    top = tops[jnp.argmin(jax.lax.map(loss, tops))]
    return _seen(state, jnp.maximum(low, -top)), _seen(state, jnp.minimum(high, top))


def _unseen() -> Extremes:
    return Extremes(jnp.float32(jnp.inf), jnp.float32(-jnp.inf))


def _extremes(x: jax.Array) -> Extremes:
    x = x.astype(jnp.float32)
    return Extremes(jnp.min(x, initial=jnp.inf), jnp.max(x, initial=-jnp.inf))


def _seen_range(state: Extremes, grid: Grid) -> tuple[jax.Array, jax.Array]:
    del grid
    seen = ~(state.low > state.high)
    return jnp.where(seen, state.low, jnp.nan), jnp.where(seen, state.high, jnp.nan)


def _empty() -> Histogram:
    return Histogram(jnp.zeros(()), jnp.zeros(2 * HALF))


def _seen(state: Histogram, edge: jax.Array) -> jax.Array:
    return jnp.where(state.width > 0, edge, jnp.nan)


def _count(state: Histogram, x: jax.Array) -> Histogram:
    """Count numbers; where they are too large for the bins, these become wider by a power of two, and flow together."""
    x = x.astype(jnp.float32).ravel()
    largest = jnp.max(jnp.abs(x), initial=0)
    fits = jnp.frexp(jnp.maximum(largest, jnp.finfo(jnp.float32).tiny * HALF * 4))[1] - (HALF.bit_length() - 1)
    before = jnp.where(state.width > 0, jnp.frexp(jnp.where(state.width > 0, state.width, 1))[1] - 1, fits)
    shift = jnp.clip(fits - before, 0, HALF.bit_length())
    width = jnp.ldexp(jnp.float32(1), jnp.maximum(fits, before))
    merged = ((jnp.arange(2 * HALF) - HALF) >> shift) + HALF
    counts = jnp.zeros(2 * HALF).at[merged].add(state.counts)
    here = jnp.clip(jnp.floor(x / width).astype(jnp.int32) + HALF, 0, 2 * HALF - 1)
    broken = jnp.isnan(state.width) | ~jnp.isfinite(largest)  # and stays so
    new = jnp.zeros(2 * HALF, jnp.int32).at[here].add(1)  # not to the floats: from 2^24 on these do not see a 1
    return Histogram(jnp.where(broken, jnp.nan, width if x.size else state.width), counts + new.astype(jnp.float32))
