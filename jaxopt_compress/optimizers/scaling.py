"""Scalings of the gradient for which Optax has no primitive: two epsilon conventions of other frameworks.

Each is an `optax.GradientTransformation` with the state type of the Optax primitive that it stands beside, so that
whatever reads that state (checkpoints, sharding rules, `optax.tree.get`) reads this one.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax


def scale_by_adam_eps_hat(
    b1: chex.Numeric = 0.9,
    b2: chex.Numeric = 0.999,
    eps: chex.Numeric = 1e-7,
    eps_root: chex.Numeric = 0.0,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    """Scale as Adam does, with epsilon added before the bias correction, as Keras does.

    The paper calls this epsilon "epsilon hat" (the text before its section 2.1):

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        u = sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v + eps_root) + eps)

    which is `optax.scale_by_adam` with the epsilon `eps / sqrt(1 - b2^t)`: 32 times `eps` at the first step for
    `b2 = 0.999`, then falling to `eps`.

    Args:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: epsilon hat.
      eps_root: added inside the square root, to differentiate through the update where `v` is 0.
      mu_dtype: the dtype of the first moment; that of the parameters if `None`.

    Reference:
      Kingma and Ba, 2015, "Adam: a method for stochastic optimization".
    """

    def init(params):
        mu = optax.tree.zeros_like(params, dtype=mu_dtype)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        t = jnp.asarray(count, float)
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        scaled = jax.tree.map(lambda m, v: correction.astype(m.dtype) * m / (jnp.sqrt(v + eps_root) + eps), mu, nu)
        mu, nu = optax.tree.cast(mu, mu_dtype), optax.tree.cast_like(nu, state.nu)
        return scaled, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_rss_eps_outside(
    initial_accumulator_value: chex.Numeric = 0.0, eps: chex.Numeric = 1e-10
) -> optax.GradientTransformation:
    """Scale as Adagrad does, with epsilon added to the square root, as PyTorch does.

        s <- s + g^2
        u = g / (sqrt(s) + eps)

    `optax.scale_by_rss` has epsilon inside the square root: `g / sqrt(s + eps)`.

    Args:
      initial_accumulator_value: the start of `s`, at least 0.
      eps: added to the root; positive if a gradient can be 0 while `s` is 0.

    Reference:
      Duchi, Hazan and Singer, 2011, "Adaptive subgradient methods for online learning and stochastic optimization".
    """

    def init(params):
        return optax.ScaleByRssState(optax.tree.full_like(params, initial_accumulator_value))

    def update(updates, state, params=None):
        del params
        total = jax.tree.map(lambda g, s: s + jnp.square(g), updates, state.sum_of_squares)
        scaled = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, total)
        return scaled, optax.ScaleByRssState(total)

    return optax.GradientTransformation(init, update)
