"""GPTQ: round one input after the other, and let those that come later make up for the error."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_compress.calibration import gram, inverse_factor
from jaxopt_compress.grids import Grid
from jaxopt_compress.quantization import numerics
from jaxopt_compress.quantization.numerics import Affine
from jaxopt_compress.quantization.post_training.method import Found, Layer, Method


def gptq(damping: float = 0.01, act_order: bool = False, block: int = 128) -> Method:
    """Round inputs in order; the error of each is made up for by the inputs that are still free.

    With `H = mean(x x^T) + damping * mean(diag)` and the upper Cholesky factor `U` of its inverse, for every input `j`:
    `w[:, j]` is rounded, and `(w[:, j] - q[:, j]) / U[j, j] * U[j, k]` is taken from every later `w[:, k]`. Scales,
    also of groups, are those of the weights as they were, so that any order can be taken.

    Where the factorization breaks down, the damping is made ten times larger, again and again; above 1, and where the
    statistics are not finite, the layer is rounded to nearest, and its "damping" in the report is infinite.

    Args:
      damping: the fraction of the mean diagonal that is added to it.
      act_order: whether to round those inputs first that are largest.
      block: how many inputs are rounded before the rest is updated; it changes the speed alone.

    Reference: Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers",
    2023. Inputs that are always 0 are rounded to nearest; the authors' code sets their weights to 0.
    """
    if not 0 < damping <= 1:
        raise ValueError(f"`gptq`: `damping` is above 0 and at most 1; got {damping}.")
    if block < 1:
        raise ValueError(f"`gptq`: `block` is at least 1; got {block}.")

    def solve(layer: Layer, grid: Grid) -> Found:
        second, w, affine = layer.seen.second, layer.w, layer.affine
        order = jnp.argsort(-jnp.diagonal(second)) if act_order else jnp.arange(w.shape[1])
        factor, used = inverse_factor(second[order][:, order], damping)
        affine = jax.tree.map(lambda x: x[:, order].T, affine)
        codes = _round_in_order(w[:, order].T, affine, factor, grid, block).T
        codes = jnp.zeros_like(codes).at[:, order].set(codes)
        return Found(jnp.where(jnp.isfinite(used), codes, layer.round(grid)), notes={"damping": used})

    return Method(gram(), solve)


def _round_in_order(w: jax.Array, affine: Affine, factor: jax.Array, grid: Grid, block: int) -> jax.Array:
    """Round the rows of `w`, `(ins, outs)`, one after the other."""
    size, outs = w.shape
    block = min(block, max(size, 1))
    extra = -size % block
    padded = lambda x, value: jnp.pad(x, ((0, extra), (0, 0)), constant_values=value)  # noqa: E731
    w, scale = padded(w, 0), padded(affine.scale, 1)
    zero = None if affine.zero_point is None else padded(affine.zero_point, 0)
    factor = jnp.pad(factor, ((0, extra), (0, extra))) + jnp.diag((jnp.arange(size + extra) >= size).astype(w.dtype))
    cut = lambda x, start: lax.dynamic_slice_in_dim(x, start, block, 0)  # noqa: E731

    def one_block(i, carry):
        w, codes = carry
        start = i * block
        rows = cut(factor, start)
        inner = lax.dynamic_slice_in_dim(rows, start, block, 1)
        parts = Affine(cut(scale, start), None if zero is None else cut(zero, start))
        found, errors = _round_block(cut(w, start), parts, inner, grid)
        w = w - jnp.matmul(rows.T, errors, precision=lax.Precision.HIGHEST)  # also those that are done: never read
        return w, lax.dynamic_update_slice_in_dim(codes, found, start, 0)

    kind = jax.eval_shape(grid.round, w).dtype
    return lax.fori_loop(0, (size + extra) // block, one_block, (w, jnp.zeros((size + extra, outs), kind)))[1][:size]


def _round_block(w: jax.Array, affine: Affine, factor: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """Round a block; return the codes, and the errors by the diagonal of the factor."""
    kind = jax.eval_shape(grid.round, w).dtype

    def one(j, carry):
        w, codes, errors = carry
        own = Affine(affine.scale[j], None if affine.zero_point is None else affine.zero_point[j])
        code = numerics.codes(w[j], own, grid)
        error = (w[j] - numerics.values(code, own, grid) * own.scale) / factor[j, j]
        w = w - factor[j][:, None] * error[None]  # the factor is 0 before j
        return w, codes.at[j].set(code), errors.at[j].set(error)

    start = (w, jnp.zeros(w.shape, kind), jnp.zeros_like(w))
    return lax.fori_loop(0, len(w), one, start)[1:]
