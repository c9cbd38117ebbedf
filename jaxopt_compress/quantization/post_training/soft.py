"""Soft rounding: between the two neighbours of a weight, by a variable that gradient descent drives to one of them.

    w_q = s * clip(floor(w / s) + h(v), lowest, highest),   h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)
    undecided = 1 - |2 h(v) - 1|^b

Reference: Nagel et al., "Up or down? Adaptive rounding for post-training quantization", 2020.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress import layout
from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.quantization.numerics import Affine

STRETCH = (-0.1, 1.1)  # the sigmoid is stretched beyond 0 and 1, and clipped, so that it gets there
NEARLY = 2.3  # where the stretched sigmoid is at 0.99, and still has a slope
UNDECIDED = (0.1, 0.9)  # between them neither neighbour is chosen


class Schedule(NamedTuple):
    """How weights are driven to a neighbour.

    Attributes:
      weight: of the mean of `undecided`, once it counts.
      sharpness: the exponent `b` falls from the first to the second, by a cosine.
      warm: the fraction of steps before it counts.
    """

    weight: float = 10.0
    sharpness: tuple[float, float] = (20.0, 2.0)
    warm: float = 0.2

    def undecided(self, h: jax.Array, done: Any) -> jax.Array:
        """Return the weighted sum of what is undecided after a fraction of the steps."""
        done = jnp.clip((done - self.warm) / (1 - self.warm), 0, 1)
        sharp = self.sharpness[1] + (self.sharpness[0] - self.sharpness[1]) * 0.5 * (1 + jnp.cos(done * jnp.pi))
        return jnp.where(done > 0, self.weight, 0) * jnp.sum(1 - jnp.abs(2 * h - 1) ** sharp)


DEFAULT = Schedule()


def check(call: str, grid: Grid | None) -> Integers:
    """Return the grid.

    Raises:
      ValueError: it is not of integers.
    """
    if not isinstance(grid, Integers):
        raise ValueError(f"`{call}`: only integers are rounded up or down; got {grid}.")
    return grid


def start(w: jax.Array, affine: Affine) -> tuple[jax.Array, jax.Array]:
    """Return the lower neighbours, and `v` such that `low + h(v)` is the weight itself."""
    steps = w * layout.spread(1 / affine.scale, w.shape)
    low = jnp.floor(steps)
    part = jnp.clip(steps - low, 0.01, 0.99)
    inner = (part - STRETCH[0]) / (STRETCH[1] - STRETCH[0])
    return low, jnp.log(inner) - jnp.log1p(-inner)


def start_at(w: jax.Array, codes: jax.Array, affine: Affine) -> tuple[jax.Array, jax.Array]:
    """Return lower neighbours and `v` such that codes are almost decided, against their neighbours towards `w`."""
    steps = w * layout.spread(1 / affine.scale, w.shape)
    chosen = codes.astype(w.dtype) - _zero(affine, w)
    return jnp.where(chosen > steps, chosen - 1, chosen), jnp.where(chosen > steps, NEARLY, -NEARLY)


def up(v: jax.Array) -> jax.Array:
    """Return how far up each weight is rounded, `h(v)`."""
    return jnp.clip(jax.nn.sigmoid(v) * (STRETCH[1] - STRETCH[0]) + STRETCH[0], 0, 1)


def decode(low: jax.Array, h: jax.Array, affine: Affine, grid: Integers) -> jax.Array:
    """Return the weights that are rounded so far."""
    zero = _zero(affine, low)
    return jnp.clip(low + h, grid.lowest - zero, grid.highest - zero) * layout.spread(affine.scale, low.shape)


def codes(low: jax.Array, h: jax.Array, affine: Affine, grid: Integers) -> jax.Array:
    """Return the codes of the neighbours that are nearer to what was found."""
    found = low + jnp.where(h >= 0.5, 1.0, 0.0) + _zero(affine, low)
    return jnp.clip(found, grid.lowest, grid.highest).astype(jnp.int8)


def part_undecided(h: jax.Array) -> jax.Array:
    """Return the part of the weights that chose no neighbour."""
    return jnp.mean(((h > UNDECIDED[0]) & (h < UNDECIDED[1])).astype(jnp.float32))


def _zero(affine: Affine, low: jax.Array) -> jax.Array | int:
    zero = affine.zero_point
    return 0 if zero is None else layout.spread(zero, low.shape).astype(low.dtype)
