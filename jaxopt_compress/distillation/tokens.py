"""Losses over sequences: tokens that do not count, and large vocabularies in pieces."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LossFn = Callable[..., jax.Array]


def masked(loss_fn: LossFn) -> LossFn:
    """Leave out tokens: their loss is 0, and so is every gradient of it, whatever their numbers are, NaN included.

    What stands at these tokens is replaced by zeros before `loss_fn` sees it: labels of -100, logits of padding. A loss
    that compares the tokens of a batch (`dist`, the relations) sees those zeros too.

    Args:
      loss_fn: `(*arrays) -> losses`, one number a token.

    Returns:
      `(*arrays, mask=m) -> losses`, with `m` boolean, of the shape of the losses; the arrays begin with its axes.

    Raises:
      ValueError: (when first traced) the mask is not boolean, or an array does not begin with its axes.

    Example:
      >>> from jaxopt_compress.distillation.logits import cross_entropy
      >>> logits = jnp.zeros((1, 3, 2)).at[0, 2].set(jnp.nan)
      >>> losses = masked(cross_entropy)(logits, jnp.array([[0, 1, -100]]), mask=jnp.array([[True, True, False]]))
      >>> (losses / jnp.log(2)).tolist()
      [[1.0, 1.0, 0.0]]
    """

    def over_tokens(*arrays, mask):
        if mask.dtype != jnp.bool_:
            raise ValueError(f"`masked`: `mask` is boolean; got {mask.dtype}.")
        for array in jax.tree.leaves(arrays):
            if array.shape[: mask.ndim] != mask.shape:
                raise ValueError(f"`masked`: arrays begin with the axes of the mask, {mask.shape}; got {array.shape}.")
        losses = loss_fn(*jax.tree.map(lambda x: _where(mask, x), arrays))
        return jnp.where(mask, losses, 0)

    return over_tokens


def token_mean(losses: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean over the tokens that count; 0 if none does."""
    count = jnp.sum(mask.astype(losses.dtype))
    return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(count, 1)


def in_chunks(loss_fn: LossFn, size: int) -> LossFn:
    """Compute losses some examples at a time, forward and backward, so that only so many stand in memory.

    With the last layer inside, not even the logits of all tokens do:
    `in_chunks(lambda h, t, y: kd(h @ head, t @ teacher_head, y), 256)(hidden, teacher_hidden, labels)`. What `loss_fn`
    closes over gets its gradient. The forward pass of a piece is run again for its gradient.

    Args:
      loss_fn: `(*arrays) -> losses`, one number for each entry of the first axis (or of the first axes), each of which
        depends on its own entry alone.
      size: entries of the first axis at a time.

    Returns:
      A function of the same arrays with the same result.

    Raises:
      ValueError: `size` is below 1, or (when first traced) the first axes differ.
    """
    if size < 1:
        raise ValueError(f"`in_chunks`: `size` is 1 or more; got {size}.")
    piece = jax.checkpoint(loss_fn)

    def chunked(*arrays):
        shapes = [array.shape for array in jax.tree.leaves(arrays)]
        if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
            raise ValueError(f"`in_chunks`: arrays have one first axis; got {shapes}.")
        whole = shapes[0][0] // size * size
        parts = []
        if whole:
            stacked = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), arrays)
            losses = jax.lax.map(lambda some: piece(*some), stacked)
            parts.append(losses.reshape(whole, *losses.shape[2:]))
        rest = jax.tree.map(lambda x: x[whole:], arrays)
        parts += [piece(*rest)] if jax.tree.leaves(rest)[0].shape[0] or not whole else []
        return jnp.concatenate(parts)

    return chunked


def _where(mask: jax.Array, x: Any) -> jax.Array:
    spread = mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim))
    return jnp.where(spread, x, jnp.zeros((), x.dtype))
