"""Training that makes whole units die, so that nothing is lost when they are removed.

A unit is dead when all slices that make it are zero. Three ways there: the group lasso as a proximal step behind any
optimizer, which sets units to exact zero; L1 on the scales of normalization layers, which is the group lasso over these
leaves alone; and L0 by stochastic gates, which are trained.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_compress import tree
from jaxopt_compress.graph import Graph, Group, Slices
from jaxopt_compress.shrinking.choosing import Cut

Chosen = Callable[[Group], bool]
Gates = dict[str, jax.Array]


def unit_norms(graph: Graph, params: Any, where: Chosen = lambda group: True) -> dict[str, jax.Array]:
    """Return the Euclidean norm of all slices that make each unit, `[units]` by group; under `jit` and `grad` too.

    Args:
      graph: the traced function.
      params: its parameters.
      where: which groups.
    """
    leaves = tree.leaves(params)
    return {group.name: jnp.sqrt(_squares(leaves, group)) for group in graph.groups if where(group)}


def group_lasso(graph: Graph, params: Any, where: Chosen = lambda group: True) -> jax.Array:
    """Return the penalty `sum over units of sqrt(entries) * norm` (Yuan & Lin, 2006), to add to a loss.

    A gradient step on it makes units small, not zero; `proximal_group_lasso` makes them zero.

    Args:
      graph: the traced function.
      params: its parameters.
      where: which groups.

    Returns:
      A float32 scalar.
    """
    total = jnp.zeros((), jnp.float32)
    leaves = tree.leaves(params)
    for group in graph.groups:
        if where(group):
            squares = _squares(leaves, group)
            alive = squares > 0  # the norm has no derivative at zero: a dead unit stays dead
            total += _entries(graph, group) ** 0.5 * jnp.sum(
                jnp.where(alive, jnp.sqrt(jnp.where(alive, squares, 1)), 0)
            )
    return total


def proximal_group_lasso(
    graph: Graph, strength: float | optax.Schedule, where: Chosen = lambda group: True
) -> optax.GradientTransformation:
    """Put the group lasso's proximal step behind an optimizer: `w <- max(1 - t * sqrt(entries) / norm, 0) * w`.

    As the last link of an Optax chain it replaces the update by one that ends at the proximal point, so that units
    become exactly zero, and come back only if the loss pulls harder than the penalty pushes.

    Args:
      graph: the traced function.
      strength: `t`, the learning rate times the weight of the penalty; or a schedule of it.
      where: which groups.

    Returns:
      An Optax transformation that needs `params`.

    Raises:
      ValueError: `where` leaves no group, or no parameters are given to `update`.
    """
    groups = [group for group in graph.groups if where(group)]
    if not groups:
        raise ValueError("`proximal_group_lasso`: `where` chooses a group; the graph has none for it.")

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("`proximal_group_lasso`: `tx.update(grads, state, params)` is given the parameters.")
        push = strength(state.count) if callable(strength) else strength
        new = optax.apply_updates(params, updates)
        leaves = tree.leaves(new)
        factors = {
            group.name: _factor(_squares(leaves, group), push * _entries(graph, group) ** 0.5) for group in groups
        }
        shrunk = scaled(graph, new, factors)
        updates = jax.tree.map(
            lambda n, p, u: n - p if jnp.issubdtype(p.dtype, jnp.inexact) else u, shrunk, params, updates
        )
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32)), update
    )


def scaled(graph: Graph, params: Any, factors: Mapping[str, jax.Array]) -> Any:
    """Multiply the slices that make each unit by a number, `[units]` by group.

    Args:
      graph: the traced function.
      params: its parameters.
      factors: the numbers.
    """
    leaves = tree.leaves(params)
    new: dict[str, Any] = {}
    for group in graph.groups:
        for part in group.slices if group.name in factors else ():
            leaf = leaves[part.path]
            if part.makes and jnp.issubdtype(leaf.dtype, jnp.inexact):
                spread = _along(part, leaf.shape[part.axis], factors[group.name].astype(jnp.float32))
                shape = [-1 if dim == part.axis else 1 for dim in range(leaf.ndim)]
                new[part.path] = new.get(part.path, leaf) * spread.reshape(shape).astype(leaf.dtype)
    return tree.replace(params, new)


def dead(graph: Graph, params: Any) -> Cut:
    """Find the units whose slices are all zero already: their removal changes nothing at all.

    Of a group that is dead throughout one unit stays.

    Args:
      graph: the traced function.
      params: its parameters.
    """
    norms = jax.device_get(unit_norms(graph, params, lambda group: group.exact))
    units = {name: np.flatnonzero(norm == 0) for name, norm in norms.items()}
    return Cut({name: gone[: len(norms[name]) - 1] for name, gone in units.items() if len(gone)})


# --- L0 ---

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3


def gates(graph: Graph, keep: float = 0.9, where: Chosen = lambda group: True) -> Gates:
    """Make one gate for each unit, parameters to be trained beside the others (Louizos et al., 2018).

    Args:
      graph: the traced function.
      keep: the probability with which a gate is open at first, before stretching.
      where: which groups.

    Returns:
      Log-odds, `[units]` by group.
    """
    odds = float(np.log(keep / (1 - keep)))
    return {group.name: jnp.full(group.size, odds, jnp.float32) for group in graph.groups if where(group)}


def gated(graph: Graph, params: Any, gates: Gates, key: jax.Array | None = None) -> Any:
    """Multiply what makes each unit by its gate: drawn from the hard concrete distribution, or its mode without a key.

    Args:
      graph: the traced function.
      params: its parameters.
      gates: log-odds by group.
      key: for training; None for evaluation, and before removal.
    """
    return scaled(graph, params, {name: _hard_concrete(odds, key, name) for name, odds in gates.items()})


def expected_units(gates: Gates) -> jax.Array:
    """Return how many units are not exactly zero on average: the L0 penalty, differentiable.

    Args:
      gates: log-odds by group.
    """
    shift = TEMPERATURE * np.log(-LOW / HIGH)
    return sum((jnp.sum(jax.nn.sigmoid(odds - shift)) for odds in gates.values()), jnp.zeros((), jnp.float32))


def _hard_concrete(odds: jax.Array, key: jax.Array | None, name: str) -> jax.Array:
    if key is None:
        soft = jax.nn.sigmoid(odds)
    else:
        key = jax.random.fold_in(key, sum(i * ord(c) for i, c in enumerate(name, 1)) % 2**31)
        noise = jax.random.uniform(key, odds.shape, minval=1e-6, maxval=1 - 1e-6)
        soft = jax.nn.sigmoid((jnp.log(noise) - jnp.log1p(-noise) + odds) / TEMPERATURE)
    return jnp.clip(soft * (HIGH - LOW) + LOW, 0.0, 1.0)


def _squares(leaves: Mapping[str, Any], group: Group) -> jax.Array:
    """Sum the squares of all that makes each unit, `[units]`."""
    total = jnp.zeros(group.size, jnp.float32)
    for part in group.slices:
        leaf = leaves[part.path]
        if part.makes and jnp.issubdtype(leaf.dtype, jnp.inexact):
            others = tuple(dim for dim in range(leaf.ndim) if dim != part.axis)
            along = jnp.sum(jnp.square(jnp.abs(leaf).astype(jnp.float32)), axis=others)
            total += along[part.index].sum(axis=1)
    return total


def _entries(graph: Graph, group: Group) -> int:
    """Count the entries that make one unit."""
    return sum(_size(graph, part) for part in group.slices if part.makes)


def _size(graph: Graph, part: Slices) -> int:
    shape = graph.leaves[graph.paths.index(part.path)].shape
    return part.index.shape[1] * int(np.prod(shape)) // shape[part.axis]


def _along(part: Slices, size: int, factors: jax.Array) -> jax.Array:
    """Return for each index of an axis the product of the factors of the units that it belongs to."""
    owners: list[list[int]] = [[] for _ in range(size)]
    for unit, entries in enumerate(part.index):
        for entry in entries:
            owners[entry].append(unit)
    most = max(map(len, owners))
    padded = np.array([units + [len(factors)] * (most - len(units)) for units in owners])
    return jnp.prod(jnp.append(factors, jnp.ones(1, factors.dtype))[padded], axis=1)


def _factor(squares: jax.Array, push: Any) -> jax.Array:
    norm = jnp.sqrt(squares)
    return jnp.where(norm > push, 1 - push / jnp.maximum(norm, 1e-30), 0.0)
