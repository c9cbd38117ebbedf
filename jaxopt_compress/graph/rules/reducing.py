"""Primitives that go over whole axes: sums and extremes, searches, sorting, pooling."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.graph import axes
from jaxopt_compress.graph.axes import KNOWN, UNIFORM, Axis
from jaxopt_compress.graph.coupling import Coupling
from jaxopt_compress.graph.narrowing import Narrowing
from jaxopt_compress.graph.program import Op, Value, bind, constant
from jaxopt_compress.graph.rules.rule import Rule, as_it_is, zeros_stay

# --- sums and extremes ---

REDUCED: dict[str, Callable[[Any, int], Any]] = {  # what `n` equal numbers give
    "reduce_sum": lambda x, n: x * n,
    "reduce_prod": lambda x, n: x**n,
    "reduce_max": lambda x, n: x,
    "reduce_min": lambda x, n: x,
    "reduce_and": lambda x, n: x,
    "reduce_or": lambda x, n: x,
}
JOINED: dict[str, Callable[[Any, Any], Any]] = {  # how what was removed enters again
    "reduce_sum": jnp.add,
    "reduce_prod": jnp.multiply,
    "reduce_max": jnp.maximum,
    "reduce_min": jnp.minimum,
    "reduce_and": jnp.bitwise_and,
    "reduce_or": jnp.bitwise_or,
}


def _reduce(coupling: Coupling, op: Op) -> None:
    operand, gone = op.ins[0], op.params["axes"]
    count = prod(operand.shape[dim] for dim in gone)
    op.outs[0].axes = [_beside(op, axis, count) for dim, axis in enumerate(operand.axes) if dim not in gone]
    if not coupling.settled:
        return
    told = [dim for dim in gone if not silent(op, operand.axes[dim]).all()]
    for dim in gone:
        axis = operand.axes[dim]
        known = silent(op, axis) if len(told) > 1 else (axis.flags & (KNOWN | UNIFORM)) > 0
        known = known & ~np.isnan(axis.values)
        coupling.leak(op, axis.ids[~known], "goes over an axis whose removed entries are not known")
        if dim in told or (axis.shrinks and _becomes_mean(coupling, op, count)):
            coupling.counted[op] = np.unique(np.append(coupling.counted.get(op, []), axis.ids)).astype(np.int64)


def silent(op: Op, axis: Axis) -> np.ndarray:
    """Tell for each atom whether leaving its slice out changes nothing."""
    neutral = {"reduce_sum": 0.0, "reduce_prod": 1.0, "reduce_max": -np.inf, "reduce_min": np.inf}
    neutral |= {"reduce_and": 1.0, "reduce_or": 0.0}
    return (axis.ids == 0) | ((axis.flags & KNOWN > 0) & (axis.values == neutral[op.name]))


def _beside(op: Op, axis: Axis, count: int) -> Axis:
    """An axis that stays: a slice of one number reduces to one number."""
    with np.errstate(all="ignore"):
        values = np.asarray(REDUCED[op.name](axis.values, count), np.float64)
    return Axis(axis.ids, axis.flags, values, axis.origins, axis.why)


def _becomes_mean(coupling: Coupling, op: Op, count: int) -> bool:
    """Tell whether a sum is divided by the number of what was summed."""
    if op.name != "reduce_sum":
        return False
    value: Value = op.outs[0]
    for _ in range(4):
        users = coupling.users.get(value, [])
        if any(_divides(user, value, count) for user in users):
            return True
        if len(users) != 1 or users[0].name not in ("broadcast_in_dim", "reshape", "convert_element_type"):
            return False
        value = users[0].outs[0]
    return False


def _divides(user: Op, value: Value, count: int) -> bool:
    if user.name not in ("div", "mul"):
        return False
    other = user.ins[1] if user.ins[0] is value else user.ins[0]
    number = constant(other)
    wanted = count if user.name == "div" else 1 / count
    return number is not None and number.size > 0 and bool(np.allclose(np.asarray(number, np.float64), wanted))


def _narrow_reduce(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    (found,) = bind(op, args)
    operand, gone = op.ins[0], op.params["axes"]
    if narrowing.recount and op in narrowing.coupling.counted:
        return [_recounted(narrowing, op, args[0], found)]
    for dim in gone:
        for number, count in narrowing.removed_numbers(operand, dim).items():
            others = prod(args[0].shape[d] for d in gone if d != dim)
            extra = REDUCED[op.name](np.asarray(number, args[0].dtype), count * others)
            found = JOINED[op.name](found, jnp.asarray(extra, found.dtype))
        count = narrowing.removed_lanes(operand, dim)
        if count:
            lane = bind(op, [narrowing.lane(operand, dim)])[0]
            found = JOINED[op.name](found, jnp.asarray(REDUCED[op.name](lane, count), found.dtype))
    return [found]


def _recounted(narrowing: Narrowing, op: Op, array: Any, found: Any) -> Any:
    """Leave out what is gone, and make a sum such that its division by the old count gives the mean of what is left."""
    before = prod(op.ins[0].shape[dim] for dim in op.params["axes"])
    after = prod(array.shape[dim] for dim in op.params["axes"])
    if not _becomes_mean(narrowing.coupling, op, before):
        return found
    return found * jnp.asarray(before / max(after, 1), found.dtype)


# --- searches and sorting ---


def _search(coupling: Coupling, op: Op) -> None:
    """Where all entries are one number, the first of them is found."""
    operand, gone = op.ins[0], op.params["axes"]
    for dim in gone:
        coupling.pin(op, operand.axes[dim], "gives an index along it")
    found = [axis for dim, axis in enumerate(operand.axes) if dim not in gone]
    op.outs[0].axes = [_first_found(axis) for axis in found]


def _first_found(axis: Axis) -> Axis:
    flags = np.where(axis.flags & KNOWN > 0, axes.SURE, axis.flags & np.uint8(UNIFORM))
    return Axis(axis.ids, flags.astype(np.uint8), np.zeros(axis.ids.shape), axis.origins, axis.why)


def _sort(coupling: Coupling, op: Op) -> None:
    along = op.params["dimension"]
    for out, value in zip(op.outs, op.ins):
        out.axes = [_sorted(axis) for axis in value.axes]
    for dim in range(op.ins[0].ndim):
        coupling.equate(op, [value.axes[dim] for value in op.ins])
    for out, value in zip(op.outs, op.ins):
        out.axes[along] = coupling.pin(op, value.axes[along], "sorts along it")


def _sorted(axis: Axis) -> Axis:
    return Axis(axis.ids, axis.flags & ~np.uint8(UNIFORM), axis.values, axis.origins, axis.why)


def _top_k(coupling: Coupling, op: Op) -> None:
    along = op.params.get("axis", -1) % op.ins[0].ndim
    pinned = coupling.pin(op, op.ins[0].axes[along], "selects along it")
    for slot, out in enumerate(op.outs):
        out.axes = [_sorted(axis) if slot == 0 else axes.axis(axis.ids, why=axis.why) for axis in op.ins[0].axes]
        out.axes[along] = axes.fixed(out.shape[along], pinned.why)


# --- pooling ---


def _pool(coupling: Coupling, op: Op) -> None:
    operand, p = op.ins[0], op.params
    padded = any(low >= size or high >= size for (low, high), size in zip(p["padding"], p["window_dimensions"]))
    op.outs[0].axes = []
    for dim, axis in enumerate(operand.axes):
        moves = (p["window_dimensions"][dim], p["window_strides"][dim], *p["padding"][dim])
        if moves == (1, 1, 0, 0) and p["base_dilation"][dim] == 1:
            keep = op.name != "reduce_window_sum" and not padded
            op.outs[0].axes.append(_sorted(axis) if keep else zeros_stay(axis) if not padded else _unknown(axis))
        else:
            coupling.pin(op, axis, "slides along it")
            op.outs[0].axes.append(axes.fixed(op.outs[0].shape[dim], axis.why))


def _unknown(axis: Axis) -> Axis:
    return axes.axis(axis.ids, origins=axis.origins, why=axis.why)


# --- Fourier transforms ---


def _fft(coupling: Coupling, op: Op) -> None:
    first = op.ins[0].ndim - len(op.params["fft_lengths"])
    out = op.outs[0]
    out.axes = [zeros_stay(axis) for axis in op.ins[0].axes[:first]]
    for dim in range(first, out.ndim):
        pinned = coupling.pin(op, op.ins[0].axes[dim], "transforms along it")
        out.axes.append(axes.fixed(out.shape[dim], pinned.why))


RULES = {
    **dict.fromkeys(REDUCED, Rule(_reduce, _narrow_reduce)),
    **dict.fromkeys(("argmax", "argmin"), Rule(_search, as_it_is)),
    "sort": Rule(_sort, as_it_is),
    "top_k": Rule(_top_k, as_it_is),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), Rule(_pool, as_it_is)),
    "fft": Rule(_fft, as_it_is),
}
