"""Criteria that look at the model itself: they differentiate a loss or a forward function of yours.

Each is made once, from a function, the parameters of the whole model, and data, and is then a criterion like any other:
under `select` it sees a part of the parameters, and takes the rest from those it was made with. `settle` draws masks in
many rounds, as SynFlow needs. So does whatever predicts the loss without a weight: what it says of a net holds for few
weights, and after some are gone it has to be asked again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import tree
from jaxopt_compress.core import Params, ParamTransform, State
from jaxopt_compress.pruning.criteria import magnitude, obd
from jaxopt_compress.pruning.scoring import Criterion

LossFn = Callable[..., jax.Array]


def averaged(criterion: Criterion, loss_fn: LossFn, params: Params, batches: Any) -> Criterion:
    """Average a criterion that needs `grads` over batches, each with its own gradient, at the weights as they are.

    For `taylor` over batches and for `gate` over single examples, as their papers take them; the criterion of the mean
    gradient is another and worse thing. With `settle` every round differentiates the net that is left.

    Args:
      criterion: `(params, *, grads, **extra) -> scores`.
      loss_fn: `(params, batch) -> scalar`.
      params: those of the whole model.
      batches: batches stacked on the first axis of every array.

    Returns:
      A criterion that needs no `grads`.

    Raises:
      ValueError: no batch, or arrays with different numbers of them.

    Example:
      >>> from jaxopt_compress.pruning import taylor
      >>> loss = lambda params, x: params["w"] @ x
      >>> params, batches = {"w": jnp.array([1.0, 2.0])}, jnp.array([[1.0, 3.0], [-1.0, 1.0]])
      >>> averaged(taylor, loss, params, batches)(params)
      {'w': Array([1., 4.], dtype=float32)}
    """
    shapes = [jnp.shape(x) for x in jax.tree.leaves(batches)]
    numbers = {shape[0] if shape else 0 for shape in shapes}
    if len(numbers) != 1 or 0 in numbers:
        raise ValueError(f"`averaged`: all arrays of `batches` hold one number of batches, at least 1; got {shapes}.")
    grad = jax.grad(_of_weights(loss_fn, params))

    def average(params, **extra):
        weights = dict(tree.weights(params))
        score = lambda batch: criterion(weights, **{**extra, "grads": grad(weights, batch)})  # noqa: E731
        return tree.replace(params, _mean(score, weights, batches))

    return average


def fisher(loss_fn: LossFn, params: Params, batch: Any, *, chunk: int | None = None) -> Criterion:
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
        squares = lambda part: jax.tree.map(_mean_square, each(weights, part))  # noqa: E731
        return tree.replace(params, obd(weights, curvature=_mean(squares, weights, parts)))

    return criterion


def grasp(loss_fn: LossFn, params: Params, batch: Any) -> Criterion:
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


def synflow(forward: Callable, params: Params, example: Any) -> Criterion:
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


def _mean(fn: Callable, weights: dict[str, jax.Array], parts: Any) -> dict[str, jax.Array]:
    """Return the mean of a function of a part over all parts, in float32, with one part in memory at a time."""
    zeros = {path: jnp.zeros_like(w, jnp.float32) for path, w in weights.items()}
    add = lambda sums, part: (jax.tree.map(lambda s, x: s + x.astype(jnp.float32), sums, fn(part)), None)  # noqa: E731
    sums, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda s: s / jax.tree.leaves(parts)[0].shape[0], sums)


def _mean_square(g: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(g.astype(jnp.float32)), 0)


def _of_weights(fn: Callable, params: Params) -> Callable:
    """Make a function of some weights, by path; the other leaves are those of `params`."""
    return lambda weights, *args: fn(tree.replace(params, weights), *args)
