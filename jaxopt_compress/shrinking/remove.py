"""Physical removal: smaller parameters, a smaller function, and the proof that they compute the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_compress import tree
from jaxopt_compress.graph import Graph
from jaxopt_compress.shrinking import placed
from jaxopt_compress.shrinking.choosing import Cut
from jaxopt_compress.shrinking.cost import removed
from jaxopt_compress.shrinking.folds import folded
from jaxopt_compress.shrinking.narrowed import Kept, Narrowed
from jaxopt_compress.shrinking.verify import difference


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A function whose pruned units are gone.

    Attributes:
      fn: the smaller function, called as the original one.
      params: the smaller parameters.
      kept: for each parameter and axis that became smaller the indices that are left, `{"dense/kernel": {1: [0, 2]}}`.
      exact: whether every removed unit was one whose removal is exact.
      difference: the largest difference to the masked function on the example, relative to its largest output; NaN if
        it was not verified.
    """

    fn: Narrowed
    params: Any
    kept: Kept
    exact: bool
    difference: float

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """The new shape of every parameter that became smaller: what to build a module of one's own with."""
        return {path: self.fn.shape(path) for path in self.kept}

    def like(self, fn: Callable, shrinkable: tree.Where | None = None) -> Narrowed:
        """Narrow another function of the same parameters: the forward pass in training, with dropout or new statistics.

        Args:
          fn: `fn(params, *inputs)`, of the original parameters.
          shrinkable: which leaves of its output get narrower with them, as for `graph.trace`.
        """
        return replace(self.fn, fn=fn, shrinkable=shrinkable, _traced={})

    def narrow(self, like: Any) -> Any:
        """Cut a tree with the structure of the parameters (an average of them, gradients, masks) to the new shapes."""
        leaves = tree.leaves(like)
        return tree.replace(
            like, {path: placed.cut(leaves[path], dims) for path, dims in self.kept.items() if path in leaves}
        )

    def narrow_state(self, tx: optax.GradientTransformation, state: Any) -> Any:
        """Cut what an optimizer holds for each parameter (moments, traces, averages) to the new shapes."""
        paths = jax.tree.unflatten(jax.tree.structure(self.fn.params), list(tree.leaves(self.fn.params)))
        whole = tree.leaves(self.fn.params)

        def cut(leaf, path):
            return placed.cut(leaf, self.kept.get(path, {})) if np.shape(leaf) == whole[path].shape else leaf

        return optax.tree_utils.tree_map_params(tx, cut, state, paths)


def remove(graph: Graph, params: Any, cut: Cut, *inputs: Any, verify: bool = True, recount: bool = False) -> Shrunk:
    """Remove units from a function and its parameters.

    What the smaller function computes is what the original one computes with the units masked: with all slices zero
    that make them. Constants that masked channels still hand on (a sigmoid of zero) go into the bias that follows.

    Args:
      graph: the traced function.
      params: its parameters.
      cut: the units that go, from `choose`.
      *inputs: an example of its other arguments, of the shapes that it was traced with.
      verify: whether to run both functions on the example and compare.
      recount: whether means over a group that lost units are taken over what is left. The default counts the removed
        ones as the zeros they are, which is exact; a module built at the new width counts anew, and so does the smaller
        function with `recount=True`, whose difference is reported and not held against it.

    Returns:
      The smaller function and parameters.

    Raises:
      ValueError: a group or unit that is not there, a group that would lose all of its units, inputs of other shapes
        than traced; or the two functions differ although the removal is exact.
    """
    _check(graph, cut, inputs)
    gone = removed(graph, cut.units)
    kept = _kept(graph, gone, cut.blocks)
    masked = mask(graph, params, cut)
    whole = tree.replace(params, folded(graph, gone, masked, inputs))
    leaves = tree.leaves(whole)
    small = tree.replace(whole, {path: placed.cut(leaves[path], dims) for path, dims in kept.items()})
    fn = Narrowed(graph.fn, graph.params, kept, graph.shrinkable, recount, cut.blocks)
    leaky = [group.name for group in graph.groups for _, units in group.leaks if _meets(units, cut.units, group.name)]
    exact = not leaky and not (recount and any(group.counted for group in graph.groups if group.name in cut.units))
    found = difference(graph, fn, masked, small, inputs, gone, exact) if verify else float("nan")
    return Shrunk(fn, small, kept, exact, found)


