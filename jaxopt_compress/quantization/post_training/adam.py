"""Adam, for the rounding and the scales that methods learn; without weight decay, with the usual decay rates.

Optax's mixes dtypes, which fails where a user has set JAX to strict promotion; methods are to work there too.

Reference: Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Adam(NamedTuple):
    """What is learned, any pytree, and the moving averages of its slopes and of their squares."""

    x: Any
    mean: Any
    square: Any


def start(x: Any) -> Adam:
    """Start with no slopes seen."""
    return Adam(x, jax.tree.map(jnp.zeros_like, x), jax.tree.map(jnp.zeros_like, x))


def step(adam: Adam, slope: Any, turn: jax.Array, rate: Any) -> Adam:
    """Go a step downhill.

    Args:
      adam: where it stands.
      slope: a pytree like `adam.x`.
      turn: how many steps there were before.
      rate: a pytree like `adam.x`, of numbers.
    """
    seen = turn.astype(jnp.float32) + 1
    mean = jax.tree.map(lambda old, g: 0.9 * old + 0.1 * g, adam.mean, slope)
    square = jax.tree.map(lambda old, g: 0.999 * old + 0.001 * g * g, adam.square, slope)

    def moved(x, m, s, rate):
        size = jnp.sqrt(s / (1 - 0.999**seen)) + 1e-8
        return x - rate * m / (1 - 0.9**seen) / size

    return Adam(jax.tree.map(moved, adam.x, mean, square, rate), mean, square)
