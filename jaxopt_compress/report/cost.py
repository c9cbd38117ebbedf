"""What a function costs: parameters, bytes, multiply-adds by leaf, XLA's own count, and measured time."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxopt_compress import tree
from jaxopt_compress.graph import multiply_adds, trace


class Shrunk(Protocol):
    """A smaller function with its parameters, as `shrinking.remove` gives it."""

    fn: Any
    params: Any


@dataclass(frozen=True)
class LeafCost:
    """One parameter.

    Attributes:
      path: where it stands.
      shape: its shape.
      bytes: of its array.
      multiply_adds: of all contractions and convolutions that it reaches.
      uses: how many these are.
    """

    path: str
    shape: tuple[int, ...]
    bytes: int
    multiply_adds: int
    uses: int


@dataclass(frozen=True)
class FunctionCost:
    """One function with its parameters, on inputs of one shape.

    Attributes:
      leaves: its parameters.
      multiply_adds: in all, those without parameters too (attention scores).
      flops: XLA's count for the compiled function; NaN where the backend has none.
      bytes_accessed: XLA's count of bytes read and written; NaN where the backend has none.
      seconds: the median time of one call of the compiled function on this machine.
    """

    leaves: tuple[LeafCost, ...]
    multiply_adds: int
    flops: float
    bytes_accessed: float
    seconds: float

    @property
    def parameters(self) -> int:
        """The number of entries of all parameters."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    @property
    def bytes(self) -> int:
        """The bytes of all parameters."""
        return sum(leaf.bytes for leaf in self.leaves)


@dataclass(frozen=True)
class CostReport:
    """A function, and what became of it; `print` shows them as a table.

    Attributes:
      before: the function.
      after: the smaller one, if there is one.
      latency: the median of the ratios of their times, run in turns; NaN without a smaller one.
    """

    before: FunctionCost
    after: FunctionCost | None
    latency: float

    def __str__(self) -> str:
        console = Console(width=110, no_color=True)
        with console.capture() as capture:
            console.print(_rich(self))
        return capture.get()


def cost(fn: Callable, params: Any, *inputs: Any, after: Shrunk | None = None, rounds: int = 20) -> CostReport:
    """Count and measure what a function costs; see `report.table`.

    Args:
      fn: `fn(params, *inputs)`, pure.
      params: its parameters.
      *inputs: its other arguments, arrays.
      after: a smaller version of it, to measure in turns with it.
      rounds: how often each is timed.

    Raises:
      ValueError: no rounds.
    """
    if rounds < 1:
        raise ValueError(f"`report.cost`: `rounds` is at least 1; got {rounds}.")
    pairs = [(fn, params)] + ([(after.fn, after.params)] if after is not None else [])
    compiled = [jax.jit(f).lower(p, *inputs).compile() for f, p in pairs]
    times = _times([lambda c=c, p=p: c(p, *inputs) for c, (_, p) in zip(compiled, pairs)], rounds)
    found = [_function(f, p, inputs, c, t) for (f, p), c, t in zip(pairs, compiled, times)]
    if after is None:
        return CostReport(found[0], None, float("nan"))
    return CostReport(found[0], found[1], statistics.median(b / a for a, b in zip(*times)))


def _times(runs: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Time all in turns, each in the first place as often as the others, after one run to warm up."""
    for run in runs:
        jax.block_until_ready(run())
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        order = range(len(runs)) if turn % 2 else reversed(range(len(runs)))
        for place in order:
            start = time.perf_counter()
            jax.block_until_ready(runs[place]())
            times[place].append(time.perf_counter() - start)
    return times


def _function(fn: Callable, params: Any, inputs: tuple[Any, ...], compiled: Any, times: list[float]) -> FunctionCost:
    found = compiled.cost_analysis() or {}
    rows = []
    uses = trace(fn, params, *inputs).uses
    for path, leaf in tree.leaves(params).items():
        ours = [use for use in uses if use.path == path]
        array = np.asarray(leaf) if not hasattr(leaf, "nbytes") else leaf
        rows.append(LeafCost(path, array.shape, array.nbytes, sum(use.multiply_adds for use in ours), len(ours)))
    return FunctionCost(
        leaves=tuple(rows),
        multiply_adds=multiply_adds(fn, params, *inputs),
        flops=float(found.get("flops", float("nan"))),
        bytes_accessed=float(found.get("bytes accessed", float("nan"))),
        seconds=statistics.median(times),
    )


def _rich(report: CostReport) -> Table:
    table = Table("parameter", "shape", title="what the function costs")
    names = ["bytes", "multiply-adds"]
    for name in names if report.after is None else [f"{name}{when}" for name in names for when in ("", " after")]:
        table.add_column(name, justify="right")
    after = {leaf.path: leaf for leaf in report.after.leaves} if report.after else {}
    for leaf in report.before.leaves:
        shape = "x".join(map(str, leaf.shape)) or "()"
        if leaf.path in after and after[leaf.path].shape != leaf.shape:
            shape += " -> " + "x".join(map(str, after[leaf.path].shape))
        sides = [side for side in (leaf, after.get(leaf.path)) if side]
        numbers = [getattr(side, name) for name in ("bytes", "multiply_adds") for side in sides]
        table.add_row(leaf.path, shape, *(f"{number:,}" for number in numbers))
    table.add_section()
    for name, unit, scale in _TOTALS:
        sides = [getattr(side, name) * scale for side in (report.before, report.after) if side]
        shown = " -> ".join(f"{side:,.4g}" if scale != 1 else f"{side:,.0f}" for side in sides)
        ratio = f"({sides[1] / sides[0]:.3f}x)" if len(sides) > 1 and sides[0] else ""
        table.add_row(name.replace("_", " "), f"{shown} {unit}".strip(), ratio)
    if report.after:
        table.add_row("time, in turns", f"{report.latency:.3f}x")
    return table


_TOTALS = (
    ("parameters", "", 1),
    ("bytes", "", 1),
    ("multiply_adds", "", 1),
    ("flops", "(XLA)", 1),
    ("bytes_accessed", "(XLA)", 1),
    ("seconds", "ms", 1000),
)
