"""The exact top-k of many arrays together, without a sort.

A score becomes an unsigned integer key with the same order. The cut is found by counting how many keys reach a probe,
several probes a pass, until a probe splits the keys exactly or two neighbouring keys bracket the k-th value. Ties at
the k-th value are kept by index, found by the same search over the indices of the ties. The result is the mask of a
stable descending argsort, bit for bit; under a mesh it needs nothing but all-reduced counts: no gather, no sort.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.pruning.search import candidates, counting, cutting, probing

OUTSIDE, NAN = 0, 1  # the keys of what is not to be ranked at all, and of NaN; those of numbers start far above
ZERO = 1 << 31  # the key of 0.0
END = 0xFF80_0001  # one past the key of +inf


def ordered_keys(scores: jax.Array) -> jax.Array:
    """Map scores to uint32 keys with the order of the scores.

    `-0.0` equals `0.0`, and NaN ranks below every number: a weight whose score is not a number is pruned first. What
    are keys already, unsigned integers, stay as they are.
    """
    if jnp.issubdtype(scores.dtype, jnp.unsignedinteger):
        return scores
    scores = scores.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    flip = (bits >> 31).astype(jnp.uint32) | jnp.uint32(ZERO)  # all bits of a negative number, the sign of others
    keys = bits.astype(jnp.uint32) ^ flip
    keys = jnp.where(keys == ZERO - 1, jnp.uint32(ZERO), keys)  # -0.0; `scores == 0` would flush subnormals on CPU
    return jnp.where(jnp.isnan(scores), jnp.uint32(NAN), keys)


def keys_among(mask: jax.Array, scores: jax.Array) -> jax.Array:
    """Map scores to keys such that entries outside the mask rank below all inside it, NaN included."""
    return jnp.where(mask, ordered_keys(scores), jnp.uint32(OUTSIDE))


@partial(jax.jit, static_argnames=("score",))
def top_k_masks(operands: Sequence[Any], k, score: Callable[[Any], jax.Array]) -> list[jax.Array]:
    """Mark the `k` highest scores over all operands together.

    Compiled once for each combination of shapes and `score`, so that an eager caller does not compile at every call
    and equal layers of a jitted one share their code.

    Args:
      operands: pytrees of arrays of one shape each, at least one entry and fewer than 2^31 in all.
      k: how many to keep, an integer scalar (may be traced) in [0, total size].
      score: an elementwise function from an operand, or a tile of it, to floating-point scores.

    Returns:
      One bool mask for each operand, `k` ones in all. Of equal scores those of earlier operands, and in an operand
      those with the lower index in row-major order, come first.
    """

    def key(operand, index):
        del index
        return ordered_keys(score(operand))

    cut = _find_cut(tuple(operands), key, jnp.asarray(k, jnp.int32))
    firsts = counting.starts(operands)
    return [mask(operand, key, first, cut) for operand, first in zip(operands, firsts, strict=True)]


def spread_out() -> bool:
    """Tell whether arrays may lie on several devices, whether those of this process or of a mesh compiled for."""
    return jax.device_count() > 1 or jax.sharding.get_abstract_mesh().size > 1


def _find_cut(operands, key: counting.KeyFn, k: jax.Array) -> cutting.Cut:
    """Search in the way of the platform. Samples and tiles are for one device: they would gather a sharded array."""
    if spread_out():
        return _cut_spread(operands, key, k)
    return jax.lax.platform_dependent(
        operands,
        k,
        cpu=lambda ops, k: _cut_tiled(ops, key, k),
        tpu=lambda ops, k: (_cut_collected if candidates.worthwhile(ops) else _cut_fused)(ops, key, k),
        default=lambda ops, k: _cut_fused(ops, key, k),
    )


def mask(operand, key: counting.KeyFn, first: int, cut: cutting.Cut) -> jax.Array:
    """Mark what a cut keeps of an array whose first entry has the index `first` among all."""
    index = counting.flat_index(counting.shape(operand), first)
    keys = key(operand, index)
    return (keys > cut.threshold) | ((keys == cut.threshold) & (index < cut.limit))


def _cut_spread(operands, key: counting.KeyFn, k: jax.Array) -> cutting.Cut:
    """Search with seven evenly spaced probes a pass: it takes nothing from the arrays but counts."""
    return _cut(operands, key, k, counting.count_fused, probing.evenly(7), sample=())


def _cut_fused(operands, key: counting.KeyFn, k: jax.Array, count: Callable = counting.count_fused) -> cutting.Cut:
    """Search with seven probes a pass, each pass one fused reduction: where memory is slow and comparing cheap."""
    sample = (-3, -1.4, -0.5, 0, 0.5, 1.4, 3)
    return _cut(operands, key, k, count, probing.interpolated(7), sample)


def _cut_tiled(operands, key: counting.KeyFn, k: jax.Array) -> cutting.Cut:
    """Search with three probes a pass, tile by tile: where comparing is what costs."""
    place, sample = probing.interpolated(3), (-2.5, 0, 2.5)
    return _cut(operands, key, k, counting.count_tiled, place, sample, together=False)


def _cut(
    operands, key: counting.KeyFn, k, count: Callable, place: probing.ProbeFn, sample, together: bool = True
) -> cutting.Cut:
    bracket, total = _everything(operands)
    if sample:
        probes = _sample(operands, key, k, total, sample)
        bracket = probing.narrow(bracket, probes, partial(count, operands, key), k)
    turn = cutting.begin(bracket, k, total)
    return cutting.result(cutting.search(turn, total, operands, _reader(key), count, place, together=together))


def _cut_collected(operands, key: counting.KeyFn, k, count: Callable = counting.count_fused) -> cutting.Cut:
    """Read the arrays once for the entries around the k-th and search those; search all if that went wrong."""
    bracket, total = _everything(operands)
    low, high = _sample(operands, key, k, total, (-2.5, 2.5), size=1 << 17)
    slots, (above_low, above_high), fits = candidates.collect(operands, key, low, high)
    bracket = probing.narrow(bracket, [low, high], lambda _: [above_low, above_high], k)
    fits &= (bracket.low == low) & (bracket.high == high) & (low > 0)
    place = probing.interpolated(7)
    inside = probing.Bracket(low, high, above_low - above_high, jnp.int32(0))
    found = cutting.begin(inside, k - above_high, total)
    found = cutting.search(found, total, slots, lambda slot, _: slot.read(), count, place, given=fits)
    turn = jax.tree.map(partial(jnp.where, fits), found, cutting.begin(bracket, k, total))
    return cutting.result(cutting.search(turn, total, operands, _reader(key), count, place))


def _everything(operands) -> tuple[probing.Bracket, int]:
    total = sum(map(counting.size, operands))
    return probing.Bracket.of(0, END, total, 0), total


def _reader(key: counting.KeyFn) -> cutting.ReadFn:
    return lambda operand, index: (key(operand, index), index)


def _sample(operands, key: counting.KeyFn, k: jax.Array, total: int, deviations, size: int = 4096) -> list[jax.Array]:
    """Guess probes around the k-th key from a sorted sample; a bad guess costs passes, not exactness."""
    sampled = [jax.tree.map(partial(_strided, stride=max(total // size, 1)), operand) for operand in operands]
    keys = jnp.sort(jnp.concatenate([key(x, jnp.zeros(counting.shape(x), jnp.uint32)) for x in sampled]), stable=False)
    share = 1 - k.astype(jnp.float32) / total
    chance = jnp.sqrt(keys.size * share * (1 - share)) + 1
    places = [jnp.clip(keys.size * share + d * chance, 0, keys.size - 1).astype(jnp.int32) for d in deviations]
    return [keys[place] + jnp.uint32(d > 0) for place, d in zip(places, deviations, strict=True)]


def _strided(x: jax.Array, stride: int) -> jax.Array:
    """Return about every `stride`-th entry, thinned along rows and columns alike: `ravel` would copy on a TPU."""
    shape = x.shape or (1,)
    rows = jnp.reshape(x, (prod(shape[:-1]), shape[-1]))
    down = max(min(round(stride**0.5), rows.shape[0]), 1)
    return rows[::down, :: max(stride // down, 1)].ravel()
