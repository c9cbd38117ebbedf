"""Take turns between optimizers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class AlternateState(NamedTuple):
    """The state of `alternate`.

    Attributes:
      position: int32 scalar, the step within one cycle of turns, in `[0, every * number of optimizers)`. A position
        and not a count of all steps: it never overflows.
      inner: the state of each optimizer, in order.
    """

    position: jax.Array
    inner: tuple[optax.OptState, ...]


def alternate(*txs: optax.GradientTransformation, every: int = 1) -> optax.GradientTransformationExtraArgs:
    """Let optimizers take turns: `every` steps of the first, `every` steps of the second, and so on, cyclically.

    Each optimizer has its own state and its own clock. One that is not in turn does not see the gradient, its state
    keeps every bit, and its step count (bias correction, schedules) stands still: after `k` turns Adam is where
    Adam alone is after `k` steps. The turn is a `lax.cond`: one compilation for the whole run.

    Set `every` to the number of steps in an epoch to change optimizers by epoch.

    Args:
      *txs: at least two optimizers, each returning updates with the dtypes of the gradient.
      every: how many consecutive steps one turn has, at least 1.

    Returns:
      A transformation whose state is an `AlternateState`. Extra arguments of `update` go to the optimizer in turn,
      if it takes any.

    Raises:
      ValueError: there are fewer than two optimizers, or `every` is below 1.

    Example:
      >>> tx = alternate(optax.sgd(0.1), optax.sgd(1.0))
      >>> state = tx.init(jnp.zeros(()))
      >>> for _ in range(3):
      ...     update, state = tx.update(jnp.ones(()), state)
      ...     print(f"{update:.1f}")
      -0.1
      -1.0
      -0.1
    """
    if len(txs) < 2:
        raise ValueError(f"`alternate`: takes turns between at least 2 optimizers; got {len(txs)}.")
    if every < 1:
        raise ValueError(f"`alternate`: `every` is at least 1; got {every}.")
    inner_txs = tuple(optax.with_extra_args_support(tx) for tx in txs)

    def init(params):
        return AlternateState(jnp.zeros((), jnp.int32), tuple(tx.init(params) for tx in inner_txs))

    def update(updates, state, params=None, **extra):
        turn, inner = state.position // every, []
        for i, (tx, tx_state) in enumerate(zip(inner_txs, state.inner, strict=True)):
            # One cond per optimizer, not one switch over all states: XLA then keeps each state in place.
            updates, tx_state = jax.lax.cond(turn == i, _take(tx, params, extra), _pass, updates, tx_state)
            inner.append(tx_state)
        return updates, AlternateState((state.position + 1) % (every * len(inner_txs)), tuple(inner))

    return optax.GradientTransformationExtraArgs(init, update)


def _take(tx, params, extra):
    return lambda updates, state: tx.update(updates, state, params, **extra)


def _pass(updates, state):
    return updates, state
