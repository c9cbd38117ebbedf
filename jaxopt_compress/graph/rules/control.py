"""Primitives that hold programs: loops, branches, rematerialized blocks, functions with derivatives of their own."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxopt_compress.graph import axes
from jaxopt_compress.graph.axes import CONSTANT, KNOWN, UNIFORM, Axis
from jaxopt_compress.graph.coupling import Coupling
from jaxopt_compress.graph.narrowing import Narrowing
from jaxopt_compress.graph.program import Op, Program, Value, closed, scan_counts
from jaxopt_compress.graph.rules.derivatives import narrow_custom_jvp, narrow_custom_vjp
from jaxopt_compress.graph.rules.rule import Rule

# --- passing values in and out ---


def _enter(inner: Sequence[Value], outer: Sequence[Value], keep: int = KNOWN | CONSTANT) -> None:
    """Give inputs of a body the axes of what comes in. What is only uniform could not be computed inside."""
    for value, source in zip(inner, outer):
        value.axes = [_kept(axis, keep) for axis in source.axes]


def _kept(axis: Axis, keep: int) -> Axis:
    flags = np.where(axis.flags & KNOWN > 0, axis.flags & np.uint8(keep), axis.flags & np.uint8(keep & CONSTANT))
    return Axis(axis.ids, flags.astype(np.uint8), axis.values, axis.origins, axis.why)


def _meet(coupling: Coupling, op: Op, into: Sequence[Value], others: Sequence[Value]) -> bool:
    """Equate values that stand for one another; keep of the fills what holds for both; tell whether some was lost."""
    lost = False
    for value, other in zip(into, others):
        for dim, (axis, new) in enumerate(zip(value.axes, coupling.axes(other))):
            first = coupling.equate(op, [axis, new], "carries an axis whose length is given")
            flags, values = axes.fill(axis, first.ids)
            more, numbers = axes.fill(new, first.ids)
            same = axes.alike(values, numbers) | (flags & KNOWN == 0)
            kept = flags & more & np.where(same, 255, UNIFORM).astype(np.uint8)
            lost |= bool((kept != flags).any())
            value.axes[dim] = Axis(first.ids, kept, values, axis.origins, first.why)
    return lost


def _outs(op: Op, values: Sequence[Value]) -> None:
    """Give outputs the axes of body values; origins end here."""
    for out, value in zip(op.outs, values):
        out.axes = [_kept(Axis(a.ids, a.flags, a.values, why=a.why), KNOWN | CONSTANT) for a in value.axes]


# --- scan ---


def _counts(op: Op) -> tuple[int, int]:
    return scan_counts(op.eqn, closed(op.params["jaxpr"]).jaxpr)


def _scan(coupling: Coupling, op: Op) -> None:
    consts, carries = _counts(op)
    body, end = op.bodies[0], consts + carries
    for value in op.ins[end:]:
        coupling.pin(op, value.axes[0], "loops over it")
    for value in op.ins[consts:end]:
        coupling.produce(value.axes)
    _enter(body.ins[:end], op.ins[:end])
    for inner, value in zip(body.ins[end:], op.ins[end:]):
        inner.axes = [_kept(axis, KNOWN) for axis in value.axes[1:]]
    _until_stable(coupling, op, body, body.ins[consts:end], body.outs[:carries])
    _outs(op, body.ins[consts:end])
    for out, value in zip(op.outs[carries:], body.outs[carries:]):
        rest = [_kept(Axis(a.ids, a.flags, a.values, why=a.why), KNOWN) for a in coupling.axes(value)]
        out.axes = [axes.fixed(out.shape[0]), *rest]


def _until_stable(coupling: Coupling, op: Op, body: Program, carry: Sequence[Value], carried: Sequence[Value]) -> None:
    """Run a body until what is known of its carry holds after it as well as before."""
    while True:
        coupling.run(body)
        if not _meet(coupling, op, carry, carried) or not coupling.settled:
            return


def _narrow_scan(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    consts, carries = _counts(op)
    end = consts + carries
    p = op.params

    def step(carry, x):
        found = narrowing.run(op.bodies[0], [*args[:consts], *carry, *x])
        return tuple(found[:carries]), tuple(found[carries:])

    last, ys = lax.scan(
        step, tuple(args[consts:end]), tuple(args[end:]), p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    return [*last, *ys]


# --- while ---


def _while(coupling: Coupling, op: Op) -> None:
    first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
    test, body = op.bodies
    init = op.ins[first + second :]
    for value in init:
        coupling.produce(value.axes)
    _enter(test.ins, [*op.ins[:first], *init])
    _enter(body.ins, op.ins[first:])
    _until_stable(coupling, op, body, body.ins[second:], body.outs)
    _meet(coupling, op, test.ins[first:], body.ins[second:])
    coupling.run(test)
    _outs(op, body.ins[second:])


def _narrow_while(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
    test, body = op.bodies
    found = lax.while_loop(
        lambda carry: narrowing.run(test, [*args[:first], *carry])[0],
        lambda carry: tuple(narrowing.run(body, [*args[first : first + second], *carry])),
        tuple(args[first + second :]),
    )
    return list(found)


# --- cond ---


def _cond(coupling: Coupling, op: Op) -> None:
    for axis in op.ins[0].axes:
        coupling.pin(op, axis, "chooses by it")
    for body in op.bodies:
        _enter(body.ins, op.ins[1:])
        coupling.run(body)
    first, *others = op.bodies
    joined = [Value(out.aval, axes=list(coupling.axes(value))) for out, value in zip(op.outs, first.outs)]
    for body in others:
        _meet(coupling, op, joined, body.outs)
    for value in joined:
        coupling.produce(value.axes if op.ins[0].varies else [])
    _outs(op, joined)


def _narrow_cond(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    branches = [lambda *rest, body=body: tuple(narrowing.run(body, rest)) for body in op.bodies]
    return list(lax.switch(args[0], branches, *args[1:]))


# --- blocks ---


def _block(coupling: Coupling, op: Op) -> None:
    body = op.bodies[0]
    _enter(body.ins, op.ins, keep=KNOWN | CONSTANT | UNIFORM)
    coupling.run(body)
    for out, value in zip(op.outs, body.outs):
        out.axes = [_kept(axis, KNOWN | CONSTANT) for axis in coupling.axes(value)]


def _narrow_remat(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    block = jax.checkpoint(
        lambda *arrays: tuple(narrowing.run(op.bodies[0], arrays)),
        policy=op.params["policy"],
        prevent_cse=op.params["prevent_cse"],
    )
    return list(block(*args))


RULES = {
    "scan": Rule(_scan, _narrow_scan),
    "while": Rule(_while, _narrow_while),
    "cond": Rule(_cond, _narrow_cond),
    **dict.fromkeys(("remat2", "checkpoint"), Rule(_block, _narrow_remat)),
    "custom_jvp_call": Rule(_block, narrow_custom_jvp),
    **dict.fromkeys(("custom_vjp_call", "custom_vjp_call_jaxpr"), Rule(_block, narrow_custom_vjp)),
}
