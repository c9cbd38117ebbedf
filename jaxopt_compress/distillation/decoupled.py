"""Distillation of the target class and of the others, each with a weight of its own."""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation.arrays import labelled
from jaxopt_compress.distillation.softened import kl, softened


def dkd(
    logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    temperature: float | jax.Array = 4.0,
    alpha: float | jax.Array = 1.0,
    beta: float | jax.Array = 8.0,
) -> jax.Array:
    """Compute decoupled distillation, `T^2 * (alpha * TCKD + beta * NCKD)`.

    TCKD is the divergence between teacher and student of "the label or not", NCKD that between their distributions over
    the classes that are not the label. `alpha = 1` and `beta` = the teacher's probability of "not the label" make it
    `soft_targets`. The authors add it to the cross-entropy, over 20 epochs of warming up.

    Args:
      logits: the student's, `(..., classes)`.
      teacher_logits: the same shape; no gradient reaches them.
      labels: integers, `(...)`.
      temperature: positive.
      alpha: of the target class.
      beta: of the others.

    Returns:
      One loss an example, `(...)`, float32 or wider.

    Raises:
      ValueError: the shapes differ, labels are not integers, fewer than two classes, or a temperature out of range.

    Reference: Zhao et al., "Decoupled knowledge distillation", 2022.
    """
    both = softened("dkd", logits, teacher_logits, temperature)
    classes = logits.shape[-1]
    labelled("dkd", logits, labels)
    if classes < 2:
        raise ValueError(f"`dkd`: logits have two classes or more; got {logits.shape}.")
    target = jax.nn.one_hot(labels, classes, dtype=bool)
    student, teacher = (_parts(log_p, target) for log_p in both)
    return temperature**2 * (alpha * kl(teacher[0], student[0]) + beta * kl(teacher[1], student[1]))


def _parts(log_p: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return log-probabilities of the label and not the label, and those of the others among themselves."""
    label = jnp.sum(jnp.where(target, log_p, 0), axis=-1)
    others = jnp.where(target, -jnp.inf, log_p)
    rest = jax.nn.logsumexp(others, axis=-1)
    return jnp.stack([label, rest], axis=-1), others - rest[..., None]
