"""Search for the place where a decreasing count passes `k`, several probes at a time.

`count(p)` says how many uint32 keys reach `p`. A bracket holds two keys and their counts; every pass narrows it, until
one of its ends splits the keys exactly or nothing lies between them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

CountFn = Callable[[Sequence[jax.Array]], list[jax.Array]]


class Bracket(NamedTuple):
    """Two keys around the cut: `above_low >= k >= above_high`.

    Attributes:
      low: uint32, a key that at least `k` keys reach.
      high: uint32, a larger key that at most `k` keys reach.
      above_low: int32, how many keys reach `low`.
      above_high: int32, how many keys reach `high`.
    """

    low: jax.Array
    high: jax.Array
    above_low: jax.Array
    above_high: jax.Array

    @classmethod
    def of(cls, low: int, high: int, above_low: int, above_high: int) -> "Bracket":
        """Make a bracket of Python numbers."""
        return cls(jnp.uint32(low), jnp.uint32(high), jnp.int32(above_low), jnp.int32(above_high))


ProbeFn = Callable[[Bracket, jax.Array, jax.Array], list[jax.Array]]


def unfinished(bracket: Bracket, k: jax.Array) -> jax.Array:
    """Tell whether neither end splits the keys at `k` and something lies between them."""
    return (bracket.above_low != k) & (bracket.above_high != k) & (bracket.high - bracket.low > 1)


def step(count: CountFn, bracket: Bracket, k: jax.Array, slow: jax.Array, place: ProbeFn) -> tuple[Bracket, jax.Array]:
    """Narrow a bracket once.

    Args:
      count: `(probes) -> counts`.
      bracket: where to look.
      k: the target count.
      slow: whether the last pass failed to halve the candidates, so that a guess should give way to a sure step.
      place: `(bracket, k, slow) -> probes` strictly inside the bracket.

    Returns:
      The new bracket and the new `slow`.
    """
    new = narrow(bracket, place(bracket, k, slow), count, k)
    return new, 2 * (new.above_low - new.above_high) > bracket.above_low - bracket.above_high


def narrow(bracket: Bracket, probes: Sequence[jax.Array], count: CountFn, k: jax.Array) -> Bracket:
    """Count the probes and move the ends of the bracket to the nearest ones; probes outside it change nothing."""
    low, high, above_low, above_high = bracket
    for probe, above in zip(probes, count(probes), strict=True):
        up = (above >= k) & (probe > low) & (probe < high)
        down = (above < k) & (probe < high) & (probe > low)
        low, above_low = jnp.where(up, probe, low), jnp.where(up, above, above_low)
        high, above_high = jnp.where(down, probe, high), jnp.where(down, above, above_high)
    return Bracket(low, high, above_low, above_high)


def evenly(number: int) -> ProbeFn:
    """Return the rule that divides a bracket into `number + 1` equal parts."""

    def place(bracket, k, slow):
        del k, slow
        part, rest = jnp.divmod(bracket.high - bracket.low, jnp.uint32(number + 1))
        return [bracket.low + part * j + rest * j // (number + 1) for j in range(1, number + 1)]

    return place


OFFSETS = {3: (-1.5, 0.0, 1.5), 7: (-1.2, -0.6, -0.2, 0.0, 0.2, 0.6, 1.2)}  # in widths of chance; simulated


def interpolated(number: int) -> ProbeFn:
    """Return the rule that places 3 or 7 probes where the k-th key lies if keys are locally uniform.

    The probes are as wide apart as chance allows. After a slow pass: the key next to `low`, where the ties of a
    discrete distribution sit, and even ones.
    """

    def place(bracket, k, slow):
        width = bracket.high - bracket.low
        inside = (bracket.above_low - bracket.above_high).astype(jnp.float32)
        share = (bracket.above_low - k).astype(jnp.float32) / inside
        chance = jnp.minimum(jax.lax.rsqrt(inside), 1 / 6)

        def at(part):
            offset = (jnp.clip(part, 0.0, 1.0) * width.astype(jnp.float32)).astype(jnp.uint32)
            return bracket.low + jnp.clip(offset, 1, width - 1)

        part = jnp.maximum(width // number, 1)
        sure = [bracket.low + 1] + [bracket.low + jnp.minimum(j * part, width - 1) for j in range(1, number)]
        guess = [at(share + offset * chance) for offset in OFFSETS[number]]
        return [jnp.where(slow, s, g) for s, g in zip(sure, guess, strict=True)]

    return place
