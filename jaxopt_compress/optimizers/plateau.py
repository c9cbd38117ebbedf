"""Tell when a value has stopped improving."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class PlateauState(NamedTuple):
    """The state of `plateau`; each field is a scalar array.

    Attributes:
      best: float, the last value that counted as an improvement; infinity before the first.
      since: int32, how many updates have passed since then.
      reached: bool, whether the plateau has been reached; once true it stays true.
    """

    best: jax.Array
    since: jax.Array
    reached: jax.Array


class Plateau(NamedTuple):
    """Two pure functions: a criterion that a training loop of your own asks when to stop.

    Attributes:
      init: `() -> state`.
      update: `(state, value) -> state`; `value` is a scalar, the lower the better.
    """

    init: Callable[[], PlateauState]
    update: Callable[[PlateauState, chex.Numeric], PlateauState]


def plateau(*, patience: int, rtol: float = 1e-4, atol: float = 0.0) -> Plateau:
    """Build a criterion that is reached after `patience` updates in a row without improvement.

    A value improves on the best one if

        value < best - (atol + rtol * |best|)

    Lower is better: give it a loss, or minus an accuracy. The first finite value always improves; NaN never does,
    so a run that has diverged ends after `patience` more updates. Small steps that each stay within the tolerance
    add up, because `best` moves only when a value improves on it.

    All of it is arrays and works under `jit`, `vmap`, `scan` and `while_loop`. With metrics that live on the host,
    call `update` from Python and test `bool(state.reached)`.

    Args:
      patience: how many updates in a row without improvement are too many, at least 1.
      rtol: the part of `|best|` by which a value must be lower, at least 0.
      atol: the amount by which a value must be lower, at least 0, in the unit of the value.

    Raises:
      ValueError: `patience` is below 1 or a tolerance is negative or NaN.

    Example:
      Minimize `x^2` by gradient descent until the loss has stood still for 3 steps, in one compiled loop:

      >>> stop = plateau(patience=3, rtol=0.0, atol=1e-6)
      >>> def step(carry):
      ...     x, state = carry
      ...     loss, slope = jax.value_and_grad(jnp.square)(x)
      ...     return x - 0.1 * slope, stop.update(state, loss)
      >>> x, state = jax.lax.while_loop(lambda carry: ~carry[1].reached, step, (jnp.float32(1.0), stop.init()))
      >>> print(f"{x:.4f}", state.since, state.reached)
      0.0004 3 True
    """
    if patience < 1 or not (rtol >= 0 and atol >= 0):
        raise ValueError(
            "`plateau`: `patience` is at least 1, `rtol` and `atol` at least 0; "
            f"got patience={patience}, rtol={rtol}, atol={atol}."
        )

    def init():
        return PlateauState(jnp.array(jnp.inf, float), jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def update(state, value):
        value = jnp.asarray(value, state.best.dtype)
        margin = jnp.where(jnp.isfinite(state.best), atol + rtol * jnp.abs(state.best), 0)
        improved = value < state.best - margin
        best = jnp.where(improved, value, state.best)
        since = jnp.where(improved, 0, state.since + 1)
        return PlateauState(best, since, state.reached | (since >= patience))

    return Plateau(init, update)
