"""What can be removed: atoms of one kind, with the slices of parameters that each of them takes along."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxopt_compress.graph.atoms import NEVER
from jaxopt_compress.graph.coupling import Coupling
from jaxopt_compress.graph.program import Value


@dataclass(frozen=True, eq=False)
class Slices:
    """The part of a group that lies on one axis of one parameter.

    Attributes:
      path: the parameter.
      axis: the axis.
      index: the indices that go with each unit, `[units, m]`.
      makes: whether the slices make the channel, and are zero when it is masked; if not, they read it.
    """

    path: str
    axis: int
    index: np.ndarray
    makes: bool


@dataclass(frozen=True, eq=False)
class Group:
    """Units that play the same part: the neurons of a layer, the heads of an attention, its experts.

    Attributes:
      name: the parameter and axis that make it, "layer/kernel[1]".
      atoms: one atom for each unit, `[units]`.
      slices: what a unit consists of.
      leaks: why removal is not exact, for those units for which it is not, with the units.
      counted: whether a mean is taken over the units. The narrowed function goes on to count those that are gone as
        the zeros that they are; a module built anew at the smaller width would count those that are left.
      kind: groups of equal kind are alike in structure, and their scores can be compared.
    """

    name: str
    atoms: np.ndarray
    slices: tuple[Slices, ...]
    leaks: tuple[tuple[str, np.ndarray], ...]
    counted: bool
    kind: tuple

    @property
    def size(self) -> int:
        """The number of units."""
        return len(self.atoms)

    @property
    def exact(self) -> bool:
        """Whether removing any unit gives what masking it gives, for every input."""
        return not self.leaks


def groups(coupling: Coupling, paths: Sequence[str], leaves: Sequence[Value]) -> tuple[Group, ...]:
    """Collect the atoms that stand on parameters into groups with the same footprint."""
    table = _occurrences(coupling, leaves)
    if not table.shape[0]:
        return ()
    atoms, signature = _signatures(table)
    _, first, member = np.unique(signature, return_index=True, return_inverse=True)
    order = np.lexsort(
        (table[:, 3], table[:, 0], table[:, 2], table[:, 1], member[np.searchsorted(atoms, table[:, 0])])
    )
    table = table[order]
    owner = member[np.searchsorted(atoms, table[:, 0])]
    leaks = [leak for found in coupling.leaks.values() for leak in found]
    notes = _Notes(coupling, leaks)
    edges = np.searchsorted(owner, np.arange(len(first) + 1))
    found = [_group(coupling, table[a:b], paths, leaves, notes) for a, b in zip(edges, edges[1:])]
    place = {path: i for i, path in enumerate(paths)}
    found.sort(key=lambda g: (place[g.name.rsplit("[", 1)[0]], g.name, -g.size))
    return tuple(_named_apart(found))


def _named_apart(found: list[Group]) -> list[Group]:
    """Add to names that two groups share how many entries a unit has on that axis: heads of 16, and what is in them."""
    for width in (True, False):
        names = [group.name for group in found]
        twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
        for place, group in enumerate(found):
            if group.name in twice:
                entries = max(
                    (s.index.shape[1] for s in group.slices if f"{s.path}[{s.axis}]" == group.name), default=1
                )
                mark = f"/{entries}" if width else f"#{names[:place].count(group.name)}"
                found[place] = replace(group, name=group.name + mark)
    return found


def _occurrences(coupling: Coupling, leaves: Sequence[Value]) -> np.ndarray:
    """Return atom, leaf axis, column and index of every atom on every parameter, `[m, 4]`."""
    rows = []
    for place, value in enumerate(leaves):
        for dim, axis in enumerate(value.axes):
            index, column = np.nonzero(axis.ids)
            number = np.full(len(index), place * 64 + dim)
            rows.append(np.stack([axis.ids[index, column], number, column, index], axis=1))
    return np.concatenate([np.zeros((0, 4), np.int64), *rows])


def _signatures(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the atoms, and for each a number that tells on which axes it stands, and how often."""
    keys, count = np.unique(table[:, :3], axis=0, return_counts=True)
    atoms, owner = np.unique(keys[:, 0], return_inverse=True)
    mixed = keys[:, 1].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ keys[:, 2].astype(np.uint64) << np.uint64(17)
    mixed = (mixed ^ count.astype(np.uint64) << np.uint64(31)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0x94D049BB133111EB)
    signature = np.zeros(len(atoms), np.uint64)
    np.add.at(signature, owner, mixed)
    return atoms, signature


class _Notes:
    """What is said about atoms, by atom."""

    def __init__(self, coupling: Coupling, leaks: Sequence):
        count = coupling.atoms.count
        self.counted = np.zeros(count, bool)
        for ids in coupling.counted.values():
            self.counted[ids] = True
        self.counted[NEVER] = False
        self.leaks = leaks
        self.first = np.concatenate([np.zeros(0, np.int64), *(np.full(len(k.atoms), i) for i, k in enumerate(leaks))])
        self.atoms = np.concatenate([np.zeros(0, np.int64), *(leak.atoms for leak in leaks)])
        order = np.argsort(self.atoms, kind="stable")
        self.atoms, self.first = self.atoms[order], self.first[order]

    def of(self, atoms: np.ndarray) -> tuple[tuple[str, np.ndarray], ...]:
        start, stop = np.searchsorted(self.atoms, atoms), np.searchsorted(self.atoms, atoms, side="right")
        units: dict[str, list[int]] = {}
        for unit in np.flatnonzero(stop > start):
            for leak in self.first[start[unit] : stop[unit]]:
                units.setdefault(self.leaks[leak].text, []).append(int(unit))
        return tuple((text, np.array(found)) for text, found in units.items())


def _group(
    coupling: Coupling, table: np.ndarray, paths: Sequence[str], leaves: Sequence[Value], notes: _Notes
) -> Group:
    atoms = np.unique(table[:, 0])
    slices = []
    for number in np.unique(table[:, 1]):
        place, dim = divmod(int(number), 64)
        rows = table[table[:, 1] == number]
        rows = rows[np.lexsort((rows[:, 3], rows[:, 0]))]
        makes = (place, dim) not in coupling.consumed - coupling.produced
        slices.append(Slices(paths[place], dim, rows[:, 3].reshape(len(atoms), -1), makes))
    chief = max(slices, key=lambda s: (s.makes, leaves[paths.index(s.path)].aval.size))
    kind = tuple(sorted((leaves[paths.index(s.path)].shape, s.axis, s.index.shape, s.makes) for s in slices))
    counted = bool(notes.counted[atoms].any())
    return Group(f"{chief.path}[{chief.axis}]", atoms, tuple(slices), notes.of(atoms), counted, kind)
