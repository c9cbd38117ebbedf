"""Logits of student and teacher as softened distributions, checked and in float32 or wider."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation.arrays import alike, positive, wide


class Softened(NamedTuple):
    """Logarithms of the distributions `softmax(logits / temperature)`.

    Attributes:
      student: `(..., classes)`.
      teacher: the same shape; no gradient passes.
    """

    student: jax.Array
    teacher: jax.Array


def softened(call: str, logits: jax.Array, teacher_logits: jax.Array, temperature: float | jax.Array) -> Softened:
    """Return both distributions.

    Raises:
      ValueError: the shapes differ, or `temperature` is a number that is not positive.
    """
    alike(call, logits, teacher_logits, "logits")
    positive(call, "temperature", temperature)
    return Softened(
        jax.nn.log_softmax(wide(logits) / temperature),
        jax.nn.log_softmax(jax.lax.stop_gradient(wide(teacher_logits)) / temperature),
    )


def kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return `sum_c p_c (log p_c - log q_c)`; a class with `p_c = 0` adds nothing, to no gradient either."""
    p = jnp.exp(log_p)
    there = p > 0
    gap = jnp.where(there, log_p, 0) - jnp.where(there, log_q, 0)
    return jnp.sum(jnp.where(there, p, 0) * gap, axis=-1)
