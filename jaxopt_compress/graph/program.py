"""A jaxpr as a tree of operations whose values are all distinct.

A jaxpr may hold one inner jaxpr object at several places (every `relu` of a model is the same `jit`), so that its
variables stand for several values. Here each use has its own. `jit` and its like are inlined; what has a meaning of its
own (`scan`, `while`, `cond`, `remat`, custom derivatives) keeps its bodies; a batching rule of one's
own (`custom_vmap`) gives way to that of the body. What nothing depends on is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util

INLINED = ("jit", "pjit", "closed_call", "core_call", "call", "composite", "custom_vmap_call", "eval_jaxpr")
BODIES = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "remat2": ("jaxpr",),
    "checkpoint": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr", "fun_jaxpr"),
    "custom_vjp_call_jaxpr": ("fun_jaxpr", "call_jaxpr"),
}


@dataclass(eq=False, slots=True, repr=False)
class Value:
    """One array in the run of a program.

    Attributes:
      aval: shape and dtype.
      op: the operation that makes it; None for inputs and constants.
      slot: which output of `op` it is.
      const: its numbers, if it is a literal or a captured constant.
      leaf: the position of the parameter that it is, if it is one.
      varies: whether it depends on an input of the function (or on what an inner body gets from outside).
      axes: what is known of each axis; filled in by the passes.
    """

    aval: Any
    op: "Op | None" = None
    slot: int = 0
    const: Any = None
    leaf: int | None = None
    varies: bool = False
    axes: list[Any] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.aval.shape

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return len(self.aval.shape)


@dataclass(eq=False, slots=True, repr=False)
class Op:
    """One equation.

    Attributes:
      eqn: the equation of the jaxpr, with its primitive and parameters.
      ins: what goes in.
      outs: what comes out.
      bodies: the inner programs of control flow, with input values of their own.
      around: the user's line of the call that it was inlined from.
      scope: the `jax.named_scope`s that it stands in, the outermost first; modules of Linen open one each.
    """

    eqn: jex.JaxprEqn
    ins: list[Value]
    outs: list[Value]
    bodies: list["Program"]
    around: str = ""
    scope: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.eqn.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the equation."""
        return self.eqn.params

    def __lt__(self, other: "Op") -> bool:  # so that a heap of operations may hold one twice
        return id(self) < id(other)

    @property
    def source(self) -> str:
        """The user's line, as `file.py:12 (function)`."""
        return _line(self.eqn) or self.around


@dataclass(eq=False, slots=True, repr=False)
class Program:
    """Operations in order, between input and output values."""

    ins: list[Value]
    outs: list[Value]
    ops: list[Op]

    def walk(self):
        """Yield every operation, those of inner bodies after the one that holds them."""
        for op in self.ops:
            yield op
            for body in op.bodies:
                yield from body.walk()


def program(closed: jex.ClosedJaxpr, leaves: int) -> Program:
    """Read a closed jaxpr whose first `leaves` inputs are parameters."""
    jaxpr = closed.jaxpr
    ins = [Value(v.aval, leaf=i) if i < leaves else Value(v.aval, varies=True) for i, v in enumerate(jaxpr.invars)]
    return _read(jaxpr, closed.consts, ins)


def bind(op: Op, args: Sequence[Any]) -> list[Any]:
    """Run the operation as it stands."""
    found = op.eqn.primitive.bind(*args, **op.eqn.primitive.get_bind_params(op.params))
    return list(found) if op.eqn.primitive.multiple_results else [found]


def constant(value: Value, limit: int = 1 << 22) -> np.ndarray | None:
    """Return the numbers of a value that depends on no parameter and no input; None if it does, or is large."""
    if value.const is not None:
        return None if is_tracer(value.const) else value.const
    op = value.op
    if op is None or value.varies or op.bodies or value.aval.size > limit or is_opaque(value.aval):
        return None
    args = [constant(arg, limit) for arg in op.ins]
    if any(arg is None for arg in args) or getattr(op.eqn, "effects", None):
        return None
    with jax.ensure_compile_time_eval():
        found = bind(op, args)
    for out, array in zip(op.outs, found, strict=True):
        out.const = array if is_opaque(out.aval) else np.asarray(array)
    return value.const


def is_tracer(array: Any) -> bool:
    """Tell whether an array belongs to a trace that is going on."""
    return isinstance(array, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]


def is_opaque(value: Any) -> bool:
    """Tell whether entries are random keys or the like, which are no numbers."""
    return jnp.issubdtype(value.dtype, jax.dtypes.extended)


def _line(eqn: jex.JaxprEqn) -> str:
    return source_info_util.summarize(eqn.source_info)


