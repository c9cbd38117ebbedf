"""What is known of one axis of one value, and the ways in which operations rearrange it.

For every index there is a set of atoms (see `atoms`), and for every atom of it a *fill*: what the slice at that index
holds once the atom is masked, as far as it is known. Zero is what makes removal exact; a constant can be folded into
the next bias; a slice that is the same at all removed indices can be computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxopt_compress.graph.atoms import NEVER, Atoms

KNOWN = 1  # the slice holds one number, the one in `values`
CONSTANT = 2  # the slice holds one number that depends on no input
UNIFORM = 4  # all slices of this axis that are removed with the atom are equal
SURE = KNOWN | CONSTANT | UNIFORM

LeafAxis = tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True)
class Axis:
    """One axis of one value.

    Attributes:
      ids: sets of atoms, `[n, k]`; `NEVER` fills up.
      flags: what is known of the fill for each atom, `[n, k]`.
      values: the fill where it is `KNOWN`, `[n, k]`.
      origins: the axes of parameter leaves that it is an arrangement of, as long as no input came in.
      why: the number of the reason for which it cannot shrink, if it cannot.
    """

    ids: np.ndarray
    flags: np.ndarray
    values: np.ndarray
    origins: frozenset[LeafAxis] = frozenset()
    why: int = 0

    @property
    def size(self) -> int:
        """Its length."""
        return len(self.ids)

    @property
    def shrinks(self) -> bool:
        """Whether any index of it can be removed."""
        return self.ids.shape[1] > 0


def axis(ids: np.ndarray, flags: int = 0, value: float = 0.0, **rest) -> Axis:
    """Make an axis with one fill throughout."""
    return Axis(ids, np.full(ids.shape, flags, np.uint8), np.full(ids.shape, value), **rest)


def fixed(size: int, why: int = 0, origins: frozenset[LeafAxis] = frozenset()) -> Axis:
    """Make an axis that keeps its size."""
    return axis(np.zeros((size, 0), np.int64), why=why, origins=origins)


def resolve(atoms: Atoms, one: Axis) -> Axis:
    """Write an axis in the atoms that are left."""
    ids, why = atoms.resolve(one.ids)
    if ids.shape == one.ids.shape and np.array_equal(ids, one.ids):
        return one
    return Axis(ids, *fill(one, ids), one.origins, one.why or why)


def take(one: Axis, index: np.ndarray) -> Axis:
    """Gather indices of an axis."""
    return Axis(one.ids[index], one.flags[index], one.values[index], one.origins, one.why)


def concatenate(parts: Sequence[Axis]) -> Axis:
    """Put axes one after the other."""
    width = max(part.ids.shape[1] for part in parts)
    pads = [((0, 0), (0, width - part.ids.shape[1])) for part in parts]
    ids, flags, values = (
        np.concatenate([np.pad(getattr(part, name), pad) for part, pad in zip(parts, pads)])
        for name in ("ids", "flags", "values")
    )
    if sum(bool((part.flags & (UNIFORM | KNOWN) == UNIFORM).any()) for part in parts) > 1:
        flags = np.where(flags & KNOWN > 0, flags, flags & ~np.uint8(UNIFORM))  # equal in each part, not in all
    return Axis(ids, flags, values, origins(parts), why(parts))


def merge(parts: Sequence[Axis]) -> Axis:
    """Flatten several axes into one, the last the fastest."""
    sizes = [part.size for part in parts]
    index = np.indices(sizes).reshape(len(sizes), -1)
    spread = [take(part, where) for part, where in zip(parts, index)]
    ids, flags, values = (
        np.concatenate([getattr(part, name) for part in spread], axis=1) for name in ("ids", "flags", "values")
    )
    return Axis(ids, flags & ~np.uint8(UNIFORM), values, origins(parts), why(parts))


def split(atoms: Atoms, one: Axis, sizes: Sequence[int], reason: int) -> list[Axis]:
    """Cut a flat axis into the axes of a grid; the counterpart of `merge`.

    An atom that stands in one row of the grid belongs to that axis. One that stands anywhere else must go with a whole
    row, or a whole column: it is equated with the two.
    """
    if not atoms.settled:
        for column in atoms.resolve(one.ids)[0].T:
            _straighten(atoms, column, sizes, reason)
    one = resolve(atoms, one)
    found = [_side(one, sizes, dim) for dim in range(len(sizes))]
    if not atoms.settled:  # an atom that stands everywhere, so that an axis would be removed whole
        left = one.ids[~np.isin(one.ids, np.concatenate([part.ids.ravel() for part in found] + [[NEVER]]))]
        atoms.pin(left, reason)
    return found


def _straighten(atoms: Atoms, column: np.ndarray, sizes: Sequence[int], reason: int) -> None:
    grid = column.reshape(sizes)
    varies = [dim for dim in range(grid.ndim) if (grid != grid.take([0], dim)).any()]
    if len(varies) > 1:
        grid = grid[tuple(slice(None) if dim in varies else 0 for dim in range(grid.ndim))]
        parts = [axis(atoms.fresh(size).reshape(-1, 1)) for size in grid.shape]
        atoms.unify(grid.reshape(-1, 1), merge(parts).ids, reason)


def _side(one: Axis, sizes: Sequence[int], dim: int) -> Axis:
    """Return what stands along one axis of the grid: the atoms that change along it and along no other."""
    width, size, others = one.ids.shape[1], sizes[dim], one.size // sizes[dim]
    ids, flags, values = (
        np.moveaxis(array.reshape(*sizes, width), dim, 0).reshape(size, others, width)
        for array in (one.ids, one.flags, one.values)
    )
    here = (ids == ids[:, :1]).all(axis=(0, 1))  # columns that are the same all along the other axes
    here &= (ids[:, 0] != ids[:1, 0]).any(axis=0)
    ids, flags, values = ids[:, :, here], flags[:, :, here], values[:, :, here]
    same = alike(values, values[:, :1]) | ((flags & KNOWN) == 0)
    flags = np.where(same, flags, 0)
    flags = np.bitwise_and.reduce(flags, axis=1) if flags.shape[1] else flags[:, 0]
    flags &= ~np.uint8(UNIFORM)
    return Axis(ids[:, 0], flags, values[:, 0], one.origins, one.why)


def fill(one: Axis, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return flags and values of an axis in the order of the atoms of another that equals it, `[n, k]` each."""
    if one.ids is ids or (one.ids.shape == ids.shape and np.array_equal(one.ids, ids)):
        return one.flags, one.values
    flags, values = np.zeros(ids.shape, np.uint8), np.zeros(ids.shape)
    for a in range(one.ids.shape[1]):
        match = (ids == one.ids[:, a : a + 1]) & (ids > NEVER)
        flags, values = (
            np.where(match, one.flags[:, a : a + 1], flags),
            np.where(match, one.values[:, a : a + 1], values),
        )
    return flags, values


def alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compare numbers; NaN, which a slice that divides zero by zero holds, equals itself."""
    return (one == other) | (np.isnan(one) & np.isnan(other))


def origins(parts: Sequence[Axis]) -> frozenset[LeafAxis]:
    """Return the leaf axes that any of the parts is an arrangement of."""
    return frozenset().union(*(part.origins for part in parts))


def why(parts: Sequence[Axis]) -> int:
    """Return the first reason for which one of the parts cannot shrink."""
    return next((part.why for part in parts if part.why), 0)
