"""Criteria that look at the model itself: they differentiate a loss or a forward function of yours.

Each is made once, from a function, the parameters of the whole model, and data, and is then a criterion like any other:
under `select` it sees a part of the parameters, and takes the rest from those it was made with. `settle` draws masks in
many rounds before any training, as SynFlow needs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import tree
from jaxopt_compress.core import Params, ParamTransform, State
from jaxopt_compress.pruning.criteria import magnitude, obd

LossFn = Callable[..., jax.Array]


def fisher(loss_fn: LossFn, params: Params, batch: Any, *, chunk: int | None = None) -> Callable:
    """Score each weight by the second-order change of the loss without it, with the Fisher diagonal as curvature.

    `f * w^2 / 2`, where `f` is the mean over examples of the squared gradient of one example (the empirical Fisher;
    Theis et al., 2018; LeCun et al., 1990 with the Hessian). The square of the mean gradient, which a batch gives for
    free, is another and worse thing: at a minimum it vanishes.

    Args:
      loss_fn: `(params, example) -> scalar`, the loss of one example.
      params: those of the whole model.
      batch: examples stacked on the first axis of every array.
      chunk: of how many examples the gradients are in memory together; all, if left out.

    Returns:
      A criterion.

    Raises:
      ValueError: `chunk` does not divide the number of examples.
    """
    number = jax.tree.leaves(batch)[0].shape[0]
    size = chunk or number
    if size < 1 or number % size:
        raise ValueError(f"`fisher`: `chunk` divides the number of examples, {number}; got {chunk}.")
    parts = jax.tree.map(lambda x: jnp.reshape(x, (number // size, size, *x.shape[1:])), batch)
    each = jax.vmap(jax.grad(_of_weights(loss_fn, params)), (None, 0))

    def criterion(params, **extra):
        del extra
        weights = dict(tree.weights(params))

        def add(sums, part):
            return jax.tree.map(lambda s, g: s + jnp.sum(jnp.square(g), 0), sums, each(weights, part)), None

        sums, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, weights), parts)
        return tree.replace(params, obd(weights, curvature=jax.tree.map(lambda s: s / number, sums)))

    return criterion


def grasp(loss_fn: LossFn, params: Params, batch: Any) -> Callable:
    """Score each weight so that pruning by it keeps the gradient flowing (GraSP; Wang et al., 2020).

    `w * (H g)`, with the Hessian and the gradient of the loss of one batch at initialization. The paper removes the
    weights with the largest `-w * (H g)`; here, as everywhere, the lowest scores go.

    Args:
      loss_fn: `(params, batch) -> scalar`. The paper divides the logits by 200 in it.
      params: those of the whole model.
      batch: the data, ten or more examples a class.

    Returns:
      A criterion.
    """
    grad = jax.grad(lambda weights: _of_weights(loss_fn, params)(weights, batch))

    def criterion(params, **extra):
        del extra
        weights = dict(tree.weights(params))
        _, bent = jax.jvp(grad, (weights,), (grad(weights),))
        return tree.replace(params, {path: w * bent[path] for path, w in weights.items()})

    return criterion


def synflow(forward: Callable, params: Params, example: Any) -> Callable:
    """Score each weight by the paths through it, without data (SynFlow; Tanaka et al., 2020).

    `|w| * dR/d|w|`, where `R` is the sum of the outputs of the network with all weights replaced by their magnitudes,
    on an input of ones. To be drawn in many rounds, with `settle`; in one it collapses layers like the others.

    Args:
      forward: `(params, inputs) -> outputs`, positively homogeneous (ReLU, no softmax), normalization layers as at test
        time or left out.
      params: those of the whole model.
      example: an input, of which shape and dtype count.

    Returns:
      A criterion.
    """
    ones, positive = jax.tree.map(jnp.ones_like, example), tree.replace(params, magnitude(dict(tree.weights(params))))
    grad = jax.grad(lambda weights: jnp.sum(_of_weights(forward, positive)(weights, ones)))

    def criterion(params, **extra):
        del extra
        weights = magnitude(dict(tree.weights(params)))
        flow = grad(weights)
        return tree.replace(params, {path: w * flow[path] for path, w in weights.items()})

    return criterion


def settle(t: ParamTransform, params: Params, rounds: int, **extra: Any) -> State:
    """Update a transform again and again on what it lets through, before any training.

    To train with what was found, and no other: `attach(tx, held(t, state))`.

    Args:
      t: a transform; its schedules see the round as the step, from 0.
      params: the parameters; they stay as they are.
      rounds: how often, at least 1.
      **extra: handed to every update.

    Returns:
      The last state.

    Example:
      >>> from jaxopt_compress.pruning import magnitude, prune
      >>> t = prune(magnitude, lambda step: 1 - 0.25 ** ((step + 1) / 2))  # half goes in each of two rounds
      >>> settle(t, {"w": jnp.array([3.0, 1.0, 4.0, 2.0])}, rounds=2)["w"]
      Array([4], dtype=uint8)
    """
    if rounds < 1:
        raise ValueError(f"`settle`: `rounds` is at least 1; got {rounds}.")
    turn = lambda step, state: t.update(t.apply(params, state), state, step=step, **extra)  # noqa: E731
    return jax.lax.fori_loop(0, rounds, turn, t.init(params))


def _of_weights(fn: Callable, params: Params) -> Callable:
    """Make a function of some weights, by path; the other leaves are those of `params`."""
    return lambda weights, *args: fn(tree.replace(params, weights), *args)
