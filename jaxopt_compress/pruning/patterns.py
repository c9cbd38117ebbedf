"""Patterns: which weights go together, and which are compared with one another.

A pattern gathers the scores of an array into scores of *units* (blocks, channels, heads; single weights if it has no
opinion), spreads a mask of units over the array again, or chooses within small groups of its own. The state of `prune`
holds the mask of the units: one bit for a whole block or channel.
"""

from collections.abc import Callable
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress import layout
from jaxopt_compress.pruning.counts import zeros_of
from jaxopt_compress.pruning.search.grouped import top_k_along

Shape = tuple[int, ...]
Pool = Callable[[jax.Array, tuple[int, ...]], jax.Array]


class Pattern(NamedTuple):
    """Functions of one array; what is `None` leaves single weights, compared over the whole leaf.

    Attributes:
      check: `(path, shape)`; raises `ValueError` where the pattern does not fit a leaf.
      pool: `(scores) -> scores of the units`, an array of another shape.
      spread: `(mask of the units, like) -> mask` in the shape and sharding of `like`.
      rank: `(scores, sparsity) -> mask`, for a pattern that chooses within groups of its own.
      sparsity: the fraction of zeros, if the pattern fixes it.
    """

    check: Callable[[str, Shape], None]
    pool: Callable[[jax.Array], jax.Array] | None = None
    spread: Callable[[jax.Array, Any], jax.Array] | None = None
    rank: Callable[[jax.Array, Any], jax.Array] | None = None
    sparsity: float | None = None


