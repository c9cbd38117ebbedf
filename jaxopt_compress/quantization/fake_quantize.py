"""Quantization-aware training of weights: rounded in the forward pass, dense in the backward pass."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxopt_compress import tree
from jaxopt_compress.combinators import passthrough
from jaxopt_compress.core import ParamTransform
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.quantization import numerics


def fake_quantize(bits: int = 8, *, channel_axes: int | Sequence[int] = -1) -> ParamTransform:
    """Round weights to symmetric integers with one scale per output channel, with a straight-through gradient.

    The state holds the scales, one array for each leaf; `update` fits them to the weights (absmax / (2^(bits-1) - 1),
    the restricted range, so that the grid is symmetric). `apply` is `round(w * inv_scale)`, half to even, clipped,
    times `scale`; its gradient is exactly 1 where the code is in range and 0 where it is clipped. The stored form is
    `Quantized`, and `apply` is by construction what it decodes to. Zeros stay exact zeros.

    An all-zero channel (pruning makes them) gets scale 1. A channel whose largest weight is below some 1e-36 counts
    as zero.

    Args:
      bits: 2 to 8.
      channel_axes: the axes that keep a scale of their own; all others share one. `()` is one scale a leaf.

        | layer | kernel | `channel_axes` |
        |---|---|---|
        | Dense, Conv (also grouped, depthwise) | (..., in, out) | -1 |
        | ConvTranspose | (..., in, out) | -1; with `transpose_kernel=True` -2 |
        | Embed | (entries, features) | 0 |
        | DenseGeneral, attention query/key/value | (in, heads, dim) | (-2, -1) |
        | attention output | (heads, dim, out) | -1 |

    Returns:
      A transform whose state is keyed by path.

    Raises:
      ValueError: bits out of range, an axis that a leaf lacks, or a leaf with no axis left to share a scale over
        (a bias): exclude it with `select`, or pass `channel_axes=()`.

    Example:
      >>> t = fake_quantize(bits=4)
      >>> params = {"kernel": jnp.array([[0.7, -2.8], [0.33, 1.0]])}
      >>> [[round(x, 3) for x in row] for row in t.apply(params, t.init(params))["kernel"].tolist()]
      [[0.7, -2.8], [0.3, 0.8]]

    Reference: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", 2018. PyTorch's default differs: absmax / 127.5 over [-128, 127].
    """
    if bits not in range(2, 9):
        raise ValueError(f"`fake_quantize`: `bits` is 2 to 8; got {bits}.")
    axes = (channel_axes,) if isinstance(channel_axes, int) else tuple(channel_axes)

    def fit(params):
        return tree.Selection((path, _fit(path, w, bits, axes)) for path, w in tree.weights(params).items())

    def apply(params, state):
        return tree.replace(params, {path: _apply(w, state[path], bits) for path, w in tree.weights(params).items()})

    def update(params, state, *, step, **extra):
        del state, step, extra
        return fit(params)

    def encode(params, state):
        return tree.replace(params, {path: _encode(w, state[path], bits) for path, w in tree.weights(params).items()})

    return ParamTransform(fit, apply, update, encode)


def _fit(path: str, w: jax.Array, bits: int, channel_axes: tuple[int, ...]) -> jax.Array:
    absent = [axis for axis in channel_axes if not -w.ndim <= axis < w.ndim]
    if absent:
        raise ValueError(f"`fake_quantize`: axis {absent[0]} of {path!r} does not exist; its shape is {w.shape}.")
    shared = tuple(axis for axis in range(w.ndim) if axis not in {axis % w.ndim for axis in channel_axes})
    if not shared:
        raise ValueError(
            f"`fake_quantize`: {path!r} of shape {w.shape} has no axis left to share a scale over when "
            f"channel_axes={channel_axes}; exclude it with `select`, or pass channel_axes=()."
        )
    return numerics.absmax_scale(w, bits, shared)


def _encode(w: jax.Array, scale: jax.Array, bits: int) -> Quantized:
    return Quantized(numerics.codes(w, scale, bits), scale, bits, w.dtype.name)


def _apply(w: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    learns = jnp.where(numerics.in_range(w, scale, bits), w, jax.lax.stop_gradient(w))
    return passthrough(learns, jax.lax.stop_gradient(_encode(w, scale, bits).decode()))
