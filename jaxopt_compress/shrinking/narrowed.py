"""The smaller function: a jaxpr of the original at its original width, run on narrower arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxopt_compress import tree
from jaxopt_compress.graph import Graph, removed_atoms, trace
from jaxopt_compress.graph.program import is_tracer
from jaxopt_compress.graph.trace import struct
from jaxopt_compress.shrinking.cost import without

Kept = Mapping[str, Mapping[int, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Narrowed:
    """A function of smaller parameters; call it as the original one.

    The original function is traced at its original width whenever inputs of a new shape come, and its jaxpr then runs
    on the narrower arrays. Nothing of it runs at another width: literals such as `1 / sqrt(head_size)`, random bits,
    positions and split points stay what they were.

    Attributes:
      fn: the original function.
      params: shapes and dtypes of its parameters.
      kept: for each parameter and axis that became smaller the indices that are left.
      shrinkable: which parts of the output may become smaller.
      recount: whether means are taken over what is left, as a module built at the new width does.
      blocks: the residual branches that are left out; their parameters have no entries left.
    """

    fn: Callable
    params: Any
    kept: Kept
    shrinkable: tree.Where | None = None
    recount: bool = False
    blocks: tuple[str, ...] = ()
    _traced: dict[Any, tuple[Graph, np.ndarray]] = field(default_factory=dict, repr=False)

    def __call__(self, params: Any, *inputs: Any) -> Any:
        """Run the function on narrower parameters, of any batch size; under `jit`, `grad`, `vmap`."""
        self._check(params)
        graph, removed = self._graph(params, inputs)
        narrowing = without(graph, removed, self.blocks, self.recount)
        found = narrowing.run(graph.program, [*jax.tree.leaves(params), *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(jax.tree.structure(graph.outputs), found)

    def shape(self, path: str) -> tuple[int, ...]:
        """Return the new shape of a parameter."""
        whole = tree.leaves(self.params)[path].shape
        return tuple(len(self.kept.get(path, {}).get(dim, range(size))) for dim, size in enumerate(whole))

    def _check(self, params: Any) -> None:
        if jax.tree.structure(params) != jax.tree.structure(self.params):
            raise ValueError(
                "`shrinking`: the smaller function takes parameters with the structure of the original ones, "
                f"{jax.tree.structure(self.params)}; got {jax.tree.structure(params)}."
            )
        for path, leaf in tree.leaves(params).items():
            if np.shape(leaf) != self.shape(path):
                raise ValueError(
                    f"`shrinking`: parameter {path!r} is {self.shape(path)} after removal; got {np.shape(leaf)}."
                )

    def _graph(self, params: Any, inputs: tuple[Any, ...]) -> tuple[Graph, np.ndarray]:
        leaves, treedef = jax.tree.flatten((params, inputs))
        settings = jax.config.jax_default_matmul_precision, jax.config.jax_enable_x64  # pyright: ignore
        key = (settings, jax.sharding.get_abstract_mesh(), treedef, tuple(map(jax.typeof, leaves)))
        if key in self._traced:
            return self._traced[key]
        whole = jax.tree.map(lambda leaf, old: struct(leaf, "a parameter", old.shape), params, self.params)
        graph = trace(self.fn, whole, *inputs, shrinkable=self.shrinkable)
        found = graph, self._removed(graph)
        if not any(is_tracer(value.const) for op in graph.program.walk() for value in op.ins):
            self._traced[key] = found  # nothing of an outer trace may outlive it
        return found

    def _removed(self, graph: Graph) -> np.ndarray:
        left_out = {path for block in graph.blocks if block.name in self.blocks for path in block.paths}
        held = {}
        for path, value in zip(graph.paths, graph.leaves):
            for dim, axis in enumerate(value.axes if path not in left_out else ()):
                kept = self.kept.get(path, {}).get(dim, np.arange(axis.size))
                held[path, dim] = axis.ids, ~np.isin(np.arange(axis.size), kept)
        removed = removed_atoms(graph.coupling, list(held.values()))
        for (path, dim), (ids, gone) in held.items():
            if not np.array_equal(removed[ids].any(axis=1), gone):
                raise ValueError(
                    f"`shrinking`: with inputs of these shapes the function ties axis {dim} of {path!r} to other axes "
                    f"than with the inputs it was traced with: {graph.why_fixed(path, dim) or 'another layout'}."
                )
        return removed
