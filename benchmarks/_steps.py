"""Training steps to compare: dense and compressed, with and without a teacher, for any forward function.

A step is `((params, opt_state), x, y, teacher's params) -> (state, loss)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

import jaxopt_compress as jc

ADAM = optax.adam(1e-4)
KERNELS = "**/kernel"


def pruning(every: int = 100) -> jc.ParamTransform:
    """Return gradual magnitude pruning to 90 %."""
    sparsity = optax.polynomial_schedule(0.5, 0.9, power=3, transition_steps=1_000)
    return jc.select(KERNELS, jc.periodic(jc.pruning.prune(jc.pruning.magnitude, sparsity), every))


def fixed() -> jc.ParamTransform:
    """Return pruning whose masks never change: a step between two refreshes."""
    return pruning()._replace(update=jc.keep)


def int8() -> jc.ParamTransform:
    """Return int8 fake-quantization of the weights."""
    return jc.select(KERNELS, jc.quantization.fake_quantize(8))


def _loss(forward: Callable, distilled: bool) -> Callable:
    def loss(params, x, y, teacher):
        if distilled:
            return jc.distillation.kd(forward(params, x), forward(teacher, x), y).mean()
        return jc.distillation.cross_entropy(forward(params, x), y).mean()

    return loss


def dense(forward: Callable, distilled: bool = False) -> Callable:
    """Return the step of plain `optax.adam`."""
    loss_fn = _loss(forward, distilled)

    def step(state, x, y, teacher):
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y, teacher)
        updates, opt_state = ADAM.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return step


def compressed(forward: Callable, tx: jc.optimizers.Attached, distilled: bool = False) -> Callable:
    """Return the step of an optimizer with a transform attached."""
    loss_fn = _loss(forward, distilled)

    def step(state: Any, x, y, teacher):
        params, opt_state = state
        seen = lambda p: loss_fn(tx.apply(p, opt_state), x, y, teacher)  # noqa: E731
        loss, grads = jax.value_and_grad(seen)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return step
