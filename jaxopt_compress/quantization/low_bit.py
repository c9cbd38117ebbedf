"""One and two bits: transforms whose codes are not the nearest ones, or whose gradient is not that of a rounding.

All of them learn dense weights, of which the forward pass sees few levels; keep these weights near the levels with
`optimizers.keep_within`, so that they can still change their minds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress import grids, layout, tree
from jaxopt_compress.combinators import passthrough
from jaxopt_compress.core import ParamTransform
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.grids import BINARY, TERNARY, Grid, Levels
from jaxopt_compress.quantization import fits, numerics
from jaxopt_compress.quantization.fake_quantize import scale_shape
from jaxopt_compress.quantization.numerics import Affine

Axes = int | Sequence[int]


class Drawn(NamedTuple):
    """The state of a leaf that is rounded at random.

    Attributes:
      scale: as in an `Affine`.
      key: for the numbers that are drawn.
    """

    scale: jax.Array
    key: jax.Array


class Ternary(NamedTuple):
    """The state of a ternary leaf.

    Attributes:
      scale: the size of the weights that stay.
      threshold: below it they are 0; of the shape of `scale`.
    """

    scale: jax.Array
    threshold: jax.Array


class Squeezed(NamedTuple):
    """The state of a leaf of DoReFa.

    Attributes:
      scale: 1.
      largest: the maximum of `|tanh(w)|`, with the axes of the leaf.
    """

    scale: jax.Array
    largest: jax.Array


def binary(channel_axes: Axes = -1, *, scaled: bool = True, key: jax.Array | None = None) -> ParamTransform:
    """Let the forward pass see `+s` and `-s` alone, with the gradient of the identity.

        w_b = s where w >= 0, else -s

    The state holds the scales, and the key of a draw; `update` fits the one and draws the other.

    Args:
      channel_axes: the axes that keep a scale of their own, as for `fake_quantize`.
      scaled: whether `s = mean|w|`, as in XNOR-Net, or 1, as in BinaryConnect.
      key: to draw the sign, `+s` with the probability `(w / s + 1) / 2`, anew at every `update`; nearest without.

    Example:
      >>> t = binary(scaled=False)
      >>> params = {"w": jnp.array([[0.3, -0.7], [0.0, 2.0]])}
      >>> t.apply(params, t.init(params))["w"].tolist()
      [[1.0, -1.0], [1.0, 1.0]]

    Reference: Courbariaux et al., "BinaryConnect: training deep neural networks with binary weights during
    propagations", 2015; Rastegari et al., "XNOR-Net", 2016. BinaryConnect's own code scales by a constant of the layer,
    which a norm behind it undoes.
    """

    def fit(w: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return fits.mean_absolute(w, shape, BINARY).scale if scaled else jnp.ones(shape, numerics.wide(w).dtype)

    return _by_leaf("binary", BINARY, channel_axes, fit, key)


def stochastic(bits: int, key: jax.Array, channel_axes: Axes = -1) -> ParamTransform:
    """Round to integers at random, up with the probability of the part behind the point: right on average.

        w_q = s * floor(w / s + u),   u uniform in [0, 1)

    with `s` from the largest absolute value, as `fake_quantize` has it. The state holds the scales and the key of the
    draw; `update` fits and draws anew. What is stored is what was drawn last.

    Args:
      bits: 2 to 8.
      key: of all draws; leaves of one shape are drawn alike, so that tied ones stay tied.
      channel_axes: as for `fake_quantize`.

    Reference: Gupta et al., "Deep learning with limited numerical precision", 2015.
    """
    grid = grids.Integers(bits)
    return _by_leaf("stochastic", grid, channel_axes, lambda w, shape: fits.absmax(w, shape, grid).scale, key)


def ternary(channel_axes: Axes = -1, threshold: float = 0.7) -> ParamTransform:
    """Let the forward pass see `-s`, 0 and `s` alone, with the gradient of the identity.

        d = threshold * mean|w|,   s = the mean of |w| over |w| > d

    The state holds `s` and `d`; `update` fits them.

    Args:
      channel_axes: the axes that keep a scale of their own, as for `fake_quantize`; `()` is the authors' choice.
      threshold: 0.7 is right for normal weights.

    Reference: Li et al., "Ternary weight networks", 2016.
    """

    def fit(w: jax.Array, shape: tuple[int, ...]) -> Ternary:
        size = jnp.abs(numerics.wide(w))
        limit = threshold * fits.mean_absolute(w, shape, TERNARY).scale
        stays = size > layout.spread(limit, w.shape)
        count = layout.reduce_runs(jnp.sum, stays.astype(size.dtype), shape)
        total = layout.reduce_runs(jnp.sum, jnp.where(stays, size, 0), shape)
        return Ternary(jnp.where(count > 0, total * (1 / jnp.maximum(count, 1)), 1), limit)

    def codes(w: jax.Array, state: Ternary) -> jax.Array:
        stays = jnp.abs(numerics.wide(w)) > layout.spread(state.threshold, w.shape)
        return jnp.where(stays, jnp.where(w > 0, 1, -1), 0).astype(jnp.int8)

    return _transform("ternary", TERNARY, channel_axes, lambda w, shape, step: fit(w, shape), codes)


def dorefa(bits: int) -> ParamTransform:
    """Squeeze weights by a tanh, and round them to `2^bits` equal steps from -1 to 1.

        w_q = 2 Q(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1

    The gradient is that of the tanh, with its maximum held fixed, and straight through the rounding. One scale a leaf:
    it takes a norm behind it. The state holds the maximum; `update` finds it.

    Args:
      bits: 2 to 8; for one bit see `binary(channel_axes=())`.

    Reference: Zhou et al., "DoReFa-Net: training low bitwidth convolutional neural networks with low bitwidth
    gradients", 2016.
    """
    if bits not in range(2, 9):
        raise ValueError(f"`dorefa`: `bits` is 2 to 8; got {bits}.")
    steps = 2**bits - 1
    grid = Levels(tuple((2 * i - steps) / steps for i in range(steps + 1)))

    def fit(w: jax.Array, shape: tuple[int, ...], step: Any) -> Squeezed:
        del step
        largest = jnp.max(jnp.abs(jnp.tanh(numerics.wide(w))), initial=0)
        largest = jnp.where(largest > 0, largest, 1).reshape(shape)
        return Squeezed(jnp.ones_like(largest), largest)

    def squeezed(w: jax.Array, state: Squeezed) -> jax.Array:
        return jnp.tanh(numerics.wide(w)) * layout.spread(1 / state.largest, w.shape)

    learns = lambda w, state: squeezed(w, state).astype(w.dtype)  # noqa: E731
    return _transform("dorefa", grid, (), fit, lambda w, state: grid.round(squeezed(w, state)), learns)


def _by_leaf(
    call: str, grid: Grid, channel_axes: Axes, fit: Callable[[jax.Array, tuple[int, ...]], jax.Array], key: Any
) -> ParamTransform:
    """Round to a grid, to nearest or, with a key, at random."""

    def start(w: jax.Array, shape: tuple[int, ...], step: Any) -> Any:
        scale = fit(w, shape)
        if key is None:
            return Affine(scale)
        return Drawn(scale, jax.random.key_data(jax.random.fold_in(key, jnp.asarray(step, jnp.uint32))))

    def codes(w: jax.Array, state: Any) -> jax.Array:
        steps = numerics.wide(w) * layout.spread(1 / state.scale, w.shape)
        if key is not None:
            steps = _drawn(steps, grid, jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(key)))
        return grid.round(steps)

    return _transform(call, grid, channel_axes, start, codes)


def _drawn(steps: jax.Array, grid: Grid, key: jax.Array) -> jax.Array:
    """Move each number to one of its neighbours on the grid, at random."""
    noise = jax.random.uniform(key, steps.shape, steps.dtype)
    if grid is BINARY:
        return 2 * (noise < (steps + 1) / 2).astype(steps.dtype) - 1
    return jnp.floor(steps + noise)


def _transform(
    call: str,
    grid: Grid,
    channel_axes: Axes,
    fit: Callable[[jax.Array, tuple[int, ...], Any], Any],
    codes: Callable[[jax.Array, Any], jax.Array],
    learns: Callable[[jax.Array, Any], jax.Array] = lambda w, state: w,
) -> ParamTransform:
    """Make a transform whose forward pass sees what is stored, with the gradient of `learns`."""
    axes = (channel_axes,) if isinstance(channel_axes, int) else tuple(channel_axes)

    def fit_all(params, step):
        weights = tree.weights(params)
        shapes = {path: scale_shape(call, path, w, axes) for path, w in weights.items()}
        return tree.Selection((path, fit(w, shapes[path], step)) for path, w in weights.items())

    def seen(w: jax.Array, state: Any) -> jax.Array:
        unpacked = Quantized(codes(w, state), state.scale, None, grid, w.dtype.name)
        return passthrough(learns(w, state), jax.lax.stop_gradient(unpacked.decode()))

    def encode(w: jax.Array, state: Any) -> Quantized:
        return Quantized.of(codes(w, state), state.scale, grid, w.dtype.name)

    def lift(fn: Callable):
        def over_tree(params, state):
            return tree.replace(params, {path: fn(w, state[path]) for path, w in tree.weights(params).items()})

        return over_tree

    def update(params, state, *, step, **extra):
        del state, extra
        return fit_all(params, step)

    return ParamTransform(lambda params: fit_all(params, 0), lift(seen), update, lift(encode))
