"""What is to be known of a primitive: how it couples axes, and how it runs on narrower arrays."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import lax
from jax import numpy as jnp

from jaxopt_compress.graph import axes
from jaxopt_compress.graph.axes import Axis
from jaxopt_compress.graph.coupling import Coupling
from jaxopt_compress.graph.narrowing import Narrowing
from jaxopt_compress.graph.program import Op, bind


class Rule(NamedTuple):
    """One primitive, or several that behave alike.

    Attributes:
      couple: `(coupling, op) -> None`: equates and pins the axes of what goes in, and sets those of what comes out.
      narrow: `(narrowing, op, arrays) -> arrays`: runs the operation on arrays from which indices were removed. It is
        called only where the operation is affected.
    """

    couple: Callable[[Coupling, Op], None]
    narrow: Callable[[Narrowing, Op, Sequence[Any]], list[Any]]


def as_it_is(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    """Run an operation whose parameters hold no sizes."""
    del narrowing
    return bind(op, args)


def renewed(op: Op, args: Sequence[Any], **params: Any) -> list[Any]:
    """Run an operation with some of its parameters replaced."""
    found = op.eqn.primitive.bind(*args, **{**op.params, **params})
    return list(found) if op.eqn.primitive.multiple_results else [found]


def pick(array: Any, dim: int, index: np.ndarray) -> Any:
    """Take constant positions along one axis, with a slice where they are evenly spaced."""
    if len(index) == array.shape[dim] and np.array_equal(index, np.arange(len(index))):
        return array
    steps = np.diff(index)
    if len(index) and (steps == (steps[0] if len(steps) else 1)).all() and (not len(steps) or steps[0] > 0):
        return lax.slice_in_dim(array, int(index[0]), int(index[-1]) + 1, int(steps[0]) if len(steps) else 1, dim)
    return jnp.take(array, jnp.asarray(index, jnp.int32), axis=dim, unique_indices=True, mode="clip")


def zeros_and_uniform_stay(axis: Axis) -> Axis:
    """Keep the fills that are known to be zero, and that slices are equal, for an axis on which an operation is linear.

    Slices of one known number are equal as well.
    """
    zero = zeros_stay(axis)
    uniform = uniform_flags(axis.flags, axis.values, axis.ids) & np.uint8(axes.UNIFORM)
    return Axis(axis.ids, zero.flags | uniform, axis.values, axis.origins, axis.why)


def uniform_flags(flags: np.ndarray, values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Add `UNIFORM` to columns in which one known number stands throughout."""
    if not (flags.size and ids.any()):
        return flags
    known = (flags & axes.KNOWN > 0) | (ids == 0)
    first = values[np.argmax(ids > 0, axis=0), np.arange(ids.shape[1])]
    same = (known & (axes.alike(values, first) | (ids == 0))).all(axis=0)
    return flags | np.where(same, axes.UNIFORM, 0).astype(np.uint8)


def zeros_stay(axis: Axis) -> Axis:
    """Keep the fills that are known to be zero, and nothing else."""
    zero = (axis.flags & axes.KNOWN > 0) & (axis.values == 0)
    return Axis(axis.ids, np.where(zero, axes.SURE, 0).astype(np.uint8), axis.values, axis.origins, axis.why)
