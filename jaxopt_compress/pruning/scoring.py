"""What is ranked, and how each entry of it is scored."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax

from jaxopt_compress import tree
from jaxopt_compress.pruning.patterns import Pattern, unstructured
from jaxopt_compress.pruning.search import counting, ranking

Criterion = Callable[..., Any]
Operands = dict[str, counting.Operand]
Score = Callable[[counting.Operand], jax.Array]


def operands(criterion: Criterion, params: Any, extra: dict, pattern: Pattern = unstructured) -> tuple[Operands, Score]:
    """Return what to rank, by path, and how to score it; elementwise criteria are scored a tile at a time."""
    if pattern.pool or pattern.rank or not getattr(criterion, "elementwise", False):
        scores = tree.leaves(criterion(params, **extra))
        gather = pattern.pool or _itself
        return {path: gather(scores[path]) for path in tree.weights(params)}, _itself
    alike = {k: tree.leaves(v) for k, v in extra.items() if _shapes(v) == _shapes(params)}
    found = {path: (w, {k: v[path] for k, v in alike.items()}) for path, w in tree.weights(params).items()}
    return found, _scorer(criterion)


def beside(taken: dict[str, jax.Array], ranked: Operands, score: Score) -> tuple[Operands, Score]:
    """Return the same operands and score, except that entries that are taken rank below all others."""
    return {path: (x, taken[path]) for path, x in ranked.items()}, _beside(score)


def _shapes(params) -> Any:
    """Return structure and shapes: the step is no array beside the weight where the parameters are a bare leaf."""
    return jax.tree.structure(params), [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(params)]


def _itself(scores: jax.Array) -> jax.Array:
    return scores


@lru_cache(maxsize=64)  # one function object for a criterion, so that the compiled ranking is found again
def _scorer(criterion: Criterion) -> Score:
    return lambda operand: criterion(operand[0], **operand[1])


@lru_cache(maxsize=64)
def _beside(score: Score) -> Score:
    return lambda operand: ranking.keys_among(~operand[1], score(operand[0]))
