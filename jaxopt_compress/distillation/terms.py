"""Losses of several terms: weighed by numbers or schedules, or by the sizes of their gradients."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

LossFn = Callable[..., jax.Array]
Weight = float | jax.Array | Callable[[Any], Any]


def weighted(terms: Mapping[str, LossFn], weights: Mapping[str, Weight]) -> Callable[..., tuple[jax.Array, dict]]:
    """Add up losses, each times a number or an Optax schedule.

    Args:
      terms: by name, functions of the same arguments that return losses of one shape.
      weights: by the same names, numbers or schedules of the step.

    Returns:
      `(*arguments, step) -> (losses, parts)`, with the losses of each term before weighing, by name.

    Raises:
      ValueError: names that differ, or (when first traced) shapes that do.

    Example:
      >>> loss_fn = weighted({"a": lambda x: x, "b": lambda x: 2 * x}, {"a": 1.0, "b": lambda step: step / 10})
      >>> losses, parts = loss_fn(jnp.ones(2), step=5)
      >>> losses.tolist(), sorted(parts)
      ([2.0, 2.0], ['a', 'b'])
    """
    if set(terms) != set(weights) or not terms:
        raise ValueError(f"`weighted`: terms and weights have the same names; got {list(terms)} and {list(weights)}.")

    def total(*arguments, step):
        parts = {name: term(*arguments) for name, term in terms.items()}
        shapes = {name: part.shape for name, part in parts.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"`weighted`: terms return losses of one shape; got {shapes}.")
        shares = {name: weight(step) if callable(weight) else weight for name, weight in weights.items()}
        return jnp.sum(jnp.stack([parts[name] * shares[name] for name in parts]), axis=0), parts

    return total


def term_gradients(
    forward: Callable, terms: Mapping[str, LossFn]
) -> Callable[..., tuple[dict[str, jax.Array], dict[str, Any]]]:
    """Differentiate each term for itself, with one forward pass for all of them and a backward pass for each.

    Args:
      forward: `(params, *batch) -> outputs`, any pytree: logits, features.
      terms: by name, `(outputs, *batch) -> losses`; their means are differentiated.

    Returns:
      `(params, *batch) -> (means, gradients)`, both by name: for `balanced`, and for `dot`.
    """

    def gradients(params, *batch):
        outputs, back = jax.vjp(lambda p: forward(p, *batch), params)
        means, found = {}, {}
        for name, term in terms.items():
            means[name], slopes = jax.value_and_grad(lambda o, term=term: jnp.mean(term(o, *batch)))(outputs)
            found[name] = back(slopes)[0]
        return means, found

    return gradients


def balanced(gradients: Mapping[str, Any], shares: Mapping[str, float | jax.Array], to: str) -> Any:
    """Add up gradients, each scaled to a share of the length of one of them.

        g_to + sum_i share_i * |g_to| / |g_i| * g_i

    Weights of feature losses depend on the net, the layer and the loss; lengths do not. A gradient of 0 adds nothing.

    Args:
      gradients: by name, trees of one structure, as from `term_gradients`.
      shares: of all others, by name.
      to: the name of the one that keeps its length, usually that of the task.

    Raises:
      ValueError: names that do not fit.
    """
    if to not in gradients or set(shares) != set(gradients) - {to}:
        raise ValueError(
            f"`balanced`: `to` is one of the gradients {list(gradients)}, and shares are those of all others; got "
            f"{to!r} and {list(shares)}."
        )
    length, total = _length(gradients[to]), gradients[to]
    for name, share in shares.items():
        mine = _length(gradients[name])
        factor = jnp.where(mine > 0, share * length / jnp.where(mine > 0, mine, 1), 0)
        total = jax.tree.map(lambda a, g, f=factor: a + f.astype(g.dtype) * g, total, gradients[name])
    return total


def _length(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(tree)))
