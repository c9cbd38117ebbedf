"""Distillation of what correlates with what, rather than of the numbers themselves."""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation.softened import softened


def dist(
    logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    beta: float | jax.Array = 1.0,
    gamma: float | jax.Array = 1.0,
) -> jax.Array:
    """Compute `T^2 * (beta * (1 - correlation over classes) + gamma * (1 - correlation over examples))`.

    Correlations are Pearson's, between the softened probabilities of student and teacher. Those over examples are one
    for each class; their mean is in the loss of each example alike, so that it is the mean over a batch that counts.
    With few examples they are noise.

    Args:
      logits: the student's, `(..., classes)`; all leading axes together are the batch.
      teacher_logits: the same shape; no gradient reaches them.
      temperature: positive.
      beta: of the correlation over classes.
      gamma: of the correlation over examples.

    Returns:
      One loss an example, `(...)`, float32 or wider.

    Raises:
      ValueError: the shapes differ, or `temperature` is a number that is not positive.

    Reference: Huang et al., "Knowledge distillation from a stronger teacher", 2022.
    """
    student, teacher = (jnp.exp(log_p) for log_p in softened("dist", logits, teacher_logits, temperature))
    batch = tuple(range(logits.ndim - 1))
    between = 1 - _correlation(student, teacher, (-1,))
    within = 1 - jnp.mean(_correlation(student, teacher, batch))
    return temperature**2 * (beta * between + gamma * within)


def _correlation(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return Pearson's correlation over axes; 0, without a slope, where one of both does not vary."""
    a, b = (x - jnp.mean(x, axis=axes, keepdims=True) for x in (a, b))
    size = jnp.sum(a * a, axis=axes) * jnp.sum(b * b, axis=axes)
    varies = size > 0
    return jnp.where(varies, jnp.sum(a * b, axis=axes) / jnp.sqrt(jnp.where(varies, size, 1)), 0)
