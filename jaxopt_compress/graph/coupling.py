"""The pass over a program that finds which indices go together, and what becomes of a slice whose atom is masked.

It runs twice over the same rules: first to collect the equations, then, with all of them solved, to follow the fills.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxopt_compress.graph import axes
from jaxopt_compress.graph.atoms import NEVER, Atoms
from jaxopt_compress.graph.axes import Axis, LeafAxis
from jaxopt_compress.graph.program import Op, Program, Value, constant


@dataclass(frozen=True, eq=False)
class Leak:
    """A place where removing an atom does not give what masking it gives.

    Attributes:
      atoms: whose removal is not exact there.
      text: what happens, and the user's line.
    """

    atoms: np.ndarray
    text: str


@dataclass(frozen=True, eq=False)
class Contraction:
    """One use of a parameter in a contraction, a convolution or a lookup.

    Attributes:
      op: the operation.
      origins: for each axis of the parameter's side, the leaf axes that it is an arrangement of.
      roles: for each axis of the parameter's side "in", "out", "batch", "window" or "index".
    """

    op: Op
    origins: tuple[frozenset[LeafAxis], ...]
    roles: tuple[str, ...]


@dataclass(eq=False, repr=False)
class Coupling:
    """What the pass knows while it runs.

    Attributes:
      rule: finds the rule of an operation.
      atoms: the unknowns.
      leaks: by operation, where removal is not exact.
      counted: by operation, the atoms of axes whose length enters a mean.
      folds: by operation, the atoms whose constant must go into the bias that follows.
      uses: by operation and side, who consumes which parameter.
      users: the operations that a value goes into.
      produced, consumed: the leaf axes that make a channel, and those that are contracted with it.
    """

    rule: Callable[[Op], Any]
    atoms: Atoms = field(default_factory=Atoms)
    leaks: dict[Op, list[Leak]] = field(default_factory=dict)
    counted: dict[Op, np.ndarray] = field(default_factory=dict)
    folds: dict[Op, np.ndarray] = field(default_factory=dict)
    uses: dict[tuple[Op, int], Contraction] = field(default_factory=dict)
    produced: set[LeafAxis] = field(default_factory=set)
    consumed: set[LeafAxis] = field(default_factory=set)
    users: dict[Value, list[Op]] = field(default_factory=dict)
    scalars: dict[Any, Any] = field(default_factory=dict)
    _fresh: dict[Any, np.ndarray] = field(default_factory=dict)
    _reasons: dict[Any, int] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether this is the second run, in which fills are followed."""
        return self.atoms.settled

    def axes(self, value: Value) -> list[Axis]:
        """Return the axes of a value, in the atoms that are left; those of a constant are made here."""
        if value.op is None and not value.axes and value.ndim:
            value.axes = [self.fresh((value, dim), size) for dim, size in enumerate(value.shape)]
        value.axes = [axes.resolve(self.atoms, axis) for axis in value.axes]
        if self.settled and value.const is not None and value.leaf is None:
            value.axes = [_constant_fill(value, dim) for dim in range(value.ndim)]
        return value.axes

    def fresh(self, key: Any, size: int, flags: int = 0, value: float = 0.0) -> Axis:
        """Return an axis of new atoms, the same ones whenever the key is the same; an axis of one index is fixed."""
        if size <= 1:
            return axes.fixed(size)
        if key not in self._fresh:
            self._fresh[key] = self.atoms.fresh(size)
        ids, why = self.atoms.resolve(self._fresh[key].reshape(-1, 1))
        return axes.axis(ids, flags, value, why=why)

    def made(self, key: Any) -> bool:
        """Tell whether `fresh` has made atoms for a key."""
        return key in self._fresh

    def reason(self, op: Op, text: str) -> int:
        """Return the number of the sentence "`primitive` ... (the user's line)"."""
        if (op, text) not in self._reasons:
            self._reasons[op, text] = self.atoms.reason(f"`{op.name}` {text} ({op.source})")
        return self._reasons[op, text]

    def pin(self, op: Op, axis: Axis, text: str) -> Axis:
        """Say that an axis keeps its length."""
        why = axis.why
        if axis.shrinks:
            why = self.reason(op, text)
            self.atoms.pin(axis.ids, why)
        return axes.fixed(axis.size, why, axis.origins)

    def equate(self, op: Op, parts: Sequence[Axis], text: str = "has another operand that keeps its length") -> Axis:
        """Say that axes lose the same indices; return the first of them."""
        for other in parts[1:]:
            if not self.settled and (other.shrinks or parts[0].shrinks):
                why = axes.why(parts) or self.reason(op, text)
                self.atoms.unify(parts[0].ids, other.ids, why)
        return axes.resolve(self.atoms, parts[0]) if len(parts) > 1 else parts[0]

    def leak(self, op: Op, ids: np.ndarray, text: str) -> None:
        """Say that the removal of these atoms is not exact."""
        ids = np.unique(ids[ids > NEVER])
        if self.settled and ids.size:
            self.leaks.setdefault(op, []).append(Leak(ids, f"`{op.name}` {text} ({op.source})"))

    def produce(self, parts: Sequence[Axis]) -> None:
        """Say that parameters meet what depends on an input, and are not contracted with it."""
        self.produced |= axes.origins(parts)

    def run(self, program: Program) -> None:
        """Follow all operations."""
        for op in program.ops:
            self.leaks.pop(op, None)
            self.folds.pop(op, None)
            self.counted.pop(op, None)
            for value in op.ins:
                self.axes(value)
            self.rule(op).couple(self, op)
            for out in op.outs:
                for dim, axis in enumerate(out.axes):
                    if axis.size == 1 and axis.shrinks:
                        out.axes[dim] = self.pin(op, axis, "singles out one entry of an axis")


def _constant_fill(value: Value, dim: int) -> Axis:
    axis = value.axes[dim]
    array = constant(value)
    if not axis.shrinks or array is None or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        return axis
    slices = np.moveaxis(np.asarray(array, np.float64), dim, 0).reshape(axis.size, -1)
    same = (slices == slices[:, :1]).all(axis=1) if slices.shape[1] else np.zeros(axis.size, bool)
    values = np.where(same, slices[:, 0], 0.0) if slices.shape[1] else np.zeros(axis.size)
    flags = np.where(same, axes.KNOWN | axes.CONSTANT, 0).astype(np.uint8)
    uniform = (slices == slices[:1]).all() if slices.size else False
    flags = flags | np.uint8(axes.UNIFORM if uniform else 0)
    shape = axis.ids.shape
    return Axis(axis.ids, np.broadcast_to(flags[:, None], shape), np.broadcast_to(values[:, None], shape))
