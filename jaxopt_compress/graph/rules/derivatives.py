"""Functions with derivatives of their own, on narrower arrays: the derivatives are narrowed too, never replaced.

What the user's rule does is read off its jaxpr at the original width, and that is narrowed like any other program.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxopt_compress.graph import axes
from jaxopt_compress.graph.coupling import Coupling
from jaxopt_compress.graph.narrowing import Narrowing, removed_atoms
from jaxopt_compress.graph.program import Op, Value, bind, program


def narrow_custom_jvp(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    """Run a function with a JVP rule, which goes on to hold."""
    differentiate = lambda primals, tangents: jax.jvp(lambda *a: bind(op, a), primals, tangents)  # noqa: E731

    @jax.custom_jvp
    def function(*arrays):
        return tuple(_body(narrowing, op, arrays))

    @function.defjvp
    def _(primals, tangents):
        found = narrowed(narrowing, differentiate, (op.ins, op.ins))(tuple(primals), tuple(tangents))
        half = len(found) // 2
        return tuple(found[:half]), tuple(found[half:])

    return list(function(*args))


def narrow_custom_vjp(narrowing: Narrowing, op: Op, args: Sequence[Any]) -> list[Any]:
    """Run a function with a VJP rule, which goes on to hold; its forward part is run again in the backward pass."""
    pull = lambda primals, cotangents: jax.vjp(lambda *a: bind(op, a), *primals)[1](list(cotangents))  # noqa: E731

    @jax.custom_vjp
    def function(*arrays):
        return tuple(_body(narrowing, op, arrays))

    def backward(arrays, cotangents):
        found = iter(narrowed(narrowing, pull, (op.ins, op.outs))(arrays, cotangents))
        return tuple(next(found) for _ in arrays)

    function.defvjp(lambda *arrays: (tuple(_body(narrowing, op, arrays)), arrays), backward)
    return list(function(*args))


def _body(narrowing: Narrowing, op: Op, arrays: Sequence[Any]) -> list[Any]:
    """Run the body apart from the arrays outside: it is traced for its derivative, and leaves nothing behind."""
    inside = replace(narrowing, arrays={}, _lanes={})
    return inside.run(op.bodies[0], arrays)


def narrowed(narrowing: Narrowing, fn: Callable, groups: Sequence[Sequence[Value]]) -> Callable[..., list[Any]]:
    """Return `fn`, which takes one sequence of whole arrays for each group of values, for their narrow arrays."""
    whole: list[Any] = [tuple(jax.ShapeDtypeStruct(v.shape, v.aval.dtype) for v in group) for group in groups]
    closed = jax.make_jaxpr(fn)(*whole)
    inner = program(closed, 0)
    coupling = Coupling(narrowing.coupling.rule)
    atoms = coupling.atoms
    masks = [_name(atoms, narrowing, value, new) for value, new in zip([v for g in groups for v in g], inner.ins)]
    coupling.run(inner)
    atoms.settled = True
    coupling.run(inner)
    axes_of = [[atoms.resolve(axis.ids)[0] for axis in value.axes] for value in inner.ins]
    removed = removed_atoms(coupling, [pair for ids, gone in zip(axes_of, masks) for pair in zip(ids, gone)])

    def run(*arrays):
        return Narrowing(coupling, removed).run(inner, [a for group in arrays for a in group])

    return run


def _name(atoms: Any, narrowing: Narrowing, value: Value, new: Value) -> list[np.ndarray]:
    """Give the removed indices of an input atoms of their own, fix the others, and return which are which."""
    masks = []
    for dim, size in enumerate(value.shape):
        gone = ~np.isin(np.arange(size), narrowing.kept(value, dim))
        ids = np.zeros((size, int(gone.any())), np.int64)
        ids[gone] = atoms.fresh(int(gone.sum())).reshape(-1, 1) if gone.any() else 0
        new.axes.append(axes.axis(ids, axes.SURE, 0.0))
        masks.append(gone)
    return masks
