"""Whole residual branches: what is added to a stream and can be left out of it."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxopt_compress.graph.cost import CONTRACTIONS
from jaxopt_compress.graph.coupling import Coupling
from jaxopt_compress.graph.program import Op, Program, Value, constant
from jaxopt_compress.graph.rules import elementwise
from jaxopt_compress.graph.rules.reducing import REDUCED

ARRANGING = (
    *("broadcast_in_dim", "copy", "dynamic_slice", "expand_dims", "gather", "reshape", "rev", "slice", "squeeze"),
    *("tile", "transpose", "reduce_window_max"),
)


@dataclass(frozen=True, eq=False)
class Block:
    """A branch `f` of `x + f(x)` that gives zero when all parameters of its own are zero.

    Attributes:
      name: the path of its largest parameter.
      paths: its parameters, which nothing else uses.
      op: the addition.
      side: which operand of it is the branch.
      inside: the operations of the branch, those of inner bodies included.
    """

    name: str
    paths: tuple[str, ...]
    op: Op
    side: int
    inside: frozenset[Op]


def blocks(coupling: Coupling, program: Program, paths: Sequence[str]) -> tuple[Block, ...]:
    """Find all branches that can be left out, in the order of the program."""
    place = {op: i for i, op in enumerate(program.ops)}
    found = []
    for op in program.ops:
        if op.name in ("add", "add_any") and op.ins[0].shape == op.ins[1].shape:
            found += [b for side in (0, 1) if (b := _block(coupling, program, place, paths, op, side))]
    largest = {block.name: block for block in sorted(found, key=lambda block: len(block.inside))}
    return tuple(block for block in found if largest[block.name] is block)  # of nested ones the outermost


def _block(
    coupling: Coupling, program: Program, place: Mapping[Op, int], paths: Sequence[str], op: Op, side: int
) -> Block | None:
    branch, stream = op.ins[side], op.ins[1 - side]
    if branch is stream or not (branch.varies and stream.varies):
        return None
    inside = _only_for(coupling, place, set(program.outs), op, branch)
    if not any(o.name in CONTRACTIONS for o in _walk(inside)):
        return None
    entries = {v for o in inside for v in o.ins if v.varies and v.op not in inside}
    own = sorted({v.leaf for o in inside for v in o.ins if v.leaf is not None and _within(coupling, v, inside)})
    if not own or not entries & _before(stream, 8) or _number(coupling, inside, set(own), branch) != 0:
        return None
    names = tuple(paths[leaf] for leaf in own)
    largest = max(own, key=lambda leaf: (program.ins[leaf].aval.size, -leaf))
    return Block(paths[largest], names, op, side, frozenset(_walk(inside)))


def _only_for(coupling: Coupling, place: Mapping[Op, int], outs: set[Value], op: Op, branch: Value) -> list[Op]:
    """Return the operations whose results go into the branch and nowhere else, in order."""
    inside: set[Op] = set()
    queue = [(-place[branch.op], branch.op)] if branch.op is not None and branch.op in place else []
    while queue:
        _, candidate = heapq.heappop(queue)
        users = [(value, user) for value in candidate.outs for user in coupling.users.get(value, [])]
        ours = all(user in inside or (user is op and value is branch) for value, user in users)
        if candidate not in inside and ours and not outs & set(candidate.outs):
            inside.add(candidate)
            for value in candidate.ins:
                if value.op is not None and value.op in place:
                    heapq.heappush(queue, (-place[value.op], value.op))
    return sorted(inside, key=place.__getitem__)


def _walk(ops: Sequence[Op]) -> Iterator[Op]:
    for op in ops:
        yield op
        for body in op.bodies:
            yield from body.walk()


def _within(coupling: Coupling, value: Value, inside: Sequence[Op]) -> bool:
    return all(user in inside for user in coupling.users.get(value, []))


def _before(value: Value, steps: int) -> set[Value]:
    """Return a value and what it was made from, some steps back: a shortcut may hold a projection."""
    found, front = {value}, [value]
    for _ in range(steps):
        front = [v for value in front if value.op is not None for v in value.op.ins if v.varies and v not in found]
        found.update(front)
    return found


def _number(coupling: Coupling, inside: Sequence[Op], own: set[int], branch: Value) -> float | None:
    """Return the number that the branch gives throughout when its own parameters are zero, if it is one."""
    known: dict[Value, float | None] = {}
    for op in inside:
        for value in op.ins:
            if value.leaf in own and value.leaf is not None:
                known[value] = 0.0
        _follow(coupling, op, known)
    return known.get(branch)


def _follow(coupling: Coupling, op: Op, known: dict[Value, float | None]) -> None:
    numbers = [known[v] if v in known else _constant(v) for v in op.ins]
    if op.name in ("custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"):
        known.update(zip(op.bodies[0].ins, numbers))
        for inner in op.bodies[0].ops:
            _follow(coupling, inner, known)
        known.update((out, known.get(value, _constant(value))) for out, value in zip(op.outs, op.bodies[0].outs))
        return
    known.update((out, _result(coupling, op, numbers)) for out in op.outs)


def _constant(value: Value) -> float | None:
    array = constant(value, limit=1 << 16) if value.leaf is None else None
    if array is None or array.size == 0 or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        return None
    return float(array.reshape(-1)[0].real) if (array == array.reshape(-1)[0]).all() else None


def _result(coupling: Coupling, op: Op, numbers: Sequence[float | None]) -> float | None:
    if op.name in CONTRACTIONS:
        return 0.0 if 0.0 in numbers else None
    if op.name in REDUCED and numbers[0] is not None:
        count = op.ins[0].aval.size // max(op.outs[0].aval.size, 1)
        return float(REDUCED[op.name](np.float64(numbers[0]), count))
    if op.name in ARRANGING:
        return numbers[0]
    if op.name in ("concatenate", "pad"):
        return numbers[0] if len(set(numbers)) == 1 else None
    if op.name in elementwise.RULES and op.name not in elementwise.PASSING:
        return elementwise.on_numbers(coupling, op, numbers)
    return None
