"""Criteria: functions from parameters to scores of the same structure. The lowest scores are pruned first.

A criterion of your own is such a function, with nothing to register: `(params, **extra) -> scores`, where `extra` is
what the caller gave to `update` (`step`, `grads`, `stats`, ...).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxopt_compress import tree
from jaxopt_compress.combinators import layer_number


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
        now = jax.random.fold_in(jax.random.fold_in(key, step), layer_number())
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
    return jax.tree.map(lambda w, g: jnp.abs(_product(w, g)), params, needed("taylor", grads=grads))


snip = taylor  # under the name of the paper that takes the gradient of one batch at initialization


@elementwise
def movement(params, *, grads=None, **extra):
    """Score each weight by how fast it moves away from zero, `-w * g` (Sanh et al., 2020, "Movement pruning").

    To be summed over steps, with `accumulate`; `movement_pruning` is the whole method.

    Args:
      params: any pytree of arrays.
      grads: the gradient of the loss, in the structure of `params`.
      **extra: ignored.

    Raises:
      ValueError: `grads` is missing.
    """
    del extra
    return jax.tree.map(lambda w, g: -_product(w, g), params, needed("movement", grads=grads))


@elementwise
def gradient(params, *, grads=None, **extra):
    """Score each weight by the magnitude of its gradient: which absent ones should grow (Evci et al., 2020).

    Args:
      params: any pytree of arrays.
      grads: the gradient of the loss, that of absent weights included, in the structure of `params`.
      **extra: ignored.

    Raises:
      ValueError: `grads` is missing.
    """
    del extra
    return jax.tree.map(lambda w, g: jnp.abs(g), params, needed("gradient", grads=grads))


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
    return jax.tree.map(lambda w, h: _product(_product(h, w), w) / 2, params, needed("obd", curvature=curvature))


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
    norms, scores = tree.leaves(needed("wanda", stats=stats)), {}
    for path, w in tree.weights(params).items():
        if path not in norms or norms[path].shape != w.shape[:-1]:
            got = norms[path].shape if path in norms else None
            raise ValueError(f"`wanda`: `stats` of {path!r} have the shape of its inputs, {w.shape[:-1]}; got {got}.")
        scores[path] = jnp.abs(_product(w, norms[path][..., None]))
    return tree.replace(params, scores)


def lamp(params, **extra):
    """Score each weight by its share in the energy of those that would outlive it (Lee et al., 2021).

    `w_u^2 / sum(w_v^2 for |w_v| >= |w_u|)` within each leaf, for `scope="global"`: the largest weight of every leaf
    scores 1, so that no leaf dies before all others are down to one weight. Of equal magnitudes those with the lower
    index count as larger. Each leaf is sorted, and a leaf that lies on several devices is gathered for it.
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


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply in float32: a product of two small float16 numbers is often zero."""
    return jnp.asarray(a, jnp.float32) * jnp.asarray(b, jnp.float32)


def needed(name: str, **given):
    """Return the one extra that a criterion lives on, or say which is missing."""
    ((extra, value),) = given.items()
    if value is None:
        raise ValueError(f"`{name}`: the criterion needs `{extra}=`, handed to `update`; got None.")
    return value
