"""Masks at one bit a weight, packed along one axis so that they shard like the weight."""

import jax
import jax.numpy as jnp


def packed_axis(shape: tuple[int, ...]) -> int:
    """Choose the axis along which eight neighbours share a byte.

    The second-last axis comes first: the last one then stays contiguous, so that unpacking vectorizes on CPU and
    is free of relayout on TPU (8 rows are one tile). An axis that 8 divides keeps the sharding of the weight; where
    there is none, the axis that wastes the fewest bits is taken.
    """
    axes = sorted(range(len(shape)), key=lambda axis: (axis != len(shape) - 2, -axis))
    return min(axes, key=lambda axis: -(-shape[axis] // 8) * 8 / max(shape[axis], 1))


def pack(mask: jax.Array) -> jax.Array:
    """Pack a bool mask into uint8: bit `b` of byte `j` is entry `8 j + b` of the packed axis, which shrinks 8 times."""
    axis = packed_axis(mask.shape)
    size = mask.shape[axis]
    padding = [(0, -size % 8 if i == axis else 0) for i in range(mask.ndim)]
    if size % 8:
        mask = jnp.pad(mask, padding)
    groups = mask.reshape(*mask.shape[:axis], -1, 8, *mask.shape[axis + 1 :])
    planes = [jax.lax.index_in_dim(groups, b, axis + 1, keepdims=False).astype(jnp.uint8) << b for b in range(8)]
    return sum(planes[1:], start=planes[0])


def unpack(packed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return the bool mask of the given shape."""
    axis = packed_axis(shape)
    bit = jnp.arange(8, dtype=jnp.uint8).reshape(8, *[1] * (len(shape) - axis - 1))
    groups = (jnp.expand_dims(packed, axis + 1) >> bit) & 1
    whole = groups.reshape(*packed.shape[:axis], -1, *packed.shape[axis + 1 :])
    return jax.lax.slice_in_dim(whole, 0, shape[axis], axis=axis) != 0
