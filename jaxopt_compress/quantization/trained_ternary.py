"""Three levels of which the two outer ones are trained."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import layout, tree
from jaxopt_compress.combinators import passthrough
from jaxopt_compress.core import ParamTransform
from jaxopt_compress.encoded import INT8, Quantized
from jaxopt_compress.quantization import numerics
from jaxopt_compress.quantization.fake_quantize import scale_shape

STEPS = INT8.highest  # of the larger level: both levels are whole numbers of them


class Levels(NamedTuple):
    """The state of a leaf.

    Attributes:
      positive: what weights above the threshold are, at least 0.
      negative: what those below minus the threshold are, without the sign; at least 0.
      threshold: between them weights are 0.
    """

    positive: jax.Array
    negative: jax.Array
    threshold: jax.Array


class State(NamedTuple):
    """The state of the transform.

    Attributes:
      levels: by path.
      inner: of the optimizer of the levels.
    """

    levels: tree.Selection
    inner: Any


def trained_ternary(
    optimizer: optax.GradientTransformation, channel_axes: int | Sequence[int] = (), threshold: float = 0.05
) -> ParamTransform:
    """Let the forward pass see `-n`, 0 and `p` alone, with levels `p` and `n` that are trained beside the weights.

        d = threshold * max|w|;   w_t = p where w > d, -n where w < -d, else 0
        dL/dp = sum of dL/dw_t where w > d;   dL/dn = -sum of dL/dw_t where w < -d
        dL/dw = dL/dw_t times p, 1 or n

    `update` takes a step of the levels with the gradient that it is given, and fits `d`. Levels start as the mean sizes
    of the weights that they stand for. Both are multiples of 1/127 of the larger one, so that they are stored as codes
    of 8 bits, of which a file needs no more than for any three numbers.

    Args:
      optimizer: of the levels, such as `optax.adam(1e-3)`.
      channel_axes: the axes that keep levels of their own, as for `fake_quantize`; one pair a leaf by default, as the
        authors have it.
      threshold: of the largest weight, in [0, 1).

    Raises:
      ValueError: the threshold is out of range; (from `update`) `grads` is missing; `attach` gives it.

    Example:
      >>> t = trained_ternary(optax.sgd(1.0))
      >>> params = {"w": jnp.array([1.0, -0.5, 0.001, 0.5])}
      >>> t.apply(params, t.init(params))["w"].round(2).tolist()
      [0.75, -0.5, 0.0, 0.75]

    Reference: Zhu et al., "Trained ternary quantization", 2017.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"`trained_ternary`: `threshold` is in [0, 1); got {threshold}.")
    axes = (channel_axes,) if isinstance(channel_axes, int) else tuple(channel_axes)

    def init(params):
        levels = tree.Selection(
            (path, _start(w, scale_shape("trained_ternary", path, w, axes), threshold))
            for path, w in tree.weights(params).items()
        )
        return State(levels, optimizer.init(_trained(levels)))

    def update(params, state, *, step, grads=None, **extra):
        del step, extra
        if grads is None:
            raise ValueError("`trained_ternary`: `update` needs `grads`, the gradient of the loss; got None.")
        weights, slopes = tree.weights(params), tree.leaves(grads)
        steps = {path: _slopes(w, slopes[path], state.levels[path]) for path, w in weights.items()}
        old = _trained(state.levels)
        moves, inner = optimizer.update(steps, state.inner, old)
        moved: Any = optax.apply_updates(old, moves)
        levels = tree.Selection(
            (path, Levels(jnp.maximum(up, 0), jnp.maximum(down, 0), _limit(weights[path], up.shape, threshold)))
            for path, (up, down) in moved.items()
        )
        return State(levels, inner)

    return ParamTransform(init, _over_weights(_seen), update, _over_weights(_stored))


def _over_weights(fn: Callable[[jax.Array, Levels], Any]) -> Callable:
    def over_tree(params, state):
        return tree.replace(params, {path: fn(w, state.levels[path]) for path, w in tree.weights(params).items()})

    return over_tree


def _trained(levels: tree.Selection) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {path: (each.positive, each.negative) for path, each in levels.items()}


def _start(w: jax.Array, shape: tuple[int, ...], threshold: float) -> Levels:
    limit = _limit(w, shape, threshold)
    above, below = _sides(w, limit)
    return Levels(_mean_size(w, above, shape), _mean_size(w, below, shape), limit)


def _limit(w: jax.Array, shape: tuple[int, ...], threshold: float) -> jax.Array:
    return threshold * layout.reduce_runs(jnp.max, jnp.abs(numerics.wide(w)), shape)


def _sides(w: jax.Array, limit: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mark the weights that are `p`, and those that are `-n`."""
    wide, spread = numerics.wide(w), layout.spread(limit, w.shape)
    return wide > spread, wide < -spread


def _mean_size(w: jax.Array, mine: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    size = jnp.abs(numerics.wide(w))
    count = layout.reduce_runs(jnp.sum, mine.astype(size.dtype), shape)
    return layout.reduce_runs(jnp.sum, jnp.where(mine, size, 0), shape) * (1 / jnp.maximum(count, 1))


def _slopes(w: jax.Array, slope: jax.Array, levels: Levels) -> tuple[jax.Array, jax.Array]:
    """Return the slopes of both levels from that of the weights, which `apply` has multiplied by them."""

    def of(mine: jax.Array, level: jax.Array) -> jax.Array:
        total = layout.reduce_runs(jnp.sum, jnp.where(mine, numerics.wide(slope), 0), level.shape)
        return total / _divisor(level)

    positive, negative = _sides(w, levels.threshold)
    return of(positive, levels.positive), -of(negative, levels.negative)


def _divisor(level: jax.Array) -> jax.Array:
    return jnp.where(level > 0, level, 1)  # a level of 0 passes slopes unchanged, so that it can come back


def _seen(w: jax.Array, levels: Levels) -> jax.Array:
    positive, negative = _sides(w, levels.threshold)
    up, down = (layout.spread(_divisor(level), w.shape) for level in (levels.positive, levels.negative))
    factor = jnp.where(positive, up, jnp.where(negative, down, 1))
    learns = (numerics.wide(w) * jax.lax.stop_gradient(factor)).astype(w.dtype)
    return passthrough(learns, jax.lax.stop_gradient(_stored(w, levels).decode()))


def _stored(w: jax.Array, levels: Levels) -> Quantized:
    positive, negative = _sides(w, levels.threshold)
    larger = jnp.maximum(levels.positive, levels.negative)
    scale = jnp.where(larger > 0, larger * (1 / STEPS), 1)
    up, down = (layout.spread(jnp.round(level * (1 / scale)), w.shape) for level in (levels.positive, levels.negative))
    codes = jnp.where(positive, up, jnp.where(negative, -down, 0))
    return Quantized(INT8.round(codes), scale, None, INT8, w.dtype.name)
