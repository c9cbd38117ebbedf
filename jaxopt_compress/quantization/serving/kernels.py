"""Products of rows with stored weights, in the way that is fast on each platform.

Weights are `(batch, out, in)`: the numbers of one sum lie side by side. On CPU a product of one row of bytes is padded
to four, since XLA converts the whole weight to a wider type for one; and weights that have to be unpacked are unpacked
in blocks that stay in the cache, each multiplied before the next. GPUs and TPUs unpack while they load, and need
neither.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_compress.encoded import Quantized

ROWS = 4  # the fewest rows of bytes that XLA:CPU multiplies without a wider copy of the weight; 2 are not faster
NARROW = 8  # below so many rows, products of bfloat16 are done in float32 on CPU: the same numbers, and faster
BLOCK = 2**20  # numbers of a weight that are unpacked at a time; fewer do not keep all cores busy


def multiply(
    x: jax.Array,
    weight: Quantized,
    unpack: Callable[[Quantized], jax.Array],
    sums: Any,
    steps: Callable[[Quantized], jax.Array] | None = None,
) -> jax.Array:
    """Multiply `x @ unpack(weight)^T`.

    Args:
      x: `(batch, rows, in)`.
      weight: of shape `(batch, out, in)`.
      unpack: turns (a part of) the weight into the operand of a product.
      sums: the dtype of sums.
      steps: for weights with several scales in a sum, turns them into steps of the scale, in the dtype of `x`.

    Returns:
      `(batch, rows, out)`, of that dtype.
    """
    whole = lambda x, w: _product(x, unpack(w), sums) if steps is None else _by_groups(x, w, steps, sums)  # noqa: E731
    return lax.platform_dependent(x, weight, cpu=lambda x, w: _on_cpu(x, w, unpack, sums), default=whole)


def _by_groups(x: jax.Array, weight: Quantized, steps: Callable[[Quantized], jax.Array], sums: Any) -> jax.Array:
    """Multiply group by group, and scale the sums: a scale that varies along the weight does not fuse with its load."""
    batch, outs, ins = weight.shape
    groups = weight.scale.shape[2]
    split = lambda x: x.reshape(*x.shape[:2], groups, ins // groups)  # noqa: E731
    w = split(steps(weight))
    found = lax.dot_general(split(x), w, (((3,), (3,)), ((0, 2), (0, 2))), preferred_element_type=sums)
    return jnp.sum(found * jnp.moveaxis(weight.scale, 2, 1)[:, :, None].astype(sums), axis=1)


def _product(x: jax.Array, w: jax.Array, sums: Any) -> jax.Array:
    if len(w) == 1:  # which XLA:CPU would take for a batch
        return lax.dot_general(x[0], w[0], (((1,), (1,)), ((), ())), preferred_element_type=sums)[None]
    return lax.dot_general(x, w, (((2,), (2,)), ((0,), (0,))), preferred_element_type=sums)


def _on_cpu(x: jax.Array, weight: Quantized, unpack: Callable[[Quantized], jax.Array], sums: Any) -> jax.Array:
    rows, unpack_ = x.shape[1], unpack
    if x.dtype == jnp.bfloat16 and rows < NARROW:
        x, unpack_ = x.astype(jnp.float32), lambda part: unpack(part).astype(jnp.float32)
    if x.dtype == jnp.int8 and rows < ROWS:
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, ROWS - rows, 0), (0, 0, 0)))
    stored = weight.packed is None and jax.eval_shape(unpack, weight).dtype == weight.data.dtype
    found = _product(x, unpack_(weight), sums) if stored else _in_blocks(x, weight, unpack_, sums)
    return found[:, :rows]


def _in_blocks(x: jax.Array, weight: Quantized, unpack: Callable[[Quantized], jax.Array], sums: Any) -> jax.Array:
    batch, outs, ins = weight.shape
    size = _block(weight)
    count = outs // size

    def turn(i, found):
        part = _product(x, unpack(_rows(weight, i * size, size)), sums)
        return lax.dynamic_update_slice(found, part, (0, 0, i * size))

    if count < 2:
        return _product(x, unpack(weight), sums)
    found = lax.fori_loop(0, count, turn, jnp.zeros((batch, x.shape[1], count * size), sums))
    if count * size == outs:
        return found
    rest = _product(x, unpack(_rows(weight, count * size, outs - count * size)), sums)
    return jnp.concatenate([found, rest], axis=2)


def _block(weight: Quantized) -> int:
    """Choose how many outputs are unpacked at a time, a multiple of what shares a byte or a scale."""
    batch, outs, ins = weight.shape
    if weight.packed is not None and weight.packed[0] != -2:
        return outs
    wanted = max(BLOCK // max(batch * ins, 1), 1)
    return min(max(wanted // 64, 1) * 64, outs)


def _rows(weight: Quantized, start: Any, count: int) -> Quantized:
    """Return the part of a weight that makes outputs `start` to `start + count`."""
    per_byte = 1 if weight.packed is None else -(-weight.packed[1] // weight.data.shape[1])
    packed = None if weight.packed is None else (-2, count)
    cut = lambda x, start, count: x if x.shape[1] == 1 else lax.dynamic_slice_in_dim(x, start, count, 1)  # noqa: E731
    data = cut(weight.data, start // per_byte, -(-count // per_byte))
    zero = None if weight.zero_point is None else cut(weight.zero_point, start, count)
    return Quantized(data, cut(weight.scale, start, count), zero, weight.grid, weight.dtype, packed)
