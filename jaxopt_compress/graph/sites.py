"""The places where a function multiplies or looks up: each with a name that stays the same from trace to trace."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxopt_compress import tree
from jaxopt_compress.graph.cost import CONTRACTIONS
from jaxopt_compress.graph.program import Op, Program, Value, closed, entering, program, scan_counts

CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
MOVES = ("reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "slice", "rev", "copy")
Owners = dict[Value, frozenset[int]]


@dataclass(frozen=True, eq=False)
class Site:
    """One contraction, convolution or lookup.

    Attributes:
      name: the path of its parameter, with `#2` for the second use of it and so on; of two activations the name of the
        primitive and a number, as in "dot_general[0]".
      op: the operation.
      weight: which operand depends on parameters alone; None if there is none.
      path: the parameter, the largest if that operand is computed from several; "" if there is none.
      moved: whether that operand is the parameter itself, rearranged and cast at most.
      loops: the scans around it that run over stacked parameters, the outermost first.
      closed_in: the user's line of a function with a derivative of its own around it; "" if there is none.
    """

    name: str
    op: Op
    weight: int | None
    path: str
    moved: bool = False
    loops: tuple[Op, ...] = ()
    closed_in: str = ""

    @property
    def kind(self) -> str:
        """The name of the primitive."""
        return self.op.name

    @property
    def stacked(self) -> tuple[int, ...]:
        """The lengths of those scans: the axes that a state of the site has in front."""
        return tuple(op.params["length"] for op in self.loops)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the two operands."""
        return tuple(value.shape for value in self.op.ins[:2])


def sites(fn: Callable, params: Any, *inputs: Any) -> tuple[Site, ...]:
    """List the products of a function and its lookups in parameters, in the order of the program.

    Args:
      fn: `fn(params, *inputs)`, pure.
      params: any pytree of arrays or shapes.
      *inputs: what else it takes, arrays or shapes.
    """
    leaves = tree.leaves(params)
    return sites_of(program(jax.make_jaxpr(fn)(params, *inputs), len(leaves)), tuple(leaves))


def sites_of(whole: Program, paths: Sequence[str]) -> tuple[Site, ...]:
    """List the contractions and convolutions, and the lookups in parameters, in the order of the program."""
    sizes = {place: value.aval.size for place, value in enumerate(whole.ins[: len(paths)])}
    owners: Owners = {value: frozenset([place]) for place, value in enumerate(whole.ins[: len(paths)])}
    found, counts, plain = [], dict[str, int](), set(owners)
    for op, loops, around in walk(whole, owners, plain):
        weights = [side for side, value in enumerate(op.ins[:2]) if owners.get(value) and not value.varies]
        if op.name not in (*CONTRACTIONS, "gather") or not any(value.varies for value in op.ins):
            continue
        if op.name == "gather" and weights[:1] != [0]:
            continue
        weight = weights[0] if weights else None
        leaf = max(owners[op.ins[weight]], key=lambda place: sizes[place]) if weight is not None else None
        base = op.name if leaf is None else paths[leaf]
        number = counts[base] = counts.get(base, 0) + 1
        name = f"{op.name}[{number - 1}]" if leaf is None else base + (f"#{number}" if number > 1 else "")
        moved = weight is not None and op.ins[weight] in plain
        found.append(Site(name, op, weight, "" if leaf is None else base, moved, loops, around))
    return tuple(found)


def walk(
    program: Program, owners: Owners, plain: set[Value], loops: tuple[Op, ...] = (), around: str = ""
) -> Iterator[tuple[Op, tuple[Op, ...], str]]:
    """Yield every operation with what is around it; note which parameters each value comes from, and if unchanged."""
    for op in program.ops:
        yield op, loops, around
        varies = any(value.varies for value in op.ins)  # whose parameters nobody asks for, and which would be all
        mine = frozenset() if varies else frozenset().union(*(owners.get(value, frozenset()) for value in op.ins))
        owners.update((out, mine) for out in op.outs)
        if op.name in MOVES and op.ins[0] in plain:
            plain.update(op.outs)
        inside = (*loops, op) if _over_layers(op, owners) else loops
        custom = around or (op.source if op.name in CUSTOM else "")
        for number, body in enumerate(op.bodies):
            for place, (value, outer) in enumerate(zip(body.ins, entering(op, number))):
                owners[value] = owners.get(outer, frozenset())
                if outer in plain and not _is_carried(op, number, place):
                    plain.add(value)
            yield from walk(body, owners, plain, inside, custom)


def _is_carried(op: Op, number: int, place: int) -> bool:
    """Tell whether an input of a body changes from turn to turn."""
    if op.name == "while":
        return place >= op.params["body_nconsts" if number else "cond_nconsts"]
    if op.name == "scan":
        consts, carries = scan_counts(op.eqn, closed(op.params["jaxpr"]).jaxpr)
        return consts <= place < consts + carries
    return False


def _over_layers(op: Op, owners: Owners) -> bool:
    """Tell whether a scan runs over stacked parameters, so that every turn has weights of its own."""
    if op.name != "scan":
        return False
    consts, carries = scan_counts(op.eqn, closed(op.params["jaxpr"]).jaxpr)
    return any(owners.get(value) and not value.varies for value in op.ins[consts + carries :])
