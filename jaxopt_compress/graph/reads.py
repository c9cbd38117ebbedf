"""What a function reads of its parameters, once some of its products take their weights from elsewhere."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval


def reads(fn: Callable, leaves: Mapping[str, Any], *rest: Any) -> list[str]:
    """Return the names of the leaves that `fn(leaves, *rest)` needs for what it returns; shapes do for arrays."""
    jaxpr = jax.make_jaxpr(fn)(dict(leaves), *rest).jaxpr
    used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    return [name for name, needed in zip(sorted(leaves), used) if needed]


def unread(like: Any) -> Any:
    """Return zeros for a leaf that is not read; a number of Python stays one, since it has no dtype to impose."""
    return np.zeros((), like.dtype).item() if like.weak_type else jnp.zeros(like.shape, like.dtype)
