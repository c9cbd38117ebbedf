"""Masks at one bit a weight, packed along one axis so that they shard like the weight."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.pruning import layout


def packed_axis(shape: tuple[int, ...]) -> int:
    """Choose the axis along which eight neighbours share a byte.

    The second-last axis comes first: the last one then stays contiguous, so that unpacking vectorizes on CPU and
    is free of relayout on TPU (8 rows are one tile). An axis that 8 divides keeps the sharding of the weight; where
    there is none, the axis that wastes the fewest bits is taken.
    """
    axes = sorted(range(len(shape)), key=lambda axis: (axis != len(shape) - 2, -axis))
    return min(axes, key=lambda axis: -(-shape[axis] // 8) * 8 / max(shape[axis], 1))


@jax.jit
def pack(mask: jax.Array) -> jax.Array:
    """Pack a bool mask into uint8: bit `b` of byte `j` is entry `8 j + b` of the packed axis, which shrinks 8 times."""
    axis = packed_axis(mask.shape)
    mask = layout.aligned(mask, axis, 8)  # before it is padded
    padding = [(0, -mask.shape[i] % 8 if i == axis else 0) for i in range(mask.ndim)]
    mask = jnp.pad(mask, padding) if any(map(sum, padding)) else mask
    groups = layout.split(mask, axis, 8)
    planes = [jax.lax.index_in_dim(groups, b, axis + 1, keepdims=False).astype(jnp.uint8) << b for b in range(8)]
    return sum(planes[1:], start=planes[0])


def unpack(packed: jax.Array, like: Any) -> jax.Array:
    """Return the bool mask, in the shape and sharding of `like`; one that is not packed as it is."""
    if packed.dtype == jnp.bool_:
        return packed
    axis = packed_axis(like.shape)
    spec = layout.spec(packed)
    shape = (*packed.shape[: axis + 1], 8, *packed.shape[axis + 1 :])
    kept = [i for i in range(len(shape)) if i != axis + 1]
    split = layout.sharding(packed, [*spec[: axis + 1], None, *spec[axis + 1 :]])
    groups = jax.lax.broadcast_in_dim(packed, shape, kept, out_sharding=split)
    bit = (groups >> jax.lax.broadcasted_iota(jnp.uint8, shape, axis + 1)) & 1
    whole = layout.reshape(bit, [-1 if i == axis else n for i, n in enumerate(packed.shape)], spec)
    whole = jax.lax.slice_in_dim(whole, 0, like.shape[axis], axis=axis) != 0
    return layout.respec(whole, layout.spec(like), like)
