"""Criteria: functions from parameters to scores of the same structure. The lowest scores are pruned first.

A criterion of your own is such a function, with nothing to register: `(params, **extra) -> scores`, where `extra` is
what the caller gave to `update` (`step`, `grads`, `stats`, ...).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def elementwise(criterion: Callable) -> Callable:
    """Mark a criterion whose score of a weight depends on nothing but the entries at the same index.

    Such scores are computed on the fly, a tile at a time, and never written to memory.
    """
    criterion.elementwise = True  # pyright: ignore[reportFunctionMemberAccess]
    return criterion


@elementwise
def magnitude(params, **extra):
    """Score each weight by its absolute value (Han et al., 2015, "Learning both weights and connections").

    Args:
      params: any pytree of arrays.
      **extra: ignored.

    Returns:
      `|w|`, in the structure of `params`.

    Example:
      >>> magnitude({"w": jnp.array([-2.0, 1.0])})
      {'w': Array([2., 1.], dtype=float32)}
    """
    del extra
    return jax.tree.map(jnp.abs, params)
