"""Adam with moments of one byte each."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import layout
from jaxopt_compress.optimizers.first_order import LearningRate, Optimizer

LEAST = 16  # entries of a block; an axis without such a divisor is one block


class Adam8BitState(NamedTuple):
    """Moments in codes, with a scale for each block along the last axis.

    Attributes:
      steps: int32 scalar, how many there were.
      mu: int8, in the shapes of the parameters; float32 for small leaves.
      mu_scale: the largest of each block.
      nu: uint8.
      nu_scale: as of `mu`.
    """

    steps: jax.Array
    mu: Any
    mu_scale: Any
    nu: Any
    nu_scale: Any


def adam_8bit(
    learning_rate: LearningRate,
    b1: chex.Numeric = 0.9,
    b2: chex.Numeric = 0.999,
    eps: chex.Numeric = 1e-8,
    *,
    block: int = 256,
    min_size: int = 4096,
) -> Optimizer:
    """Step as `adam` does, with 2 bytes of moments for each parameter in place of 8.

        m = max * sign(c) * (c / 127)^2,   v = max * (c / 255)^4

    with the maximum of a block, so that what is 16,000 times smaller than it (4e9 times, of the second moment) still
    counts. A second moment that is not 0 never becomes 0. The step itself takes moments before they are rounded.

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      block: how many neighbours along the last axis share a scale, at most.
      min_size: leaves with fewer entries, norms and biases, keep float32.

    Reference: Dettmers et al., "8-bit optimizers via block-wise quantization", 2022, whose codes are those of a table.

    Example:
      >>> state = adam_8bit(1e-3).init({"kernel": jnp.zeros((64, 128))})
      >>> sum(leaf.nbytes for leaf in jax.tree.leaves(state[0])) / (64 * 128)
      2.06...
    """
    return optax.chain(scale_by_adam_8bit(b1, b2, eps, block, min_size), optax.scale_by_learning_rate(learning_rate))


def scale_by_adam_8bit(
    b1: chex.Numeric = 0.9,
    b2: chex.Numeric = 0.999,
    eps: chex.Numeric = 1e-8,
    block: int = 256,
    min_size: int = 4096,
) -> optax.GradientTransformation:
    """Scale as `optax.scale_by_adam` does, with moments in codes; see `adam_8bit`.

    Raises:
      ValueError: a block of no entries.
    """
    if block < 1:
        raise ValueError(f"`adam_8bit`: `block` is at least 1; got {block}.")

    def init(params):
        scales = jax.tree.map(lambda p: jnp.zeros(_blocks(p.shape, block) if p.size >= min_size else ()), params)

        def zeros(kind):
            return jax.tree.map(lambda p, s: jnp.zeros_like(p, kind if s.ndim else jnp.float32), params, scales)

        return Adam8BitState(jnp.zeros((), jnp.int32), zeros(jnp.int8), scales, zeros(jnp.uint8), scales)

    def update(updates, state, params=None):
        del params
        count = jnp.asarray(optax.safe_increment(state.steps))
        wide = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
        mu = jax.tree.map(lambda g, c, s: b1 * _first(c, s) + (1 - b1) * g, wide, state.mu, state.mu_scale)
        nu = jax.tree.map(lambda g, c, s: b2 * _second(c, s) + (1 - b2) * g * g, wide, state.nu, state.nu_scale)
        once, twice = (1 - b ** count.astype(jnp.float32) for b in (b1, b2))
        step = lambda g, m, v: ((m / once) / (jnp.sqrt(v / twice) + eps)).astype(g.dtype)  # noqa: E731
        found = jax.tree.map(step, updates, mu, nu)
        mu_scale = jax.tree.map(_largest, mu, state.mu_scale)
        nu_scale = jax.tree.map(_largest, nu, state.nu_scale)
        codes = (jax.tree.map(_encode_first, mu, mu_scale), jax.tree.map(_encode_second, nu, nu_scale))
        return found, Adam8BitState(count, codes[0], mu_scale, codes[1], nu_scale)

    return optax.GradientTransformation(init, update)


def _blocks(shape: tuple[int, ...], block: int) -> tuple[int, ...]:
    """Return the shape of the scales: blocks of the largest divisor of the last axis that is no larger than asked."""
    if not shape:
        return ()
    size = max((n for n in range(1, min(block, shape[-1]) + 1) if shape[-1] % n == 0), default=1)
    size = size if size >= min(LEAST, shape[-1]) else shape[-1]
    return (*shape[:-1], shape[-1] // size)


def _largest(x: jax.Array, scale: jax.Array) -> jax.Array:
    return layout.reduce_runs(jnp.max, jnp.abs(x), scale.shape) if scale.ndim else scale


def _share(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Return what part of the largest of its block each number is."""
    return jnp.abs(x) * layout.spread(jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0), x.shape)


def _encode_first(m: jax.Array, scale: jax.Array) -> jax.Array:
    if not scale.ndim:
        return m
    return (jnp.sign(m) * jnp.round(127 * jnp.sqrt(jnp.minimum(_share(m, scale), 1)))).astype(jnp.int8)


def _first(codes: jax.Array, scale: jax.Array) -> jax.Array:
    if not scale.ndim:
        return codes
    steps = codes.astype(jnp.float32) * (1 / 127)
    return steps * jnp.abs(steps) * layout.spread(scale, codes.shape)


def _encode_second(v: jax.Array, scale: jax.Array) -> jax.Array:
    if not scale.ndim:
        return v
    root = jnp.round(255 * jnp.sqrt(jnp.sqrt(jnp.minimum(_share(v, scale), 1))))
    return jnp.where(v > 0, jnp.maximum(root, 1), 0).astype(jnp.uint8)


def _second(codes: jax.Array, scale: jax.Array) -> jax.Array:
    if not scale.ndim:
        return codes
    square = (codes.astype(jnp.float32) * (1 / 255)) ** 2
    return square * square * layout.spread(scale, codes.shape)
