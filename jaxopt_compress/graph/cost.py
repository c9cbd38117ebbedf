"""What a function costs, read from its jaxpr."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import jax
from jax.extend import core as jex

CONTRACTIONS = ("dot_general", "ragged_dot_general", "conv_general_dilated")


def multiply_adds(fn: Callable, *args) -> int:
    """Count the multiply-adds of the contractions and convolutions of `fn(*args)`.

    Walks the jaxpr through `jit`, `remat`, `custom_jvp/vjp` and `scan` (counted once an iteration); of the branches
    of a `cond` the dearest counts. Element-wise work is left out, as is the custom of the field; padding counts, zeros
    that a transposed convolution inserts do not.

    Args:
      fn: any JAX function.
      *args: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: a contraction stands in a `while` loop, whose number of iterations is not known.

    Example:
      >>> import jax.numpy as jnp
      >>> multiply_adds(lambda x, w: x @ w, jnp.ones((2, 3)), jnp.ones((3, 4)))
      24
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: jex.Jaxpr) -> int:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: jex.JaxprEqn) -> int:
    name = eqn.primitive.name
    if name in CONTRACTIONS:
        return equation(eqn)
    inner = [_count(jaxpr) for jaxpr in jex.jaxprs_in_params(eqn.params)]
    if name == "while" and any(inner):
        raise ValueError("`multiply_adds`: a contraction stands in a `while` loop; its iterations cannot be counted.")
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (eqn.params["length"] if name == "scan" else 1)


def equation(eqn: jex.JaxprEqn) -> int:
    """Count the multiply-adds of one contraction or convolution."""
    return _conv(eqn) if eqn.primitive.name == "conv_general_dilated" else _dot(eqn)


def contracted(params: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the axes of the left operand that a matrix product sums over."""
    ragged = params.get("ragged_dot_dimension_numbers")
    (left, _), _ = ragged.dot_dimension_numbers if ragged else params["dimension_numbers"]
    return tuple(left)


def _dot(eqn: jex.JaxprEqn) -> int:
    lhs = _shape(eqn.invars[0])
    return prod(_shape(eqn.outvars[0])) * prod(lhs[axis] for axis in contracted(eqn.params))


def _conv(eqn: jex.JaxprEqn) -> int:
    numbers = eqn.params["dimension_numbers"]
    kernel = _shape(eqn.invars[1])
    inserted = prod(eqn.params["lhs_dilation"])  # zeros between the inputs of a transposed convolution are no work
    return prod(_shape(eqn.outvars[0])) * prod(kernel) // kernel[numbers.rhs_spec[0]] // inserted


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape
