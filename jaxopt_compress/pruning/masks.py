"""Masks as a state holds them, by path: of a pattern's units, packed eight to a byte or as bools."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import tree
from jaxopt_compress.pruning import bits
from jaxopt_compress.pruning.patterns import Pattern


def ones(params: Any, pattern: Pattern, packed: bool) -> tree.Selection:
    """Return masks of ones, with the sharding of the weights.

    Raises:
      ValueError: the pattern does not fit a leaf.
    """
    masks = tree.Selection()
    for path, w in tree.weights(params).items():
        pattern.check(path, w.shape)
        units = pattern.pool(w) if pattern.pool else w
        masks[path] = (units == units) | (units != units)
    return stored(masks, packed)


def stored(masks: dict[str, jax.Array], packed: bool) -> tree.Selection:
    """Return masks of units in the form in which a state holds them."""
    return tree.Selection((path, bits.pack(mask) if packed else mask) for path, mask in masks.items())


def whole(w: jax.Array, mask: jax.Array, pattern: Pattern) -> jax.Array:
    """Return the bool mask of a weight from the mask of its units."""
    units = jax.eval_shape(pattern.pool, w) if pattern.pool else w
    mask = bits.unpack(mask, units)
    return pattern.spread(mask, w) if pattern.spread else mask


@partial(jax.jit, static_argnames="pattern")
def keep(w: jax.Array, mask: jax.Array, pattern: Pattern) -> jax.Array:
    """Return `w` where the mask is one and exact zero elsewhere; what is masked does not leak, NaN included."""
    return jnp.where(whole(w, mask, pattern), w, jnp.zeros((), w.dtype))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def learn_kept(w: jax.Array, mask: jax.Array, pattern: Pattern) -> jax.Array:
    """Return `w`, whose masked entries are zero already, with the gradient of `keep`: nothing is copied."""
    del mask, pattern
    return w


@learn_kept.defjvp
def _learn_kept_jvp(pattern, primals, tangents):
    w, mask = primals
    return w, keep(tangents[0], mask, pattern)
