"""Draw entries at random without replacement, an exact number, without a random number in memory.

Each entry has a pseudo-random key, a hash of its index and of a seed, computed where it is counted. Those with the
highest keys are drawn, by the same search as in `ranking`; as hashes are uniform, a few passes find the cut.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxopt_compress.pruning.search import counting, cutting, probing, ranking

LAST = 0xFFFF_FFFF


@jax.jit
def draw(taken: Sequence[jax.Array], k, key: jax.Array) -> list[jax.Array]:
    """Draw `k` entries of those not taken.

    Args:
      taken: bool arrays.
      k: how many to draw, an integer scalar (may be traced), at most as many as are not taken.
      key: a PRNG key.

    Returns:
      One bool mask for each array, `k` ones in all; the same on one device and on many.
    """
    seed = jax.random.bits(key, (2,))

    def key_of(taken, index):
        hashed = _mix(_mix(index ^ seed[0]) ^ seed[1])
        return jnp.where(taken, jnp.uint32(ranking.OUTSIDE), jnp.clip(hashed, jnp.uint32(1), jnp.uint32(LAST - 1)))

    def find(taken, k, count, place):
        total = sum(map(counting.size, taken))
        everything = probing.Bracket.of(ranking.OUTSIDE, LAST, total, 0)
        bracket = probing.narrow(everything, [jnp.uint32(1)], partial(count, taken, key_of), k)
        turn = cutting.begin(bracket, k, total)
        read = lambda taken, index: (key_of(taken, index), index)  # noqa: E731
        return cutting.result(cutting.search(turn, total, taken, read, count, place, together=False))

    tiled = partial(find, count=counting.count_tiled, place=probing.interpolated(3))
    fused = partial(find, count=counting.count_fused, place=probing.interpolated(7))
    taken, k = tuple(taken), jnp.asarray(k, jnp.int32)
    cut = fused(taken, k) if ranking.spread_out() else jax.lax.platform_dependent(taken, k, cpu=tiled, default=fused)
    firsts = counting.starts(taken)
    return [ranking.mask(entries, key_of, first, cut) for entries, first in zip(taken, firsts, strict=True)]


def _mix(x: jax.Array) -> jax.Array:
    """Permute 32-bit integers so that every bit of the result depends on all; "lowbias32" (Wellons, 2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB_352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846C_A68B)
    return x ^ (x >> 16)
