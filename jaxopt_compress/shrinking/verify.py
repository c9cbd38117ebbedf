"""The oracle: the smaller function computes what the masked one does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import tree
from jaxopt_compress.graph import Graph, Narrowing
from jaxopt_compress.graph.program import is_opaque
from jaxopt_compress.shrinking.narrowed import Narrowed


def difference(
    graph: Graph, fn: Narrowed, masked: Any, small: Any, inputs: tuple[Any, ...], removed: np.ndarray, exact: bool
) -> float:
    """Run the masked and the smaller function, and return how far they are apart.

    Args:
      graph: the traced function.
      fn: the smaller function.
      masked: the masked parameters.
      small: the smaller parameters.
      inputs: an example.
      removed: for each atom whether it went.
      exact: whether the two must agree.

    Returns:
      The largest difference of any output, relative to the largest entry of that output.

    Raises:
      ValueError: they must agree, and do not.
    """
    before = jax.jit(graph.fn)(masked, *inputs)
    after = jax.jit(fn)(small, *inputs)
    narrowing = Narrowing(graph.coupling, removed)
    worst = 0.0
    pairs = zip(tree.leaves(before).items(), jax.tree.leaves(after), graph.program.outs)
    for (path, whole), narrow, value in pairs:
        if is_opaque(value.aval):
            continue
        apart = _apart(np.asarray(narrowing.cut(value, whole)), np.asarray(narrow))
        worst = max(worst, apart)
        if exact and not apart <= _tolerance(value.aval.dtype):
            raise ValueError(
                f"`shrinking.remove`: the smaller function computes what the masked one does; output {path!r} is "
                f"{apart:.3g} of its largest entry away. Please report the function."
            )
    return worst


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        return float("inf")
    if not np.issubdtype(one.dtype, np.complexfloating):
        one, other = one.astype(np.float64), other.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(one - other))
    finite = np.abs(one[np.isfinite(one)]).max(initial=0.0)
    return float(apart.max(initial=0.0)) / max(float(finite), 1e-30) if apart.max(initial=0.0) else 0.0


def _tolerance(dtype: Any) -> float:
    """Rounding differs with the order of sums: some hundred units in the last place, none for integers."""
    return 512 * float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0.0
