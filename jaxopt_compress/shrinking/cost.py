"""What a function costs once units are removed, without tracing it again."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from jaxopt_compress.graph import Graph, Narrowing, equation
from jaxopt_compress.graph.program import Op
from jaxopt_compress.graph.uses import counted


def removed(graph: Graph, units: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return for each atom whether it goes."""
    flags = np.zeros(graph.coupling.atoms.count, bool)
    for group in graph.groups:
        if group.name in units:
            flags[group.atoms[units[group.name]]] = True
    return flags


def narrow_multiply_adds(graph: Graph, cut: Any) -> int:
    """Count the multiply-adds of the narrowed function; a `while` loop counts for nothing."""
    narrowing = Narrowing(graph.coupling, removed(graph, cut.units))
    return round(sum(_work(narrowing, op) * runs for op, runs in counted(graph.program) if runs))


def _work(narrowing: Narrowing, op: Op) -> float:
    if op.name not in ("dot_general", "conv_general_dilated"):
        return 0.0
    share = _share(op.outs[0].shape, narrowing.shape(op.outs[0]))
    if op.name == "dot_general":
        (contract, _), _ = op.params["dimension_numbers"]
        dims, value = contract, op.ins[0]
    else:
        dims, value = [op.params["dimension_numbers"].rhs_spec[1]], op.ins[1]
    before, after = (tuple(shape[dim] for dim in dims) for shape in (value.shape, narrowing.shape(value)))
    return equation(op.eqn) * share * _share(before, after)


def _share(before: tuple[int, ...], after: tuple[int, ...]) -> float:
    return prod(after) / max(prod(before), 1)
