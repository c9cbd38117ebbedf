"""Primitives that compute each entry of the output from the entries at its place in the inputs."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import numpy as np

from jaxopt_compress.graph import axes
from jaxopt_compress.graph.axes import CONSTANT, KNOWN, SURE, UNIFORM, Axis
from jaxopt_compress.graph.coupling import Coupling
from jaxopt_compress.graph.program import Op, Value, bind, constant, is_opaque
from jaxopt_compress.graph.rules.rule import Rule, as_it_is, renewed, uniform_flags

NAMES = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil clamp
clz complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq eq_to erf erf_inv erfc exp exp2
expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p log2 logistic lt
lt_to max min mul mulhi name ne neg nextafter not one_minus_square optimization_barrier or polygamma polynomial
population_count pow pvary real reciprocal reduce_precision regularized_incomplete_beta rem reshard round rsqrt select_n
sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub
tan tanh xor zeta
"""
PLACING = ("pvary", "reshard", "sharding_constraint")
PASSING = ("device_put", "optimization_barrier")  # any number of operands, each apart from the others


def couple(coupling: Coupling, op: Op) -> None:
    """Equate all operands, axis by axis."""
    if op.name in PASSING:
        for value, out in zip(op.ins, op.outs):
            out.axes = list(value.axes)
        return
    out = op.outs[0]
    for value in op.ins:
        if out.varies and not value.varies:
            coupling.produce(value.axes)
    out.axes = [_out_axis(coupling, op, dim) for dim in range(out.ndim)]


def _out_axis(coupling: Coupling, op: Op, dim: int) -> Axis:
    size = op.outs[0].shape[dim]
    parts = [value.axes[dim] for value in op.ins if value.ndim and value.shape[dim] == size]
    first = coupling.equate(op, parts)
    origins = frozenset() if op.outs[0].varies else axes.origins(parts)
    if not (coupling.settled and first.shrinks):
        return axes.axis(first.ids, origins=origins, why=axes.why(parts))
    flags, values = _combine(coupling, op, [_fill(value, dim, first.ids) for value in op.ins])
    return Axis(first.ids, flags, values, origins, first.why)


def _fill(value: Value, dim: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return flags and values of one operand, `[n, k]`. One that is spread along the axis is the same all along it."""
    if value.ndim and value.shape[dim] == len(ids):
        flags, values = axes.fill(value.axes[dim], ids)
        return uniform_flags(flags, values, ids), values
    number = constant(value) if value.aval.size == 1 else None
    if number is not None and not is_opaque(value.aval):
        return np.full(ids.shape, SURE, np.uint8), np.full(ids.shape, float(np.real(number.reshape(()))))
    one_number = value.aval.size == 1 and not value.varies
    return np.full(ids.shape, UNIFORM | CONSTANT if one_number else UNIFORM, np.uint8), np.zeros(ids.shape)


def _combine(coupling: Coupling, op: Op, fills: Sequence) -> tuple[np.ndarray, np.ndarray]:
    flags = reduce(np.bitwise_and, [f for f, _ in fills])
    known = flags & KNOWN > 0
    values = _evaluate(coupling, op, [v for _, v in fills], known)
    absorbed, value = _absorbing(op.name, fills)
    absorbed &= ~known
    flags, values = np.where(absorbed, SURE, flags), np.where(absorbed, value, values)
    return flags.astype(np.uint8), values


def on_numbers(coupling: Coupling, op: Op, numbers: Sequence[float | None]) -> float | None:
    """Return what the primitive makes of one number in each operand; None stands for anything finite."""
    fills = [(np.full((1, 1), 0 if n is None else SURE, np.uint8), np.full((1, 1), n or 0.0)) for n in numbers]
    flags, values = _combine(coupling, op, fills)
    return float(values[0, 0]) if flags[0, 0] & KNOWN else None


def _absorbing(name: str, fills: Sequence) -> tuple[np.ndarray, Any]:
    """Find where one known operand decides, whatever the others are."""
    known = [f & KNOWN > 0 for f, _ in fills]
    zero = [k & (v == 0) for k, (_, v) in zip(known, fills)]
    if name == "mul":
        infinite = [k & ~np.isfinite(v) for k, (_, v) in zip(known, fills)]
        return (zero[0] & ~infinite[1]) | (zero[1] & ~infinite[0]), 0.0
    if name == "and":
        return zero[0] | zero[1], 0.0
    if name in ("div", "rem"):
        return zero[0] & ~known[1], 0.0
    if name == "select_n":
        same = reduce(np.logical_and, [axes.alike(v, fills[1][1]) for _, v in fills[1:]])
        agree = reduce(np.logical_and, known[1:]) & same
        chosen = [known[0] & (fills[0][1] == i) & k for i, k in enumerate(known[1:])]
        value = np.select([agree, *chosen], [fills[1][1], *(v for _, v in fills[1:])])
        return reduce(np.logical_or, chosen, agree), value
    return np.zeros_like(known[0]), 0.0


def _evaluate(coupling: Coupling, op: Op, values: Sequence[np.ndarray], known: np.ndarray) -> np.ndarray:
    """Run the primitive on the known numbers, each combination once."""
    found = np.zeros(known.shape)
    if known.any():
        rows = np.stack([v[known] for v in values], axis=1)
        table, where = (rows[:1], 0) if (rows == rows[:1]).all() else np.unique(rows, axis=0, return_inverse=True)
        results = np.array([_scalar(coupling, op, tuple(row)) for row in table])
        found[known] = results[where]
    return found


def _scalar(coupling: Coupling, op: Op, numbers: tuple[float, ...]) -> float:
    dtypes = tuple(value.aval.dtype for value in op.ins)
    key = (op.name, numbers, dtypes, repr(sorted(op.params.items())))
    if key not in coupling.scalars:
        with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
            arrays = [np.asarray(number).astype(dtype) for number, dtype in zip(numbers, dtypes)]
            coupling.scalars[key] = float(np.real(np.asarray(_alone(op, arrays)).astype(np.complex128)))
    return coupling.scalars[key]


def _alone(op: Op, arrays: Sequence[Any]) -> Any:
    """Run the primitive on scalars, which lie nowhere in particular."""
    if op.name in PLACING:
        return arrays[0]
    return (renewed(op, arrays, sharding=None) if "sharding" in op.params else bind(op, arrays))[0]


RULES = dict.fromkeys(NAMES.split(), Rule(couple, as_it_is))
