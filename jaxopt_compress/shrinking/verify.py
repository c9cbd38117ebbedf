"""The oracle: the smaller function computes what the masked one does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import tree
from jaxopt_compress.graph import Graph, Narrowing
from jaxopt_compress.graph.precision import precisely
from jaxopt_compress.graph.program import is_opaque
from jaxopt_compress.shrinking import placed
from jaxopt_compress.shrinking.narrowed import Narrowed


def difference(
    graph: Graph, fn: Narrowed, masked: Any, small: Any, inputs: tuple[Any, ...], removed: np.ndarray, exact: bool
) -> float:
    """Run the masked and the smaller function at full precision, and return how far they are apart.

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
      ValueError: they must agree, and do not: they are further apart than rounding explains.
    """
    before = graph.at_full_precision(masked, *inputs)
    after = jax.jit(precisely(fn))(small, *inputs)
    narrowing = Narrowing(graph.coupling, removed)
    worst, shaken = 0.0, []
    pairs = zip(tree.leaves(before).items(), jax.tree.leaves(after), graph.program.outs)
    for place, ((path, whole), narrow, value) in enumerate(pairs):
        if is_opaque(value.aval):
            continue
        whole = narrowing.cut(value, placed.whole(whole))
        apart = _apart(whole, placed.whole(narrow))
        worst = max(worst, apart)
        if not exact or apart <= _tolerance(value.aval.dtype):
            continue
        shaken = shaken or _shaken(graph.at_full_precision, masked, inputs)
        if not apart <= 8 * max(_apart(whole, narrowing.cut(value, placed.whole(outs[place]))) for outs in shaken):
            raise ValueError(
                f"`shrinking.remove`: the smaller function computes what the masked one does; output {path!r} is "
                f"{apart:.3g} of its largest entry away. Please report the function."
            )
    return worst


def _shaken(fn: Callable, masked: Any, inputs: tuple[Any, ...]) -> list[list[Any]]:
    """Run the masked function on numbers that are off in their last places, for outputs in which these are enlarged."""

    def run(sign: int) -> list[Any]:
        return jax.tree.leaves(fn(*jax.tree.map(lambda leaf: _off(leaf, sign), (masked, *inputs))))

    return [run(1), run(-1)]


def _off(leaf: Any, sign: int) -> Any:
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    steps = jnp.where(jnp.arange(leaf.size) % 2, sign, -sign).reshape(leaf.shape).astype(leaf.dtype)
    return leaf * (1 + 4 * float(jnp.finfo(leaf.dtype).eps) * steps)


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
