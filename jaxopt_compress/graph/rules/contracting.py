"""Matrix products and convolutions: what is summed over, and what is left."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxopt_compress.graph import axes
from jaxopt_compress.graph.axes import CONSTANT, KNOWN, Axis
from jaxopt_compress.graph.coupling import Contraction, Coupling
from jaxopt_compress.graph.narrowing import Narrowing
from jaxopt_compress.graph.program import Op
from jaxopt_compress.graph.rules.rule import Rule, as_it_is, renewed, zeros_and_uniform_stay, zeros_stay

LEAKS = "sums over an axis whose removed entries are not zero"

# --- dot_general ---


def _dot(coupling: Coupling, op: Op) -> None:
    lhs, rhs = op.ins
    contract, batch = op.params["dimension_numbers"]
    for left, right in zip(*contract):
        both = coupling.equate(op, [lhs.axes[left], rhs.axes[right]])
        _sum_over(coupling, op, both.ids, (lhs.axes[left], rhs.axes[right]), folds=not batch[0])
    roles = [["out"] * value.ndim for value in op.ins]
    found = []
    for left, right in zip(*batch):
        both = coupling.equate(op, [lhs.axes[left], rhs.axes[right]])
        found.append(_batch(op, both, (lhs.axes[left], rhs.axes[right])))
        roles[0][left] = roles[1][right] = "batch"
    for left, right in zip(*contract):
        roles[0][left] = roles[1][right] = "in"
    for value, role in zip(op.ins, roles):
        found += [zeros_and_uniform_stay(axis) for axis, r in zip(value.axes, role) if r == "out"]
    for side in (0, 1):
        _use(coupling, op, side, roles[side])
    op.outs[0].axes = [_with_origins(op, axis) for axis in found]


def _batch(op: Op, both: Axis, parts: Sequence[Axis]) -> Axis:
    """One entry of a batch is zero if either operand's is."""
    zero = np.zeros(both.ids.shape, bool)
    for part in parts:
        flags, values = axes.fill(part, both.ids)
        zero |= (flags & KNOWN > 0) & (values == 0)
    origins = frozenset() if op.outs[0].varies else axes.origins(parts)
    return Axis(both.ids, np.where(zero, axes.SURE, 0).astype(np.uint8), np.zeros(both.ids.shape), origins, both.why)


def _with_origins(op: Op, axis: Axis) -> Axis:
    if op.outs[0].varies:
        return Axis(axis.ids, axis.flags, axis.values, frozenset(), axis.why)
    return axis


def _use(coupling: Coupling, op: Op, side: int, roles: Sequence[str]) -> None:
    """Write down that a parameter is consumed here, and which of its axes make channels and which read them."""
    value, other = op.ins[side], op.ins[1 - side]
    if value.varies or not any(axis.origins for axis in value.axes):
        return
    coupling.uses[op, side] = Contraction(op, tuple(axis.origins for axis in value.axes), tuple(roles))
    reads = [axis for axis, role in zip(value.axes, roles) if role == "in"]
    if other.varies:
        coupling.produce([axis for axis, role in zip(value.axes, roles) if role != "in"])
        coupling.consumed |= axes.origins(reads)
    else:
        coupling.produce(reads)  # two parameters: which of them makes the axis is a matter of view


def _sum_over(coupling: Coupling, op: Op, ids: np.ndarray, parts: Sequence[Axis], folds: bool) -> None:
    """Check that what is left out of the sum is zero; a constant may go into the bias."""
    if not (coupling.settled and ids.shape[1]):
        return
    fills = [axes.fill(part, ids) for part in parts]
    zero = [(f & KNOWN > 0) & (v == 0) for f, v in fills]
    open_ = ~(zero[0] | zero[1]) & (ids > 0)
    varies = [value.varies for value in op.ins]
    if varies[0] != varies[1] and folds and open_.any():
        side = varies.index(True)
        constant = open_ & (fills[side][0] & CONSTANT > 0) & np.isfinite(fills[side][1])
        if constant.any():
            coupling.folds[op] = np.unique(ids[constant])
        open_ &= ~constant
    coupling.leak(op, ids[open_], LEAKS)


# --- ragged_dot_general ---


