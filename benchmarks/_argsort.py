"""The peer: pruning and dynamic sparse training in jaxpruner's way, written from its description.

Masks by an argsort of each leaf, one byte a weight, drawn in a `lax.cond` that returns the whole state; parameters
multiplied by their masks after every step. `jaxpruner` runs the library itself, from a checkout.
"""

import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Masks = Any
Refresh = Callable[[Masks, Any, Any, jax.Array], Masks]


def top(scores: jax.Array, number: jax.Array) -> jax.Array:
    """Mark the highest scores."""
    flat = scores.ravel()
    order = jnp.argsort(-flat, stable=True)
    rank = jnp.zeros(flat.shape, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    return (rank < number).reshape(scores.shape).astype(jnp.uint8)


def magnitude(sparsity: float) -> Refresh:
    """Keep the largest weights of each leaf."""
    return lambda masks, params, grads, count: jax.tree.map(
        lambda m, w: top(jnp.abs(w), round((1 - sparsity) * m.size)), masks, params
    )


def moving(random: bool, fraction: float = 0.3) -> Refresh:
    """Drop the smallest weights and grow by gradient (RigL) or at random (SET)."""

    def leaf(mask, w, grow):
        number = jnp.sum(mask, dtype=jnp.int32)
        stay = top(jnp.where(mask == 0, -1.0, jnp.abs(w)), jnp.round((1 - fraction) * number))
        return top(jnp.where(stay == 1, jnp.max(grow) + 1, grow), number)

    def refresh(masks, params, grads, count):
        if random:
            key = jax.random.fold_in(jax.random.key(0), count)
            grow = jax.tree.map(lambda w: jax.random.uniform(key, w.shape), params)
        else:
            grow = jax.tree.map(jnp.abs, grads)
        return jax.tree.map(leaf, masks, params, grow)

    return refresh


def _kernels(tree: Any) -> dict[str, jax.Array]:
    return {name: layer["kernel"] for name, layer in tree.items()}


def _times(tree: Any, masks: Masks) -> Any:
    return {name: {**layer, "kernel": layer["kernel"] * masks[name]} for name, layer in tree.items()}


def start(params: Any, sparsity: float, inner: optax.GradientTransformation) -> tuple[Any, Any]:
    """Return the parameters and the state `(masks, count, optimizer's state)`, masks at random."""
    keys = jax.random.split(jax.random.key(0), len(params))
    masks = {
        name: (jax.random.uniform(key, w.shape) >= sparsity).astype(jnp.uint8)
        for key, (name, w) in zip(keys, _kernels(params).items(), strict=True)
    }
    return _times(params, masks), (masks, jnp.zeros((), jnp.int32), inner.init(params))


def step(loss: Callable, inner: optax.GradientTransformation, refresh: Refresh, every: int = 100) -> Callable:
    """Return a training step on `(params, (masks, count, optimizer's state))`."""

    def run(state, *batch):
        params, (masks, count, inner_state) = state
        value, grads = jax.value_and_grad(loss)(params, *batch)

        def renew(masks, inner_state):
            new = refresh(masks, _kernels(params), _kernels(grads), count)
            fresh = {name: (masks[name] == 0) & (new[name] == 1) for name in new}
            adam, *rest = inner_state
            mu, nu = (_times(m, {name: ~grown for name, grown in fresh.items()}) for m in (adam.mu, adam.nu))
            return new, (adam._replace(mu=mu, nu=nu), *rest)

        masks, inner_state = jax.lax.cond(count % every == 0, renew, lambda *same: same, masks, inner_state)
        updates, inner_state = inner.update(_times(grads, masks), inner_state, params)
        params = _times(optax.apply_updates(params, updates), masks)
        return (params, (masks, count + 1, inner_state)), value

    return run


def jaxpruner(path: str) -> Any:
    """Import jaxpruner from a checkout, with what JAX has removed since put back."""
    sys.path.insert(0, path)
    if not hasattr(jax, "tree_map"):
        jax.tree_map = _tree_map  # pyright: ignore
    try:
        import ml_collections  # noqa: F401  # pyright: ignore
    except ImportError:  # only its configuration type is named
        sys.modules["ml_collections"] = types.SimpleNamespace(ConfigDict=dict)  # pyright: ignore
    import jaxpruner as library  # pyright: ignore

    return library


def _tree_map(fn: Callable, *trees: Any) -> Any:
    """Map as JAX once did, and leave alone the leaves without a mask, on which SET and RigL raise."""
    call = lambda first, *rest: None if first is None else fn(first, *rest)  # noqa: E731
    return jax.tree.map(call, *trees, is_leaf=lambda x: x is None)
