"""Weights that stay in a range."""

import jax
import jax.numpy as jnp
import optax


def keep_within(low: float = -1.0, high: float = 1.0) -> optax.GradientTransformation:
    """Cut updates so that no parameter leaves `[low, high]`; the last link of a chain.

    Shadow weights of one or two bits that run away from the levels could never come back. For some leaves alone wrap it
    in `optax.masked`.

    Args:
      low: the least value.
      high: the largest.

    Raises:
      ValueError: an empty range; (from `update`) `params` is missing.

    Example:
      >>> tx = optax.chain(optax.sgd(1.0), keep_within())
      >>> params = {"w": jnp.array([0.9, -0.2])}
      >>> updates, _ = tx.update({"w": jnp.array([-0.5, 0.5])}, tx.init(params), params)
      >>> [round(w, 3) for w in optax.apply_updates(params, updates)["w"].tolist()]
      [1.0, -0.7]
    """
    if not low < high:
        raise ValueError(f"`keep_within`: `low` is below `high`; got {low}, {high}.")

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("`keep_within`: `update(grads, state, params)` needs the parameters; got None.")
        cut = lambda u, p: (jnp.clip(p + u.astype(p.dtype), low, high) - p).astype(u.dtype)  # noqa: E731
        return jax.tree.map(cut, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
