"""Momentum of the task and momentum of the teacher, apart."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class DotState(NamedTuple):
    """Both velocities, of the structure of the parameters."""

    task: Any
    distilled: Any


def dot(momentum: float = 0.9, delta: float = 0.05) -> optax.GradientTransformationExtraArgs:
    """Accumulate the gradients of the task and of the teacher with momenta of their own (DOT).

        v_task = (momentum - delta) v_task + g_task
        v_kd   = (momentum + delta) v_kd   + g_kd
        update = v_task + v_kd

    Distillation is followed further along its own way, and the task comes in where both agree. Chain it with a learning
    rate: `optax.chain(dot(), optax.scale_by_learning_rate(0.05))`. With `delta=0` it is `optax.trace` of the sum.

    Args:
      momentum: of both, in the mean.
      delta: half of what they differ by; the authors take 0.075 on CIFAR-100 and 0.09 on ImageNet.

    Returns:
      A transformation whose `update(task_gradients, state, params, distilled=gradients)` takes both.

    Raises:
      ValueError: a momentum that is not in [0, 1), or (from `update`) `distilled` is missing.

    Reference: Zhao et al., "DOT: a distillation-oriented trainer", 2023.
    """
    if momentum - abs(delta) < 0 or momentum + abs(delta) >= 1:
        raise ValueError(f"`dot`: both momenta are in [0, 1); got {momentum} - {delta} and {momentum} + {delta}.")

    def init(params):
        return DotState(*(jax.tree.map(jnp.zeros_like, params) for _ in range(2)))

    def update(updates, state, params=None, *, distilled=None, **extra):
        del params, extra
        if distilled is None:
            raise ValueError("`dot`: `update` needs `distilled`, the gradients of the teacher's loss; got None.")
        task = jax.tree.map(lambda v, g: (momentum - delta) * v + g, state.task, updates)
        taught = jax.tree.map(lambda v, g: (momentum + delta) * v + g, state.distilled, distilled)
        return jax.tree.map(lambda a, b: a + b, task, taught), DotState(task, taught)

    return optax.GradientTransformationExtraArgs(init, update)
