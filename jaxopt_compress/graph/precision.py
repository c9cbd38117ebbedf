"""Products of float32 at full precision: GPUs round their factors to TF32 unless told otherwise, TPUs to bfloat16."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from jaxopt_compress.graph.cost import CONTRACTIONS
from jaxopt_compress.graph.program import BODIES, INLINED


def precisely(fn: Callable) -> Callable:
    """Return `fn` with every contraction and convolution of float32 at the highest precision.

    Two ways to compute one thing can then be compared: with factors of 11 bits, and with other kernels for other
    widths, they differ by a thousandth.

    Example:
      >>> import jax.numpy as jnp
      >>> "HIGHEST" in str(jax.make_jaxpr(precisely(jnp.dot))(jnp.ones((2, 3)), jnp.ones(3)))
      True
    """

    def run(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        found = jex.jaxpr_as_fun(_precise(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return run


def _precise(held: Any) -> Any:
    """Rewrite what an equation holds: a jaxpr, several, or anything else."""
    if isinstance(held, jex.Jaxpr):  # newer versions of JAX close every jaxpr
        return held.replace(eqns=[_equation(eqn) for eqn in held.eqns])
    if isinstance(held, jex.ClosedJaxpr):
        return jex.ClosedJaxpr(_precise(held.jaxpr), held.consts)
    return tuple(map(_precise, held)) if isinstance(held, tuple) and not hasattr(held, "_fields") else held


def _equation(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
    name = eqn.primitive.name
    if name in CONTRACTIONS and all(_is_rounded(var.aval) for var in eqn.invars[:2]):
        return eqn.replace(params={**eqn.params, "precision": (lax.Precision.HIGHEST, lax.Precision.HIGHEST)})
    if name in INLINED or name in BODIES:
        return eqn.replace(params={key: _precise(held) for key, held in eqn.params.items()})
    return eqn


def _is_rounded(aval: Any) -> bool:
    return aval.dtype in (jnp.float32, jnp.complex64)
