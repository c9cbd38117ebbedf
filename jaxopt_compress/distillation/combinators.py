"""Combinators from loss functions to loss functions."""

from collections.abc import Callable

import jax

from jaxopt_compress.distillation.logits import mix, soft_targets

LossFn = Callable[..., jax.Array]


def with_teacher(
    loss_fn: LossFn,
    teacher: Callable[..., jax.Array],
    *,
    temperature: float | jax.Array = 4.0,
    alpha: float | jax.Array = 0.9,
) -> LossFn:
    """Add a teacher to a loss: `(1 - alpha) * loss_fn + alpha * T^2 * KL(teacher || student)`.

    Args:
      loss_fn: `(logits, *targets) -> losses`, one number an example: `cross_entropy`, a loss of Optax, your own.
      teacher: `(inputs) -> logits`, such as `partial(model.apply, variables)`; it gets no gradient. Put the
        teacher in evaluation mode (no dropout, fixed batch statistics).
      temperature: positive.
      alpha: the teacher's share, in [0, 1].

    Returns:
      `(logits, *targets, inputs=x) -> losses`, with one number an example.

    Raises:
      ValueError: (when first traced) `loss_fn` does not return one number an example.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxopt_compress.distillation.logits import cross_entropy
      >>> loss_fn = with_teacher(cross_entropy, lambda x: 2 * x, alpha=0.5)
      >>> loss_fn(jnp.zeros((3, 2)), jnp.array([0, 1, 1]), inputs=jnp.zeros((3, 2))).shape
      (3,)
    """

    def distilled(logits, *targets, inputs):
        task = loss_fn(logits, *targets)
        if task.shape != logits.shape[:-1]:
            raise ValueError(
                f"`with_teacher`: `loss_fn` returns one number an example, {logits.shape[:-1]}; got {task.shape}."
            )
        soft = soft_targets(logits, jax.lax.stop_gradient(teacher(inputs)), temperature=temperature)
        return mix(task, soft, alpha)

    return distilled
