"""Terms to add to a loss, so that weights which the forward pass does not see go somewhere sensible."""

import jax
import jax.numpy as jnp

from jaxopt_compress import tree
from jaxopt_compress.core import Params, ParamTransform, State


def distance(t: ParamTransform, params: Params, state: State) -> jax.Array:
    """Return half the squared distance between the parameters and what the forward pass sees of them.

    Its gradient is `w` at masked weights and zero at others. Times 2e-4, beside `straight_through(prune(magnitude,
    pattern=n_of_m(2, 4)))`, it is SR-STE (Zhou et al., 2021): weights outside the mask fade, so that masks settle. With
    `top_kast` it is the part of the penalty on weights that only learn.

    Args:
      t: a transform.
      params: the parameters, with the gradient.
      state: the state of `t`; for an attached one `jc.optimizers.compress_state(opt_state)`.

    Returns:
      A float32 scalar.
    """
    seen = tree.leaves(jax.lax.stop_gradient(t.apply(params, state)))
    total = jnp.zeros((), jnp.float32)
    for path, w in tree.weights(params).items():
        total += jnp.sum(jnp.square((w - seen[path]).astype(jnp.float32)))
    return total / 2
