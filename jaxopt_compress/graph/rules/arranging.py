"""Primitives that move entries about and change none: each index of the output is an index of the input."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_compress.graph import axes
from jaxopt_compress.graph.axes import KNOWN, SURE, UNIFORM, Axis
from jaxopt_compress.graph.coupling import Coupling
from jaxopt_compress.graph.narrowing import Narrowing
from jaxopt_compress.graph.program import Op, constant
from jaxopt_compress.graph.rules.rule import Rule, as_it_is, pick, renewed

# --- transpose, squeeze, expand, rev ---


def _transpose(coupling: Coupling, op: Op) -> None:
    del coupling
    op.outs[0].axes = [op.ins[0].axes[dim] for dim in op.params["permutation"]]


def _squeeze(coupling: Coupling, op: Op) -> None:
    del coupling
    op.outs[0].axes = [axis for dim, axis in enumerate(op.ins[0].axes) if dim not in op.params["dimensions"]]


def _rev(coupling: Coupling, op: Op) -> None:
    del coupling
    found = list(op.ins[0].axes)
    for dim in op.params["dimensions"]:
        found[dim] = axes.take(found[dim], np.arange(found[dim].size)[::-1])
    op.outs[0].axes = found


# --- broadcast ---


def _broadcast(coupling: Coupling, op: Op) -> None:
    """Keep what is there; a new axis is free, and its slices are all equal."""
    operand, out = op.ins[0], op.outs[0]
    source = {new: old for old, new in enumerate(op.params["broadcast_dimensions"])}
    number = None if operand.ndim else constant(operand)
    flags, value = (UNIFORM, 0.0) if number is None else (SURE, float(np.real(number)))
    if number is None and operand.ndim == 0 and not operand.varies:
        flags |= axes.CONSTANT
    out.axes = [
        operand.axes[source[dim]]
        if dim in source and operand.shape[source[dim]] == size
        else coupling.fresh((op, dim), size, flags, value)
        for dim, size in enumerate(out.shape)
    ]


def _narrow_broadcast(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    shape, dims, sharding = narrowing.shape(op.outs[0]), op.params["broadcast_dimensions"], op.params["sharding"]
    return [lax.broadcast_in_dim(args[0], shape, dims, out_sharding=sharding)]


# --- reshape ---


def segments(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest runs of axes before and after a reshape that hold the same entries; axes of one left out."""
    old, new = ([dim for dim, size in enumerate(shape) if size != 1] for shape in (before, after))
    while old or new:
        a, b = [old.pop(0)], [new.pop(0)]
        while (sizes := (prod(before[d] for d in a), prod(after[d] for d in b)))[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                a.append(old.pop(0))
            else:
                b.append(new.pop(0))
        yield a, b


def _reshape(coupling: Coupling, op: Op) -> None:
    operand, out = op.ins[0], op.outs[0]
    if 0 in operand.shape or op.params.get("dimensions") is not None:
        for axis in operand.axes:
            coupling.pin(op, axis, "reorders entries, or has none")
        out.axes = [axes.fixed(size) for size in out.shape]
        return
    found: list[Any] = [axes.fixed(size) for size in out.shape]
    for before, after in segments(operand.shape, out.shape):
        parts = [operand.axes[dim] for dim in before]
        flat = parts[0] if len(parts) == 1 else axes.merge(parts)
        if len(after) > 1:
            reason = coupling.reason(op, "cuts an axis in a way that does not fit what is coupled to it")
            cut = axes.split(coupling.atoms, flat, [out.shape[dim] for dim in after], reason)
        else:
            cut = [flat]
        for dim, axis in zip(after, cut):
            found[dim] = axis
    out.axes = found


def _narrow_reshape(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    return [lax.reshape(args[0], narrowing.shape(op.outs[0]), out_sharding=op.params["sharding"])]


# --- concatenate, split, stack, unstack, tile ---


def _concatenate(coupling: Coupling, op: Op) -> None:
    out, along = op.outs[0], op.params["dimension"]
    parts = [value.axes for value in op.ins if value.shape[along]]
    if out.varies:
        for value in op.ins:
            coupling.produce([] if value.varies else value.axes)
    out.axes = [
        axes.concatenate([part[dim] for part in parts])
        if dim == along
        else _alike(coupling, op, [part[dim] for part in parts], out.varies)
        for dim in range(out.ndim)
    ]


def _alike(coupling: Coupling, op: Op, parts: Sequence[Axis], varies: bool) -> Axis:
    """Equate axes that lie side by side; what is known of the fill is what is known of all."""
    first = coupling.equate(op, parts)
    if not first.shrinks:
        return axes.fixed(first.size, axes.why(parts))
    fills = [axes.fill(part, first.ids) for part in parts]
    flags = np.bitwise_and.reduce([f for f, _ in fills])
    same = np.all([axes.alike(v, fills[0][1]) for _, v in fills], axis=0)
    flags = np.where(same, flags, flags & ~np.uint8(KNOWN | axes.CONSTANT))
    return Axis(first.ids, flags, fills[0][1], frozenset() if varies else axes.origins(parts), first.why)


def _split(coupling: Coupling, op: Op) -> None:
    del coupling
    along, operand = op.params["axis"], op.ins[0]
    edges = np.cumsum([0, *op.params["sizes"]])
    for out, start, stop in zip(op.outs, edges, edges[1:]):
        out.axes = list(operand.axes)
        out.axes[along] = axes.take(operand.axes[along], np.arange(start, stop))


def _narrow_split(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    return renewed(op, args, sizes=tuple(narrowing.shape(out)[op.params["axis"]] for out in op.outs))


def _unstack(coupling: Coupling, op: Op) -> None:
    along = op.params["axis"]
    rest = [axis for dim, axis in enumerate(op.ins[0].axes) if dim != along]
    coupling.pin(op, op.ins[0].axes[along], "takes an axis apart")
    for out in op.outs:
        out.axes = list(rest)


def _stack(coupling: Coupling, op: Op) -> None:
    out, along = op.outs[0], op.params["axis"]
    dims = range(op.ins[0].ndim)
    out.axes = [_alike(coupling, op, [value.axes[dim] for value in op.ins], out.varies) for dim in dims]
    out.axes.insert(along, axes.fixed(len(op.ins)))


def _tile(coupling: Coupling, op: Op) -> None:
    operand, out = op.ins[0], op.outs[0]
    out.axes = []
    for dim, (axis, times) in enumerate(zip(operand.axes, op.params["reps"])):
        again = axes.take(axis, np.tile(np.arange(axis.size), times))
        out.axes.append(coupling.fresh((op, dim), times, UNIFORM) if axis.size == 1 and times > 1 else again)


def _narrow_tile(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    shape = narrowing.shape(op.outs[0])
    reps = [new // old if old else 1 for old, new in zip(args[0].shape, shape)]
    return renewed(op, args, reps=tuple(reps))


# --- slice, pad ---


def _slice(coupling: Coupling, op: Op) -> None:
    del coupling
    steps = op.params["strides"] or [1] * op.ins[0].ndim
    ranges = zip(op.params["start_indices"], op.params["limit_indices"], steps)
    op.outs[0].axes = [axes.take(axis, np.arange(*where)) for axis, where in zip(op.ins[0].axes, ranges)]


def _narrow_slice(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    array, steps = args[0], op.params["strides"] or [1] * op.ins[0].ndim
    for dim in range(op.ins[0].ndim):
        where = np.arange(op.params["start_indices"][dim], op.params["limit_indices"][dim], steps[dim])
        array = pick(array, dim, narrowing.positions(op.ins[0], dim, where[narrowing.kept(op.outs[0], dim)]))
    return [array]


def _pad(coupling: Coupling, op: Op) -> None:
    """Put free indices around and between; a negative pad cuts."""
    operand, padding = op.ins
    number = constant(padding)
    flags, value = (UNIFORM, 0.0) if number is None else (SURE, float(np.real(number)))
    found = []
    for dim, (low, high, inner) in enumerate(op.params["padding_config"]):
        axis, source = operand.axes[dim], pad_source(operand.shape[dim], low, high, inner)
        if not (low or high or inner):
            found.append(_padded_through(axis, flags, value))
        elif not axis.shrinks and not coupling.made((op, dim)):  # both runs make the same atoms
            found.append(axes.fixed(len(source), axis.why))
        else:
            free = coupling.fresh((op, dim), max(len(source), 2), flags, value)
            index = np.where(source < 0, axis.size + np.arange(len(source)), source)
            found.append(axes.take(axes.concatenate([axis, free]), index))
    op.outs[0].axes = found


def _padded_through(axis: Axis, flags: int, value: float) -> Axis:
    """An axis beside the padded one: its slices hold the padding too."""
    kept = (axis.flags & KNOWN > 0) & axes.alike(axis.values, np.asarray(value)) & bool(flags & KNOWN)
    new = np.where(kept, axis.flags, axis.flags & np.uint8(UNIFORM)).astype(np.uint8)
    return Axis(axis.ids, new, axis.values, axis.origins, axis.why)


def pad_source(size: int, low: int, high: int, inner: int) -> np.ndarray:
    """Return for each index of a padded axis where it comes from, -1 for the padding."""
    spread = np.full(max(size + max(size - 1, 0) * inner, 0), -1)
    spread[:: inner + 1] = np.arange(size)
    spread = np.concatenate([np.full(max(low, 0), -1), spread, np.full(max(high, 0), -1)])
    return spread[max(-low, 0) : len(spread) - max(-high, 0)]


def _narrow_pad(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    array, padding = args
    for dim, (low, high, inner) in enumerate(op.params["padding_config"]):
        source = pad_source(op.ins[0].shape[dim], low, high, inner)[narrowing.kept(op.outs[0], dim)]
        there = source >= 0
        inside = pick(array, dim, narrowing.positions(op.ins[0], dim, source[there]))
        if there.all():
            array = inside
        elif not inner:
            edges = np.flatnonzero(there)
            before, after = (edges[0], len(source) - 1 - edges[-1]) if edges.size else (len(source), 0)
            array = _edged(inside, padding, dim, int(before), int(after))
        else:  # one entry of padding, taken wherever there is some
            places = np.where(there, np.cumsum(there) - 1, there.sum())
            array = jnp.take(_edged(inside, padding, dim, 0, 1), places, axis=dim)
    return [array]


def _edged(array: Any, padding: Any, dim: int, before: int, after: int) -> Any:
    config = [(0, 0, 0)] * array.ndim
    config[dim] = (before, after, 0)
    return lax.pad(array, padding, config)


RULES = {
    "transpose": Rule(_transpose, as_it_is),
    "squeeze": Rule(_squeeze, as_it_is),
    "rev": Rule(_rev, as_it_is),
    "broadcast_in_dim": Rule(_broadcast, _narrow_broadcast),
    "reshape": Rule(_reshape, _narrow_reshape),
    "concatenate": Rule(_concatenate, as_it_is),
    "split": Rule(_split, _narrow_split),
    "unstack": Rule(_unstack, as_it_is),
    "stack": Rule(_stack, as_it_is),
    "tile": Rule(_tile, _narrow_tile),
    "slice": Rule(_slice, _narrow_slice),
    "pad": Rule(_pad, _narrow_pad),
}
