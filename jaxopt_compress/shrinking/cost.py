"""What a function costs once units are removed, without tracing it again."""

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import numpy as np

from jaxopt_compress.graph import Graph, Narrowing
from jaxopt_compress.graph.cost import CONTRACTIONS, contracted, equation
from jaxopt_compress.graph.program import Op
from jaxopt_compress.graph.uses import counted


def narrowing(graph: Graph, cut: Any, recount: bool = False) -> Narrowing:
    """Return a run of the traced function without the units and blocks of a cut."""
    return without(graph, removed(graph, cut.units), cut.blocks, recount)


def without(graph: Graph, gone: np.ndarray, names: Collection[str], recount: bool = False) -> Narrowing:
    """Return a run of the traced function without atoms and blocks."""
    blocks = [block for block in graph.blocks if block.name in names] if names else []
    streams = {block.op: 1 - block.side for block in blocks}
    return Narrowing(graph.coupling, gone, recount, streams, frozenset().union(*(block.inside for block in blocks)))


def removed(graph: Graph, units: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return for each atom whether it goes."""
    flags = np.zeros(graph.coupling.atoms.count, bool)
    for group in graph.groups:
        if group.name in units:
            flags[group.atoms[units[group.name]]] = True
    return flags


def narrow_multiply_adds(graph: Graph, cut: Any) -> int:
    """Count the multiply-adds of the narrowed function; a `while` loop counts for nothing."""
    narrow = narrowing(graph, cut)
    ops = ((op, runs) for op, runs in counted(graph.program) if runs and op not in narrow.skipped)
    return round(sum(_work(narrow, op) * runs for op, runs in ops))


def _work(narrow: Narrowing, op: Op) -> float:
    if op.name not in CONTRACTIONS:
        return 0.0
    share = _share(op.outs[0].shape, narrow.shape(op.outs[0]))
    if op.name == "conv_general_dilated":
        dims, value = (op.params["dimension_numbers"].rhs_spec[1],), op.ins[1]
    else:
        dims, value = contracted(op.params), op.ins[0]
    before, after = (tuple(shape[dim] for dim in dims) for shape in (value.shape, narrow.shape(value)))
    return equation(op.eqn) * share * _share(before, after)


def _share(before: tuple[int, ...], after: tuple[int, ...]) -> float:
    return prod(after) / max(prod(before), 1)
