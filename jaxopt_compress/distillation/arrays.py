"""What the losses share: checks of what goes in, wide floats, directions."""

import jax
import jax.numpy as jnp


def alike(call: str, student: jax.Array, teacher: jax.Array, what: str) -> None:
    """Refuse arrays of different shapes."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"`{call}`: student and teacher {what} have one shape; got {student.shape} and {teacher.shape}."
        )


def positive(call: str, name: str, number: float | jax.Array) -> None:
    """Refuse a number, known when traced, that is not positive."""
    if isinstance(number, (int, float)) and not number > 0:
        raise ValueError(f"`{call}`: `{name}` is positive; got {number}.")


def wide(x: jax.Array) -> jax.Array:
    """Return float32, and float64 for float64."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def labelled(call: str, logits: jax.Array, labels: jax.Array) -> None:
    """Refuse labels that are not one integer an example."""
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"`{call}`: labels are integers of shape {logits.shape[:-1]}; got {labels.dtype} of {labels.shape}."
        )


def unit(x: jax.Array, axis: int) -> jax.Array:
    """Scale to length 1 along an axis; zeros stay zeros, without a slope."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    return jnp.where(square > 0, x / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
