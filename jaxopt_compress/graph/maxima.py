"""Maxima of which nothing but products is computed: what is rounded for the products can be rounded before them.

A rounding never puts a larger number before a smaller one: the largest of rounded numbers is the largest, rounded. So
a pool, and what is moved or set to 0 behind it, can work on codes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.graph.program import Op, Program, Value, bind, constant
from jaxopt_compress.graph.sites import MOVES, Site

MAXIMA = ("reduce_window_max", "reduce_max")
RISING = {*MAXIMA, *MOVES} - {"convert_element_type"}  # a cast of floats is none of codes


@dataclass(frozen=True)
class Early:
    """Operations that can work on codes.

    Attributes:
      first: a maximum; its input is what can be rounded.
      behind: what stands between it and the products.
      users: the products, each with the operand that comes from here.
    """

    first: Op
    behind: tuple[Op, ...]
    users: tuple[tuple[Site, int], ...]


class Codes(NamedTuple):
    """A rounding that all users of an `Early` share.

    Attributes:
      of: `(x) -> codes`, int8, by one scale.
      zero: the code of 0.
      lowest: the code of all that is too small.
    """

    of: Callable[[jax.Array], jax.Array]
    zero: int | jax.Array
    lowest: int


def early(program: Program, sites: Mapping[Op, Site]) -> list[Early]:
    """Find the maxima of a program (not of its inner bodies) that go to sites alone, the first of several in a row."""
    uses = _uses(program)
    found: list[Early] = []
    for op in program.ops:
        if op.name in MAXIMA and not any(op in each.behind for each in found):
            behind, users = _followed(op, uses, sites)
            if users and jnp.issubdtype(op.ins[0].aval.dtype, jnp.floating):
                found.append(Early(op, tuple(behind), tuple(users)))
    return found


def on_codes(each: Early, codes: Codes) -> dict[Op, Callable[[Sequence[Any]], list[jax.Array]]]:
    """Return how the operations run on codes, by operation: the first rounds its input."""

    def run(op: Op) -> Callable[[Sequence[Any]], list[jax.Array]]:
        return lambda args: [_run(op, codes.of(args[0]) if op is each.first else args[0], codes)]

    return {op: run(op) for op in (each.first, *each.behind)}


def _run(op: Op, x: jax.Array, codes: Codes) -> jax.Array:
    if _is_relu(op):
        return jnp.maximum(x, jnp.asarray(codes.zero, x.dtype))
    found = bind(op, [x])[0]
    if any(map(any, op.params.get("padding", ()))):
        # The maximum of padding alone is the smallest number of the type, which need not be a code.
        found = jnp.maximum(found, jnp.asarray(codes.lowest, x.dtype))
    return found


def _uses(program: Program) -> dict[Value, list[tuple[Op | None, int]]]:
    uses: dict[Value, list[tuple[Op | None, int]]] = {}
    for op in program.ops:
        for place, value in enumerate(op.ins):
            uses.setdefault(value, []).append((op, place))
    for value in program.outs:
        uses.setdefault(value, []).append((None, 0))
    return uses


def _followed(start: Op, uses: Mapping[Value, Any], sites: Mapping[Op, Site]) -> tuple[list[Op], list[Any]]:
    """Return what stands behind an operation, up to the sites; no sites if anything else does."""
    behind, users, left = list[Op](), list[tuple[Site, int]](), [start]
    while left:
        for op, place in uses.get(left.pop().outs[0], ()):
            if op in sites:
                users.append((sites[op], place))
            elif op is not None and (op.name in RISING or _is_relu(op)):
                behind.append(op)
                left.append(op)
            else:
                return [], []
    return behind, users


def _is_relu(op: Op) -> bool:
    """Tell whether an operation is `max(x, 0)`, by itself or as `jax.nn.relu` has it."""
    if op.name == "custom_jvp_call":
        body = op.bodies[0]
        return len(op.ins) == 1 and len(body.ops) == 1 and body.outs == body.ops[0].outs and _is_relu(body.ops[0])
    if op.name != "max":
        return False
    zero = constant(op.ins[1])
    return zero is not None and not np.any(zero)
