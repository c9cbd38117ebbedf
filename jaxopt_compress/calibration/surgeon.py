"""What optimal brain surgeon needs to know of the inputs: a factor of the inverse of their Gram matrix."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

WORST = 1.0  # damping beyond which a layer is given up


def inverse_factor(second: jax.Array, damping: float) -> tuple[jax.Array, jax.Array]:
    """Return the upper Cholesky factor `U` of the inverse, `U^T U`, of a damped Gram matrix, and the damping.

    `damping * mean(diag)` is added to the diagonal, and 1 where it is 0. Where the factorization breaks down, the
    damping is made ten times larger, again and again; above `WORST`, and where the matrix is not finite, the factor is
    the identity and the damping infinite.
    """
    eye = jnp.eye(len(second), dtype=second.dtype)
    diagonal = jnp.diagonal(second)
    second = second + jnp.diag(jnp.where(diagonal == 0, 1, 0).astype(second.dtype))
    mean = jnp.mean(jnp.diagonal(second))

    def attempt(damping):
        damped = second + damping * mean * eye
        lower = jnp.linalg.cholesky(damped[::-1, ::-1], symmetrize_input=False)
        return solve_triangular(lower[::-1, ::-1], eye, lower=False)  # damped = upper @ upper.T

    def failed(carry):
        damping, found = carry
        return (damping <= WORST) & ~jnp.all(jnp.isfinite(found))

    def harder(carry):
        damping = carry[0] * 10
        return damping, attempt(damping)

    start = jnp.asarray(damping, second.dtype)
    used, found = lax.while_loop(failed, harder, (start, attempt(start)))
    fine = jnp.all(jnp.isfinite(found))
    return jnp.where(fine, found, eye), jnp.where(fine, used, jnp.inf)
