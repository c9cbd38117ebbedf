"""The run of a program on arrays from which indices were removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_compress.graph.atoms import NEVER
from jaxopt_compress.graph.axes import KNOWN, UNIFORM
from jaxopt_compress.graph.coupling import Coupling
from jaxopt_compress.graph.program import Op, Program, Value, bind


@dataclass(eq=False)
class Narrowing:
    """What is removed, and the arrays so far.

    Attributes:
      coupling: what the passes found.
      removed: for each atom whether it is removed.
      recount: whether means are taken over the entries that are left, instead of as if the others were there.
      streams: the additions of which one operand is left out, with the number of the other.
      skipped: the operations that only served what is left out.
      arrays: the narrow arrays by value.
      only: the one removed atom whose slices are computed instead of those that are kept, if one is (see `lane`).
      outer: the run that it is computed for.
    """

    coupling: Coupling
    removed: np.ndarray
    recount: bool = False
    streams: Mapping[Op, int] = field(default_factory=dict)
    skipped: frozenset[Op] = frozenset()
    arrays: dict[Value, Any] = field(default_factory=dict)
    only: int = NEVER
    outer: "Narrowing | None" = None
    _kept: dict[tuple[Value, int], np.ndarray] = field(default_factory=dict)
    _touched: dict[Op, bool] = field(default_factory=dict)
    _lanes: "dict[int, Narrowing]" = field(default_factory=dict)

    # --- what is left ---

    def shrinks(self, value: Value, dim: int) -> bool:
        """Tell whether an axis loses any index."""
        return len(self.kept(value, dim)) < value.shape[dim]

    def kept(self, value: Value, dim: int) -> np.ndarray:
        """Return the indices of an axis that are left."""
        key = (value, dim)
        if key not in self._kept:
            axis = self.coupling.axes(value)[dim] if not value.axes else value.axes[dim]
            gone = self.removed[axis.ids].any(axis=1)
            here = (axis.ids == self.only).any(axis=1) & (self.only != NEVER)
            self._kept[key] = np.flatnonzero(here if here.any() else ~gone)
        return self._kept[key]

    def shape(self, value: Value) -> tuple[int, ...]:
        """Return the shape of the narrow array."""
        return tuple(len(self.kept(value, dim)) for dim in range(value.ndim))

    def positions(self, value: Value, dim: int, index: np.ndarray) -> np.ndarray:
        """Return where indices of the whole axis, all of them kept, stand in the narrow one."""
        return np.searchsorted(self.kept(value, dim), index)

    def cut(self, value: Value, array: Any) -> Any:
        """Narrow a whole array."""
        for dim in range(value.ndim):
            if self.shrinks(value, dim):
                array = (np if isinstance(array, np.ndarray) else jnp).take(array, self.kept(value, dim), axis=dim)
        return array

    # --- what was removed ---

    def removed_numbers(self, value: Value, dim: int) -> dict[float, int]:
        """Return the numbers that the removed slices of an axis hold, as far as they are known, with their count."""
        _, known, numbers = self._gone(value, dim)
        found, counts = np.unique(numbers[known], return_counts=True)
        return {float(number): int(count) for number, count in zip(found, counts)}

    def removed_lanes(self, value: Value, dim: int) -> int:
        """Return how many removed slices are all equal, without being known."""
        flags, known, _ = self._gone(value, dim)
        return int((~known & (flags & UNIFORM > 0)).sum())

    def _gone(self, value: Value, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return flags, whether known, and numbers of each removed index; of several removed atoms the best known."""
        axis = value.axes[dim]
        rows = np.flatnonzero(self.removed[axis.ids].any(axis=1))
        flags = np.where(self.removed[axis.ids[rows]], axis.flags[rows], 0)
        known = flags & KNOWN > 0
        best = known.argmax(axis=1)[:, None] if rows.size else np.zeros((0, 1), np.int64)
        numbers = np.take_along_axis(axis.values[rows], best, axis=1)[:, 0] if axis.shrinks else np.zeros(0)
        return np.bitwise_or.reduce(flags, axis=1), np.asarray(known.any(axis=1)), numbers

    def lane(self, value: Value, dim: int) -> Any:
        """Compute one of the removed slices of an axis that are all equal, with length 1 along it.

        The part of the program that leads to it is run once more, with that one index instead of those that are kept.
        """
        axis = value.axes[dim]
        free = self.removed[axis.ids] & (axis.flags & UNIFORM > 0) & (axis.flags & KNOWN == 0)
        atom = int(axis.ids[free][0])
        if atom not in self._lanes:
            self._lanes[atom] = replace(self, arrays={}, only=atom, outer=self, _kept={}, _touched={}, _lanes={})
        return lax.slice_in_dim(self._lanes[atom].read(value), 0, 1, axis=dim)

    # --- the run ---

    def run(self, program: Program, args: Sequence[Any]) -> list[Any]:
        """Run a program on narrow arrays."""
        self.arrays.update(zip(program.ins, args, strict=True))
        for op in program.ops:
            if op not in self.skipped:
                self.arrays.update(zip(op.outs, self._run(op), strict=True))
        return [self.read(value) for value in program.outs]

    def _run(self, op: Op) -> list[Any]:
        if op in self.streams:
            return [self.read(op.ins[self.streams[op]])]
        args = [self.read(value) for value in op.ins]
        with op.eqn.ctx.manager:  # the mesh, the kind of device that it was written for
            return self.coupling.rule(op).narrow(self, op, args) if self.touched(op) else bind(op, args)

    def read(self, value: Value) -> Any:
        """Return the narrow array of a value."""
        if value not in self.arrays:
            if self.outer is not None:
                self._read_lane(value, self.outer)
            else:
                self.arrays[value] = self.cut(value, value.const)
        return self.arrays[value]

    def _read_lane(self, value: Value, outer: "Narrowing") -> None:
        axis = next((a for a in value.axes if (a.ids == self.only).any()), None)
        if axis is None:
            self.arrays[value] = outer.read(value)
        elif (known := (axis.ids == self.only) & (axis.flags & KNOWN > 0)).any():
            self.arrays[value] = jnp.full(self.shape(value), axis.values[known][0], value.aval.dtype)
        elif value.op is None:
            self.arrays[value] = self.cut(value, value.const)
        else:
            self.arrays.update(zip(value.op.outs, self._run(value.op), strict=True))

    def touched(self, op: Op) -> bool:
        """Tell whether anything that goes in, comes out or is inside of an operation loses an index."""
        if op not in self._touched:
            values = [*op.ins, *op.outs]
            self._touched[op] = any(self.shrinks(value, dim) for value in values for dim in range(value.ndim)) or any(
                self.touched(inner) for body in op.bodies for inner in body.ops
            )
        return self._touched[op]


def removed_atoms(coupling: Coupling, held: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Find the atoms that are removed, given which indices of some axes are.

    Args:
      coupling: where the atoms are from.
      held: sets of atoms, `[n, k]`, and whether each index is removed, `[n]`, for each axis.

    Returns:
      For each atom whether it is removed: all indices that hold it are.
    """
    seen, stays = np.zeros(coupling.atoms.count, bool), np.zeros(coupling.atoms.count, bool)
    for ids, gone in held:
        seen[ids] = True
        stays[ids[~gone]] = True
    removed = seen & ~stays
    removed[NEVER] = False
    return removed
