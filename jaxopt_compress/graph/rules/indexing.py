"""Primitives that read and write at places given by numbers, and those that make arrays out of a shape."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_compress.graph import axes
from jaxopt_compress.graph.axes import CONSTANT, KNOWN, UNIFORM, Axis
from jaxopt_compress.graph.coupling import Contraction, Coupling
from jaxopt_compress.graph.narrowing import Narrowing
from jaxopt_compress.graph.program import Op, bind, constant
from jaxopt_compress.graph.rules.rule import Rule, as_it_is, pick, renewed, zeros_stay

# --- dynamic_slice, dynamic_update_slice ---


def _dynamic_slice(coupling: Coupling, op: Op) -> None:
    operand, out = op.ins[0], op.outs[0]
    out.axes = []
    for dim, (axis, size) in enumerate(zip(operand.axes, out.shape)):
        start = _start(op, dim)
        if size == axis.size:
            out.axes.append(axis)
        elif start is not None:
            out.axes.append(axes.take(axis, np.arange(start, start + size)))
        else:
            out.axes.append(axes.fixed(size, coupling.pin(op, axis, "reads at a place that is not constant").why))


def _start(op: Op, dim: int) -> int | None:
    where = constant(op.ins[1 + dim])
    return None if where is None else int(np.clip(where, 0, op.ins[0].shape[dim] - op.outs[0].shape[dim]))


def _narrow_dynamic_slice(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    array, *starts = args
    sizes = narrowing.shape(op.outs[0])
    for dim, start in enumerate(_start(op, d) for d in range(op.ins[0].ndim)):
        if start is not None and narrowing.shrinks(op.ins[0], dim):
            where = np.arange(start, start + op.outs[0].shape[dim])[narrowing.kept(op.outs[0], dim)]
            array = pick(array, dim, narrowing.positions(op.ins[0], dim, where))
            starts[dim] = jnp.zeros_like(starts[dim])
    return [lax.dynamic_slice(array, starts, sizes)]


def _dynamic_update_slice(coupling: Coupling, op: Op) -> None:
    operand, update = op.ins[:2]
    text = "writes at a place that is not the whole axis"
    if op.outs[0].varies:
        for value in op.ins[:2]:
            coupling.produce([] if value.varies else value.axes)
    op.outs[0].axes = [
        _both(coupling, op, [old, new])
        if old.size == new.size
        else coupling.pin(op, axes.concatenate([old, new]), text) and axes.fixed(old.size, coupling.reason(op, text))
        for old, new in zip(operand.axes, update.axes)
    ]


_STAYS = {"scatter-add": 0.0, "scatter-sub": 0.0, "scatter-mul": (0.0, 1.0)}  # numbers that `op(c, c)` gives back


def _both(coupling: Coupling, op: Op, parts: Sequence[Axis]) -> Axis:
    """Equate what is there with what is written there; a fill is known where it is the same in both, and the result."""
    first = coupling.equate(op, parts)
    fills = [axes.fill(part, first.ids) for part in parts]
    same = (fills[0][0] & fills[1][0] & KNOWN > 0) & axes.alike(fills[0][1], fills[1][1])
    same &= np.isin(fills[0][1], _STAYS[op.name]) if op.name in _STAYS else True
    flags = np.where(same, fills[0][0], 0).astype(np.uint8)
    origins = frozenset() if op.outs[0].varies else axes.origins(parts)
    return Axis(first.ids, flags, fills[0][1], origins, first.why)


# --- gather ---


def _gather(coupling: Coupling, op: Op) -> None:
    operand, indices, out = op.ins[0], op.ins[1], op.outs[0]
    numbers = op.params["dimension_numbers"]
    roles = []
    window = iter(numbers.offset_dims)
    batch = [dim for dim in range(out.ndim) if dim not in numbers.offset_dims]
    found: list[Any] = [axes.fixed(size) for size in out.shape]
    for dim, axis in enumerate(operand.axes):
        if dim in numbers.operand_batching_dims:
            place = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(dim)]
            found[batch[place]] = _per_batch(coupling, op, axis, indices.axes[place])
            roles.append("batch")
        elif dim in numbers.collapsed_slice_dims:
            _collapsed(coupling, op, dim, found, batch)
            roles.append("index")
        else:
            place = next(window)
            roles.append("out" if out.shape[place] == axis.size else "index")
            found[place] = axis if roles[-1] == "out" else _window(coupling, op, dim, place)
    _indices_stay(coupling, op, indices, numbers.start_indices_batching_dims)
    out.axes = _lookup(coupling, op, found, roles)


def _lookup(coupling: Coupling, op: Op, found: list[Axis], roles: list[str]) -> list[Axis]:
    operand, out = op.ins[0], op.outs[0]
    if not operand.varies and op.ins[1].varies:
        parts = tuple(axis.origins for axis in operand.axes)
        coupling.uses[op, 0] = Contraction(op, parts, tuple(roles))
        coupling.produce([axis for axis, role in zip(operand.axes, roles) if role != "index"])
    return [Axis(a.ids, a.flags, a.values, frozenset() if out.varies else a.origins, a.why) for a in found]


def _per_batch(coupling: Coupling, op: Op, axis: Axis, index: Axis) -> Axis:
    """An axis along which each entry has its own indices: if these are equal, an axis beside the one looked up.

    An index out of range may give NaN, in all slices alike where the indices are; what is left is then NaN as well.
    """
    first = coupling.equate(op, [axis, index])
    alike = axes.fill(index, first.ids)[0] & UNIFORM > 0
    some = first.flags & np.uint8(0 if "FILL" in str(op.params["mode"]) else KNOWN | CONSTANT)
    return Axis(first.ids, np.where(alike, first.flags, some), first.values, first.origins, first.why)


def constant_index(op: Op) -> np.ndarray | None:
    """Return the indices of a gather along one axis, `[m]`, if they are constant, in range, and lie along one axis."""
    indices = constant(op.ins[1])
    numbers = op.params["dimension_numbers"]
    if indices is None or len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        return None
    dim = numbers.start_index_map[0]
    top = op.ins[0].shape[dim] - op.params["slice_sizes"][dim]
    if sum(size > 1 for size in indices.shape[:-1]) > 1 or (indices < 0).any() or (indices > top).any():
        return None
    return np.asarray(indices).reshape(-1)


def _collapsed(coupling: Coupling, op: Op, dim: int, found: list[Axis], batch: list[int]) -> None:
    axis, index, shape = op.ins[0].axes[dim], constant_index(op), op.ins[1].shape[:-1]
    if index is None:
        coupling.pin(op, axis, "looks entries up by data")
    elif axis.shrinks:
        long = [place for place, size in enumerate(shape) if size > 1]
        if long:
            found[batch[long[0]]] = axes.take(axis, index)
        else:
            coupling.pin(op, axes.take(axis, index), "singles out one entry of an axis")


def _window(coupling: Coupling, op: Op, dim: int, place: int) -> Axis:
    """A part of an axis, from a place that the indices give."""
    axis, index, size = op.ins[0].axes[dim], constant_index(op), op.outs[0].shape[place]
    if index is not None and len(index) == 1 and op.params["dimension_numbers"].start_index_map == (dim,):
        return axes.take(axis, np.arange(index[0], index[0] + size))
    return axes.fixed(size, coupling.pin(op, axis, "reads a window at a place that is not constant").why)


def _indices_stay(coupling: Coupling, op: Op, indices: Any, besides: Sequence[int]) -> None:
    if constant(indices) is None:
        for place, axis in enumerate(indices.axes):
            if place not in besides:
                coupling.pin(op, axis, "holds indices along it")


def _narrow_gather(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    operand, indices = args
    numbers, out = op.params["dimension_numbers"], op.outs[0]
    dims = numbers.start_index_map
    index = constant_index(op)
    if index is not None and narrowing.shrinks(op.ins[0], dims[0]):
        if dims[0] not in numbers.collapsed_slice_dims:
            return _narrow_window(narrowing, op, operand, int(index[0]))
        batch = [dim for dim in range(out.ndim) if dim not in numbers.offset_dims]
        for place in [p for p, size in enumerate(op.ins[1].shape[:-1]) if size > 1]:
            index = index[narrowing.kept(out, batch[place])]
        index = narrowing.positions(op.ins[0], dims[0], index)
        shape = [len(index) if size > 1 else 1 for size in op.ins[1].shape]
        indices = jnp.asarray(index.reshape(shape), op.ins[1].aval.dtype)
    full = op.params["slice_sizes"]
    sizes = [new if size == old else size for size, old, new in zip(full, op.ins[0].shape, operand.shape)]
    sizes = [1 if dim in numbers.operand_batching_dims else size for dim, size in enumerate(sizes)]
    sizes = [1 if dim in numbers.collapsed_slice_dims else size for dim, size in enumerate(sizes)]
    return renewed(op, [operand, indices], slice_sizes=tuple(sizes))


def _narrow_window(narrowing: Narrowing, op: Op, operand: Any, start: int) -> list[Any]:
    dim = op.params["dimension_numbers"].start_index_map[0]
    place = op.params["dimension_numbers"].offset_dims[dim]
    where = np.arange(start, start + op.params["slice_sizes"][dim])[narrowing.kept(op.outs[0], place)]
    return [lax.reshape(pick(operand, dim, narrowing.positions(op.ins[0], dim, where)), narrowing.shape(op.outs[0]))]


# --- scatter ---


def _scatter(coupling: Coupling, op: Op) -> None:
    operand, indices, updates = op.ins
    numbers = op.params["dimension_numbers"]
    window, left = iter(numbers.update_window_dims), set(range(updates.ndim))
    if op.outs[0].varies:
        for value in (operand, updates):
            coupling.produce([] if value.varies else value.axes)
    op.outs[0].axes = []
    for dim, axis in enumerate(operand.axes):
        skipped = dim in numbers.inserted_window_dims or dim in numbers.operand_batching_dims
        place = None if skipped else next(window)
        if place is not None and updates.shape[place] == axis.size:
            op.outs[0].axes.append(_both(coupling, op, [axis, updates.axes[place]]))
            left.discard(place)
        else:
            op.outs[0].axes.append(_written(coupling, op, dim, axis))
    for place in left:
        coupling.pin(op, updates.axes[place], "holds what is written at places given by data")
    for axis in indices.axes:
        coupling.pin(op, axis, "holds indices along it")


def _written(coupling: Coupling, op: Op, dim: int, axis: Axis) -> Axis:
    """An axis along which single entries are written: these stay, and all do if the places are not constant."""
    index = _constant_places(op)
    if index is None or not axis.shrinks:
        return coupling.pin(op, axis, "writes at places along it")
    coupling.pin(op, axes.take(axis, index), "writes at this place")
    return axes.resolve(coupling.atoms, Axis(axis.ids, axis.flags & ~np.uint8(UNIFORM), axis.values, why=axis.why))


def _constant_places(op: Op) -> np.ndarray | None:
    indices, numbers = constant(op.ins[1]), op.params["dimension_numbers"]
    if indices is None or len(numbers.scatter_dims_to_operand_dims) != 1 or numbers.operand_batching_dims:
        return None
    top = op.ins[0].shape[numbers.scatter_dims_to_operand_dims[0]]
    inside = (indices >= 0).all() and (indices < top).all()
    return np.asarray(indices).reshape(-1) if inside and numbers.inserted_window_dims else None


def _narrow_scatter(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    dims, index = op.params["dimension_numbers"].scatter_dims_to_operand_dims, _constant_places(op)
    if index is None or not narrowing.shrinks(op.ins[0], dims[0]):
        return bind(op, args)
    places = narrowing.positions(op.ins[0], dims[0], index).reshape(op.ins[1].shape)
    return bind(op, [args[0], jnp.asarray(places, op.ins[1].aval.dtype), args[2]])


# --- arrays out of a shape ---


def _iota(coupling: Coupling, op: Op) -> None:
    found = []
    for dim, size in enumerate(op.outs[0].shape):
        axis = coupling.fresh((op, dim), size, UNIFORM)
        if dim == op.params["dimension"]:
            numbers = np.broadcast_to(np.arange(size, dtype=np.float64)[:, None], axis.ids.shape)
            axis = Axis(axis.ids, np.full(axis.ids.shape, KNOWN | CONSTANT, np.uint8), numbers, why=axis.why)
        found.append(axis)
    op.outs[0].axes = found


def _generated(coupling: Coupling, op: Op) -> None:
    """Random numbers: every entry has its own, whatever becomes of the others."""
    for value in op.ins:
        for axis in value.axes:
            coupling.pin(op, axis, "makes random numbers out of it")
    for slot, out in enumerate(op.outs):
        out.axes = [coupling.fresh((op, slot, dim), size) for dim, size in enumerate(out.shape)]


def _narrow_generated(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    return [narrowing.cut(out, array) for out, array in zip(op.outs, bind(op, args))]


def _windows(coupling: Coupling, op: Op) -> None:
    """Cumulative operations along one axis: each entry depends on those before it."""
    axis_ = op.params["axis"]
    out, operand = op.outs[0], op.ins[0]
    out.axes = [zeros_stay(axis) for axis in operand.axes]
    axis = operand.axes[axis_]
    if op.name != "cumsum":
        out.axes = [a if op.name in ("cummax", "cummin") else axes.axis(a.ids, why=a.why) for a in operand.axes]
        out.axes[axis_] = coupling.pin(op, axis, "runs along it")
        return
    zero = (axis.flags & KNOWN > 0) & (axis.values == 0)
    coupling.leak(op, axis.ids[~zero], "adds up along an axis whose removed entries are not zero")
    out.axes[axis_] = axes.axis(axis.ids, origins=axis.origins, why=axis.why)


RULES = {
    "dynamic_slice": Rule(_dynamic_slice, _narrow_dynamic_slice),
    "dynamic_update_slice": Rule(_dynamic_update_slice, as_it_is),
    "gather": Rule(_gather, _narrow_gather),
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"),
        Rule(_scatter, _narrow_scatter),
    ),
    "iota": Rule(_iota, _narrow_generated),
    "random_bits": Rule(_generated, _narrow_generated),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), Rule(_windows, as_it_is)),
}
