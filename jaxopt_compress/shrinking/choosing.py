"""Which units of which groups to remove."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxopt_compress import tree
from jaxopt_compress.graph import Graph, Group
from jaxopt_compress.shrinking import placed
from jaxopt_compress.shrinking.cost import narrow_multiply_adds

Ratio = float | Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Cut:
    """What is to be removed.

    Attributes:
      units: the numbers of the units that go, by the name of their group.
      blocks: the names of the residual branches that go.
    """

    units: Mapping[str, np.ndarray]
    blocks: tuple[str, ...] = ()


def choose(
    graph: Graph,
    scores: Any,
    *,
    ratio: Ratio | None = None,
    keep: Mapping[str, int] | None = None,
    multiply_adds: float | None = None,
    blocks: int = 0,
    scope: str = "group",
    where: Callable[[Group], bool] = lambda group: True,
    inexact: bool = False,
    multiple: int = 1,
    minimum: int = 1,
) -> Cut:
    """Choose the units with the lowest scores.

    Args:
      graph: the traced function.
      scores: a score for each entry of the parameters, in their tree, as a criterion of `pruning` gives them: the
        score of a unit is the sum over all its slices.
      ratio: the fraction of units that go, of all groups or by name.
      keep: how many units stay, by name of the group; the other groups are left alone.
      multiply_adds: the fraction of the multiply-adds that go, at least; just one of these three is given, or none
        where blocks go.
      blocks: how many residual branches go, those whose parameters have the lowest scores together.
      scope: "group" takes the same fraction of each group, "global" the lowest of all groups together, "kind" the
        lowest of all groups that are alike in structure (feed-forward layers together, heads apart from them).
      where: which groups may lose units.
      inexact: whether groups may lose units whose removal is not exact.
      multiple: what stays of a group is a multiple of this, as far as the group has as many.
      minimum: how many units of a group stay at least.

    Returns:
      The units that go, by group.

    Raises:
      ValueError: no target or two, a ratio outside [0, 1), a name that no group has, an unknown scope, `where` that
        leaves no group, or a target that cannot be reached.
    """
    _check(graph, ratio, keep, multiply_adds, blocks, scope, multiple, minimum)
    gone = _lowest_blocks(graph, scores, blocks)
    if ratio is None and keep is None and multiply_adds is None:
        return Cut({}, gone)
    summed = unit_scores(graph, scores)
    free = [group for group in graph.groups if where(group) and (inexact or group.exact)]
    if not free:
        raise ValueError(f"`shrinking.choose`: some group may lose units; {_why_none(graph)}")
    take = _Taking(free, summed, scope, multiple, minimum, gone)
    if keep is not None:
        return take.counts(keep)
    if isinstance(ratio, Mapping):
        by_name = {group.name: group for group in free}
        return take.counts(
            {name: by_name[name].size - round(by_name[name].size * part) for name, part in ratio.items()}
        )
    if ratio is not None:
        return take.fraction(ratio)
    return _until(graph, take, 0.0 if multiply_adds is None else multiply_adds)


def _lowest_blocks(graph: Graph, scores: Any, count: int) -> tuple[str, ...]:
    if not count:
        return ()
    found = tree.leaves(scores)
    total = lambda block: sum(float(np.sum(placed.whole(found[path]).astype(np.float64))) for path in block.paths)  # noqa: E731
    return tuple(block.name for block in sorted(graph.blocks, key=total)[:count])


def unit_scores(graph: Graph, scores: Any) -> dict[str, np.ndarray]:
    """Sum the scores of all entries that go with each unit, by group.

    Args:
      graph: the traced function.
      scores: a score for each entry of the parameters, in their tree.

    Raises:
      ValueError: scores of another shape than their parameter.
    """
    found = tree.leaves(scores)
    along: dict[tuple[str, int], np.ndarray] = {}
    for group in graph.groups:
        for part in group.slices:
            if (part.path, part.axis) not in along:
                along[part.path, part.axis] = _along(found, graph, part.path, part.axis)
    return {
        group.name: sum((along[s.path, s.axis][s.index].sum(axis=1) for s in group.slices), np.zeros(group.size))
        for group in graph.groups
    }


def _along(found: Mapping[str, Any], graph: Graph, path: str, axis: int) -> np.ndarray:
    shape = graph.leaves[graph.paths.index(path)].shape
    score = placed.whole(found[path]).astype(np.float64) if path in found else np.zeros(())
    if score.shape != shape:
        raise ValueError(
            f"`shrinking`: scores have the shapes of the parameters; {path!r} has {shape}, got {score.shape}."
        )
    return score.sum(axis=tuple(dim for dim in range(score.ndim) if dim != axis))


@dataclass(frozen=True, eq=False)
class _Taking:
    """Takes the lowest units of groups, under the rules on how many must stay."""

    groups: Sequence[Group]
    scores: Mapping[str, np.ndarray]
    scope: str
    multiple: int
    minimum: int
    blocks: tuple[str, ...]

    def counts(self, keep: Mapping[str, int]) -> Cut:
        cut = {}
        for group in self.groups:
            if group.name in keep:
                stay = self._rounded(group, keep[group.name])
                cut[group.name] = np.sort(np.argsort(self.scores[group.name], kind="stable")[: group.size - stay])
        return Cut(cut, self.blocks)

    def fraction(self, ratio: float) -> Cut:
        if self.scope == "group":
            return self.counts({group.name: group.size - round(group.size * ratio) for group in self.groups})
        keep: dict[str, int] = {}
        for kind in {group.kind if self.scope == "kind" else () for group in self.groups}:
            alike = [group for group in self.groups if self.scope == "global" or group.kind == kind]
            every = np.sort(np.concatenate([self.scores[group.name] for group in alike]))
            gone = round(len(every) * ratio)
            bound = every[gone] if gone < len(every) else np.inf
            keep |= {group.name: int((self.scores[group.name] >= bound).sum()) for group in alike}
        return self.counts(keep)

    def _rounded(self, group: Group, stay: int) -> int:
        stay = max(stay, self.minimum, 1)
        return min(-(-stay // self.multiple) * self.multiple, group.size)


def _until(graph: Graph, take: _Taking, target: float) -> Cut:
    """Take as few as are needed, by bisection on the fraction of units."""
    whole = narrow_multiply_adds(graph, Cut({}))
    low, high = 0.0, 1.0
    best = take.fraction(high)
    least = narrow_multiply_adds(graph, best)
    if least > (1 - target) * whole:
        raise ValueError(
            f"`shrinking.choose`: {target:.0%} of the multiply-adds can be removed; with {take.minimum} unit(s) of "
            f"each group left, {1 - least / whole:.1%} can."
        )
    for _ in range(24):
        middle = (low + high) / 2
        cut = take.fraction(middle)
        if narrow_multiply_adds(graph, cut) <= (1 - target) * whole:
            high, best = middle, cut
        else:
            low = middle
    return best


def _check(
    graph: Graph,
    ratio: Any,
    keep: Any,
    multiply_adds: Any,
    blocks: int,
    scope: str,
    multiple: int,
    minimum: int,
) -> None:
    call = "`shrinking.choose`: "
    given = sum(target is not None for target in (ratio, keep, multiply_adds))
    if given > 1 or not (given or blocks):
        raise ValueError(
            f"{call}one of `ratio`, `keep`, `multiply_adds` is given; got {ratio}, {keep}, {multiply_adds}."
        )
    if not 0 <= blocks <= len(graph.blocks):
        names = ", ".join(block.name for block in graph.blocks) or "none"
        raise ValueError(f"{call}`blocks` is a number of residual branches, of which there are {names}; got {blocks}.")
    parts = list(ratio.values()) if isinstance(ratio, Mapping) else [ratio, multiply_adds]
    for part in parts:
        if part is not None and not 0 <= part < 1:
            raise ValueError(f"{call}a fraction that goes is in [0, 1); got {part}.")
    if scope not in ("group", "global", "kind"):
        raise ValueError(f"{call}`scope` is 'group', 'global' or 'kind'; got {scope!r}.")
    if multiple < 1 or minimum < 1:
        raise ValueError(f"{call}`multiple` and `minimum` are at least 1; got {multiple} and {minimum}.")
    names = {group.name for group in graph.groups}
    for name in [*(keep or ()), *(ratio if isinstance(ratio, Mapping) else ())]:
        if name not in names:
            raise ValueError(f"{call}no group is called {name!r}; there are {', '.join(sorted(names)) or 'none'}.")


def _why_none(graph: Graph) -> str:
    leaks = [text for group in graph.groups for text, _ in group.leaks]
    if graph.groups:
        return f"none passes `where`, or none is exact: {leaks[0] if leaks else 'no leak'}"
    reasons = {graph.why_fixed(path, dim) for path, leaf in zip(graph.paths, graph.leaves) for dim in range(leaf.ndim)}
    return f"nothing can shrink: {'; '.join(sorted(reasons - {''}))}"
