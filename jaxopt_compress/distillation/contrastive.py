"""Contrast with other examples: a student is to tell the teacher's view of an example from those of others (CRD)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxopt_compress.distillation.arrays import alike, unit, wide


class Bank(NamedTuple):
    """The last embeddings of every example of the data.

    Attributes:
      student: `(examples, size)`, rows of length 1.
      teacher: the same.
      normalizer: of both scores, `(2,)`; 0 until the first batch sets it.
    """

    student: jax.Array
    teacher: jax.Array
    normalizer: jax.Array


def bank(key: jax.Array, examples: int, size: int) -> Bank:
    """Start a bank with random directions."""
    student, teacher = (unit(jax.random.normal(k, (examples, size)), -1) for k in jax.random.split(key))
    return Bank(student, teacher, jnp.zeros(2))


def crd(
    student: jax.Array,
    teacher: jax.Array,
    held: Bank,
    examples: jax.Array,
    negatives: jax.Array,
    *,
    temperature: float = 0.07,
) -> tuple[jax.Array, Bank]:
    """Compute the noise-contrastive loss of both embeddings, each against the bank of the other.

        h(a, b) = exp(<a, b> / temperature) / normalizer
        -log h / (h + m / n) of the example itself, -log (m / n) / (h + m / n) of each of `m` others out of `n`

    added up over both sides. Normalizers are `n` times the mean score of the first batch. Embeddings are what
    projectors put out, scaled to length 1 here; both projectors are trained, what is in front of the teacher's is not.

    Args:
      student: `(batch, size)`.
      teacher: the same shape.
      held: the bank.
      examples: which examples of the data these are, integers `(batch,)`.
      negatives: which others to tell them from, integers `(batch, m)`: `jax.random.randint(key, (batch, m), 0, n)`.
      temperature: positive.

    Returns:
      One loss an example, and the bank with the normalizers set; `remember` puts the embeddings in.

    Raises:
      ValueError: shapes that do not fit.

    Reference: Tian et al., "Contrastive representation distillation", 2020, with its memory bank; 16,384 negatives.
    """
    alike("crd", student, teacher, "embeddings")
    if examples.shape != student.shape[:1] or negatives.shape[:1] != student.shape[:1] or negatives.ndim != 2:
        raise ValueError(
            f"`crd`: `examples` are ({student.shape[0]},) and `negatives` ({student.shape[0]}, m); got "
            f"{examples.shape} and {negatives.shape}."
        )
    rows, count = jnp.concatenate([examples[:, None], negatives], axis=1), held.student.shape[0]
    pairs = ((student, held.teacher), (teacher, held.student))
    scores = [_scores(unit(wide(a), -1), stop_gradient(memory)[rows], temperature) for a, memory in pairs]
    means = jnp.stack([stop_gradient(jnp.mean(score)) * count for score in scores])
    normalizer = jnp.where(held.normalizer > 0, held.normalizer, means)
    losses = [_noise_contrast(score / z, negatives.shape[1] / count) for score, z in zip(scores, normalizer)]
    return losses[0] + losses[1], held._replace(normalizer=normalizer)


def remember(held: Bank, student: jax.Array, teacher: jax.Array, examples: jax.Array, momentum: float = 0.5) -> Bank:
    """Move the rows of these examples towards their new embeddings, `momentum` of the old ones staying."""

    def moved(memory: jax.Array, new: jax.Array) -> jax.Array:
        row = momentum * memory[examples] + (1 - momentum) * unit(stop_gradient(wide(new)), -1)
        return memory.at[examples].set(unit(row, -1).astype(memory.dtype))

    return held._replace(student=moved(held.student, student), teacher=moved(held.teacher, teacher))


def _scores(one: jax.Array, others: jax.Array, temperature: float) -> jax.Array:
    return jnp.exp(jnp.einsum("nd,nmd->nm", one, others.astype(one.dtype), precision="highest") / temperature)


def _noise_contrast(score: jax.Array, noise: float) -> jax.Array:
    """Return the loss of an example whose own score stands first."""
    own, others = score[:, 0], score[:, 1:]
    return jnp.log1p(noise / own) + jnp.sum(jnp.log1p(others / noise), axis=1)
