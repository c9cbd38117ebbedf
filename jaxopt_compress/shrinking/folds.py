"""What removed channels contribute as constants, computed from the parameters and added to the biases that follow."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.graph import Graph, Narrowing
from jaxopt_compress.graph.folding import Bias, bias_after
from jaxopt_compress.graph.precision import precisely
from jaxopt_compress.graph.program import Op, bind
from jaxopt_compress.shrinking import placed


def folded(graph: Graph, removed: np.ndarray, params: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the biases that take up the constants of what is removed, at their old width, by path.

    Args:
      graph: the traced function.
      removed: for each atom whether it goes.
      params: the masked parameters, whole.
      inputs: example inputs; the constants do not depend on them.
    """
    places = [op for op, atoms in graph.coupling.folds.items() if removed[atoms].any()]
    if not places:
        return {}
    leaves = jax.tree.leaves(params)
    extra: dict[int, Any] = {}
    for op, constant in zip(places, _constants(graph, removed, places, leaves, inputs)):
        bias = bias_after(graph.coupling, op)
        if bias is not None:
            extra[bias.leaf] = extra.get(bias.leaf, 0) + bias.sign * _onto(
                graph, bias, placed.whole(constant).astype(np.float64)
            )
    return {graph.paths[leaf]: _added(leaves[leaf], more) for leaf, more in extra.items()}


def _added(leaf: Any, more: np.ndarray) -> jax.Array:
    whole = placed.whole(leaf)
    return placed.like((whole.astype(np.float64) + more).astype(whole.dtype), leaf)


def _constants(graph: Graph, removed: np.ndarray, places: list[Op], leaves: Any, inputs: Any) -> list[Any]:
    """Run the masked function, and at each place contract what is removed alone."""
    nothing = np.zeros_like(removed)

    def run(leaves, inputs):
        narrowing = Narrowing(graph.coupling, nothing)
        narrowing.run(graph.program, [*leaves, *jax.tree.leaves(inputs)])
        return [_of_removed(narrowing, removed, op) for op in places]

    return jax.jit(precisely(run))(leaves, tuple(inputs))


def _of_removed(narrowing: Narrowing, removed: np.ndarray, op: Op) -> Any:
    lhs, rhs = (narrowing.read(value) for value in op.ins)
    dims = [1] if op.name == "conv_general_dilated" else op.params["dimension_numbers"][0][0]
    if op.name == "conv_general_dilated":
        dims = [op.params["dimension_numbers"].lhs_spec[1]]
    gone = jnp.zeros((1,) * lhs.ndim, bool)
    for dim in dims:
        axis = op.ins[0].axes[dim]
        along = removed[axis.ids].any(axis=1) if axis.shrinks else np.zeros(axis.size, bool)
        gone = gone | along.reshape([-1 if d == dim else 1 for d in range(lhs.ndim)])
    return bind(op, [jnp.where(gone, lhs, jnp.zeros((), lhs.dtype)), rhs])[0]


def _onto(graph: Graph, bias: Bias, constant: np.ndarray) -> np.ndarray:
    """Turn a constant result of a contraction into what the bias must gain to give it."""
    shape = graph.leaves[bias.leaf].shape
    constant = np.asarray(bias.through(jnp.asarray(constant.astype(np.float32))))
    places = np.asarray(bias.arrange(jnp.arange(int(np.prod(shape)), dtype=jnp.int32).reshape(shape)))
    places = np.broadcast_to(places, constant.shape)
    entries, first, where = np.unique(places, return_index=True, return_inverse=True)
    found = constant.reshape(-1)[first]
    spread = np.abs(constant.reshape(-1) - found[where.reshape(-1)]).max(initial=0.0)
    if spread > 1e-4 * max(np.abs(found).max(initial=0.0), 1e-6):
        raise ValueError(
            "`shrinking.remove`: the constant of removed channels is the same everywhere; at "
            f"{graph.paths[bias.leaf]!r} it differs by {spread}. Please report the function."
        )
    more = np.zeros(int(np.prod(shape)))
    more[entries] = found
    return more.reshape(shape)
