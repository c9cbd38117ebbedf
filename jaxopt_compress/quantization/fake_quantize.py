"""Quantization-aware training of weights: rounded in the forward pass, dense in the backward pass."""

from collections.abc import Sequence

import jax

from jaxopt_compress import tree
from jaxopt_compress.core import ParamTransform
from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.quantization import fits, numerics


def fake_quantize(
    bits: int | Grid = 8,
    *,
    channel_axes: int | Sequence[int] = -1,
    group_size: int | None = None,
    fit: fits.Fit = fits.absmax,
) -> ParamTransform:
    """Round weights to codes with one scale per output channel, or per group, with a straight-through gradient.

    The state holds the scales (and zero points), an `Affine` for each leaf; `update` fits them to the weights.
    `apply` is `round(w * inv_scale)`, half to even, clipped, times `scale`; its gradient is exactly 1 where the code
    is in range and 0 where it is clipped. The stored form is `Quantized`, and `apply` is by construction what it
    decodes to. Zeros stay exact zeros on every grid that has one.

    An all-zero channel (pruning makes them) gets scale 1. A channel whose largest weight is below some 1e-36 counts
    as zero.

    Args:
      bits: 2 to 8, for symmetric integers (absmax / (2^(bits-1) - 1), the restricted range), or a grid:
        `grids.Integers(8, restricted=False)`, `grids.NF4`, `grids.E4M3`, `grids.BINARY`, ...
      channel_axes: the axes that keep a scale of their own; all others share one. `()` is one scale a leaf.

        | layer | kernel | `channel_axes` |
        |---|---|---|
        | Dense, Conv (also grouped, depthwise) | (..., in, out) | -1 |
        | ConvTranspose | (..., in, out) | -1; with `transpose_kernel=True` -2 |
        | Embed | (entries, features) | 0 |
        | DenseGeneral, attention query/key/value | (in, heads, dim) | (-2, -1) |
        | attention output | (heads, dim, out) | -1 |
      group_size: how many neighbours along the last of the shared axes (for a Dense, its inputs) share a scale.
      fit: how scales are found, one of `quantization.fits`. `minmax` uses all codes for weights that lie on one side;
        `power_of_two` with groups of 32 is the MX format of a grid.

    Returns:
      A transform whose state is keyed by path.

    Raises:
      ValueError: bits out of range, an axis that a leaf lacks, a leaf with no axis left to share a scale over
        (a bias: exclude it with `select`, or pass `channel_axes=()`), or groups that do not divide an axis.

    Example:
      >>> import jax.numpy as jnp
      >>> t = fake_quantize(bits=4)
      >>> params = {"kernel": jnp.array([[0.7, -2.8], [0.33, 1.0]])}
      >>> [[round(x, 3) for x in row] for row in t.apply(params, t.init(params))["kernel"].tolist()]
      [[0.7, -2.8], [0.3, 0.8]]

    Reference: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", 2018. PyTorch's default differs: absmax / 127.5 over [-128, 127], here
    `Integers(8, restricted=False)`.
    """
    grid = _grid(bits)
    axes = (channel_axes,) if isinstance(channel_axes, int) else tuple(channel_axes)

    def fit_all(params):
        shapes = {
            path: scale_shape("fake_quantize", path, w, axes, group_size) for path, w in tree.weights(params).items()
        }
        return tree.Selection((path, fit(w, shapes[path], grid)) for path, w in tree.weights(params).items())

    def apply(params, state):
        seen = {path: numerics.straight_through(w, state[path], grid) for path, w in tree.weights(params).items()}
        return tree.replace(params, seen)

    def update(params, state, *, step, **extra):
        del state, step, extra
        return fit_all(params)

    def encode(params, state):
        stored = {path: numerics.encode(w, state[path], grid) for path, w in tree.weights(params).items()}
        return tree.replace(params, stored)

    return ParamTransform(fit_all, apply, update, encode)


def _grid(bits: int | Grid) -> Grid:
    if not isinstance(bits, (int, float)):
        return bits
    if bits not in range(2, 9):
        raise ValueError(f"`fake_quantize`: `bits` is 2 to 8, or a grid; got {bits}.")
    return Integers(int(bits))


def scale_shape(
    call: str, path: str, w: jax.Array, channel_axes: tuple[int, ...], group_size: int | None = None
) -> tuple[int, ...]:
    """Return the shape of the scales of a leaf; refuse what has none."""
    absent = [axis for axis in channel_axes if not -w.ndim <= axis < w.ndim]
    if absent:
        raise ValueError(f"`{call}`: axis {absent[0]} of {path!r} does not exist; its shape is {w.shape}.")
    shared = [axis for axis in range(w.ndim) if axis not in {axis % w.ndim for axis in channel_axes}]
    if not shared:
        raise ValueError(
            f"`{call}`: {path!r} of shape {w.shape} has no axis left to share a scale over when "
            f"channel_axes={channel_axes}; exclude it with `select`, or pass channel_axes=()."
        )
    groups = 1 if group_size is None else _groups(path, w, shared[-1], group_size)
    return tuple(groups if axis == shared[-1] else 1 if axis in shared else n for axis, n in enumerate(w.shape))


def _groups(path: str, w: jax.Array, axis: int, group_size: int) -> int:
    if group_size < 1 or w.shape[axis] % group_size:
        raise ValueError(
            f"`fake_quantize`: axis {axis} of {path!r} has {w.shape[axis]} entries, "
            f"not a multiple of group_size={group_size}."
        )
    return w.shape[axis] // group_size
