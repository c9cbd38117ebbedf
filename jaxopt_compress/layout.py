"""Shapes and shardings: reshapes that keep how an array is split over a mesh with explicit axes."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def spec(x: Any) -> list:
    """Return how each axis is split over the explicit axes of a mesh; all `None` where the compiler decides."""
    parts = list(jax.typeof(x).sharding.spec)
    return parts + [None] * (x.ndim - len(parts))


def sharding(x: Any, parts: Sequence) -> NamedSharding | None:
    """Return an explicit sharding over the mesh of `x`; `None`, the compiler's choice, where `x` has none."""
    return NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*parts)) if any(spec(x)) else None


def reshape(x: jax.Array, sizes: Sequence[int], parts: Sequence) -> jax.Array:
    """Reshape to `sizes`, of which one may be -1, with the axes split as `parts` says."""
    rest = prod(x.shape) // max(prod(n for n in sizes if n > 0), 1)
    return jax.lax.reshape(x, [rest if n < 0 else n for n in sizes], out_sharding=sharding(x, parts))


def respec(x: jax.Array, parts: Sequence, like: Any) -> jax.Array:
    """Move an array to another split over the mesh of `like`; nothing happens where the compiler decides."""
    return x if spec(x) == list(parts) else jax.sharding.reshard(x, sharding(like, parts))


def aligned(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Keep the split of an axis only where every shard holds whole runs of `size` entries; else gather it."""
    parts = spec(x)
    if parts[axis] is None:
        return x
    names = parts[axis] if isinstance(parts[axis], tuple) else (parts[axis],)
    shards = prod(jax.typeof(x).sharding.mesh.shape[name] for name in names)
    whole = x.shape[axis] % (size * shards) == 0
    return x if whole else respec(x, [None if i == axis else part for i, part in enumerate(parts)], x)


def split(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Turn an axis into two, of runs and of the `size` entries in each; the first takes the split over the mesh."""
    x = aligned(x, axis, size)
    sizes, parts = list(x.shape), spec(x)
    sizes[axis : axis + 1], parts[axis : axis + 1] = (x.shape[axis] // size, size), (parts[axis], None)
    return reshape(x, sizes, parts)


def merge(x: jax.Array, axis: int) -> jax.Array:
    """Undo `split`: join an axis with the next."""
    sizes, parts = list(x.shape), spec(x)
    sizes[axis : axis + 2], parts[axis : axis + 2] = (x.shape[axis] * x.shape[axis + 1],), (parts[axis],)
    return reshape(x, sizes, parts)


def repeat(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Repeat every entry of an axis `size` times in place; without a gather, so that it fuses."""
    shape, parts = list(x.shape), spec(x)
    shape.insert(axis + 1, size)
    parts.insert(axis + 1, None)
    kept = [i for i in range(len(shape)) if i != axis + 1]
    return merge(jax.lax.broadcast_in_dim(x, shape, kept, out_sharding=sharding(x, parts)), axis)


def matrix(x: jax.Array) -> jax.Array:
    """View an array as a matrix: all axes but the last as rows."""
    return x if x.ndim == 2 else reshape(x, (-1, x.shape[-1]), (spec(x)[0], spec(x)[-1]))


def spread(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Repeat the entries of each axis that is longer than 1 until it has the length in `shape`, which it divides.

    Axes of length 1 are left to broadcasting.
    """
    for axis, length in zip(range(-x.ndim, 0), shape[len(shape) - x.ndim :], strict=True):
        if x.shape[axis] not in (1, length):
            x = repeat(x, axis % x.ndim, length // x.shape[axis])
    return x


def reduce_runs(fn: Callable, x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Reduce runs of entries such that `shape` is left; the inverse of `spread`.

    Args:
      fn: a reduction such as `jnp.max`, with the arguments `axis` and `keepdims`.
      x: any array.
      shape: of as many axes, each of a length that divides that of `x`.
    """
    for axis, length in enumerate(shape):
        if length not in (1, x.shape[axis]):
            x = jnp.squeeze(fn(split(x, axis, x.shape[axis] // length), axis=axis + 1, keepdims=True), axis + 1)
    ones = tuple(axis for axis, length in enumerate(shape) if length == 1 and x.shape[axis] != 1)
    return fn(x, axis=ones, keepdims=True)
