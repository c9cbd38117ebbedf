"""Losses between the logits of a student and of its teacher: arrays in, one number an example out."""

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress.distillation.arrays import labelled, wide
from jaxopt_compress.distillation.softened import kl, softened


def soft_targets(logits: jax.Array, teacher_logits: jax.Array, *, temperature: float | jax.Array) -> jax.Array:
    """Compute `T^2 * KL(teacher || student)` of the softened distributions (Hinton et al., 2015).

    `T^2 * sum_c p_c (log p_c - log q_c)` with `p = softmax(teacher / T)`, `q = softmax(student / T)`: summed over
    classes, in float32, from log-softmaxes. The factor `T^2` keeps the size of the gradient when `T` changes. No
    gradient reaches the teacher.

    Args:
      logits: the student's, `(..., classes)`.
      teacher_logits: the same shape.
      temperature: positive.

    Returns:
      One loss an example, `(...)`, float32 or wider.

    Raises:
      ValueError: the shapes differ, or `temperature` is a number that is not positive.

    Example:
      >>> soft_targets(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]]), temperature=4.0)
      Array([0.], dtype=float32)
    """
    both = softened("soft_targets", logits, teacher_logits, temperature)
    return temperature**2 * kl(both.teacher, both.student)


def kd(
    logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    temperature: float | jax.Array = 4.0,
    alpha: float | jax.Array = 0.9,
) -> jax.Array:
    """Compute `(1 - alpha) * cross_entropy + alpha * soft_targets`: knowledge distillation.

    `alpha` is the weight of the teacher; the labels are compared at temperature 1. Some libraries call `1 - alpha`
    alpha, or leave `T^2` out.

    Args:
      logits: the student's, `(..., classes)`.
      teacher_logits: the same shape.
      labels: integers, `(...)`.
      temperature: positive.
      alpha: the teacher's share, in [0, 1].

    Returns:
      One loss an example, `(...)`.

    Raises:
      ValueError: shapes that do not fit, labels that are not integers, a temperature or an `alpha` out of range.

    Reference: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015.
    """
    return mix(cross_entropy(logits, labels), soft_targets(logits, teacher_logits, temperature=temperature), alpha)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute the cross-entropy with integer labels, one number an example, in float32 or wider."""
    labelled("cross_entropy", logits, labels)
    return optax.softmax_cross_entropy_with_integer_labels(wide(logits), labels)


def mix(task: jax.Array, distilled: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """Weigh a task loss and a distillation loss: `(1 - alpha) * task + alpha * distilled`, example by example."""
    if isinstance(alpha, (int, float)) and not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` is the teacher's share, in [0, 1]; got {alpha}.")

    return (1 - alpha) * task + alpha * distilled


def standardize(logits: jax.Array) -> jax.Array:
    """Give logits mean 0 and deviation 1 over classes, so that a student need not match the teacher's size of them.

    `(z - mean(z)) / (std(z) + 1e-7)`, with `classes - 1` under the root as the authors' code has it; standardize both
    before any other loss: `soft_targets(standardize(student), standardize(teacher), temperature=2.0)`.

    Args:
      logits: `(..., classes)`.

    Returns:
      The same shape, float32 or wider.

    Raises:
      ValueError: fewer than two classes.

    Reference: Sun et al., "Logit standardization in knowledge distillation", 2024.
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"`standardize`: logits have two classes or more; got {logits.shape}.")
    z = wide(logits)
    z = z - jnp.mean(z, axis=-1, keepdims=True)
    square = jnp.sum(z * z, axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    safe = jnp.where(square > 0, square, 1)  # equal logits have no slope, and not that of a root at 0
    return z / (jnp.where(square > 0, jnp.sqrt(safe), 0) + 1e-7)
