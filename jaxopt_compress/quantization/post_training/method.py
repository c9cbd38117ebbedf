"""What a post-training method is: a function from one weight, as a matrix, to its codes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.calibration import Gram, Statistic
from jaxopt_compress.grids import Grid
from jaxopt_compress.quantization import numerics
from jaxopt_compress.quantization.numerics import Affine


class Layer(NamedTuple):
    """One weight, as the matrix of a product `x @ w.T`, and what is known of `x`.

    Attributes:
      w: `(outs, ins)`, float32 (float64 for float64).
      affine: how it is to be rounded, spread to the shape of `w`.
      seen: the state of the statistic that the method asks for, without its groups; None if it asks for none.
    """

    w: jax.Array
    affine: Affine
    seen: Any

    def round(self, grid: Grid) -> jax.Array:
        """Return the codes of the nearest numbers."""
        return numerics.codes(self.w, self.affine, grid)

    def decode(self, codes: jax.Array, grid: Grid) -> jax.Array:
        """Return what codes stand for."""
        return numerics.values(codes, self.affine, grid) * self.affine.scale


class Found(NamedTuple):
    """What a method makes of a layer.

    Attributes:
      codes: `(outs, ins)`.
      bias: `(outs,)`, to be added to the output; None for nothing.
      notes: numbers for a report, by name.
    """

    codes: jax.Array
    bias: jax.Array | None = None
    notes: dict[str, jax.Array] = {}  # noqa: RUF012


class Method(NamedTuple):
    """A way to choose codes.

    Attributes:
      statistic: what it wants to know of the inputs; None for nothing.
      solve: `(layer, grid) -> Found`; it is batched over layers of one shape and compiled once for them.
    """

    statistic: Statistic | None
    solve: Callable[[Layer, Grid], Found]


def error(layer: Layer, codes: jax.Array, grid: Grid) -> jax.Array:
    """Return the mean square error of the outputs, as a fraction of their mean square.

    Raises:
      ValueError: a statistic that is no `Gram`.
    """
    if not isinstance(layer.seen, Gram):
        raise ValueError(f"`error`: the error of outputs needs `calibration.gram()`; got {type(layer.seen).__name__}.")
    return quadratic(layer.w - layer.decode(codes, grid), layer.seen.second) / quadratic(layer.w, layer.seen.second)


def quadratic(w: jax.Array, second: jax.Array) -> jax.Array:
    """Return the mean square of `x @ w.T`, summed over outputs."""
    return jnp.sum(jnp.matmul(w, second, precision=jax.lax.Precision.HIGHEST) * w)