def _ragged_dot(coupling: Coupling, op: Op) -> None:
    """Rows of the left operand in turn, each run of them with a matrix of its own: mixtures of experts."""
    lhs, rhs, sizes = op.ins
    numbers = op.params["ragged_dot_dimension_numbers"]
    contract, batch = numbers.dot_dimension_numbers
    if batch[0] or len(numbers.rhs_group_dimensions) != 1 or numbers.lhs_ragged_dimensions[0] in contract[0]:
        opaque(coupling, op)
        return
    roles = [["out"] * lhs.ndim, ["out"] * rhs.ndim]
    for side, dims in enumerate((numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions)):
        roles[side][dims[0]] = "batch"
        coupling.pin(op, op.ins[side].axes[dims[0]], "takes groups of rows by data")
    coupling.pin(op, sizes.axes[0], "takes groups of rows by data")
    for left, right in zip(*contract):
        both = coupling.equate(op, [lhs.axes[left], rhs.axes[right]])
        _sum_over(coupling, op, both.ids, (lhs.axes[left], rhs.axes[right]), folds=False)
        roles[0][left] = roles[1][right] = "in"
    for side in (0, 1):
        _use(coupling, op, side, roles[side])
    rows = [
        zeros_and_uniform_stay(a) if r == "out" else axes.fixed(a.size) for a, r in zip(lhs.axes, roles[0]) if r != "in"
    ]
    columns = [zeros_and_uniform_stay(axis) for axis, role in zip(rhs.axes, roles[1]) if role == "out"]
    op.outs[0].axes = [_with_origins(op, axis) for axis in rows + columns]


# --- conv_general_dilated ---


def _conv(coupling: Coupling, op: Op) -> None:
    lhs, rhs = op.ins
    numbers, groups = op.params["dimension_numbers"], op.params["feature_group_count"]
    if op.params["batch_group_count"] != 1:
        opaque(coupling, op)
        return
    (n, c, *space), (o, i, *window) = numbers.lhs_spec, numbers.rhs_spec
    for dim in space:
        coupling.pin(op, lhs.axes[dim], "slides along it")
    for dim in window:
        coupling.pin(op, rhs.axes[dim], "slides along it")
    reason = coupling.reason(op, "has groups that do not fit what is coupled to them")
    split = lambda axis: axes.split(coupling.atoms, axis, [groups, axis.size // groups], reason)  # noqa: E731
    made = rhs.axes[o]
    if groups == 1:
        inside = lhs.axes[c]
    else:
        rows, inside = split(lhs.axes[c])
        out_rows, out_inside = split(made)
        equal = coupling.equate(op, [out_rows, rows])
        made = axes.merge([_batch(op, equal, [out_rows, rows]), out_inside])
    both = coupling.equate(op, [inside, rhs.axes[i]])
    _sum_over(coupling, op, both.ids, (inside, rhs.axes[i]), folds=groups == 1 and not any(map(any, _padding(op))))
    roles = ["window"] * rhs.ndim
    roles[o], roles[i] = "out", "in"
    _use(coupling, op, 1, roles)
    found: list[Any] = [axes.fixed(size) for size in op.outs[0].shape]
    found[numbers.out_spec[0]] = zeros_stay(lhs.axes[n])
    found[numbers.out_spec[1]] = zeros_stay(made)
    op.outs[0].axes = [_with_origins(op, axis) for axis in found]


def _padding(op: Op) -> list[tuple[int, ...]]:
    """Return what makes the edges see less than the middle, by axis."""
    dilated = [(factor - 1,) for factor in op.params["lhs_dilation"]]
    return [*map(tuple, op.params["padding"]), *dilated]


def _narrow_conv(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    numbers = op.params["dimension_numbers"]
    depth = args[1].shape[numbers.rhs_spec[1]]
    groups = op.params["feature_group_count"]
    if groups > 1:
        groups = args[0].shape[numbers.lhs_spec[1]] // depth
    return renewed(op, args, feature_group_count=groups)


def opaque(coupling: Coupling, op: Op) -> None:
    """Keep every axis of a primitive of which nothing is known."""
    text = "is not understood"
    for value in op.ins:
        for axis in value.axes:
            coupling.pin(op, axis, text)
        coupling.produce(value.axes)
    for out in op.outs:
        out.axes = [axes.fixed(size, coupling.reason(op, text)) for size in out.shape]


RULES = {
    "dot_general": Rule(_dot, as_it_is),
    "ragged_dot_general": Rule(_ragged_dot, as_it_is),
    "conv_general_dilated": Rule(_conv, _narrow_conv),
}
OPAQUE = Rule(opaque, as_it_is)
