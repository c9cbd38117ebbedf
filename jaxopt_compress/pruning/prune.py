"""Threshold pruning as a parameter transform."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import tree
from jaxopt_compress.core import ParamTransform
from jaxopt_compress.pruning import bits, counting
from jaxopt_compress.pruning.ranking import top_k_masks

Criterion = Callable[..., Any]
MOST = 2**31 - 1  # entries ranked together: counts are int32


def prune(criterion: Criterion, sparsity: float | optax.Schedule, *, scope: str = "layer") -> ParamTransform:
    """Set the lowest-scoring weights to exact zero, the same fraction in every leaf or over all leaves together.

    The state holds one mask for each leaf, one bit a weight, all ones at first; `update` draws the masks anew, so a
    schedule of `sparsity` prunes gradually. Usually wrapped in `periodic`: a refresh reads the weights some eight
    times, a step without one costs a few percent. The gradient of `apply` is masked; a pruned weight that is
    NaN or infinite does not leak. The stored form is the array with its zeros.

    The number of zeros is `round(sparsity * size)`, exactly, ties included: of equal scores those with the higher
    index go first, as in a stable descending argsort. With a schedule the product is taken in float32. The gradual
    schedule of Zhu & Gupta is `optax.polynomial_schedule(0.0, final, power=3, ...)`.

    Args:
      criterion: `(params, *, step, **extra) -> scores`, such as `magnitude`; the lowest scores are pruned.
      sparsity: the fraction of zeros in [0, 1], or an Optax schedule of it.
      scope: "layer" (the fraction holds in each leaf) or "global" (one ranking of all leaves).

    Returns:
      A transform whose state is keyed by path.

    Raises:
      ValueError: a sparsity outside [0, 1], an unknown scope, or more than 2^31 - 1 weights ranked together.

    Example:
      >>> from jaxopt_compress.pruning import magnitude
      >>> t = prune(magnitude, 0.5)
      >>> params = {"w": jnp.array([3.0, -1.0, 0.5, -2.0])}
      >>> t.apply(params, t.update(params, t.init(params), step=0))
      {'w': Array([ 3.,  0.,  0., -2.], dtype=float32)}

    Reference: Zhu & Gupta, "To prune, or not to prune", 2017; Han et al., 2015.
    """
    if not callable(sparsity) and isinstance(sparsity, (int, float)) and not 0 <= sparsity <= 1:
        raise ValueError(f"`prune`: `sparsity` is the fraction of zeros, in [0, 1]; got {sparsity}.")
    if scope not in ("layer", "global"):
        raise ValueError(f'`prune`: `scope` is "layer" or "global"; got {scope!r}.')

    def init(params):
        return tree.Selection((path, _all_ones(w)) for path, w in tree.weights(params).items())

    def apply(params, state):
        return tree.replace(
            params, {path: bits.keep_packed(w, state[path]) for path, w in tree.weights(params).items()}
        )

    def apply_held(params, state):
        return tree.replace(params, {path: bits.learn_kept(w, state[path]) for path, w in tree.weights(params).items()})

    def update(params, state, *, step, **extra):
        del state
        fraction = sparsity(step) if callable(sparsity) else sparsity
        operands, score = _operands(criterion, params, {"step": step, **extra})
        masks = _rank(operands, score, fraction, scope)
        return tree.Selection((path, bits.pack(mask)) for path, mask in masks.items())

    def removed(params, state):
        return {path: ~bits.unpack(state[path], w) for path, w in tree.weights(params).items()}

    return ParamTransform(init, apply, update, encode=apply, removed=removed, apply_held=apply_held)


def _all_ones(w: jax.Array) -> jax.Array:
    """Return a packed mask of ones, computed from `w` so that it takes the sharding of `w`."""
    return bits.pack((w == w) | (w != w))


def _operands(criterion: Criterion, params, extra: dict[str, Any]) -> tuple[dict[str, Any], Callable]:
    """Return what to rank, by path, and how to score it; elementwise criteria are scored a tile at a time."""
    if not getattr(criterion, "elementwise", False):
        scores = tree.leaves(criterion(params, **extra))
        return {path: scores[path] for path in tree.weights(params)}, _itself
    alike = {k: tree.leaves(v) for k, v in extra.items() if _shapes(v) == _shapes(params)}
    operands = {path: (w, {k: v[path] for k, v in alike.items()}) for path, w in tree.weights(params).items()}
    return operands, _scorer(criterion)


def _shapes(params) -> Any:
    """Return structure and shapes: the step is no array beside the weight where the parameters are a bare leaf."""
    return jax.tree.structure(params), [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(params)]


def _itself(scores: jax.Array) -> jax.Array:
    return scores


@lru_cache(maxsize=64)  # one function object for a criterion, so that the compiled ranking is found again
def _scorer(criterion: Criterion) -> Callable:
    return lambda operand: criterion(operand[0], **operand[1])


def _rank(operands: dict[str, Any], score: Callable, fraction, scope: str) -> dict[str, jax.Array]:
    groups = [list(operands)] if scope == "global" else [[path] for path in operands]
    masks = {}
    for group in groups:
        masks |= zip(group, _top([operands[path] for path in group], score, fraction, group), strict=True)
    return masks


def _top(operands: Sequence[Any], score: Callable, fraction, paths: list[str]) -> list[jax.Array]:
    total = sum(map(counting.size, operands))
    if total > MOST:
        raise ValueError(
            f"`prune`: at most {MOST} weights can be ranked together; got {total} in {paths[0]!r}"
            f'{" and others" * (len(paths) > 1)}. Use `stacked` for layers on a leading axis, or scope="layer".'
        )
    if total == 0:
        return [jnp.ones(counting.shape(operand), bool) for operand in operands]
    return top_k_masks(operands, total - _zeros(fraction, total), score)


def _zeros(fraction, total: int):
    if isinstance(fraction, (int, float)):
        return round(fraction * total)
    zeros = jnp.round(jnp.asarray(fraction, jnp.float32) * total).astype(jnp.int32)
    return jnp.clip(zeros, 0, total)