def _scope(eqn: jex.JaxprEqn) -> tuple[str, ...]:
    """Return the scopes around an equation, without the transformations that they went through."""
    return tuple(each.name for each in eqn.source_info.name_stack.stack if type(each).__name__ == "Scope")


def _read(
    jaxpr: jex.Jaxpr, consts: Sequence[Any], ins: list[Value], around: str = "", scope: tuple[str, ...] = ()
) -> Program:
    env: dict[Any, Value] = dict(zip(jaxpr.invars, ins, strict=True))
    env.update((var, Value(var.aval, const=const)) for var, const in zip(jaxpr.constvars, consts, strict=True))
    ops: list[Op] = []
    for eqn in jaxpr.eqns:
        args = [_value(env, var) for var in eqn.invars]
        if eqn.primitive.name in INLINED:
            inner = _inner(eqn)
            part = _read(inner.jaxpr, inner.consts, args, _line(eqn) or around, scope + _scope(eqn))
            ops += part.ops
            env.update(zip(eqn.outvars, part.outs, strict=True))
        else:
            ops.append(_operation(eqn, args, env, around, scope + _scope(eqn)))
    outs = [_value(env, var) for var in jaxpr.outvars]
    return Program(ins, outs, _live(ops, outs))


def _live(ops: Sequence[Op], outs: Sequence[Value]) -> list[Op]:
    """Leave out what nothing depends on."""
    needed, kept = set(outs), []
    for op in reversed(ops):
        if op.eqn.effects or not needed.isdisjoint(op.outs):
            kept.append(op)
            needed.update(op.ins)
    return kept[::-1]


def _value(env: dict[Any, Value], var: Any) -> Value:
    return Value(var.aval, const=np.asarray(var.val)) if isinstance(var, jex.Literal) else env[var]


def _inner(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr:
    found = [closed(p) for p in eqn.params.values() if isinstance(p, (jex.Jaxpr, jex.ClosedJaxpr))]
    if len(found) != 1:
        raise ValueError(f"`graph.trace`: `{eqn.primitive.name}` holds one jaxpr; got {len(found)}.")
    return found[0]


def closed(jaxpr: Any) -> jex.ClosedJaxpr:
    """Return a closed jaxpr; versions of JAX differ in which of the two an equation holds."""
    return jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jex.ClosedJaxpr(jaxpr, ())


def _operation(eqn: jex.JaxprEqn, args: list[Value], env: dict[Any, Value], around: str, scope: tuple[str, ...]) -> Op:
    varies = any(arg.varies for arg in args)
    op = Op(eqn, args, [], [], around, scope)
    for slot, var in enumerate(eqn.outvars):
        op.outs.append(Value(var.aval, op=op, slot=slot, varies=varies))
        env[var] = op.outs[-1]
    for name in BODIES.get(eqn.primitive.name, ()):
        held = eqn.params.get(name, ())
        for jaxpr in held if isinstance(held, (tuple, list)) else (held,):
            op.bodies.append(_body(closed(jaxpr), op))
    return op


def _body(inner: jex.ClosedJaxpr, op: Op) -> Program:
    """Read a body. A loop may carry an input into any of its carries, which are therefore taken together."""
    varies = [value.varies for value in entering(op, len(op.bodies))]
    any_ = any(value.varies for value in op.ins)
    carried = _carried(inner.jaxpr, op)
    ins = [
        Value(var.aval, varies=any_ if place in carried else flag)
        for place, (var, flag) in enumerate(zip(inner.jaxpr.invars, varies, strict=True))
    ]
    return _read(inner.jaxpr, inner.consts, ins, op.source, op.scope)


def entering(op: Op, number: int) -> list[Value]:
    """Return the values that enter the body of that number, in its order."""
    if op.name == "cond":
        return op.ins[1:]
    if op.name == "while":
        first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
        return op.ins[first:] if number else [*op.ins[:first], *op.ins[first + second :]]
    return op.ins


def _carried(body: jex.Jaxpr, op: Op) -> range:
    if op.name == "while":
        return range(op.params["body_nconsts" if op.bodies else "cond_nconsts"], len(body.invars))
    if op.name == "scan":
        consts, carries = scan_counts(op.eqn, body)
        return range(consts, consts + carries)
    return range(0)


def scan_counts(eqn: jex.JaxprEqn, body: jex.Jaxpr) -> tuple[int, int]:
    """Return the numbers of constants and carries, read off the shapes: parameters differ between versions of JAX."""
    ranks: Callable[[Sequence[Any]], list[int]] = lambda variables: [len(v.aval.shape) for v in variables]  # noqa: E731
    carries = sum(out == inner for out, inner in zip(ranks(eqn.outvars), ranks(body.outvars)))
    sequences = sum(out == inner + 1 for out, inner in zip(ranks(eqn.invars), ranks(body.invars)))
    return len(eqn.invars) - carries - sequences, carries
