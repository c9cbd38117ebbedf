"""Criteria for whole channels: every entry of a channel gets the channel's score.

For the patterns `channels` and `heads`, or to rank channels as they are.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import tree
from jaxopt_compress.pruning.criteria import needed


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
        products = jax.tree.map(jnp.multiply, params, needed("gate", grads=grads))
        return _each_weight("gate", axis, lambda x: jnp.square(_sum_channels(x, axis)), products)

    return criterion


def geometric_median(axis: int = -1) -> Callable:
    """Score each channel by its summed distance to the others of its leaf (FPGM; He et al., 2019).

    The channel nearest to the geometric median of all is the one that the others can best replace. Every entry of a
    channel gets the channel's score. All channels are compared with all; a leaf whose channels lie on several devices
    is gathered for it.

    Args:
      axis: the channel axis, the last by default.
    """

    def criterion(params, **extra):
        del extra
        return _each_weight("geometric_median", axis, partial(_distances, axis=axis), params)

    return criterion


def normalization_scale(scale_of: Mapping[str, str], axis: int = -1) -> Callable:
    """Score each channel of a kernel by the scale that a normalization layer gives it (Liu et al., 2017, "slimming").

    Args:
      scale_of: the path of the scale for the path of each kernel, `{"conv/kernel": "norm/scale"}`; both are among what
        the transform sees. A scale is scored by its own magnitude, so that the two lose the same channels.
      axis: the channel axis of the kernels.

    Raises:
      ValueError: a path that is missing, or a scale with another length than the channel axis of its kernel.
    """

    def criterion(params, **extra):
        del extra
        weights = tree.weights(params)
        scores = {path: jnp.abs(w) for path, w in weights.items()}
        for kernel, scale in scale_of.items():
            have, need = _shape(weights, scale), _shape(weights, kernel)
            if not need or have != (need[axis],):
                raise ValueError(
                    f"`normalization_scale`: {scale!r} has one number for each channel of {kernel!r}, and both are "
                    f"selected; got the shapes {have} and {need}, axis {axis}."
                )
            scores[kernel] = _along(scores[scale], need, axis)
        return tree.replace(params, scores)

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


def _shape(weights: Mapping[str, jax.Array], path: str) -> tuple[int, ...]:
    return weights[path].shape if path in weights else ()
