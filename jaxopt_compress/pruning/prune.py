"""Threshold pruning as a parameter transform."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxopt_compress import tree
from jaxopt_compress.core import ParamTransform
from jaxopt_compress.pruning import choosing, masks, scoring
from jaxopt_compress.pruning.allocation import Allocation
from jaxopt_compress.pruning.choosing import Sparsity
from jaxopt_compress.pruning.patterns import Pattern, unstructured
from jaxopt_compress.pruning.scoring import Criterion
from jaxopt_compress.pruning.search import counting


def prune(
    criterion: Criterion,
    sparsity: Sparsity | Mapping[str, Sparsity] | None = None,
    *,
    pattern: Pattern = unstructured,
    scope: str = "layer",
    allocation: Allocation | None = None,
    minimum: float = 0.0,
    packed: bool = True,
) -> ParamTransform:
    """Set the lowest-scoring weights to exact zero, the same fraction in every leaf or over all leaves together.

    The state holds one mask for each leaf, one bit a weight, all ones at first; `update` draws the masks anew, so a
    schedule of `sparsity` prunes gradually. Usually wrapped in `periodic`: a refresh reads the weights some eight
    times, a step without one costs a few percent. The gradient of `apply` is masked; a pruned weight that is
    NaN or infinite does not leak. The stored form is the array with its zeros.

    The number of zeros is `round(sparsity * size)`, exactly, ties included: of equal scores those with the higher
    index go first, as in a stable descending argsort. With a schedule the product is taken in float32. The gradual
    schedule of Zhu & Gupta is `optax.polynomial_schedule(0.0, final, power=3, ...)`; one that goes to zero and back,
    by `optax.join_schedules`, is AC/DC (Peste et al., 2021).

    Args:
      criterion: `(params, *, step, **extra) -> scores`, such as `magnitude`; the lowest scores are pruned.
      sparsity: the fraction of zeros in [0, 1], or an Optax schedule of it, or either by glob such as
        `{"**/head/kernel": 0.5, "**": 0.9}`, of which the first that matches a leaf counts. Not needed with a pattern
        that fixes it.
      pattern: what is removed as one and compared with what: single weights, `n_of_m(2, 4)`, `blocks(64, 64)`,
        `channels()`, ... All counts are of its units.
      scope: "layer" (the fraction holds in each leaf) or "global" (one ranking of all leaves).
      allocation: how dense leaves are relative to one another, `(path, shape) -> number`, such as `erk`; the fraction
        then holds over all leaves, exactly.
      minimum: with `scope="global"`, the fraction of each leaf that stays in any case.
      packed: one bit a unit in the state, or one byte.

    Returns:
      A transform whose state is keyed by path.

    Raises:
      ValueError: a sparsity or minimum outside [0, 1], an unknown scope, arguments that contradict each other; (when
        first traced) a leaf that the pattern does not fit, or more than 2^31 - 1 weights ranked together.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxopt_compress.pruning import magnitude
      >>> t = prune(magnitude, 0.5)
      >>> params = {"w": jnp.array([3.0, -1.0, 0.5, -2.0])}
      >>> t.apply(params, t.update(params, t.init(params), step=0))
      {'w': Array([ 3.,  0.,  0., -2.], dtype=float32)}

    Reference: Zhu & Gupta, "To prune, or not to prune", 2017; Han et al., 2015.
    """
    target = _the_sparsity(sparsity, pattern)
    _refuse_contradictions(target, pattern, scope, allocation, minimum)

    def update(params, state, *, step, **extra):
        del state
        asked = choosing.fractions(target, params, step)
        ranked, score = scoring.operands(criterion, params, {"step": step, **extra}, pattern)
        if scope == "global" and ranked:
            found = choosing.top_together(ranked, score, next(iter(asked.values())), minimum)
            return masks.stored(found, packed)
        shapes = {path: w.shape for path, w in tree.weights(params).items()}
        sizes = {path: counting.size(x) for path, x in ranked.items()}
        kept = choosing.kept_of_leaves(asked, sizes, shapes, allocation)
        if pattern.rank:
            found = choosing.by_groups(ranked, pattern.rank, asked, kept if allocation else None)
        else:
            found = choosing.top(ranked, score, kept)
        return masks.stored(found, packed)

    return masked(pattern, packed, update)


def masked(pattern: Pattern, packed: bool, update: Callable) -> ParamTransform:
    """Make the transform of an `update` whose state is masks, by path, all ones at first."""

    def lift(fn):
        def over_tree(params, state):
            return tree.replace(params, {path: fn(w, state[path], pattern) for path, w in tree.weights(params).items()})

        return over_tree

    def removed(params, state):
        return {path: ~masks.whole(w, state[path], pattern) for path, w in tree.weights(params).items()}

    return ParamTransform(
        init=lambda params: masks.ones(params, pattern, packed),
        apply=lift(masks.keep),
        update=update,
        encode=lift(masks.keep),
        removed=removed,
        apply_held=lift(masks.learn_kept),
    )


def of_masks(t: ParamTransform) -> ParamTransform:
    """Lift the parts that only read masks to a state that has them in its field `masks`."""
    lift = lambda fn: fn and (lambda params, state: fn(params, state.masks))  # noqa: E731
    return t._replace(
        apply=lift(t.apply), encode=lift(t.encode), removed=lift(t.removed), apply_held=lift(t.apply_held)
    )


def _the_sparsity(sparsity: Any, pattern: Pattern) -> Any:
    if (sparsity is None) == (pattern.sparsity is None):
        raise ValueError(
            "`prune`: `sparsity` is given, or fixed by the pattern, and not both; "
            f"got {sparsity} and a pattern with {pattern.sparsity}."
        )
    return pattern.sparsity if sparsity is None else sparsity


def _refuse_contradictions(sparsity: Any, pattern: Pattern, scope: str, allocation: Any, minimum: float) -> None:
    for value in sparsity.values() if isinstance(sparsity, Mapping) else (sparsity,):
        if isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise ValueError(f"`prune`: `sparsity` is the fraction of zeros, in [0, 1]; got {value}.")
    if scope not in ("layer", "global"):
        raise ValueError(f'`prune`: `scope` is "layer" or "global"; got {scope!r}.')
    if not 0 <= minimum <= 1 or (minimum and scope != "global"):
        raise ValueError(
            f'`prune`: `minimum` is a fraction in [0, 1], for scope="global"; got {minimum} and scope={scope!r}.'
        )
    if scope == "global" and (allocation or pattern.rank or isinstance(sparsity, Mapping)):
        raise ValueError(
            '`prune`: scope="global" ranks all leaves together; it takes no allocation, no sparsity by glob and no '
            "pattern with groups of its own."
        )
    if allocation and isinstance(sparsity, Mapping):
        raise ValueError("`prune`: an allocation shares one sparsity among leaves; got one by glob beside it.")
