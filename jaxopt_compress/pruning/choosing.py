"""From scores to masks: how many units stay in each leaf, and which."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, prod
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import tree
from jaxopt_compress.pruning import allocation as allocations
from jaxopt_compress.pruning import scoring
from jaxopt_compress.pruning.counts import MOST, zeros_of
from jaxopt_compress.pruning.scoring import Operands, Score
from jaxopt_compress.pruning.search import counting, ranking

Sparsity = float | jax.Array | optax.Schedule
Kept = dict[str, Any]


def fractions(sparsity: Sparsity | Mapping[str, Sparsity], params: Any, step: Any) -> dict[str, Any]:
    """Return the fraction of zeros that is asked of each leaf, by path.

    Args:
      sparsity: a number, a schedule, or either by glob, of which the first that matches a leaf counts.
      params: the parameters.
      step: what schedules are asked for.

    Raises:
      ValueError: a glob that matches nothing, or a leaf that none matches.
    """
    paths = list(tree.weights(params))
    if not isinstance(sparsity, Mapping):
        value = _at(sparsity, step)
        return dict.fromkeys(paths, value)
    found: dict[str, Any] = {}
    for glob, value in sparsity.items():
        found = dict.fromkeys(tree.choose(params, glob), _at(value, step)) | found
    for path in paths:
        if path not in found:
            raise ValueError(f"`prune`: `sparsity` says nothing of {path!r}; got it for {', '.join(sparsity)}.")
    return found


def _at(sparsity: Sparsity, step: Any) -> Any:
    return sparsity(step) if callable(sparsity) else sparsity


def kept_of_leaves(
    asked: Mapping[str, Any], sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], allocation: Any
) -> Kept:
    """Return how many units each leaf keeps.

    Args:
      asked: the fraction of zeros by path; with an allocation it is the same for all.
      sizes: the number of units of each leaf.
      shapes: the shape of each leaf.
      allocation: `None`, or what shares the total among leaves.
    """
    if allocation is None or not sizes:
        return {path: size - zeros_of(asked[path], size) for path, size in sizes.items()}
    total = sum(sizes.values())
    fraction = next(iter(asked.values()))
    zeros = zeros_of(fraction, total)
    _refuse_too_many(total if isinstance(zeros, jax.Array) else 0, list(sizes))
    relative = allocations.densities(allocation, shapes)
    return dict(zip(sizes, allocations.share(relative, list(sizes.values()), total - zeros), strict=True))


def top(operands: Operands, score: Score, kept: Kept) -> dict[str, jax.Array]:
    """Mark the highest of each leaf on its own."""
    return {path: _top([x], score, kept[path], [path])[0] for path, x in operands.items()}


def top_together(operands: Operands, score: Score, fraction: Any, minimum: float) -> dict[str, jax.Array]:
    """Mark the highest of all leaves together, and in every leaf at least a fraction of it.

    Raises:
      ValueError: the minimum of all leaves is more than stays in all.
    """
    sizes = {path: counting.size(x) for path, x in operands.items()}
    total = sum(sizes.values())
    kept, least = total - zeros_of(fraction, total), {path: ceil(minimum * size) for path, size in sizes.items()}
    if not minimum:
        return dict(zip(operands, _top(list(operands.values()), score, kept, list(operands)), strict=True))
    owed = sum(least.values())
    if isinstance(kept, int) and kept < owed:
        raise ValueError(f"`prune`: `minimum={minimum}` keeps {owed} in all; the sparsity leaves {kept} of {total}.")
    sure = top(operands, score, least)
    rest, score = scoring.beside(sure, operands, score)
    more = _top(list(rest.values()), score, jnp.maximum(kept - owed, 0), list(operands))
    return {path: sure[path] | mask for path, mask in zip(operands, more, strict=True)}


def _top(operands: Sequence[Any], score: Score, kept: Any, paths: list[str]) -> list[jax.Array]:
    total = sum(map(counting.size, operands))
    _refuse_too_many(total, paths)
    if total == 0:
        return [jnp.ones(counting.shape(operand), bool) for operand in operands]
    return ranking.top_k_masks(operands, kept, score)


def _refuse_too_many(total: int, paths: list[str]) -> None:
    if total > MOST:
        raise ValueError(
            f"`prune`: at most {MOST} weights can be ranked together; got {total} in {paths[0]!r}"
            f'{" and others" * (len(paths) > 1)}. Use `stacked` for layers on a leading axis, or scope="layer".'
        )


def by_groups(scores: Mapping[str, jax.Array], rank: Callable, asked: Mapping[str, Any], kept: Kept | None) -> Any:
    """Mark the highest of every group of each leaf, at the sparsity asked or, after an allocation, that of its leaf."""
    masks = {}
    for path, x in scores.items():
        masks[path] = rank(x, asked[path] if kept is None else _fraction(kept[path], prod(x.shape)))
    return masks


def _fraction(kept: Any, size: int) -> Any:
    kept = kept.astype(jnp.float32) if isinstance(kept, jax.Array) else kept
    return 1 - kept / max(size, 1)
