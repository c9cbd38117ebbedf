"""SparseGPT: remove weights one input after the other, and let those that stay make up for it."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_compress import graph
from jaxopt_compress.calibration import (
    calibrate,
    chosen,
    gram,
    inverse_factor,
    per_layer,
    put_back,
    stages,
    weighted,
    weights_seen,
)
from jaxopt_compress.graph import Site
from jaxopt_compress.products import product


def sparsegpt(
    fn: Callable,
    params: Any,
    batches: Iterable[Any],
    sparsity: float | None = None,
    *,
    kept_of: tuple[int, int] | None = None,
    where: Callable[[Site], bool] | str = "**",
    damping: float = 0.01,
    block: int = 128,
    sequential: bool = False,
    progress: bool = False,
) -> Any:
    """Prune the weights of a trained function at once, without labels, and move those that stay.

    With `H = mean(x x^T) + damping * mean(diag)` and the upper Cholesky factor `U` of its inverse, block after block of
    inputs: the weights with the smallest `w^2 / U[j, j]^2` are removed, and every later input makes up for the error,
    as in `post_training.gptq`. Works for any product of an activation and a weight: dense layers, convolutions,
    einsums, layers of a scan.

    Args:
      fn: `fn(params, *inputs)`, pure.
      params: the trained parameters.
      batches: tuples of inputs, or single inputs; with `sequential` they are gone through once for every stage.
      sparsity: the fraction of weights to remove, of every block.
      kept_of: instead of it `(n, m)`: keep `n` of every `m` inputs that follow each other, for each output.
      where: which products, by a glob over their names (the paths of their parameters) or a predicate of a `Site`.
      damping: the fraction of the mean diagonal that is added to it.
      block: how many inputs are decided on at a time.
      sequential: whether products are pruned in the order of the program, each on what the pruned ones before it let
        through.
      progress: whether to show a bar.

    Returns:
      The parameters, with exact zeros.

    Raises:
      ValueError: neither or both of `sparsity` and `kept_of`; no batches; a weight that is computed from parameters,
        or that several products share.

    Reference: Frantar and Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot", 2023.
    """
    _check(sparsity, kept_of, damping, block)
    batches = list(batches)
    if not batches:
        raise ValueError("`sparsegpt`: there are no batches.")
    inputs = jax.tree.map(jnp.asarray, batches[0] if isinstance(batches[0], tuple) else (batches[0],))
    sites = chosen(weighted(graph.sites(fn, params, *inputs)), where)
    solve = partial(_solved, sparsity=sparsity, kept_of=kept_of, damping=damping, block=block)
    for stage in stages(sites) if sequential else [sites]:
        names = {site.name for site in stage}
        states = calibrate(fn, params, batches, gram(), where=lambda s, names=names: s.name in names, progress=progress)
        seen = weights_seen(fn, stage, params, inputs)
        found = {site.name: _pruned(site, seen[site.name], states[site.name], solve) for site in stage}
        params = put_back(fn, stage, params, inputs, found)
    return params


def _check(sparsity: float | None, kept_of: tuple[int, int] | None, damping: float, block: int) -> None:
    if (sparsity is None) == (kept_of is None):
        raise ValueError(f"`sparsegpt`: either `sparsity` or `kept_of`; got {sparsity} and {kept_of}.")
    if sparsity is not None and not 0 <= sparsity <= 1:
        raise ValueError(f"`sparsegpt`: `sparsity` is from 0 to 1; got {sparsity}.")
    if kept_of is not None and not 0 <= kept_of[0] <= kept_of[1]:
        raise ValueError(f"`sparsegpt`: `kept_of` is (n, m) with n of at most m; got {kept_of}.")
    if not 0 < damping <= 1 or block < 1:
        raise ValueError(
            f"`sparsegpt`: `damping` is above 0 and at most 1, `block` at least 1; got {damping}, {block}."
        )


def _pruned(site: Site, w: jax.Array, state: Any, solve: Callable) -> jax.Array:
    how, side = product(site), site.weight or 0

    def one(w, state):
        matrix = how.matrix(side, w).astype(jnp.float64 if w.dtype == jnp.float64 else jnp.float32)
        return how.operand(side, solve(matrix, state.second), site.shapes[side]).astype(w.dtype)

    return per_layer(site, one)(w, state)


@partial(jax.jit, static_argnames=("sparsity", "kept_of", "damping", "block"))
def _solved(w: jax.Array, second: jax.Array, **how: Any) -> jax.Array:
    """Prune the groups of a weight, `(groups, outs, ins)`; compiled once for all layers of one shape."""
    return jax.vmap(partial(_solve, **how))(w, second)


def _solve(
    w: jax.Array,
    second: jax.Array,
    *,
    sparsity: float | None,
    kept_of: tuple[int, int] | None,
    damping: float,
    block: int,
) -> jax.Array:
    """Prune one weight, `(outs, ins)`."""
    outs, size = w.shape
    block = min(block if kept_of is None else kept_of[1], max(size, 1))
    extra = -size % block
    factor = inverse_factor(second.astype(w.dtype), damping)[0]
    factor = jnp.pad(factor, ((0, extra), (0, extra))) + jnp.diag((jnp.arange(size + extra) >= size).astype(w.dtype))
    rows = jnp.pad(w.T, ((0, extra), (0, 0)))
    real = jnp.arange(size + extra) < size

    def turn(i, rows):
        start = i * block
        part, own = (lax.dynamic_slice_in_dim(x, start, block, 0) for x in (rows, factor))
        inner = lax.dynamic_slice_in_dim(own, start, block, 1)
        here = lax.dynamic_slice_in_dim(real, start, block, 0)
        gone = _least(part / jnp.diagonal(inner)[:, None], here, sparsity, kept_of)
        part, errors = _remove(part, gone, inner)
        ahead = jnp.where((jnp.arange(own.shape[1]) >= start + block)[None], own, 0)
        rows = rows - jnp.matmul(ahead.T, errors, precision=lax.Precision.HIGHEST)
        return lax.dynamic_update_slice_in_dim(rows, part, start, 0)

    return lax.fori_loop(0, (size + extra) // block, turn, rows)[:size].T


def _least(scores: jax.Array, real: jax.Array, sparsity: float | None, kept_of: tuple[int, int] | None) -> jax.Array:
    """Mark what goes of a block, `(inputs, outs)`: the least scores of all, or of each output."""
    scores = jnp.where(real[:, None], scores**2, jnp.inf)
    if kept_of is not None:
        rank = jnp.argsort(jnp.argsort(scores, axis=0), axis=0)
        return rank < kept_of[1] - kept_of[0]
    rank = jnp.argsort(jnp.argsort(scores.ravel())).reshape(scores.shape)
    count = jnp.sum(real.astype(jnp.float32)) * scores.shape[1]
    return rank < jnp.round(count * (sparsity or 0.0)).astype(rank.dtype)


def _remove(w: jax.Array, gone: jax.Array, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Set to zero what goes, row after row; return the rows, and their errors by the diagonal of the factor."""

    def one(j, carry):
        w, errors = carry
        new = jnp.where(gone[j], 0, w[j])
        error = (w[j] - new) / factor[j, j]
        w = w - factor[j][:, None] * error[None]  # the factor is 0 before j
        return w.at[j].set(new), errors.at[j].set(error)

    return lax.fori_loop(0, len(w), one, (w, jnp.zeros_like(w)))
