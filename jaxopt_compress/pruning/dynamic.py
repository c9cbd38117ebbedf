"""Dynamic sparse training: networks that are sparse from the first step, and move their weights about."""

from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import tree
from jaxopt_compress.combinators import dense_backward, layer_number
from jaxopt_compress.core import ParamTransform, keep
from jaxopt_compress.pruning import choosing, masks, scoring
from jaxopt_compress.pruning.allocation import Allocation, er, erk
from jaxopt_compress.pruning.counts import zeros_of
from jaxopt_compress.pruning.criteria import gradient, magnitude
from jaxopt_compress.pruning.patterns import unstructured
from jaxopt_compress.pruning.prune import masked, of_masks
from jaxopt_compress.pruning.scoring import Criterion
from jaxopt_compress.pruning.search.drawing import draw

Fraction = float | optax.Schedule


class RegrowState(NamedTuple):
    """The state of dynamic sparse training.

    Attributes:
      key: the data of a PRNG key.
      masks: by path, as in `prune`.
    """

    key: jax.Array
    masks: tree.Selection


def regrow(
    key: jax.Array,
    sparsity: Fraction,
    fraction: Fraction,
    grow: Criterion | None,
    *,
    drop: Criterion = magnitude,
    allocation: Allocation | None = erk,
    packed: bool = True,
) -> ParamTransform:
    """Keep a network sparse, and in every update move a fraction of its weights to other places.

    The masks are random at first, with exact counts. `update` drops the weights with the lowest scores and grows as
    many of those that are then absent, the ones just dropped among them, which go on unchanged if they grow again.
    What is new starts at zero, and under `attach` with fresh moments. Usually wrapped in `periodic`.

    The masks hold from the first step if the parameters start so: `params = t.apply(params, t.init(params))`.
    Otherwise the first forward pass under `attach` is that of the dense network.

    Args:
      key: a PRNG key, for the first masks and for growth at random.
      sparsity: the fraction of zeros, or an Optax schedule of it.
      fraction: the fraction of the present weights that moves in an update, or a schedule of it.
      grow: a criterion whose highest scores grow, or `None` for growth at random.
      drop: a criterion whose lowest scores are dropped.
      allocation: how the leaves share the weights, as in `prune`; `None` for the same sparsity in each.
      packed: one bit a weight in the state, or one byte.

    Returns:
      A transform whose state is a `RegrowState`.

    Raises:
      ValueError: a number outside [0, 1]; (when first traced) what `prune` refuses.
    """
    for name, value in (("sparsity", sparsity), ("fraction", fraction)):
        if isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise ValueError(f"`regrow`: `{name}` is a fraction, in [0, 1]; got {value}.")

    counts = partial(_counts, sparsity, allocation)

    def init(params):
        nothing = {path: (w != w) & (w == w) for path, w in tree.weights(params).items()}  # in the sharding of `w`
        here, later = jax.random.split(jax.random.fold_in(key, layer_number()))  # not the key: states are donated
        drawn = _draw(nothing, counts(params, jnp.zeros((), jnp.int32)), here)
        return RegrowState(jax.random.key_data(later), masks.stored(drawn, packed))

    def update(params, state, *, step, **extra):
        extra, number = {"step": step, **extra}, counts(params, step)
        absent = {path: ~mask for path, mask in _whole(params, state.masks).items()}
        staying = _how_many_stay(number, fraction(step) if callable(fraction) else fraction)
        if callable(sparsity):  # fewer may be there than are to stay
            staying = {path: jnp.minimum(n, jnp.sum(~absent[path], dtype=jnp.int32)) for path, n in staying.items()}
        stay = choosing.top(*scoring.beside(absent, *scoring.operands(drop, params, extra)), staying)
        missing = {path: number[path] - n for path, n in staying.items()}
        if grow is None:
            now = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(key)), step)
            new = _draw(stay, missing, now)
        else:
            new = choosing.top(*scoring.beside(stay, *scoring.operands(grow, params, extra)), missing)
        return state._replace(masks=masks.stored({path: stay[path] | new[path] for path in stay}, packed))

    t = of_masks(masked(unstructured, packed, keep))._replace(init=init, update=update)
    return t if grow is None else dense_backward(t)


def rigl(
    key: jax.Array, sparsity: Fraction, fraction: Fraction = 0.3, *, allocation: Allocation | None = erk
) -> ParamTransform:
    """Drop the weights of smallest magnitude and grow those of largest gradient (RigL; Evci et al., 2020).

    Needs `grads`, dense: `attach` hands them over. The schedule of the paper moves `0.3 / 2 * (1 + cos(pi * t / end))`
    of the weights every 100 steps until `end`, three quarters through the training:
    `periodic(rigl(key, 0.9, optax.cosine_decay_schedule(0.3, end)), every=100)`. Unlike in the authors' code the step
    at which weights move is also a step of the optimizer, for the weights that stay.

    Args:
      key: as in `regrow`, whose arguments all of these are.
      sparsity: the fraction of zeros.
      fraction: the fraction of the present weights that moves.
      allocation: `erk` is better than the same sparsity in all leaves, says the paper.

    Example:
      >>> t = rigl(jax.random.key(0), 0.75, 0.5)
      >>> w = {"w": jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])}
      >>> state = t.init(w)
      >>> t.apply(w, state)["w"]  # at random
      Array([0., 0., 0., 0., 5., 6., 0., 0.], dtype=float32)
      >>> t.apply(w, t.update(w, state, step=0, grads={"w": w["w"][::-1]}))["w"]
      Array([1., 0., 0., 0., 0., 6., 0., 0.], dtype=float32)
    """
    return regrow(key, sparsity, fraction, gradient, allocation=allocation)


def set_(
    key: jax.Array, sparsity: Fraction, fraction: Fraction = 0.3, *, allocation: Allocation | None = er
) -> ParamTransform:
    """Drop the weights of smallest magnitude and grow as many at random (SET; Mocanu et al., 2018).

    The paper moves 0.3 of the weights once an epoch. Arguments as in `regrow`.
    """
    return regrow(key, sparsity, fraction, None, allocation=allocation)


def static(key: jax.Array, sparsity: float, *, allocation: Allocation | None = erk) -> ParamTransform:
    """Keep the random masks of `regrow` for good: the baseline of dynamic sparse training."""
    return regrow(key, sparsity, 0.0, None, allocation=allocation)._replace(update=keep)


def _counts(sparsity: Fraction, allocation: Allocation | None, params: Any, step: Any) -> dict[str, Any]:
    shapes = {path: w.shape for path, w in tree.weights(params).items()}
    sizes = {path: prod(shape) for path, shape in shapes.items()}
    return choosing.kept_of_leaves(choosing.fractions(sparsity, params, step), sizes, shapes, allocation)


def _how_many_stay(number: dict[str, Any], moving: Any) -> dict[str, Any]:
    return {path: n - zeros_of(moving, n) for path, n in number.items()}


def _whole(params: Any, stored: tree.Selection) -> dict[str, jax.Array]:
    return {path: masks.whole(w, stored[path], unstructured) for path, w in tree.weights(params).items()}


def _draw(taken: dict[str, jax.Array], number: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
    """Draw in each leaf on its own, each with a key of its own."""
    keys = (jax.random.fold_in(key, i) for i in range(len(taken)))
    return {path: draw([mask], number[path], k)[0] for k, (path, mask) in zip(keys, taken.items())}
