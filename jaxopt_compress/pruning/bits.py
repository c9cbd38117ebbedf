"""Masks at one bit a weight, packed along one axis so that they shard like the weight."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import layout, subbyte


def packed_axis(shape: tuple[int, ...]) -> int:
    """Choose the axis along which eight neighbours share a byte."""
    return subbyte.packed_axis(shape, 8)


@jax.jit
def pack(mask: jax.Array) -> jax.Array:
    """Pack a bool mask into uint8: bit `b` of byte `j` is entry `8 j + b` of the packed axis, which shrinks 8 times."""
    return subbyte.pack(mask, 1, packed_axis(mask.shape))


def unpack(packed: jax.Array, like: Any) -> jax.Array:
    """Return the bool mask, in the shape and sharding of `like`; one that is not packed as it is."""
    if packed.dtype == jnp.bool_:
        return packed
    axis = packed_axis(like.shape)
    mask = subbyte.unpack(packed, 1, axis, like.shape[axis]) != 0
    return layout.respec(mask, layout.spec(like), like)
