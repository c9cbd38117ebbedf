"""Other divergences between softened distributions than that of `soft_targets`: one number an example."""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation.softened import kl, softened


def reverse_kl(logits: jax.Array, teacher_logits: jax.Array, *, temperature: float | jax.Array = 1.0) -> jax.Array:
    """Compute `T^2 * KL(student || teacher)`, which lets a small student leave out what the teacher finds unlikely.

    Args:
      logits: the student's, `(..., classes)`.
      teacher_logits: the same shape; no gradient reaches them.
      temperature: positive.

    Returns:
      One loss an example, `(...)`, float32 or wider.

    Raises:
      ValueError: the shapes differ, or `temperature` is a number that is not positive.

    Reference: Gu et al., "MiniLLM: knowledge distillation of large language models", 2024.
    """
    both = softened("reverse_kl", logits, teacher_logits, temperature)
    return temperature**2 * kl(both.student, both.teacher)


def jsd(
    logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    beta: float | jax.Array = 0.5,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """Compute the generalized Jensen-Shannon divergence between teacher `p` and student `q`, times `T^2`.

        m = beta p + (1 - beta) q
        beta KL(p || m) + (1 - beta) KL(q || m)     for 0 < beta < 1
        KL(p || q) at beta = 0,  KL(q || p) at 1

    Between the ends it tends to 0 at both; the ends are those of the authors, for whom it is the slope there that
    counts. TRL has the same, without `T^2`.

    Args:
      logits: the student's, `(..., classes)`.
      teacher_logits: the same shape; no gradient reaches them.
      beta: in [0, 1], a number or traced.
      temperature: positive.

    Returns:
      One loss an example, `(...)`, float32 or wider.

    Raises:
      ValueError: the shapes differ, or a number is out of range.

    Reference: Agarwal et al., "On-policy distillation of language models", 2024.
    """
    if isinstance(beta, (int, float)) and not 0 <= beta <= 1:
        raise ValueError(f"`jsd`: `beta` is in [0, 1]; got {beta}.")
    student, teacher = softened("jsd", logits, teacher_logits, temperature)
    inside = (beta > 0) & (beta < 1)
    share = jnp.where(inside, beta, 0.5).astype(student.dtype)
    middle = _log_sum(teacher + jnp.log(share), student + jnp.log1p(-share))
    mixed = share * kl(teacher, middle) + (1 - share) * kl(student, middle)
    ends = jnp.where(jnp.asarray(beta) > 0.5, kl(student, teacher), kl(teacher, student))
    return temperature**2 * jnp.where(inside, mixed, ends)


def _log_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return `log(exp(a) + exp(b))`, with slopes of 0 where both are minus infinity."""
    nothing = (a == -jnp.inf) & (b == -jnp.inf)
    return jnp.where(nothing, -jnp.inf, jnp.logaddexp(jnp.where(nothing, 0, a), jnp.where(nothing, 0, b)))
