"""Codes of 1, 2 or 4 bits, several in a byte along one axis, so that they shard like the array they stand for."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxopt_compress import layout


def packed_axis(shape: tuple[int, ...], per_byte: int) -> int:
    """Choose the axis, from 0, along which neighbours share a byte.

    The second-last axis comes first: the last one then stays contiguous, so that unpacking vectorizes on CPU and
    is free of relayout on TPU (8 rows are one tile). An axis that `per_byte` divides keeps the sharding of the array;
    where there is none, the axis that wastes the fewest bits is taken.
    """
    axes = sorted(range(len(shape)), key=lambda axis: (axis != len(shape) - 2, -axis))
    return min(axes, key=lambda axis: -(-shape[axis] // per_byte) * per_byte / max(shape[axis], 1))


@partial(jax.jit, static_argnames=("bits", "axis"))
def pack(codes: jax.Array, bits: int, axis: int) -> jax.Array:
    """Pack the lowest `bits` bits of every code: field `b` of byte `j` is entry `j * (8 // bits) + b` of the axis.

    Args:
      codes: bool or integers.
      bits: 1, 2 or 4.
      axis: which becomes shorter; the last byte is filled up with zeros.

    Returns:
      uint8.
    """
    per_byte, axis = 8 // bits, axis % codes.ndim
    codes = layout.aligned(codes, axis, per_byte)  # before it is padded
    padding = [(0, -codes.shape[i] % per_byte if i == axis else 0) for i in range(codes.ndim)]
    codes = jnp.pad(codes, padding) if any(map(sum, padding)) else codes
    groups = layout.split(codes, axis, per_byte)
    fields = [jax.lax.index_in_dim(groups, b, axis + 1, keepdims=False).astype(jnp.uint8) for b in range(per_byte)]
    planes = [_lowest(field, bits, codes.dtype) << (bits * b) for b, field in enumerate(fields)]
    return sum(planes[1:], start=planes[0])


@partial(jax.jit, static_argnames=("bits", "axis", "length"))
def unpack(packed: jax.Array, bits: int, axis: int, length: int) -> jax.Array:
    """Undo `pack`; returns uint8, with `length` entries along the axis."""
    axis, per_byte, spec = axis % packed.ndim, 8 // bits, layout.spec(packed)
    shape = (*packed.shape[: axis + 1], per_byte, *packed.shape[axis + 1 :])
    kept = [i for i in range(len(shape)) if i != axis + 1]
    split = layout.sharding(packed, [*spec[: axis + 1], None, *spec[axis + 1 :]])
    groups = jax.lax.broadcast_in_dim(packed, shape, kept, out_sharding=split)
    place = jax.lax.broadcasted_iota(jnp.uint8, shape, axis + 1) * jnp.uint8(bits)
    fields = (groups >> place) & jnp.uint8(2**bits - 1)
    whole = layout.reshape(fields, [-1 if i == axis else n for i, n in enumerate(packed.shape)], spec)
    return jax.lax.slice_in_dim(whole, 0, length, axis=axis)


def signed(fields: jax.Array, bits: int) -> jax.Array:
    """Read fields as two's complement, as int8."""
    sign = jnp.uint8(2 ** (bits - 1))
    return jax.lax.bitcast_convert_type((fields ^ sign) - sign, jnp.int8)


def _lowest(field: jax.Array, bits: int, dtype) -> jax.Array:
    return field if dtype == jnp.bool_ else field & jnp.uint8(2**bits - 1)
