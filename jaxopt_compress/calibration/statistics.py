"""Statistics of the rows that a weight is multiplied with, as states that are folded over batches.

All are sums (and a maximum), so that rows on several devices are reduced like any sum, and so that a state can be saved
and gone on with. A row has the inputs of one output: of a convolution, one window.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Statistic(NamedTuple):
    """How rows are summed up.

    Attributes:
      init: `(groups, ins) -> state`, of nothing seen. The groups are those of a grouped convolution, or the batch axes
        of a product; most products have one.
      update: `(state, rows) -> state`, with rows of shape `(groups, rows, ins)`.
    """

    init: Callable[[int, int], Any]
    update: Callable[[Any, jax.Array], Any]


class Moments(NamedTuple):
    """What each input is like.

    Attributes:
      rows: how many, `(groups, 1)`.
      total: the sum of each input, `(groups, ins)`.
      absolute: of absolute values.
      squares: of squares.
      largest: the largest absolute value.
    """

    rows: jax.Array
    total: jax.Array
    absolute: jax.Array
    squares: jax.Array
    largest: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The mean of each input."""
        return self.total / self.rows

    @property
    def norm(self) -> jax.Array:
        """The root mean square of each input."""
        return jnp.sqrt(self.squares / self.rows)


class Gram(NamedTuple):
    """How inputs go together.

    Attributes:
      rows: how many, `(groups, 1)`.
      total: the sum of each input, `(groups, ins)`.
      absolute: of absolute values.
      products: the sum of `x x^T`, `(groups, ins, ins)`.
    """

    rows: jax.Array
    total: jax.Array
    absolute: jax.Array
    products: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The mean of each input."""
        return self.total / self.rows

    @property
    def second(self) -> jax.Array:
        """The mean of `x x^T`."""
        return self.products / self.rows[..., None]

    @property
    def norm(self) -> jax.Array:
        """The root mean square of each input."""
        return jnp.sqrt(jnp.diagonal(self.second, axis1=-2, axis2=-1))


def moments() -> Statistic:
    """Sum up each input for itself; 16 bytes an input."""

    def init(groups: int, ins: int) -> Moments:
        nothing = jnp.zeros((groups, ins))
        return Moments(jnp.zeros((groups, 1)), nothing, nothing, nothing, nothing)

    def update(state: Moments, rows: jax.Array) -> Moments:
        rows = rows.astype(jnp.float32)
        size = jnp.abs(rows)
        return Moments(
            state.rows + rows.shape[1],
            state.total + rows.sum(1),
            state.absolute + size.sum(1),
            state.squares + (rows * rows).sum(1),
            jnp.maximum(state.largest, size.max(1, initial=0)),
        )

    return Statistic(init, update)


def gram() -> Statistic:
    """Sum up the products of all pairs of inputs; 4 bytes a pair, so a square matrix for each layer."""

    def init(groups: int, ins: int) -> Gram:
        nothing = jnp.zeros((groups, ins))
        return Gram(jnp.zeros((groups, 1)), nothing, nothing, jnp.zeros((groups, ins, ins)))

    def update(state: Gram, rows: jax.Array) -> Gram:
        rows = rows.astype(jnp.float32)
        found = jnp.einsum("gri,grj->gij", rows, rows, precision=jax.lax.Precision.HIGHEST)
        return Gram(
            state.rows + rows.shape[1],
            state.total + rows.sum(1),
            state.absolute + jnp.abs(rows).sum(1),
            state.products + found,
        )

    return Statistic(init, update)