def norm(scores: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return the Euclidean norm over some axes, in float32, of numbers whose squares may over- or underflow too."""
    scores = jnp.abs(scores.astype(jnp.float32))
    top = jnp.max(scores, axes, keepdims=True, initial=0)
    top = jnp.where((top > 0) & (top < jnp.inf), top, 1)
    return jnp.squeeze(top, axes) * jnp.sqrt(jnp.sum(jnp.square(scores / top), axes))


unstructured = Pattern(check=lambda path, shape: None)
"""Single weights, compared over the whole leaf, or over all leaves under `scope="global"`."""


@cache
def blocks(rows: int, columns: int, pool: Pool = norm) -> Pattern:
    """Remove whole blocks of a weight seen as a matrix, with all axes but the last as its rows.

    Args:
      rows: of a block.
      columns: of a block.
      pool: `(scores, axes) -> scores`, how the scores of a block are gathered: `norm`, or `jnp.sum` for a criterion
        with a sign, such as `movement`.

    Raises:
      ValueError: a size below 1; (from `init`) a leaf that blocks do not tile.
    """
    name = f"blocks({rows}, {columns})"
    _refuse_below_one(name, rows, columns)

    def check(path, shape):
        _need_axes(name, path, shape, 2)
        for what, size, block in (("rows", prod(shape[:-1]), rows), ("columns", shape[-1], columns)):
            if size % block:
                raise ValueError(f"`{name}`: {path!r} has {size} {what} as a matrix, not a multiple of {block}.")

    def gather(scores):
        tiles = layout.split(layout.split(layout.matrix(scores), 1, columns), 0, rows)
        return pool(tiles, (1, 3))

    def spread(mask, like):
        whole = layout.repeat(layout.repeat(mask, 1, columns), 0, rows)
        return whole if like.ndim == 2 else layout.reshape(whole, like.shape, layout.spec(like))

    return Pattern(check, gather, spread)


@cache
def channels(axis: int = -1, size: int = 1, pool: Pool = norm) -> Pattern:
    """Remove whole slices along an axis: neurons of a dense kernel, output channels of a convolution.

    The mask zeroes the slices; what makes a model smaller is removing them.

    Args:
      axis: -1 for outputs of Dense and Conv kernels, -2 for their inputs.
      size: how many neighbours along the axis go together.
      pool: `(scores, axes) -> scores`, how the scores of a slice are gathered: `norm`, or `jnp.sum` for a criterion
        with a sign.

    Raises:
      ValueError: a size below 1; (from `init`) a leaf without that axis or with one that `size` does not divide.
    """
    name = f"channels({axis})" if size == 1 else f"channels({axis}, {size})"
    _refuse_below_one(name, size)

    def check(path, shape):
        _need_axis(name, path, shape, axis)
        _need_multiple(name, path, shape, axis, size)

    return Pattern(check, partial(_gather, axis, lambda n: size, pool), partial(_spread, axis))


@cache
def heads(number: int, axis: int = -1, pool: Pool = norm) -> Pattern:
    """Remove whole heads where one axis holds them all, `number` times the size of a head.

    For a kernel of shape `(inputs, heads, size)` use `channels(-2)`.

    Args:
      number: how many heads the axis holds.
      axis: -1 for the query, key and value kernels, -2 for the output kernel.
      pool: as in `channels`.

    Raises:
      ValueError: a number below 1; (from `init`) a leaf without that axis or with one that `number` does not divide.
    """
    name = f"heads({number}, {axis})"
    _refuse_below_one(name, number)

    def check(path, shape):
        _need_axis(name, path, shape, axis)
        _need_multiple(name, path, shape, axis, number)

    return Pattern(check, partial(_gather, axis, lambda n: n // number, pool), partial(_spread, axis))


@cache
def within(size: int | None = None, axis: int = -2) -> Pattern:
    """Compare weights only within groups, each of which loses the same number of them.

    Args:
      size: how many neighbours along `axis` make a group; `None` for all inputs of an output, window of a convolution
        included, as Wanda compares.
      axis: the axis that a matrix product sums over: -2 for Dense, Conv and the Linear layers of most libraries.

    Raises:
      ValueError: a size below 1; (from `init`) a leaf with fewer than two axes, or an axis that `size` does not divide.
    """
    name = f"within({'' if size is None else size})"
    return _grouped(name, size, axis, None)


@cache
def n_of_m(n: int, m: int, axis: int = -2) -> Pattern:
    """Keep the `n` highest of every `m` neighbours along the axis that a matrix product sums over.

    `n_of_m(2, 4)` is what sparse tensor cores read. `n` counts what is *kept*, as in the field's "2:4". Of equal scores
    those with the lower index stay. The sparsity is `1 - n / m`; to approach it by a schedule use `within(m)`.

    Args:
      n: how many stay, in [0, m].
      m: the length of a group.
      axis: -2 for Dense and Conv kernels; 0 for a kernel of shape `(inputs, heads, size)`.

    Raises:
      ValueError: `n` outside [0, m]; (from `init`) a leaf with fewer than two axes, or an axis that `m` does not
        divide.
    """
    name = f"n_of_m({n}, {m})"
    if not 0 <= n <= m:
        raise ValueError(f"`{name}`: `n` of `m` stay, 0 <= n <= m; got {n} and {m}.")
    _refuse_below_one(name, m)
    return _grouped(name, m, axis, 1 - n / m)


def _grouped(name: str, size: int | None, axis: int, sparsity: float | None) -> Pattern:
    _refuse_below_one(name, 1 if size is None else size)

    def check(path, shape):
        _need_axes(name, path, shape, 2)
        _need_axis(name, path, shape, axis)
        _need_multiple(name, path, shape, axis, size or 1)

    def rank(scores, fraction):
        if size is None:
            rows = layout.matrix(scores)
            mask = top_k_along(rows, 0, rows.shape[0] - zeros_of(fraction, rows.shape[0]))
            return mask if scores.ndim == 2 else layout.reshape(mask, scores.shape, layout.spec(scores))
        at = axis % scores.ndim
        mask = top_k_along(layout.split(scores, at, size), at + 1, size - zeros_of(fraction, size))
        return layout.merge(mask, at)

    return Pattern(check, rank=rank, sparsity=sparsity)


def _gather(axis: int, size: Callable[[int], int], pool: Pool, scores: jax.Array) -> jax.Array:
    at = axis % scores.ndim
    parts = layout.split(scores, at, size(scores.shape[at]))
    return pool(parts, tuple(i for i in range(parts.ndim) if i != at))


def _spread(axis: int, mask: jax.Array, like: Any) -> jax.Array:
    at = axis % like.ndim
    whole = layout.repeat(mask, 0, like.shape[at] // max(mask.shape[0], 1))
    whole = layout.respec(whole, [layout.spec(like)[at]], like)
    return jax.lax.broadcast_in_dim(whole, like.shape, (at,), out_sharding=layout.sharding(like, layout.spec(like)))


def _refuse_below_one(name: str, *sizes: int) -> None:
    if min(sizes) < 1:
        raise ValueError(f"`{name}`: sizes are at least 1; got {min(sizes)}.")


def _need_axes(name: str, path: str, shape: Shape, number: int) -> None:
    if len(shape) < number:
        raise ValueError(f"`{name}`: a weight has at least {number} axes; {path!r} is of shape {shape}.")


def _need_axis(name: str, path: str, shape: Shape, axis: int) -> None:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"`{name}`: a weight has the axis {axis}; {path!r} is of shape {shape}.")


def _need_multiple(name: str, path: str, shape: Shape, axis: int, size: int) -> None:
    if shape[axis] % size:
        raise ValueError(
            f"`{name}`: axis {axis % len(shape)} of {path!r} has {shape[axis]} entries, not a multiple of {size}."
        )
