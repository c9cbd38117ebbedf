"""Bases: other coordinates for what is summed in a product, in which it can be rounded with less error.

`x @ w = (x a) @ (a^-1 w)` for any matrix `a` that has an inverse. Both sides change where the product is, so that
nothing in front of it has to be linear, and no norm or bias has to be edited; what is left of it at run time is a
multiplication of the activation, which is fused with its rounding, or with what comes before.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLOCK = 32  # a transform of 1,024 numbers is two products with matrices of 32


class Basis(NamedTuple):
    """Coordinates for the inputs of a product.

    Attributes:
      init: `shape -> state`, given the sizes of the axes that are summed over (of a convolution, the features).
      activation: `(x, state, axes) -> x`, where `axes` are those axes.
      weight: `(w, state, axes) -> w`, the inverse.
    """

    init: Callable[[tuple[int, ...]], Any]
    activation: Callable[[jax.Array, Any, Sequence[int]], jax.Array]
    weight: Callable[[jax.Array, Any, Sequence[int]], jax.Array]


def diagonal() -> Basis:
    """Divide each input of the activation by a number, and multiply its weights with it; the state is these numbers.

    They start as 1; `post_training.smoothquant` and `post_training.awq` find better ones.
    """
    return Basis(jnp.ones, _divided, _multiplied)


def is_diagonal(basis: Basis | None) -> bool:
    """Tell whether the state of a basis is a number for each input."""
    return basis is not None and basis.weight is _multiplied


def _divided(x: jax.Array, state: jax.Array, axes: Sequence[int]) -> jax.Array:
    return x * _along(1 / state, x, axes)


def _multiplied(w: jax.Array, state: jax.Array, axes: Sequence[int]) -> jax.Array:
    return w * _along(state, w, axes)


def hadamard(key: jax.Array) -> Basis:
    """Flip signs at random, and rotate with Hadamard matrices: what stood out in one input is spread over all.

    The rotation runs over the last of the axes, in blocks of the largest power of two that divides it, in float32, as
    products with matrices of at most 32: 64 multiply-adds for each of 1,024 inputs.

    Args:
      key: for the signs; all products of one size have the same.

    Reference: Ashkboos et al., "QuaRot: outlier-free 4-bit inference in rotated LLMs", 2024.
    """

    def init(shape):
        return jax.random.rademacher(key, shape, jnp.float32)

    def turn(x, state, axes):
        if not axes:
            return x
        wide = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
        return _rotated(wide * _along(lax.stop_gradient(state), wide, axes), axes[-1]).astype(x.dtype)

    return Basis(init, turn, turn)


def _along(numbers: jax.Array, x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Lay out numbers for some axes of an array so that they broadcast with it."""
    order = sorted(range(len(axes)), key=lambda place: axes[place])
    sizes = [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
    return lax.transpose(numbers, order).reshape(sizes).astype(x.dtype)


def _rotated(x: jax.Array, axis: int) -> jax.Array:
    """Multiply an axis with a symmetric orthogonal matrix, a block of Hadamard matrices."""
    size = x.shape[axis]
    moved = jnp.moveaxis(x, axis, -1)
    parts = _factors(size & -size)
    split = moved.reshape(*moved.shape[:-1], size // max(prod(parts), 1), *parts)
    for place, n in enumerate(reversed(parts)):
        matrix, axis_ = jnp.asarray(_hadamard(n), x.dtype), -1 - place
        split = jnp.moveaxis(jnp.matmul(jnp.moveaxis(split, axis_, -1), matrix, precision="highest"), -1, axis_)
    return jnp.moveaxis(split.reshape(moved.shape), -1, axis)


def _factors(power: int) -> list[int]:
    found = []
    while power > 1:
        found.append(min(power, BLOCK))
        power //= found[-1]
    return found


def _hadamard(n: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(n)
