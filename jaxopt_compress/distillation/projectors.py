"""Projectors: what makes a student's features as wide as its teacher's. Their parameters are trained, then dropped."""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]


def projector(key: jax.Array, student: Any, teacher: Any) -> Params:
    """Make a projector from channels to channels, a convolution of size 1 for pictures.

    Args:
      key: for the kernel, uniform with variance `1 / (3 channels)`, as PyTorch starts its layers.
      student: features `(examples, ..., channels)`, or their shape and dtype, as `tap(...).shapes` has it.
      teacher: likewise; its positions are the student's, or fewer by a whole factor along each axis.

    Returns:
      `{"kernel": (channels, channels), "bias": (channels,)}`, float32, for `project`.

    Raises:
      ValueError: shapes that do not fit; no channels.

    Example:
      >>> shape = jax.ShapeDtypeStruct
      >>> params = projector(jax.random.key(0), shape((8, 4, 4, 16), "float32"), shape((8, 2, 2, 64), "float32"))
      >>> project(params, jnp.ones((8, 4, 4, 16)), jnp.ones((8, 2, 2, 64))).shape
      (8, 2, 2, 64)

    Reference: Romero et al., "FitNets: hints for thin deep nets", 2015.
    """
    _windows("projector", student.shape, teacher.shape)
    ins, outs = student.shape[-1], teacher.shape[-1]
    if not ins or not outs:
        raise ValueError(f"`projector`: features have channels; got {student.shape} and {teacher.shape}.")
    return {"kernel": uniform(key, (ins, outs), ins), "bias": jnp.zeros(outs)}


def project(params: Params, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Return the student's features with the shape of the teacher's: averaged over positions, then projected.

    Args:
      params: of `projector`.
      student: `(examples, ..., channels)`.
      teacher: whose shape it is to be; nothing else of it counts.

    Raises:
      ValueError: shapes that do not fit.
    """
    pooled = average(student, _windows("project", student.shape, teacher.shape))
    if params["kernel"].shape != (student.shape[-1], teacher.shape[-1]):
        raise ValueError(
            f"`project`: the kernel is {(student.shape[-1], teacher.shape[-1])}; got {params['kernel'].shape}."
        )
    bias = params["bias"].reshape((1,) * (student.ndim - 1) + (-1,))
    return pooled @ params["kernel"].astype(pooled.dtype) + bias.astype(pooled.dtype)


def uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """Draw a kernel, uniform with the variance `1 / (3 fan_in)`."""
    limit = fan_in**-0.5
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def average(x: jax.Array, windows: tuple[int, ...]) -> jax.Array:
    """Average over windows of positions, `(examples, positions ..., channels)`."""
    if prod(windows) == 1:
        return x
    split = [(length // window, window) for length, window in zip(x.shape[1:-1], windows)]
    pieces = x.reshape(x.shape[0], *(length for pair in split for length in pair), x.shape[-1])
    return pieces.mean(tuple(range(2, pieces.ndim - 1, 2)))


def _windows(call: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many positions of the student make one of the teacher, along each axis."""
    pairs = list(zip(student[1:-1], teacher[1:-1]))
    fits = len(student) == len(teacher) > 1 and all(b and a and a % b == 0 for a, b in pairs)
    if not fits or student[0] != teacher[0]:
        raise ValueError(
            f"`{call}`: features are (examples, positions ..., channels), the student's positions a whole multiple of "
            f"the teacher's; got {student} and {teacher}."
        )
    return tuple(a // b for a, b in pairs)
