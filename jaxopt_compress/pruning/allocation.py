"""Allocation: how many units each leaf keeps, so that the number over all leaves is exact.

An allocation such as `erk` is a function `(path, shape) -> relative density`, with nothing to register. `prune` scales
the densities, clips them at dense, and shares what is clipped among the other leaves until the total is met.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Allocation = Callable[[str, tuple[int, ...]], float]


def uniform(path: str, shape: tuple[int, ...]) -> float:
    """Keep the same fraction of every leaf; unlike no allocation at all, the total is exact and not each leaf."""
    del path, shape
    return 1.0


def er(path: str, shape: tuple[int, ...]) -> float:
    """Keep `(n_in + n_out) / (n_in * n_out)` of a leaf, up to a common factor: Erdos-Renyi (Mocanu et al., 2018).

    Large leaves become sparser. `n_in` and `n_out` are the last two axes; the window of a convolution does not count.
    """
    del path
    return sum(shape[-2:]) / prod(shape[-2:])


def erk(path: str, shape: tuple[int, ...]) -> float:
    """Keep `sum(shape) / prod(shape)` of a leaf, up to a common factor: Erdos-Renyi-Kernel (Evci et al., 2020)."""
    del path
    return sum(shape) / prod(shape)


def share(relative: Sequence[float], sizes: Sequence[int], kept: Any) -> list[Any]:
    """Share the units that are kept among leaves, in proportion to their relative densities, none above dense.

    Leaves that would be more than dense are dense, and the others share the rest anew (Evci et al., 2020). The counts
    are rounded down and what is missing goes, one each, to the leaves with the largest remainders: the sum is `kept`.

    Args:
      relative: the relative density of each leaf, positive.
      sizes: the number of units of each leaf.
      kept: how many units to keep in all, an integer (may be traced) in [0, sum of sizes].

    Returns:
      How many units each leaf keeps: integers, or int32 scalars if `kept` is traced.
    """
    traced = isinstance(kept, jax.Array)
    xp: Any = jnp if traced else np
    real, integer = (np.float32, np.int32) if traced else (np.float64, np.int64)
    weight, size = np.asarray(relative, np.float64), np.asarray(sizes, np.int64)
    order = np.argsort(-weight, kind="stable")
    # With the `c` densest leaves full, the others have the density `factor[c] * weight`.
    full = np.concatenate([[0], np.cumsum(size[order])])
    rest = np.concatenate([np.cumsum((weight * size)[order][::-1])[::-1], [1.0]])
    scale = (1 - 4e-7 if traced else 1) / np.maximum(rest, 1e-30)  # float32: rather too few, the rest is poured
    factor = xp.maximum(xp.asarray(kept).astype(real) - full.astype(real), real(0)) * scale.astype(real)
    fits = factor * np.append(weight[order], 0).astype(real) <= 1
    number = xp.argmax(fits)  # how many leaves are full: the fewest that leave none above dense
    is_full = np.argsort(order, kind="stable") < number
    ideal = xp.where(is_full, size.astype(real), factor[number] * (weight * size).astype(real))
    size = xp.asarray(size.astype(integer))
    counts = xp.where(is_full, size, xp.minimum(ideal.astype(integer), size))
    counts = _pour(xp, counts, ideal - counts.astype(real), size, xp.asarray(kept).astype(integer))
    return [counts[i] for i in range(len(sizes))] if traced else [int(n) for n in counts]


def _pour(xp: Any, counts, remainder, size, kept):
    """Add what is missing: one each by descending remainder, and if that is not enough, wherever there is room."""
    order = xp.argsort(-remainder, stable=True)
    back = xp.argsort(order, stable=True)
    for most in (1, None):
        room = (size - counts)[order]
        room = room if most is None else xp.minimum(room, most)
        before = xp.cumsum(room, dtype=room.dtype) - room
        missing = kept - xp.sum(counts, dtype=room.dtype)
        counts = counts + xp.clip(missing - before, 0, room)[back]
    return counts


def densities(allocation: Allocation, shapes: Mapping[str, tuple[int, ...]]) -> list[float]:
    """Return the relative density of every leaf; empty leaves have nothing to share.

    Raises:
      ValueError: a density that is not positive and finite.
    """
    found = []
    for path, shape in shapes.items():
        density = float(allocation(path, shape)) if prod(shape) else 1.0
        if not (isfinite(density) and density > 0):
            raise ValueError(f"`prune`: an allocation gives a positive, finite number; got {density} for {path!r}.")
        found.append(density)
    return found
