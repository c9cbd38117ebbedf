"""Which indices of which axes go together: equations between sets of unknowns, solved as they come.

An *atom* is an unknown: "is this removed?". Each index of each axis has a set of atoms, and is removed if any of them
is. An equation says that two axes lose the same indices. Where both sides hold one atom an index, the two become one
(union-find). Where one side holds one and the other several (a flat axis of a grid, cut into heads and what is in
them), the one is from then on the several: `flat[i * n + j] = row[i] or column[j]`. So
removing a whole row and removing a column are both open, and removing one entry is not, as no array could be without
it. What cannot be solved so is pinned: never removed, which satisfies any equation.
"""

import numpy as np

NEVER = 0


class Atoms:
    """The unknowns and what is known of them.

    Attributes:
      reasons: why atoms are pinned, as sentences; the first stands for no reason.
      settled: whether all equations are in; from then on new ones change nothing.
    """

    def __init__(self):
        self.reasons = ["", "it meets an axis that it does not fit"]
        self.settled = False
        self._count = 1
        self._parent = np.zeros(1024, np.int64)
        self._parts = np.zeros((1024, 2), np.int64)  # the two sets that an atom stands for, once it is substituted
        self._why = np.zeros(1024, np.int32)  # the reason for which a root is pinned

    def fresh(self, count: int) -> np.ndarray:
        """Return new atoms, `[count]`."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            grow = max(self._count, 2 * len(self._parent)) - len(self._parent)
            self._parent = np.concatenate([self._parent, np.zeros(grow, np.int64)])
            self._parts = np.concatenate([self._parts, np.zeros((grow, 2), np.int64)])
            self._why = np.concatenate([self._why, np.zeros(grow, np.int32)])
        ids = np.arange(start, self._count)
        self._parent[ids] = ids
        return ids

    @property
    def count(self) -> int:
        """The number of atoms so far, those that stand for others included."""
        return self._count

    def reason(self, text: str) -> int:
        """Write down why something is pinned; return its number."""
        self.reasons.append(text)
        return len(self.reasons) - 1

    def pin(self, ids: np.ndarray, reason: int) -> None:
        """Say that none of these atoms is ever removed."""
        if not self.settled and ids.size:
            roots = self.resolve(ids.reshape(-1, 1))[0]
            self._why[roots[roots > NEVER]] = reason or 1

    def resolve(self, ids: np.ndarray) -> tuple[np.ndarray, int]:
        """Write sets of atoms, `[n, k]`, in the atoms that are left, and say why any are pinned (0: none is)."""
        why = 0
        while ids.size:
            roots = self._find(ids)
            pinned = self._why[roots]
            if pinned.any():
                why = why or int(pinned.max())
                roots = np.where(pinned > 0, NEVER, roots)
            parts = self._parts[roots]
            split = parts[..., 0] > 0
            if not split.any():
                return _distinct(roots), why
            ids = np.concatenate([np.where(split, parts[..., 0], roots), np.where(split, parts[..., 1], NEVER)], axis=1)
        return ids.reshape(len(ids), 0), why

    def unify(self, one: np.ndarray, other: np.ndarray, reason: int) -> None:
        """Say that two axes, `[n, k]` and `[n, m]`, lose the same indices; pin what cannot, for the given reason."""
        if self.settled or one is other:
            return
        (one, first), (other, second) = self.resolve(one), self.resolve(other)
        reason = first or second or reason
        one, other = _difference(one, other)
        if not (one.shape[1] and other.shape[1]):
            self.pin(one, reason)
            self.pin(other, reason)
        elif one.shape[1] == other.shape[1] == 1:
            self._same(one[:, 0], other[:, 0], reason)
        elif one.shape[1] == 1:
            self._substitute(one[:, 0], other, reason)
        elif other.shape[1] == 1:
            self._substitute(other[:, 0], one, reason)
        else:
            self._match(one, other, reason)

    def _find(self, ids: np.ndarray) -> np.ndarray:
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def _same(self, one: np.ndarray, other: np.ndarray, reason: int) -> None:
        self.pin(one[other == NEVER], reason)
        self.pin(other[one == NEVER], reason)
        while True:
            one, other = self._find(one), self._find(other)
            low, high = np.minimum(one, other), np.maximum(one, other)
            differ = (low != high) & (low != NEVER)
            if not differ.any():
                return
            low, high = low[differ], high[differ]
            np.maximum.at(self._why, low, self._why[high])
            self._parent[high] = low

    def _substitute(self, single: np.ndarray, many: np.ndarray, reason: int) -> None:
        """Let every atom of `single`, `[n]`, stand for the set of its row in `many`, `[n, k]`."""
        if np.intersect1d(single, many).size > (NEVER in single and NEVER in many):
            self.pin(single, reason)  # a set that holds itself has no sensible solution
            self.pin(many, reason)
            return
        self.pin(many[single == NEVER], reason)
        atoms, first, where = np.unique(single, return_index=True, return_inverse=True)
        for column in many.T:  # one atom at several indices: their sets are the same, column by column
            self._same(column, column[first][where], reason)
        sets = np.take_along_axis(many[first], np.argsort(many[first] == NEVER, axis=1, kind="stable"), axis=1)
        self.pin(atoms[sets[:, 0] == NEVER], reason)
        open_ = (atoms > NEVER) & (sets[:, 0] > NEVER)
        atoms, sets = atoms[open_], sets[open_]
        while sets.shape[1] > 2:
            pairs = self.fresh(len(atoms))
            self._parts[pairs] = sets[:, -2:]
            pairs = np.where(sets[:, -2] > NEVER, pairs, NEVER)
            sets = np.concatenate([sets[:, :-2], pairs[:, None]], axis=1)
        self._parts[atoms] = sets

    def _match(self, one: np.ndarray, other: np.ndarray, reason: int) -> None:
        """Equate two grids over one axis: columns that vary alike are the same."""
        patterns = [_pattern(column).tobytes() for column in other.T]
        for a in range(one.shape[1]):
            pattern = _pattern(one[:, a]).tobytes()
            if pattern in patterns:
                b = patterns.index(pattern)
                self._same(one[:, a], other[:, b], reason)
                self.unify(np.delete(one, a, 1), np.delete(other, b, 1), reason)
                return
        if not self._refine(one, other):
            self.pin(one, reason)
            self.pin(other, reason)
            return
        self.unify(one, other, reason)

    def _refine(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Cut the digits of two grids of one axis (4 x 3 and 2 x 6) to common ones (2 x 2 x 3), if they nest."""
        digits = [(column, _digit(column)) for column in np.concatenate([one, other], axis=1).T]
        if any(digit is None for _, digit in digits):
            return False
        cuts = sorted({edge for _, digit in digits if digit for edge in (digit[0], digit[0] * digit[1])})
        if any(high % low for low, high in zip(cuts, cuts[1:])):
            return False
        done = False
        for column, (stride, size) in ((c, d) for c, d in digits if d):
            inside = [cut // stride for cut in cuts if stride < cut < stride * size]
            if inside:
                atoms = column[np.arange(size) * stride]
                self._substitute(atoms, self._digits(size, inside), self.reason("grids of one axis do not nest"))
                done = True
        return done

    def _digits(self, size: int, cuts: list[int]) -> np.ndarray:
        columns, index = [], np.arange(size)
        for low, high in zip([1, *cuts], [*cuts, size]):
            columns.append(self.fresh(high // low)[index // low % (high // low)])
        return np.stack(columns, axis=1)


def _distinct(ids: np.ndarray) -> np.ndarray:
    """Drop columns that say nothing: all pinned, or equal to one before; and atoms that a row holds twice."""
    if ids.shape[1] == 1:
        return ids if ids.any() else ids[:, :0]
    ids = ids.copy()
    for b in range(1, ids.shape[1]):
        for a in range(b):
            ids[:, b] = np.where(ids[:, a] == ids[:, b], NEVER, ids[:, b])
    return ids[:, ids.any(axis=0)]


def _difference(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop, row by row, the atoms that both sides hold."""
    if one.shape == other.shape and np.array_equal(one, other):
        return one[:, :0], other[:, :0]
    if one.shape[1] and other.shape[1]:
        both = (one[:, :, None] == other[:, None, :]) & (one[:, :, None] > NEVER)
        one, other = np.where(both.any(2), NEVER, one), np.where(both.any(1), NEVER, other)
    return _distinct(one), _distinct(other)


def _pattern(column: np.ndarray) -> np.ndarray:
    """Return for each index the first at which its atom stands."""
    _, first, where = np.unique(column, return_index=True, return_inverse=True)
    return first[where]


def _digit(column: np.ndarray) -> tuple[int, int] | None:
    """Return stride and size if the atom at index p is number `p // stride % size`, as a reshaped grid has it."""
    pattern = _pattern(column)
    size = len(np.unique(pattern))
    changed = np.flatnonzero(pattern != pattern[0])
    stride = int(changed[0]) if changed.size else len(column)
    index = np.arange(len(column))
    return (stride, size) if np.array_equal(pattern, index // stride % size * stride) else None
