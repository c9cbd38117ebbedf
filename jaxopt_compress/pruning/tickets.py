"""Iterative pruning with rewinding: lottery tickets."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.core import Params, ParamTransform, State


def find_ticket(
    train: Callable[[Params, State], tuple[Params, Any]],
    t: ParamTransform,
    params: Params,
    rounds: int,
) -> tuple[State, Any]:
    """Train, prune, rewind the weights that are left, and train again (Frankle & Carbin, 2019).

    One `lax.scan` over the rounds, so that all of it is one program. Every round starts from the same `params`: those
    of the initialization, or of a step soon after it (Frankle et al., 2020).

    Args:
      train: `(params, state) -> (trained params, report)`; a whole training run in which the forward pass sees
        `t.apply(params, state)`. The report is any pytree of arrays.
      t: what prunes, with the round as its step, counted from 0: `prune(magnitude, lambda r: 1 - 0.8 ** (r + 1))`
        removes a fifth of what is left in every round.
      params: what every round starts from.
      rounds: how often to train and prune, at least 1.

    Returns:
      The state after the last pruning, and the reports of all rounds, stacked. The first round is dense; to train the
      last ticket call `train` once more.

    Raises:
      ValueError: `rounds` below 1.
    """
    if rounds < 1:
        raise ValueError(f"`find_ticket`: `rounds` is at least 1; got {rounds}.")

    def turn(state, number):
        trained, report = train(params, state)
        return t.update(t.apply(trained, state), state, step=number), report

    return jax.lax.scan(turn, t.init(params), jnp.arange(rounds))
