"""Criteria: functions from parameters to scores of the same structure. The lowest scores are pruned first.

A criterion of your own is such a function, with nothing to register: `(params, **extra) -> scores`, where `extra` is
what the caller gave to `update` (`step`, `grads`, `stats`, ...).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import tree


def elementwise(criterion: Callable) -> Callable:
    """Mark a criterion whose score of a weight depends on nothing but the entries at the same index.

    Such scores are computed on the fly, a tile at a time, and never written to memory.
    """
    criterion.elementwise = True  # pyright: ignore[reportFunctionMemberAccess]
    return criterion


@elementwise
def magnitude(params, **extra):
    """Score each weight by its absolute value (Han et al., 2015, "Learning both weights and connections").

    Args:
      params: any pytree of arrays.
      **extra: ignored.

    Returns:
      `|w|`, in the structure of `params`.

    Example:
      >>> magnitude({"w": jnp.array([-2.0, 1.0])})
      {'w': Array([2., 1.], dtype=float32)}
    """
    del extra
    return jax.tree.map(jnp.abs, params)


def random(key: jax.Array) -> Callable:
    """Score weights uniformly at random: the baseline that every other criterion has to beat.

    Args:
      key: a PRNG key; step and leaf are folded in, so that every update draws anew and every leaf differs.

    Returns:
      A criterion; its scores are in [0, 1), the same on one device and on many.
    """

    def criterion(params, *, step=0, **extra):
        del extra
        now = jax.random.fold_in(key, step)
        weights = tree.weights(params)
        keys = (jax.random.fold_in(now, number) for number in range(len(weights)))
        return tree.replace(
            params, {path: jax.random.uniform(k, w.shape) for k, (path, w) in zip(keys, weights.items())}
        )

    return criterion


@elementwise
def taylor(params, *, grads=None, **extra):
    """Score each weight by the first-order change of the loss without it, `|w * g|`.

    The ranking of `(w * g)^2` (Molchanov et al., 2019, "Importance estimation for neural network pruning", the form for
    single weights) without its underflow. With the gradient of one batch at initialization it is SNIP (Lee et al.,
    2019), whose normalization by the sum changes no ranking.

    Args:
      params: any pytree of arrays.
      grads: the gradient of the loss, in the structure of `params`.
      **extra: ignored.

    Raises:
      ValueError: `grads` is missing.
    """
    del extra
    return jax.tree.map(lambda w, g: jnp.abs(w * g), params, _needed("taylor", grads=grads))


@elementwise
def obd(params, *, curvature=None, **extra):
    """Score each weight by the second-order change of the loss without it, `h * w^2 / 2`.

    Optimal brain damage (LeCun et al., 1990). `fisher` is this with a curvature of its own.

    Args:
      params: any pytree of arrays.
      curvature: the diagonal of the Hessian or of a stand-in for it, in the structure of `params`.
      **extra: ignored.

    Raises:
      ValueError: `curvature` is missing.
    """
    del extra
    return jax.tree.map(lambda w, h: h * w * w / 2, params, _needed("obd", curvature=curvature))


def wanda(params, *, stats=None, **extra):
    """Score each weight by `|w| * norm`, the norm being that of the activation it multiplies (Sun et al., 2024).

    Meant to be compared within each output, not over a whole leaf.

    Args:
      params: any pytree of arrays, the output axis last.
      stats: for each weight of shape `(*inputs, outputs)` the norms of its inputs over the calibration samples, of
        shape `inputs`; in the structure of `params`.
      **extra: ignored.

    Raises:
      ValueError: `stats` is missing, or a norm has another shape than the inputs of its weight.
    """
    del extra
    norms, scores = tree.leaves(_needed("wanda", stats=stats)), {}
    for path, w in tree.weights(params).items():
        if path not in norms or norms[path].shape != w.shape[:-1]:
            got = norms[path].shape if path in norms else None
            raise ValueError(f"`wanda`: `stats` of {path!r} have the shape of its inputs, {w.shape[:-1]}; got {got}.")
        scores[path] = jnp.abs(w) * norms[path][..., None]
    return tree.replace(params, scores)


def lamp(params, **extra):
    """Score each weight by its share in the energy of those that would outlive it (Lee et al., 2021).

    `w_u^2 / sum(w_v^2 for |w_v| >= |w_u|)` within each leaf, for `scope="global"`: the largest weight of every leaf
    scores 1, so that no leaf dies before all others are down to one weight. Of equal magnitudes those with the lower
    index count as larger. Each leaf is sorted.
    """
    del extra
    return tree.replace(params, {path: _share(w) for path, w in tree.weights(params).items()})


def _share(w: jax.Array) -> jax.Array:
    squares = jnp.square(w.astype(jnp.float32)).ravel()
    order = jnp.argsort(-squares)
    # The sum of all that are at least as large, from the largest down: no difference of sums, which would cancel.
    ranked = squares[order]
    shares = ranked / jnp.where(ranked > 0, jnp.cumsum(ranked), 1)
    return jnp.zeros_like(squares).at[order].set(shares).reshape(w.shape)


def gate(axis: int = -1) -> Callable:
    """Score each channel by the squared change of the loss when a gate on it closes, `(sum of w * g)^2`.

    The gate form of the Taylor criterion (Molchanov et al., 2019): the products are summed over the channel before
    the square, as one gate moves all of them. Every entry of a channel gets the channel's score.

    Args:
      axis: the channel axis, the last by default: output channels of Dense and Conv kernels.

    Returns:
      A criterion that needs `grads`.
    """

    def criterion(params, *, grads=None, **extra):
        del extra
        products = jax.tree.map(jnp.multiply, params, _needed("gate", grads=grads))
        return _each_weight("gate", axis, lambda x: jnp.square(_sum_channels(x, axis)), products)

    return criterion


def geometric_median(axis: int = -1) -> Callable:
    """Score each channel by its summed distance to the others of its leaf (FPGM; He et al., 2019).

    The channel nearest to the geometric median of all is the one that the others can best replace. Every entry of a
    channel gets the channel's score.

    Args:
      axis: the channel axis, the last by default.
    """

    def criterion(params, **extra):
        del extra
        return _each_weight("geometric_median", axis, partial(_distances, axis=axis), params)

    return criterion


def _distances(w: jax.Array, axis: int) -> jax.Array:
    channels = jnp.moveaxis(w.astype(jnp.float32), axis, 0).reshape(w.shape[axis], -1)
    # One channel at a time: `|a|^2 + |b|^2 - 2ab` would cancel for channels that are close, the ones that matter.
    sums = jax.lax.map(lambda c: jnp.sum(jnp.linalg.norm(channels - c[None], axis=1)), channels)
    return _along(sums, w.shape, axis)


def _sum_channels(x: jax.Array, axis: int) -> jax.Array:
    others = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    return jnp.broadcast_to(jnp.sum(x.astype(jnp.float32), axis=others, keepdims=True), x.shape)


def _along(values: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """Spread one value a channel over an array of the given shape."""
    return jnp.broadcast_to(
        jnp.expand_dims(values, tuple(a for a in range(len(shape)) if a != axis % len(shape))), shape
    )


def _each_weight(name: str, axis: int, score: Callable[[jax.Array], jax.Array], params) -> Any:
    weights = tree.weights(params)
    for path, w in weights.items():
        if not -w.ndim <= axis < w.ndim:
            raise ValueError(f"`{name}({axis})`: the weight has that axis; {path!r} is of shape {w.shape}.")
    return tree.replace(params, {path: score(w) for path, w in weights.items()})


def _needed(name: str, **given):
    """Return the one extra that a criterion lives on, or say which is missing."""
    ((extra, value),) = given.items()
    if value is None:
        raise ValueError(f"`{name}`: the criterion needs `{extra}=`, handed to `update`; got None.")
    return value
