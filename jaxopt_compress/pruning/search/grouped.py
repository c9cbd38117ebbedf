"""The exact top-k within many groups at once: of a few neighbours, or of whole columns."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import layout
from jaxopt_compress.pruning.search.ranking import ordered_keys, spread_out

FEW = 48  # up to here comparing every pair is faster than searching, measured on CPU


def top_k_along(scores: jax.Array, axis: int, k) -> jax.Array:
    """Mark the `k` highest scores along an axis, of equal ones those with the lower index.

    Args:
      scores: floating-point scores.
      axis: the axis along which entries are compared, not negative.
      k: how many to keep, an integer scalar (may be traced) in [0, length of the axis].
    """
    keys = ordered_keys(scores)
    near = keys.shape[axis] <= FEW and layout.spec(keys)[axis] is None
    return (_beaten if near else _searched)(keys, axis, jnp.asarray(k, jnp.int32))


def _beaten(keys: jax.Array, axis: int, k: jax.Array) -> jax.Array:
    """Let every entry count those of its group that beat it."""
    place = jax.lax.broadcasted_iota(jnp.int32, keys.shape, axis)
    ahead = jnp.zeros(keys.shape, jnp.int32)
    for j in range(keys.shape[axis]):
        other = jax.lax.slice_in_dim(keys, j, j + 1, axis=axis)
        ahead += ((other > keys) | ((other == keys) & (place > j))).astype(jnp.int32)
    return ahead < k


def _searched(keys: jax.Array, axis: int, k: jax.Array) -> jax.Array:
    """Find the k-th key of every group bit by bit, all groups in one count a bit, and then the last tie that stays.

    No sort; over a mesh nothing but all-reduced counts.
    """
    count = partial(_count_fused if spread_out() else _count_in_bytes, axis=axis)
    groups = jnp.zeros_like(count(keys == keys), jnp.uint32)  # in the shape and sharding of counts
    threshold = _largest(32, groups, lambda cut: count(keys >= cut) >= k)
    tied, room = keys == threshold, k - count(keys > threshold)
    place = jax.lax.broadcasted_iota(jnp.uint32, keys.shape, axis)
    limit = _largest(keys.shape[axis].bit_length(), groups, lambda end: count(tied & (place < end)) <= room)
    return (keys > threshold) | (tied & (place < limit))


def _largest(bits: int, like: jax.Array, holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Return for each group the largest number of so many bits for which a condition, true of 0, still holds."""

    def body(i, found):
        guess = found | (jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32))
        return jnp.where(holds(guess), guess, found)

    return jax.lax.fori_loop(0, bits, body, jnp.zeros_like(like))


def _count_fused(hits: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(hits, axis=axis, keepdims=True, dtype=jnp.int32)


def _count_in_bytes(hits: jax.Array, axis: int) -> jax.Array:
    """Count 128 entries in a byte first: XLA:CPU then writes a quarter of the memory and adds 32 groups at once."""
    padding = [(0, -n % 128 if i == axis else 0) for i, n in enumerate(hits.shape)]
    parts = layout.split(jnp.pad(hits.astype(jnp.uint8), padding), axis, 128)
    bytes_ = jax.lax.reduce(parts, np.uint8(0), jax.lax.add, (axis + 1,))
    return jnp.sum(bytes_, axis=axis, keepdims=True, dtype=jnp.int32)
