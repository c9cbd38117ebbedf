"""Sequences that the student writes itself, so that the teacher corrects what the student will do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_compress.distillation.arrays import positive, wide


def sample(
    fn: Callable[[jax.Array], jax.Array],
    tokens: jax.Array,
    start: int | jax.Array,
    key: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """Let a causal model write on: tokens from `start` on are drawn, one after the other.

    The model is run once a token, over the whole length: simple, and the same function as in training. A sampler of
    your own with a cache can stand in its place.

    Args:
      fn: `tokens (sequences, length) -> logits (sequences, length, vocabulary)`; the logits at `i` are of token
        `i + 1` and depend on nothing behind `i`.
      tokens: integers `(sequences, length)`; what stands at `start` and behind is replaced.
      start: the first position that is drawn, 1 or more; one for all, or one a sequence.
      key: for the draw.
      temperature: positive.

    Returns:
      Tokens of the same shape, without a gradient.

    Raises:
      ValueError: tokens that are no integers `(sequences, length)`, a start outside of them.
    """
    positive("sample", "temperature", temperature)
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"`sample`: tokens are integers (sequences, length); got {tokens.dtype} of {tokens.shape}.")
    if isinstance(start, int) and not 1 <= start <= tokens.shape[1]:
        raise ValueError(f"`sample`: `start` is from 1 to {tokens.shape[1]}; got {start}.")
    first = jnp.broadcast_to(jnp.asarray(start), tokens.shape[:1])

    def write(at: jax.Array, tokens: jax.Array) -> jax.Array:
        logits = wide(lax.dynamic_index_in_dim(fn(tokens), at - 1, axis=1, keepdims=False)) / temperature
        drawn = jax.random.categorical(jax.random.fold_in(key, at), logits).astype(tokens.dtype)
        kept = lax.dynamic_index_in_dim(tokens, at, axis=1, keepdims=False)
        return lax.dynamic_update_index_in_dim(tokens, jnp.where(at < first, kept, drawn), at, axis=1)

    return lax.stop_gradient(lax.fori_loop(1, tokens.shape[1], write, tokens))


def on_policy(key: jax.Array, share: float | jax.Array, batch: Any, write: Callable[[Any], Any]) -> Any:
    """Train a share of the steps on what the student writes, the others on the batch as it comes (GKD).

    Args:
      key: for the choice, one a step.
      share: of the steps, in [0, 1]; a schedule's value may grow.
      batch: any pytree of arrays.
      write: `batch -> batch` of the same shapes, such as one with `sample` inside; run only where it is chosen.

    Returns:
      The batch of this step, without a gradient to whoever wrote it.

    Raises:
      ValueError: a share outside [0, 1], known when traced.

    Reference: Agarwal et al., "On-policy distillation of language models: learning from self-generated mistakes", 2024.
    """
    if isinstance(share, (int, float)) and not 0 <= share <= 1:
        raise ValueError(f"`on_policy`: `share` is in [0, 1]; got {share}.")
    return lax.stop_gradient(lax.cond(jax.random.uniform(key) < share, write, lambda batch: batch, batch))
