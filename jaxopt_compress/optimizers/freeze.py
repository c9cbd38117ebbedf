"""Parameters that stay as they are, for good or for a while."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import tree


class FreezeState(NamedTuple):
    """The state of `freeze`.

    Attributes:
      steps: so far.
    """

    steps: Any


def freeze(where: tree.Where, until: int | jax.Array | None = None) -> optax.GradientTransformation:
    """Set the updates of some parameters to zero; the last link of a chain, so that weight decay is caught too.

    Args:
      where: which, as for `select`: a glob, globs, a predicate `(path, leaf)` or a tree of bools.
      until: the number of steps after which they move again; never if None. For gradual unfreezing chain several.

    Raises:
      ValueError: (from `init`) `where` chooses nothing.

    Example:
      >>> tx = optax.chain(optax.sgd(1.0), freeze("body", until=1))
      >>> params = {"body": jnp.ones(1), "head": jnp.ones(1)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> {name: u.tolist() for name, u in updates.items()}
      {'body': [0.0], 'head': [-1.0]}
      >>> tx.update(params, state, params)[0]["body"].tolist()
      [-1.0]

    Reference: Howard & Ruder, "Universal language model fine-tuning for text classification", 2018 (gradual
    unfreezing).
    """

    def init(params: Any) -> FreezeState:
        tree.choose(params, where)
        return FreezeState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        leaves, frozen = tree.leaves(updates), jnp.asarray(True) if until is None else state.steps < until
        still = {path: jnp.where(frozen, 0, leaves[path]) for path in tree.choose(updates, where)}
        return tree.replace(updates, still), FreezeState(optax.safe_increment(state.steps))

    return optax.GradientTransformation(init, update)
