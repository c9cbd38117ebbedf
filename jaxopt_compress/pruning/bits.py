"""Masks at one bit a weight, packed along one axis so that they shard like the weight."""

from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


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
    mask = _gathered_unless_aligned(mask, axis)
    padding = [(0, -mask.shape[i] % 8 if i == axis else 0) for i in range(mask.ndim)]
    mask = jnp.pad(mask, padding) if any(map(sum, padding)) else mask
    sizes, spec = list(mask.shape), _spec(mask)
    sizes[axis : axis + 1], spec[axis : axis + 1] = (-1, 8), (spec[axis], None)
    groups = _reshape(mask, sizes, spec)
    planes = [jax.lax.index_in_dim(groups, b, axis + 1, keepdims=False).astype(jnp.uint8) << b for b in range(8)]
    return sum(planes[1:], start=planes[0])


@jax.jit
def keep_packed(w: jax.Array, packed: jax.Array) -> jax.Array:
    """Return `w` where the mask is one and exact zero elsewhere; what is masked does not leak, NaN included."""
    return jnp.where(unpack(packed, w), w, jnp.zeros((), w.dtype))


@jax.custom_jvp
def learn_kept(w: jax.Array, packed: jax.Array) -> jax.Array:
    """Return `w`, whose masked entries are zero already, with the gradient of `keep_packed`: nothing is copied."""
    del packed
    return w


@learn_kept.defjvp
def _learn_kept_jvp(primals, tangents):
    w, packed = primals
    return w, keep_packed(tangents[0], packed)


def unpack(packed: jax.Array, like: jax.Array) -> jax.Array:
    """Return the bool mask, in the shape and sharding of the weight `like`."""
    axis = packed_axis(like.shape)
    spec = _spec(packed)
    shape = (*packed.shape[: axis + 1], 8, *packed.shape[axis + 1 :])
    kept = [i for i in range(len(shape)) if i != axis + 1]
    split = _out(packed, [*spec[: axis + 1], None, *spec[axis + 1 :]])
    groups = jax.lax.broadcast_in_dim(packed, shape, kept, out_sharding=split)
    bit = (groups >> jax.lax.broadcasted_iota(jnp.uint8, shape, axis + 1)) & 1
    whole = _reshape(bit, [-1 if i == axis else n for i, n in enumerate(packed.shape)], spec)
    whole = jax.lax.slice_in_dim(whole, 0, like.shape[axis], axis=axis) != 0
    return whole if spec == _spec(like) else jax.sharding.reshard(whole, jax.typeof(like).sharding)


def _spec(x: jax.Array) -> list:
    """Return how each axis is split over the explicit axes of a mesh; all `None` where the compiler decides."""
    spec = list(jax.typeof(x).sharding.spec)
    return spec + [None] * (x.ndim - len(spec))


def _out(x: jax.Array, spec: list) -> NamedSharding | None:
    """Return an explicit sharding over the mesh of `x`; `None`, the compiler's choice, where `x` has none."""
    return NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec)) if any(_spec(x)) else None


def _reshape(x: jax.Array, sizes: list[int], spec: list) -> jax.Array:
    rest = prod(x.shape) // max(prod(n for n in sizes if n > 0), 1)
    return jax.lax.reshape(x, [rest if n < 0 else n for n in sizes], out_sharding=_out(x, spec))


def _gathered_unless_aligned(mask: jax.Array, axis: int) -> jax.Array:
    """Keep the split of the packed axis only where every shard holds whole bytes."""
    spec = _spec(mask)
    if spec[axis] is None:
        return mask
    names = spec[axis] if isinstance(spec[axis], tuple) else (spec[axis],)
    shards = prod(jax.typeof(mask).sharding.mesh.shape[name] for name in names)
    if mask.shape[axis] % (8 * shards) == 0:
        return mask
    return jax.sharding.reshard(mask, _out(mask, [None if i == axis else part for i, part in enumerate(spec)]))
