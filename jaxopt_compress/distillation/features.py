"""Losses between features of student and teacher, example by example: channels last, one number an example out.

The student's features come through a projector where theirs have another shape; no gradient reaches the teacher's.
"""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jaxopt_compress.distillation.arrays import alike, unit, wide

LEVELS = (4, 2, 1)  # of the pyramid


def hint(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compute the mean squared difference (FitNets).

    Args:
      student: `(examples, ...)`.
      teacher: the same shape.

    Returns:
      One loss an example, the mean over all other axes, float32 or wider.

    Raises:
      ValueError: the shapes differ.

    Reference: Romero et al., "FitNets: hints for thin deep nets", 2015.
    """
    alike("hint", student, teacher, "features")
    return _mean((wide(student) - stop_gradient(wide(teacher))) ** 2)


def attention_transfer(student: jax.Array, teacher: jax.Array, *, power: int = 2) -> jax.Array:
    """Compare where features are large: `mean_positions (a_s - a_t)^2`.

    `a` is the mean over channels of `f^power`, over all positions scaled to length 1. The paper adds up where the
    authors' code, and this, takes the mean.

    Args:
      student: `(examples, ..., channels)`.
      teacher: the same but for the number of channels.
      power: 2 and upwards.

    Returns:
      One loss an example, float32 or wider.

    Raises:
      ValueError: the positions differ, or there are none.

    Reference: Zagoruyko & Komodakis, "Paying more attention to attention", 2017.
    """
    _positions("attention_transfer", student, teacher)
    maps = [unit(_flat(jnp.mean(wide(f) ** power, axis=-1)), -1) for f in (student, stop_gradient(teacher))]
    return _mean((maps[0] - maps[1]) ** 2)


def nst(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Match the distributions of the channels' maps: the squared distance (MMD) under the kernel `(a . b)^2`.

    Each channel is a vector over positions of length 1; `mean k(t, t) + mean k(s, s) - 2 mean k(s, t)`.

    Args:
      student: `(examples, ..., channels)`.
      teacher: the same but for the number of channels.

    Returns:
      One loss an example, float32 or wider.

    Raises:
      ValueError: the positions differ, or there are none.

    Reference: Huang & Wang, "Like what you like: knowledge distill via neuron selectivity transfer", 2017.
    """
    _positions("nst", student, teacher)
    s, t = (unit(wide(f).reshape(f.shape[0], -1, f.shape[-1]), 1) for f in (student, stop_gradient(teacher)))

    def kernel(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.mean(jnp.einsum("npc,npd->ncd", a, b, precision="highest") ** 2, axis=(1, 2))

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def ofd(student: jax.Array, teacher: jax.Array, margin: jax.Array) -> jax.Array:
    """Sum the squared differences to `max(teacher, margin)`, where it is not enough that both are negative.

    Features are those in front of a ReLU. Where the student is at most the target and the target at most 0, nothing is
    asked of it.

    Args:
      student: `(examples, ..., channels)`.
      teacher: the same shape.
      margin: negative, one a channel: what `negative_mean` finds.

    Returns:
      One loss an example, the sum over all other axes, float32 or wider.

    Raises:
      ValueError: the shapes differ.

    Reference: Heo et al., "A comprehensive overhaul of feature distillation", 2019.
    """
    alike("ofd", student, teacher, "features")
    if margin.shape != teacher.shape[-1:]:
        raise ValueError(f"`ofd`: one margin a channel, {teacher.shape[-1:]}; got {margin.shape}.")
    s, t = wide(student), stop_gradient(wide(teacher))
    target = jnp.maximum(t, stop_gradient(margin).reshape((1,) * (t.ndim - 1) + (-1,)).astype(t.dtype))
    asked = (s > target) | (target > 0)
    return jnp.sum(_flat(jnp.where(asked, (s - target) ** 2, 0)), axis=1)


def negative_mean(mean: jax.Array, deviation: jax.Array) -> jax.Array:
    """Return the mean of the negative part of a normal distribution, `E[x | x < 0]`: the margin of `ofd`.

    It is that of what batch normalization puts out with shift `mean` and scale `deviation`, one a channel; `-3
    deviation` where less than a thousandth is negative, as the authors have it.
    """
    deviation = jnp.abs(deviation)
    at = -mean / jnp.where(deviation > 0, deviation, 1)
    share = jax.scipy.stats.norm.cdf(at)
    inside = mean - deviation * jax.scipy.stats.norm.pdf(at) / jnp.where(share > 0, share, 1)
    return jnp.where(share > 1e-3, inside, -3 * deviation)


def vid(student: jax.Array, teacher: jax.Array, spread: jax.Array) -> jax.Array:
    """Compute the negative log-likelihood of the teacher's features, normal around the student's (VID).

        v = softplus(spread) + 1e-5;   mean of ((s - t)^2 / v + log v) / 2

    Args:
      student: `(examples, ..., channels)`, what a projector predicts.
      teacher: the same shape.
      spread: trained beside the projector, one a channel; `spread_of(5.0)` is where the authors start.

    Returns:
      One loss an example, the mean over all other axes, float32 or wider. It can be negative.

    Raises:
      ValueError: the shapes differ.

    Reference: Ahn et al., "Variational information distillation for knowledge transfer", 2019.
    """
    alike("vid", student, teacher, "features")
    if spread.shape != teacher.shape[-1:]:
        raise ValueError(f"`vid`: one spread a channel, {teacher.shape[-1:]}; got {spread.shape}.")
    s, t = wide(student), stop_gradient(wide(teacher))
    variance = (jax.nn.softplus(wide(spread)) + 1e-5).reshape((1,) * (t.ndim - 1) + (-1,)).astype(t.dtype)
    return _mean(((s - t) ** 2 / variance + jnp.log(variance)) / 2)


def spread_of(variance: float | jax.Array) -> jax.Array:
    """Return the `spread` of `vid` that stands for a variance above 1e-5."""
    return jnp.log(jnp.expm1(jnp.asarray(variance) - 1e-5))


def hcl(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compare pictures as they are and averaged down to 4 x 4, 2 x 2 and 1 (the loss of ReviewKD).

    The mean squared difference of each size; that of the whole picture counts 1, the next sizes 1/2, 1/4 and 1/8, sizes
    not below the height are left out, and what is left is a weighted mean.

    Args:
      student: `(examples, height, width, channels)`.
      teacher: the same shape.

    Returns:
      One loss an example, float32 or wider.

    Raises:
      ValueError: the shapes differ, or are no pictures.

    Reference: Chen et al., "Distilling knowledge via knowledge review", 2021.
    """
    alike("hcl", student, teacher, "features")
    if student.ndim != 4:
        raise ValueError(f"`hcl`: features are (examples, height, width, channels); got {student.shape}.")
    gap = wide(student) - stop_gradient(wide(teacher))
    total, weight, weights = _mean(gap**2), 1.0, 1.0
    for size in LEVELS:
        if size < gap.shape[1]:
            weight /= 2
            total = total + weight * _mean(_averaged(gap, size) ** 2)
            weights += weight
    return total / weights


def _averaged(x: jax.Array, size: int) -> jax.Array:
    """Average over a grid of windows that cover height and width, as PyTorch's adaptive pooling lays them."""
    rows, columns = (jnp.asarray(_windows(n, min(size, n)), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("ih,jw,nhwc->nijc", rows, columns, x, precision="highest")


def _windows(length: int, count: int) -> np.ndarray:
    at, i = np.arange(length)[None], np.arange(count)[:, None]
    inside = (at >= i * length // count) & (at < -(-(i + 1) * length // count))
    return inside / inside.sum(axis=1, keepdims=True)


def _positions(call: str, student: jax.Array, teacher: jax.Array) -> None:
    if student.shape[:-1] != teacher.shape[:-1] or student.ndim < 3:
        raise ValueError(
            f"`{call}`: features are (examples, positions ..., channels), of one shape but for the channels; got "
            f"{student.shape} and {teacher.shape}."
        )


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], prod(x.shape[1:]))


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(_flat(x), axis=1)
