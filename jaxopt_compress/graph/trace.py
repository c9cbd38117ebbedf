"""What a function does with its parameters: the front door of the graph."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import tree
from jaxopt_compress.graph import axes
from jaxopt_compress.graph.axes import SURE
from jaxopt_compress.graph.blocks import Block, blocks
from jaxopt_compress.graph.coupling import Coupling, Leak
from jaxopt_compress.graph.folding import bias_after
from jaxopt_compress.graph.groups import Group, groups
from jaxopt_compress.graph.meshes import on_mesh
from jaxopt_compress.graph.precision import precisely
from jaxopt_compress.graph.program import Op, Program, Value, is_opaque, program
from jaxopt_compress.graph.rules import rule
from jaxopt_compress.graph.uses import Use, table, uses


@dataclass(frozen=True, eq=False)
class Graph:
    """A traced function.

    Attributes:
      fn: the function.
      params: shapes and dtypes of the parameters it was traced with, in their tree.
      inputs: shapes and dtypes of its other arguments.
      outputs: shapes and dtypes of what it returns.
      paths: the paths of the parameter leaves, in order.
      program: its operations.
      coupling: what is known of their axes.
      shrinkable: the parts of the output that may become smaller.
    """

    fn: Callable
    params: Any
    inputs: tuple[Any, ...]
    outputs: Any
    paths: tuple[str, ...]
    program: Program
    coupling: Coupling
    shrinkable: tree.Where | None = None

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """What can be removed: sets of slices that go together, those of one kind in one group."""
        return groups(self.coupling, self.paths, self.leaves)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Which residual branches can be left out."""
        return blocks(self.coupling, self.program, self.paths)

    @cached_property
    def uses(self) -> tuple[Use, ...]:
        """Who consumes which parameter."""
        return uses(self.coupling, self.program, self.paths)

    @cached_property
    def at_full_precision(self) -> Callable:
        """The function under `jit` with exact products of float32: compiled once for all removals to be checked."""
        return jax.jit(precisely(self.fn))

    @property
    def leaves(self) -> list[Value]:
        """The parameters as values of the program."""
        return self.program.ins[: len(self.paths)]

    def why_fixed(self, path: str, axis: int) -> str:
        """Say why an axis of a parameter, or a part of it, cannot become smaller; "" if nothing speaks against it."""
        value = self.leaves[self.paths.index(path)]
        return self.coupling.atoms.reasons[value.axes[axis].why]

    def __str__(self) -> str:
        return table(self)


def trace(fn: Callable, params: Any, *inputs: Any, shrinkable: tree.Where | None = None) -> Graph:
    """Read off the jaxpr of a function what it does with its parameters.

    Works for any function of JAX: `flax.linen`'s `module.apply`, `nnx.merge(graphdef, params)(x)`, Equinox, Haiku, or
    none of them. Nothing is run.

    Args:
      fn: `fn(params, *inputs)`, pure.
      params: any pytree of arrays or shapes; statistics and caches that may shrink along belong in it.
      *inputs: what else the function takes, arrays or shapes. Their axes keep their lengths.
      shrinkable: which leaves of the output may lose indices, as for `select`: new batch statistics, for example. By
        default none, as the caller sees them.

    Returns:
      The graph: `print` it for a table of parameters and their consumers; `groups` says what can be removed.

    Raises:
      ValueError: a leaf that is no array.

    Example:
      >>> mlp = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> shape = jax.ShapeDtypeStruct
      >>> graph = trace(mlp, {"up": shape((4, 8), "float32"), "down": shape((8, 3), "float32")}, jnp.ones((2, 4)))
      >>> [(group.name, group.size) for group in graph.groups]
      [('up[1]', 8)]
    """
    flat, treedef = jax.tree.flatten(params)
    paths = tuple(tree.leaves(params))
    structs = [struct(leaf, path) for leaf, path in zip(flat, paths, strict=True)]
    given = jax.tree.map(lambda leaf: struct(leaf, "an input"), inputs)
    closed, outputs = jax.make_jaxpr(fn, return_shape=True)(jax.tree.unflatten(treedef, structs), *given)
    whole = program(closed, len(flat))
    coupling = Coupling(rule, users=_users(whole))
    _tie(coupling, whole, flat)
    _run(coupling, whole, structs, _visible(outputs, shrinkable))
    return Graph(fn, jax.tree.unflatten(treedef, structs), given, outputs, paths, whole, coupling, shrinkable)