def mask(graph: Graph, params: Any, cut: Cut) -> Any:
    """Set all slices to zero that make the given units; those that read them stay.

    Args:
      graph: the traced function.
      params: its parameters.
      cut: the units.
    """
    leaves = tree.leaves(params)
    new = {}
    for group in graph.groups:
        for part in group.slices:
            if group.name in cut.units and part.makes and jnp.issubdtype(leaves[part.path].dtype, jnp.inexact):
                index = part.index[cut.units[group.name]]
                new[part.path] = placed.zeroed(new.get(part.path, leaves[part.path]), part.axis, index)
    for path in _of_blocks(graph, cut.blocks):
        new[path] = jnp.zeros_like(leaves[path])
    return tree.replace(params, new)


def shrink(
    fn: Callable,
    params: Any,
    *inputs: Any,
    scores: Any = None,
    verify: bool = True,
    recount: bool = False,
    **target: Any,
) -> Shrunk:
    """Trace, choose and remove in one call; see `graph.trace`, `choose` and `remove`.

    Args:
      fn: `fn(params, *inputs)`, pure.
      params: its parameters.
      *inputs: an example of its other arguments.
      scores: a score for each entry of the parameters; by default its square.
      verify: as for `remove`.
      recount: as for `remove`.
      **target: as for `choose`: `ratio`, `keep` or `multiply_adds`, `scope`, `where`, `multiple`, `minimum`, `inexact`.

    Example:
      >>> mlp = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> p = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 3))}
      >>> small = shrink(mlp, p, jnp.ones((2, 4)), ratio=0.75)
      >>> small.widths, small.difference
      ({'down': (2, 3), 'up': (4, 2)}, 0.0)
    """
    from jaxopt_compress.graph import trace
    from jaxopt_compress.shrinking.choosing import choose

    graph = trace(fn, params, *inputs)
    if scores is None:
        scores = jax.tree.map(lambda leaf: np.square(placed.whole(leaf).astype(np.float64)), params)
    return remove(graph, params, choose(graph, scores, **target), *inputs, verify=verify, recount=recount)


def _of_blocks(graph: Graph, names: tuple[str, ...]) -> list[str]:
    return [path for block in graph.blocks if block.name in names for path in block.paths] if names else []


def _kept(graph: Graph, gone: np.ndarray, blocks: tuple[str, ...]) -> dict[str, dict[int, np.ndarray]]:
    left_out = _of_blocks(graph, blocks)
    kept: dict[str, dict[int, np.ndarray]] = {path: {0: np.arange(0)} for path in left_out}
    for path, value in zip(graph.paths, graph.leaves):
        if path in left_out:
            if not value.ndim:
                del kept[path]
            continue
        for dim, axis in enumerate(value.axes):
            out = gone[axis.ids].any(axis=1)
            if out.all() and out.size:
                raise ValueError(
                    f"`shrinking.remove`: some of each axis stays; all of axis {dim} of {path!r} would go."
                )
            if out.any():
                kept.setdefault(path, {})[dim] = np.flatnonzero(~out)
    return kept


def _meets(units: np.ndarray, cut: Mapping[str, np.ndarray], name: str) -> bool:
    return name in cut and bool(np.isin(units, cut[name]).any())


def _check(graph: Graph, cut: Cut, inputs: tuple[Any, ...]) -> None:
    sizes = {group.name: group.size for group in graph.groups}
    for name in set(cut.blocks) - {block.name for block in graph.blocks} if cut.blocks else ():
        there = ", ".join(block.name for block in graph.blocks) or "none"
        raise ValueError(f"`shrinking.remove`: no block is called {name!r}; there are {there}.")
    for name, units in cut.units.items():
        if name not in sizes:
            raise ValueError(
                f"`shrinking.remove`: no group is called {name!r}; there are {', '.join(sizes) or 'none'}."
            )
        if len(units) and (min(units) < 0 or max(units) >= sizes[name]):
            raise ValueError(f"`shrinking.remove`: units of {name!r} are 0 to {sizes[name] - 1}; got {units}.")
    got = jax.tree.map(np.shape, inputs)
    want = jax.tree.map(lambda leaf: leaf.shape, graph.inputs)
    if jax.tree.leaves(got) != jax.tree.leaves(want):
        raise ValueError(f"`shrinking.remove`: the example has the shapes {want} that were traced; got {got}.")
