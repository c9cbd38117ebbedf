"""Values inside a function, under names that stay the same from trace to trace.

| name | the value |
|---|---|
| `Net/Block_1` | what a module of Linen, or a `jax.named_scope`, gives to what stands behind it |
| `block_1/dense` | without scopes: what comes out of the last operation that takes a parameter of this subtree |
| `out:w`, `out:w#2`, `out:dot_general[0]` | what comes out of a product, by the name that `sites` gives it |
| `in:w` | what such a product takes beside the parameter |
| `left:dot_general[0]`, `right:dot_general[0]` | the operands of a product of two activations |

A module that is called again, with others in between, is `Net/Block_1#2` then. If several values leave it, they are
`Net/Block_1[0]`, `Net/Block_1[1]`, in the order in which they are computed.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import jax

from jaxopt_compress.graph.program import Op, Program, Value, closed, is_opaque, scan_counts
from jaxopt_compress.graph.sites import Owners, Site, sites_of, walk

REMAT = ("remat2", "checkpoint")


@dataclass(frozen=True, eq=False)
class Tap:
    """One value.

    Attributes:
      name: as above.
      op: where it is read.
      takes: whether it is an operand of `op`, or else a result.
      place: which one.
      loops: the scans over stacked parameters around it.
    """

    name: str
    op: Op
    takes: bool
    place: int
    loops: tuple[Op, ...]

    @property
    def shape(self) -> jax.ShapeDtypeStruct:
        """Its shape and dtype; the scans around it are axes in front."""
        aval = (self.op.ins if self.takes else self.op.outs)[self.place].aval
        stacked = tuple(op.params["length"] for op in self.loops)
        return jax.ShapeDtypeStruct((*stacked, *aval.shape), aval.dtype)


Taps = dict[str, list[Tap]]


def taps_of(whole: Program, paths: Sequence[str]) -> Taps:
    """List what can be read, by name; a module that gives several values has several under its own."""
    owners: Owners = {value: frozenset([place]) for place, value in enumerate(whole.ins[: len(paths)])}
    loops = {op: around for op, around, _ in walk(whole, owners, set(owners))}
    found: Taps = {}
    reached: dict[Op, tuple[Op, ...]] = {}
    visits: dict[str, int] = defaultdict(int)
    for inside in _open(whole, loops, set()):
        reached |= {op: loops[op] for op in inside.program.ops}
        for scope, values in _visits(inside):
            visits[scope] += 1
            name = scope if visits[scope] == 1 else f"{scope}#{visits[scope]}"
            found |= _results(name, values, reached)
    scopes = {scope.partition("/")[2] or scope for scope in visits}  # the outermost module stands in no path
    for name, tap in _subtrees(reached, owners, paths).items():
        if not any(f"/{name}".endswith(f"/{scope}") for scope in scopes):
            found.setdefault(name, [tap])
    return found | {tap.name: [tap] for site in sites_of(whole, paths) if site.op in reached for tap in _of(site)}


class _Open(NamedTuple):
    """A program whose values can be brought outside.

    Attributes:
      program: it.
      depth: how many scopes are around it.
      used: which of the values that it returns something takes.
    """

    program: Program
    depth: int
    used: set[Value]


def _open(program: Program, loops: dict[Op, tuple[Op, ...]], used: set[Value], depth: int = 0) -> Iterator[_Open]:
    yield _Open(program, depth, used)
    taken = used.union(*(op.ins for op in program.ops))
    for op in program.ops:
        layered = op.name == "scan" and any(op in loops[inner] for inner in op.bodies[0].ops)
        if not layered and op.name not in REMAT:
            continue
        body = op.bodies[0]
        carried = scan_counts(op.eqn, closed(op.params["jaxpr"]).jaxpr)[1] if layered else 0
        onward = {inner for i, (inner, out) in enumerate(zip(body.outs, op.outs)) if i < carried or out in taken}
        yield from _open(body, loops, onward, len(op.scope))


def _visits(inside: _Open) -> Iterator[tuple[str, list[Value]]]:
    """Yield each visit to each scope, and what it gives to others."""
    program, users = inside.program, defaultdict[Value, set[Op]](set)
    for op in program.ops:
        for value in op.ins:
            users[value].add(op)

    def leaving(members: dict[Op, None]) -> list[Value]:
        made = [value for op in members for value in op.outs if value.varies and not is_opaque(value.aval)]
        onward = [value for value in made if value in inside.used or not users[value] <= members.keys()]
        return onward or [value for value in made if value in program.outs]

    for length in range(inside.depth + 1, max((len(op.scope) for op in program.ops), default=0) + 1):
        for scope, members in groupby(program.ops, key=lambda op: op.scope[:length]):
            if len(scope) == length and (values := leaving(dict.fromkeys(members))):
                yield "/".join(scope), values


def _results(name: str, values: Sequence[Value], loops: dict[Op, tuple[Op, ...]]) -> Taps:
    """Return what a module gives, under its name, and if that is several values each under one of its own."""
    taps = [Tap(name, value.op, False, value.slot, loops[value.op]) for value in values if value.op is not None]
    alone = {f"{name}[{i}]": [replace(tap, name=f"{name}[{i}]")] for i, tap in enumerate(taps) if len(taps) > 1}
    return {name: taps, **alone}


def _of(site: Site) -> Iterator[Tap]:
    yield Tap(f"out:{site.name}", site.op, False, 0, site.loops)
    if site.kind == "gather":  # which rows it takes is no feature
        return
    if site.weight is not None:
        yield Tap(f"in:{site.name}", site.op, True, 1 - site.weight, site.loops)
    else:
        yield Tap(f"left:{site.name}", site.op, True, 0, site.loops)
        yield Tap(f"right:{site.name}", site.op, True, 1, site.loops)


def _subtrees(loops: dict[Op, tuple[Op, ...]], owners: Owners, paths: Sequence[str]) -> dict[str, Tap]:
    """Return, of each subtree of parameters, the last value that one of them goes into."""
    found = {}
    for op, around in loops.items():
        varying = [value for value in op.outs if value.varies]
        leaves = {leaf for value in op.ins if not value.varies for leaf in owners.get(value, ())}
        for leaf in leaves if len(varying) == 1 and not op.bodies else ():
            parts = paths[leaf].split("/")[:-1]
            for end in range(1, len(parts) + 1):
                name = "/".join(parts[:end])
                found[name] = Tap(name, op, False, varying[0].slot, around)
    return found