def struct(leaf: Any, path: str, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
    """Return the type of a leaf, with what is known of its place on a mesh; of another shape, if one is given."""
    try:
        aval = jax.typeof(leaf) if not isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    except TypeError:
        raise ValueError(f"`graph.trace`: leaves are arrays or numbers; {path!r} is {type(leaf).__name__}.") from None
    sizes = aval.shape if shape is None else shape
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(sizes, aval.dtype, weak_type=weak, **on_mesh(aval, sizes))


def _users(whole: Program) -> dict[Value, list[Op]]:
    found: dict[Value, list[Op]] = {}
    for op in whole.walk():
        for value in op.ins:
            found.setdefault(value, []).append(op)
    return found


def _visible(outputs: Any, shrinkable: tree.Where | None) -> list[str]:
    """Return for each output leaf its path, or "" if it may shrink."""
    paths = list(tree.leaves(outputs))
    free = () if shrinkable is None else tree.choose(outputs, shrinkable)
    return ["" if path in free else f"output {path!r}" for path in paths]


def _tie(coupling: Coupling, whole: Program, flat: list[Any]) -> None:
    """Give the leaves their axes; leaves that are one array have the same."""
    first: dict[int, Value] = {}
    for value, leaf in zip(whole.ins, flat):
        owner = first.setdefault(id(leaf), value) if isinstance(leaf, jax.Array) else value
        value.axes = [coupling.fresh((owner, dim), size) for dim, size in enumerate(value.shape)]
        if is_opaque(value.aval):
            why = coupling.atoms.reason("it holds random keys")
            value.axes = [axes.fixed(size, why) for size in value.shape]


def _run(coupling: Coupling, whole: Program, structs: list[Any], visible: list[str]) -> None:
    atoms = coupling.atoms
    given = atoms.reason("an input of the function has its length")
    for place, value in enumerate(whole.ins):
        if place < len(structs):
            _originate(value, place)
        else:
            value.axes = [axes.fixed(size, given) for size in value.shape]
    coupling.run(whole)
    for value, name in zip(whole.outs, visible):
        for dim, axis in enumerate(coupling.axes(value)):
            if name:
                atoms.pin(axis.ids, atoms.reason(f"the caller sees it: axis {dim} of {name}"))
        coupling.produce(value.axes if not value.varies else [])
    atoms.settled = True
    reads = coupling.consumed - coupling.produced
    for place, value in enumerate(whole.ins[: len(structs)]):
        value.axes = [_mask(axes.resolve(atoms, a), (place, dim) in reads, value) for dim, a in enumerate(value.axes)]
    coupling.run(whole)
    for value in whole.outs:
        coupling.axes(value)
    _refuse_folds(coupling, whole)


def _originate(value: Value, place: int) -> None:
    value.axes = [
        axes.Axis(a.ids, a.flags, a.values, frozenset([(place, dim)]), a.why) for dim, a in enumerate(value.axes)
    ]


def _mask(axis: axes.Axis, read: bool, value: Value) -> axes.Axis:
    """A slice that makes a channel is zero when masked; one that reads it is what it is, and so is an integer."""
    zero = not read and jnp.issubdtype(value.aval.dtype, jnp.inexact)
    return axes.axis(axis.ids, SURE if zero else 0, origins=axis.origins, why=axis.why)


def _refuse_folds(coupling: Coupling, whole: Program) -> None:
    """A constant that no bias can take up leaks."""
    for op, ids in list(coupling.folds.items()):
        if op not in whole.ops or bias_after(coupling, op) is None:
            del coupling.folds[op]
            text = "sums over an axis whose removed entries are a constant, and no bias follows that could take it up"
            coupling.leaks.setdefault(op, []).append(Leak(ids, f"`{op.name}` {text} ({op.source})"))
