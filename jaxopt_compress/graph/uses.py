"""Who consumes which parameter, as rows and as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxopt_compress.graph.cost import equation
from jaxopt_compress.graph.coupling import Contraction, Coupling
from jaxopt_compress.graph.program import Op, Program


@dataclass(frozen=True)
class Use:
    """One contraction, convolution or lookup that a parameter reaches.

    Attributes:
      path: the parameter.
      primitive: what consumes it.
      source: the user's line.
      roles: for each axis of the parameter "in" (summed over), "out", "batch", "window" or "index" (looked up by data);
        "" for an axis that does not reach the operation.
      activation: the shape of the other operand.
      multiply_adds: of all its runs, in a loop too; 0 for a lookup, and in a `while` loop, whose runs nobody knows.
      runs: how often it runs in one call; 0 in a `while` loop.
    """

    path: str
    primitive: str
    source: str
    roles: tuple[str, ...]
    activation: tuple[int, ...]
    multiply_adds: int
    runs: int


def uses(coupling: Coupling, program: Program, paths: Sequence[str]) -> tuple[Use, ...]:
    """List all uses, in the order of the program."""
    found = []
    for op, runs in counted(program):
        for side in range(len(op.ins)):
            if (op, side) in coupling.uses:
                found += _uses(coupling.uses[op, side], side, runs, program, paths)
    return tuple(found)


def counted(program: Program, runs: int = 1) -> Iterator[tuple[Op, int]]:
    """Yield every operation and how often it runs; 0 where that is not known."""
    for op in program.ops:
        yield op, runs
        inside = runs * op.params["length"] if op.name == "scan" else 0 if op.name == "while" else runs
        for body in op.bodies:
            yield from counted(body, inside)


def _uses(contraction: Contraction, side: int, runs: int, program: Program, paths: Sequence[str]) -> Iterator[Use]:
    op = contraction.op
    owners = dict.fromkeys(leaf for origins in contraction.origins for leaf, _ in sorted(origins))
    for leaf in owners:
        roles = [""] * program.ins[leaf].ndim
        for origins, role in zip(contraction.origins, contraction.roles):
            for place, dim in origins:
                if place == leaf:
                    roles[dim] = role
        work = 0 if op.name == "gather" else equation(op.eqn) * runs
        yield Use(paths[leaf], op.name, op.source, tuple(roles), op.ins[1 - side].shape, work, runs)


def table(graph: Any) -> str:
    """Write a graph as a table: every parameter, who consumes it, and what that costs."""
    shown = Table("parameter", "shape", "consumed by", "axes", "activation", "at", title="what consumes the parameters")
    shown.add_column("multiply-adds", justify="right")
    by_path: dict[str, list[Use]] = {}
    for use in graph.uses:
        by_path.setdefault(use.path, []).append(use)
    used = {value for op in graph.program.walk() for value in op.ins} | set(graph.program.outs)
    for value, path in zip(graph.leaves, graph.paths):
        rows = by_path.get(path, [])
        shape = "x".join(map(str, value.shape)) or "()"
        if not rows:
            shown.add_row(path, shape, "element-wise" if value in used else "nothing", "", "", "", "")
        for i, use in enumerate(rows):
            activation = "x".join(map(str, use.activation))
            name = (path, shape) if i == 0 else ("", f"use {i + 1} of {len(rows)}")
            where = (use.primitive, " ".join(r or "-" for r in use.roles), activation, use.source)
            shown.add_row(*name, *where, f"{use.multiply_adds:,}")
    console = Console(width=150, no_color=True)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()
