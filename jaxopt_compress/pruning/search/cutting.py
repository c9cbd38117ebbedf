"""Where a top-k is cut: first the k-th key, then, if entries are tied at it, the last index of a tie that stays.

The two searches can share one loop, which halves what there is to compile, or have one each, whose passes do less.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.pruning.search import probing

ReadFn = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]


class Cut(NamedTuple):
    """Keys above `threshold` stay, and of those equal to it the ones whose index is below `limit`.

    Attributes:
      threshold: uint32 scalar.
      limit: uint32 scalar, an index into all arrays laid end to end.
    """

    threshold: jax.Array
    limit: jax.Array


class Turn(NamedTuple):
    """Where the search stands.

    Attributes:
      bracket: around the k-th key, and later around the index of the last tie.
      k: how many keys, and later how many ties, to keep.
      slow: whether the last pass hardly narrowed the bracket.
      threshold: the k-th key, once it is found.
      ties: whether it is.
    """

    bracket: probing.Bracket
    k: jax.Array
    slow: jax.Array
    threshold: jax.Array
    ties: jax.Array


def begin(bracket: probing.Bracket, k: jax.Array, total: int) -> Turn:
    """Return the start of a search among `total` entries; `bracket` may be as wide as all keys, or exact already."""
    no = jnp.asarray(False)
    return _turn_to_ties(Turn(bracket, k, no, jnp.uint32(0), no), total)


def unfinished(turn: Turn) -> jax.Array:
    """Tell whether a search has to go on."""
    return probing.unfinished(turn.bracket, turn.k)


def search(
    turn: Turn,
    total: int,
    operands: Sequence[Any],
    read: ReadFn,
    count: Callable,
    place: probing.ProbeFn,
    given: jax.Array | bool = True,
    together: bool = True,
) -> Turn:
    """Search on among the entries of `operands`.

    Args:
      turn: where to go on.
      total: how many entries there are in all.
      operands: what `count` counts.
      read: `(operand, flat index) -> (keys, index)`, the entries of an operand and where each stands among all.
      count: `(operands, key, probes) -> counts`, as in `counting`.
      place: the rule that places probes.
      given: whether to search at all.
      together: whether one loop does both searches.

    Returns:
      The finished turn; the same, after no pass at all, if it was finished.
    """

    def step(turn, ties):
        def key(operand, index):
            keys, index = read(operand, index)
            tied = jnp.where(keys == turn.threshold, index + 1, 0)
            return jnp.where(turn.ties, tied, keys) if ties is None else tied if ties else keys

        bracket, slow = probing.step(partial(count, operands, key), turn.bracket, turn.k, turn.slow, place)
        return _turn_to_ties(turn._replace(bracket=bracket, slow=slow), total)

    def loop(turn, ties=None):
        mine = lambda turn: True if ties is None else turn.ties == ties  # noqa: E731
        return jax.lax.while_loop(lambda turn: given & mine(turn) & unfinished(turn), partial(step, ties=ties), turn)

    return loop(turn) if together else loop(loop(turn, ties=False), ties=True)


def result(turn: Turn) -> Cut:
    """Return the cut of a finished search."""
    b = turn.bracket
    return Cut(turn.threshold, jnp.where(b.above_high == turn.k, b.high, b.low) - 1)


def _turn_to_ties(turn: Turn, total: int) -> Turn:
    """Once the threshold is known, start among the entries that equal it; an index counts as a key of `index + 1`."""
    b, no = turn.bracket, jnp.asarray(False)
    exact = (b.above_low == turn.k) | (b.above_high == turn.k)
    then = Turn(
        bracket=probing.Bracket(jnp.uint32(1), jnp.uint32(total + 1), b.above_low - b.above_high, jnp.int32(0)),
        k=jnp.where(exact, 0, b.above_low - turn.k),
        slow=no,
        threshold=jnp.where(b.above_high == turn.k, b.high, b.low),
        ties=~no,
    )
    over = ~unfinished(turn) & ~turn.ties
    return jax.tree.map(partial(jnp.where, over), then, turn)
