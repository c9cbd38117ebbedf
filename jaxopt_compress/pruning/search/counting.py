"""Counting keys: the one primitive under the exact top-k, in a form for each kind of machine.

An *operand* is a pytree of arrays of one shape (a weight, or a weight and its gradient); `key` turns an operand and
the flat index of its entries into uint32 keys. Keys are computed where they are counted and never written to memory.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Operand = Any
KeyFn = Callable[[Operand, jax.Array], jax.Array]

# A tile is counted as (parts, GROUP, LANES): bytes hold the counts of a group, int32 those of the parts. All measured.
TILE, GROUP, LANES = 65_536, 128, 64


def flat_index(shape: tuple[int, ...], start: int = 0) -> jax.Array:
    """Return the row-major index of every entry, plus `start`, as uint32 of the given shape."""
    index = jnp.full(shape, start, jnp.uint32)
    for axis in range(len(shape)):
        stride = prod(shape[axis + 1 :])
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return index


def starts(operands: Sequence[Operand]) -> list[int]:
    """Return the index of the first entry of each operand when all are laid end to end."""
    found, total = [], 0
    for operand in operands:
        found.append(total)
        total += size(operand)
    return found


def size(operand: Operand) -> int:
    """Return the number of entries of an operand."""
    return prod(shape(operand))


def shape(operand: Operand) -> tuple[int, ...]:
    """Return the common shape of the arrays of an operand."""
    return jnp.shape(jax.tree.leaves(operand)[0])


def count_fused(operands: Sequence[Operand], key: KeyFn, probes: Sequence[jax.Array]) -> list[jax.Array]:
    """Count, for each probe, the keys that reach it: one reduction over the arrays as they lie.

    The comparison fuses into the reduction on GPU and TPU, and sharded arrays need one all-reduced scalar a probe.
    """
    # Without a barrier XLA lifts the keys out of a loop, to memory.
    operands, probes = jax.lax.optimization_barrier((operands, probes))
    totals = [jnp.zeros((), jnp.int32) for _ in probes]
    for operand, start in zip(operands, starts(operands), strict=True):
        keys = key(operand, flat_index(shape(operand), start))
        totals = [t + jnp.sum(keys >= p, dtype=jnp.int32) for t, p in zip(totals, probes, strict=True)]
    return totals


def count_tiled(operands: Sequence[Operand], key: KeyFn, probes: Sequence[jax.Array]) -> list[jax.Array]:
    """Count like `count_fused`, tile by tile over the flattened arrays.

    XLA:CPU does not fuse a comparison into its sum: over a whole array it first writes an s32 array of that size. In
    tiles, and as bytes, what it writes stays in cache. Flattening would gather a sharded array, so this form is for
    one device.
    """
    totals = [jnp.zeros((), jnp.int32) for _ in probes]
    for operand, start in zip(operands, starts(operands), strict=True):
        counts = _count_tiles(jax.tree.map(jnp.ravel, operand), start, key, probes)
        totals = [t + c for t, c in zip(totals, counts, strict=True)]
    return totals


def _count_tiles(flat: Operand, start: int, key: KeyFn, probes: Sequence[jax.Array]) -> list[jax.Array]:
    whole, rest = divmod(size(flat), TILE)

    def keys_at(first, length):
        entries = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, length), flat)
        index = jax.lax.iota(jnp.uint32, length) + jnp.asarray(first, jnp.uint32) + jnp.uint32(start)
        return key(entries, index)

    def body(i, sums):
        keys = keys_at(i * TILE, TILE).reshape(-1, GROUP, LANES)
        return [s + _lanes(keys >= p) for s, p in zip(sums, probes, strict=True)]

    sums = [jnp.zeros(LANES, jnp.int32) for _ in probes]
    if whole:
        sums = jax.lax.fori_loop(0, whole, body, sums)
    counts = [jnp.sum(s, dtype=jnp.int32) for s in sums]
    if rest:
        keys = keys_at(whole * TILE, rest)
        counts = [c + jnp.sum(keys >= p, dtype=jnp.int32) for c, p in zip(counts, probes, strict=True)]
    return counts


def _lanes(hits: jax.Array) -> jax.Array:
    """Sum a bool array of shape `(parts, GROUP, LANES)` to `(LANES,)`; a group is short enough for a byte."""
    groups = jax.lax.reduce(hits.astype(jnp.uint8), np.uint8(0), jax.lax.add, (1,))  # `sum` would widen first
    return jnp.sum(groups, axis=0, dtype=jnp.int32)
