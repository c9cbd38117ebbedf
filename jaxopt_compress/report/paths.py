"""Effective sparsity: weights that lie on no path from an input to an output do nothing, zero or not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxopt_compress import tree


@dataclass(frozen=True)
class LeafPaths:
    """One weight array.

    Attributes:
      path: where it stands.
      size: its entries.
      kept: how many are not zero.
      effective: how many of those lie on a path from an input to an output.
    """

    path: str
    size: int
    kept: int
    effective: int


@dataclass(frozen=True)
class PathReport:
    """All weight arrays of a pruned model; `print` shows them as a table.

    Attributes:
      leaves: one row for each array.
    """

    leaves: tuple[LeafPaths, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of all weights that are zero."""
        return 1 - sum(leaf.kept for leaf in self.leaves) / max(sum(leaf.size for leaf in self.leaves), 1)

    @property
    def effective_sparsity(self) -> float:
        """The fraction of all weights that do nothing."""
        return 1 - sum(leaf.effective for leaf in self.leaves) / max(sum(leaf.size for leaf in self.leaves), 1)

    def __str__(self) -> str:
        table = Table("leaf", title="what is left, and what of it does something")
        for name in ("weights", "kept", "on a path", "sparsity", "effective sparsity"):
            table.add_column(name, justify="right")
        total = LeafPaths("total", *(sum(getattr(leaf, n) for leaf in self.leaves) for n in ("size", *_COUNTS)))
        for leaf in (*self.leaves, total):
            shares = (f"{1 - getattr(leaf, name) / max(leaf.size, 1):.2%}" for name in _COUNTS)
            table.add_row(leaf.path, f"{leaf.size:,}", f"{leaf.kept:,}", f"{leaf.effective:,}", *shares)
        console = Console(width=110, no_color=True)
        with console.capture() as capture:
            console.print(table)
        return capture.get()


_COUNTS = ("kept", "effective")


def effective_sparsity(
    forward: Callable, params: Any, example: Any, where: tree.Where = lambda path, leaf: jnp.ndim(leaf) > 1
) -> PathReport:
    """Count the weights that are zero, and those that lie on no path from an input to an output.

    Every weight that is not zero is replaced by a positive number, and the sum of all paths from the input to the
    output is differentiated: a weight without a path has no gradient. Biases are no paths. This holds for networks that
    a positive input crosses linearly: dense layers, convolutions, attention-free mixing, average pooling, ReLU-like
    activations, normalization by stored statistics. Max pooling hides all paths but the largest, and layers that
    subtract a mean hide all.

    Args:
      forward: `(params, inputs) -> outputs`.
      params: the pruned parameters, what `apply` gives.
      example: a floating-point input, of which shape and dtype count.
      where: which leaves hold weights, as for `select`; all arrays with two axes or more by default.

    Returns:
      A report; `print` it for a table, or read its numbers.

    Raises:
      ValueError: `where` chooses no leaf, or the sum of paths is not finite or negative, as it is where layers are not
        of the kind above.

    Reference: Vysogorets & Kempe, "Connectivity matters: neural network pruning through the lens of effective
    sparsity", 2023.
    """
    chosen = tree.choose(params, where)
    leaves = tree.leaves(params)
    weights = {path: _evenly(leaves[path]) for path in chosen}
    rest = {path: jnp.abs(leaf) for path, leaf in tree.weights(params).items() if path not in weights}
    ones = jax.tree.map(jnp.ones_like, example)

    def paths(weights):
        seen = tree.replace(params, {**rest, **weights})
        _, through = jax.jvp(lambda x: forward(seen, x), (ones,), (ones,))
        return sum(jnp.sum(part.astype(jnp.float32)) for part in jax.tree.leaves(through))

    total, slopes = jax.jit(jax.value_and_grad(paths))(weights)
    flows = {path: np.asarray(slopes[path] * weights[path]) for path in chosen}
    if not np.isfinite(total) or any(not (flow >= 0).all() for flow in flows.values()):
        raise ValueError(
            "`effective_sparsity`: the flow along paths is positive and finite; got "
            f"{float(total)} in all. A layer that subtracts, or saturates, hides paths."
        )
    return PathReport(tuple(_count(path, leaves[path], flows[path]) for path in chosen))


def _evenly(w: jax.Array) -> jax.Array:
    """Replace all that is not zero by one number, so that the flow neither grows nor fades from layer to layer."""
    there = (w != 0).astype(jnp.float32)
    return there * (w.shape[-1] / jnp.maximum(jnp.sum(there), 1))


def _count(path: str, w: jax.Array, flow: np.ndarray) -> LeafPaths:
    kept = np.asarray(w) != 0
    return LeafPaths(path, kept.size, int(kept.sum()), int(np.sum(flow > 0)))
