"""Soft targets of which only the largest are kept: what a teacher with many classes can be stored as."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation.arrays import positive, wide
from jaxopt_compress.distillation.softened import kl


class TopK(NamedTuple):
    """The largest probabilities of a teacher, and what is left for all other classes together.

    Attributes:
      log_probs: `(..., k)`, from the largest down.
      classes: int32, the same shape.
      rest: the logarithm of the probability of all other classes, `(...)`.
    """

    log_probs: jax.Array
    classes: jax.Array
    rest: jax.Array


def top_k(teacher_logits: jax.Array, k: int, *, temperature: float | jax.Array = 1.0) -> TopK:
    """Keep the `k` largest probabilities of a teacher at a temperature.

    Args:
      teacher_logits: `(..., classes)`; no gradient reaches them.
      k: 1 to the number of classes.
      temperature: positive; the same one goes to `top_k_soft_targets`.

    Raises:
      ValueError: `k` or `temperature` is out of range.
    """
    classes = teacher_logits.shape[-1]
    if not 1 <= k <= classes:
        raise ValueError(f"`top_k`: `k` is 1 to {classes}, the number of classes; got {k}.")
    positive("top_k", "temperature", temperature)
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(wide(teacher_logits)) / temperature)
    largest, where = jax.lax.top_k(log_p, k)
    return TopK(largest, where, _rest(log_p, where))


def top_k_soft_targets(logits: jax.Array, teacher: TopK, *, temperature: float | jax.Array = 1.0) -> jax.Array:
    """Compute `T^2 * KL(teacher || student)` with all classes outside the teacher's largest taken for one.

    That one keeps its mass: a teacher that is cut off and scaled up to 1 instead would ask the student to give all
    other classes no probability. It is at most `soft_targets`, and the same if one class or none is left out.

    Args:
      logits: the student's, `(..., classes)`.
      teacher: what `top_k` kept, at this temperature.
      temperature: positive.

    Returns:
      One loss an example, `(...)`, float32 or wider.

    Raises:
      ValueError: the shapes do not fit, or `temperature` is a number that is not positive.
    """
    if teacher.log_probs.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            f"`top_k_soft_targets`: the teacher kept is that of {logits.shape[:-1]} examples; got "
            f"{teacher.log_probs.shape[:-1]}."
        )
    positive("top_k_soft_targets", "temperature", temperature)
    log_q = jax.nn.log_softmax(wide(logits) / temperature)
    student = jnp.take_along_axis(log_q, teacher.classes, axis=-1)
    log_p = jax.lax.stop_gradient(wide(teacher.log_probs))
    if teacher.classes.shape[-1] < logits.shape[-1]:
        student = jnp.concatenate([student, _rest(log_q, teacher.classes)[..., None]], axis=-1)
        log_p = jnp.concatenate([log_p, jax.lax.stop_gradient(wide(teacher.rest))[..., None]], axis=-1)
    return temperature**2 * kl(log_p, student)


def _rest(log_p: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the logarithm of the sum over all other classes: added up, since `1 - sum` would lose what is small."""
    without = lambda row, mine: row.at[mine].set(-jnp.inf)  # noqa: E731
    for _ in log_p.shape[:-1]:
        without = jax.vmap(without)
    return jax.nn.logsumexp(without(log_p, classes), axis=-1)
