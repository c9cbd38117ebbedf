"""Criteria with a memory: scores that are summed over steps before they prune."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import tree
from jaxopt_compress.combinators import dense_backward, freezing, periodic
from jaxopt_compress.core import ParamTransform
from jaxopt_compress.pruning.choosing import Sparsity
from jaxopt_compress.pruning.criteria import elementwise, movement
from jaxopt_compress.pruning.prune import of_masks, prune
from jaxopt_compress.pruning.scoring import Criterion


class AccumulateState(NamedTuple):
    """The state of `accumulate`.

    Attributes:
      scores: float32, by path, in the shapes of the weights.
      masks: by path, as in `prune`.
    """

    scores: tree.Selection
    masks: tree.Selection


def accumulate(
    criterion: Criterion,
    sparsity: Sparsity | None = None,
    *,
    decay: float = 1.0,
    rate: float | optax.Schedule = 1.0,
    every: int = 1,
    start: int = 0,
    **how: Any,
) -> ParamTransform:
    """Prune by a criterion summed over steps; for criteria that one batch gives too noisily.

    Every `update` computes `scores = decay * scores + rate * criterion(...)`, and at every so many steps the masks are
    drawn anew from the sums. With `taylor` or a squared gradient this is the average over batches that the papers take.
    To be updated in every step: `periodic` around it would skip batches.

    Args:
      criterion: as for `prune`.
      sparsity: as for `prune`.
      decay: what remains of the old scores in each step, in [0, 1]; 1 is a plain sum.
      rate: what a step counts, not negative, or an Optax schedule of it: the learning rate of the scores.
      every: the period, in steps, of drawing masks.
      start: the first step at which masks are drawn.
      **how: `pattern`, `scope`, `allocation`, `minimum`, `packed`, as for `prune`.

    Returns:
      A transform whose state is an `AccumulateState`: four bytes a weight more than that of `prune`.

    Raises:
      ValueError: a decay outside [0, 1], a negative rate; what `prune` and `periodic` refuse.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"`accumulate`: `decay` is in [0, 1]; got {decay}.")
    if isinstance(rate, (int, float)) and not rate >= 0:
        raise ValueError(f"`accumulate`: `rate` is not negative; got {rate}.")
    inner = periodic(prune(_accumulated, sparsity, **how), every, start)

    def init(params):
        zeros = {path: jnp.zeros_like(w, jnp.float32) for path, w in tree.weights(params).items()}
        return AccumulateState(tree.Selection(zeros), inner.init(params))

    def update(params, state, *, step, **extra):
        fresh = tree.leaves(criterion(params, step=step, **extra))
        now = jnp.asarray(rate(step) if callable(rate) else rate, jnp.float32)
        scores = {path: _add(decay * s, now * fresh[path].astype(jnp.float32)) for path, s in state.scores.items()}
        masks = inner.update(params, state.masks, step=step, accumulated=tree.replace(params, scores))
        return AccumulateState(tree.Selection(scores), masks)

    return of_masks(inner)._replace(init=init, update=update)


def movement_pruning(
    sparsity: Sparsity, *, rate: float | optax.Schedule = 1.0, every: int = 1, start: int = 0, **how: Any
) -> ParamTransform:
    """Prune what moves towards zero while a trained model is fine-tuned (Sanh et al., 2020).

    Masked weights are frozen at their values; their scores go on being learned, by the gradient that they would have,
    and they come back as they were. The paper anneals the sparsity by a cubic schedule, with warm-up and cool-down:
    `optax.polynomial_schedule(0.0, 0.95, power=3, transition_steps=..., transition_begin=...)`. For fine-tuning only:
    in training from scratch magnitude is better. Needs `grads`, which `attach` hands over.

    Scores learn at a rate that should go to zero as that of the weights does: with a constant one masks go on changing
    when the weights can no longer follow. Only the shape of the schedule matters, not its height.

    Args:
      sparsity: as for `prune`.
      rate: the learning rate of the scores, such as `optax.cosine_decay_schedule(1.0, steps)`.
      every: the period, in steps, of drawing masks; the paper draws them in every step.
      start: the first step at which masks are drawn.
      **how: `pattern` (with `pool=jnp.sum`, since scores have a sign), `scope`, `allocation`, as for `prune`.
    """
    return freezing(dense_backward(accumulate(movement, sparsity, rate=rate, every=every, start=start, **how)))


@elementwise
def _accumulated(params: Any, *, accumulated: Any, **extra: Any) -> Any:
    del extra
    return jax.tree.map(lambda _, s: s, params, accumulated)


def _add(a: jax.Array, b: jax.Array) -> jax.Array:
    """Add what may be products in float32; compiled into one fused multiply-add they would round differently."""
    a, b = (jnp.where(x != 0, x, 0) for x in (a, b))
    return a + b
