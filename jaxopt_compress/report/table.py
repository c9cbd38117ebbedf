"""What compression did to each leaf: a table for people, with the numbers in it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxopt_compress import encoded, tree
from jaxopt_compress.export import packed_bytes
from jaxopt_compress.report.cost import CostReport, Shrunk, cost


@dataclass(frozen=True)
class LeafReport:
    """One leaf of a compressed model.

    Attributes:
      path: where it stands.
      shape: its shape.
      bits: bits of one stored entry before packing.
      sparsity: the fraction of zeros in what the forward pass sees.
      original_bytes: the length of the original array.
      stored_bytes: the length of its packed form, without its part of the manifest.
      error: the root mean square of the change, relative to that of the original; NaN if the original is all zero.
      not_finite: how many entries of what the forward pass sees are NaN or infinite.
    """

    path: str
    shape: tuple[int, ...]
    bits: int
    sparsity: float
    original_bytes: int
    stored_bytes: int
    error: float
    not_finite: int


@dataclass(frozen=True)
class Report:
    """All leaves of a compressed model; `print` shows them as a table.

    Attributes:
      leaves: one row for each array.
    """

    leaves: tuple[LeafReport, ...]

    @property
    def original_bytes(self) -> int:
        """The bytes of all original arrays."""
        return sum(leaf.original_bytes for leaf in self.leaves)

    @property
    def stored_bytes(self) -> int:
        """The bytes of all packed arrays; the file adds a manifest of some hundred bytes."""
        return sum(leaf.stored_bytes for leaf in self.leaves)

    @property
    def sparsity(self) -> float:
        """The fraction of zeros in all that the forward pass sees."""
        sizes = [math.prod(leaf.shape) for leaf in self.leaves]
        zeros = sum(leaf.sparsity * size for leaf, size in zip(self.leaves, sizes, strict=True))
        return zeros / max(sum(sizes), 1)

    def __str__(self) -> str:
        console = Console(width=110, no_color=True)
        with console.capture() as capture:
            console.print(self._rich())
        return capture.get()

    def _rich(self) -> Table:
        table = Table("leaf", "shape", title="compressed model")
        for name in ("bits", "sparsity", "error", "bytes before", "bytes after"):
            table.add_column(name, justify="right")
        for leaf in self.leaves:
            table.add_row(*_cells(leaf))
        ratio = self.original_bytes / max(self.stored_bytes, 1)
        total = (f"{self.original_bytes:,}", f"{self.stored_bytes:,} ({ratio:.1f}x)")
        table.add_section()
        table.add_row("total", "", "", f"{self.sparsity:.1%}", "", *total)
        return table


@overload
def table(params: Any, model: Any, /) -> Report: ...


@overload
def table(fn: Callable, params: Any, /, *inputs: Any, after: Shrunk | None = None, rounds: int = 20) -> CostReport: ...


def table(first: Any, second: Any, /, *inputs: Any, after: Shrunk | None = None, rounds: int = 20) -> Any:
    """Compare the parameters with the compressed model, leaf by leaf; or say what a function costs.

    `table(params, model)` compares. `table(fn, params, *inputs)` counts parameters, bytes and multiply-adds, by leaf
    and in all, asks XLA for its own count, and measures the compiled function; with `after=small` it does the same for
    what `shrinking` made of it, in turns with it.

    Args:
      first: the dense parameters, any pytree of arrays; or a function.
      second: what `encode` gave for them: arrays and stored forms in the same structure; or the function's parameters.
      *inputs: the other arguments of the function.
      after: a smaller version of the function, with `fn` and `params`.
      rounds: how often each function is timed.

    Returns:
      A report; `print` it for a table, or read its numbers.

    Raises:
      ValueError: the two do not have the same leaves.

    Example:
      >>> report = table({"w": jnp.ones((8, 8))}, {"w": jnp.eye(8)})
      >>> report.leaves[0].sparsity, report.original_bytes
      (0.875, 256)
    """
    if callable(first) and jax.tree_util.all_leaves([first]):  # modules that can be called are trees of arrays
        return cost(first, second, *inputs, after=after, rounds=rounds)
    dense, model = tree.leaves(first), tree.leaves(second, is_leaf=encoded.is_encoded)
    if list(dense) != list(model):
        raise ValueError(f"`report.table`: the trees have different leaves: {list(dense)} and {list(model)}.")
    return Report(tuple(_leaf(path, dense[path], model[path]) for path in dense))


def _leaf(path: str, original: Any, stored: Any) -> LeafReport:
    value = np.asarray(jnp.asarray(encoded.decode(stored)))
    original = np.asarray(original)
    size = max(value.size, 1)
    bits = stored.bits if encoded.is_encoded(stored) else 8 * value.dtype.itemsize
    return LeafReport(
        path=path,
        shape=value.shape,
        bits=bits,
        sparsity=float(np.sum(value == 0)) / size,
        original_bytes=original.nbytes,
        stored_bytes=packed_bytes(jax.device_get(stored)),
        error=_relative_error(original.astype(np.float64), value.astype(np.float64)),
        not_finite=int(np.sum(~np.isfinite(value.astype(np.float64)))),
    )


def _relative_error(original: np.ndarray, value: np.ndarray) -> float:
    norm = float(np.sqrt(np.sum(original**2)))
    with np.errstate(invalid="ignore"):  # inf - inf: the error is then NaN, and `not_finite` tells why
        return float(np.sqrt(np.sum((value - original) ** 2))) / norm if norm else float("nan")


def _cells(leaf: LeafReport) -> tuple[str, ...]:
    flag = f" ({leaf.not_finite} not finite)" if leaf.not_finite else ""
    return (
        leaf.path,
        "x".join(map(str, leaf.shape)) or "()",
        str(leaf.bits),
        f"{leaf.sparsity:.1%}",
        f"{leaf.error:.4f}{flag}",
        f"{leaf.original_bytes:,}",
        f"{leaf.stored_bytes:,}",
    )
