"""AdaRound: learn for every weight whether it is rounded up or down."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_compress import layout
from jaxopt_compress.calibration import gram
from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.quantization.post_training.method import Found, Layer, Method, quadratic

STRETCH = (-0.1, 1.1)  # the sigmoid is stretched beyond 0 and 1, and clipped, so that it gets there


def adaround(
    steps: int = 1000,
    rate: float = 0.03,
    weight: float = 10.0,
    sharpness: tuple[float, float] = (20.0, 2.0),
    warm: float = 0.2,
) -> Method:
    """Choose between rounding up and down by gradient descent on the error of the outputs.

        w_q = s * clip(floor(w / s) + h(v), lowest, highest),   h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)
        loss = E|x w_q^T - x w^T|^2 + weight * sum(1 - |2 h(v) - 1|^b)

    The expectation is exact over all that was seen, since it is a quadratic form in `w_q - w`; it is counted in units
    of what nearest rounding would give on average for a weight, so that `weight` means the same in every layer.

    Args:
      steps: of Adam; the authors take 10,000 on small batches.
      rate: the learning rate.
      weight: of the term that drives `h` to 0 and 1; 0.01 in the authors' units, which differ from layer to layer.
      sharpness: `b` falls from the first to the second, by a cosine.
      warm: the fraction of steps before that term counts.

    Reference: Nagel et al., "Up or down? Adaptive rounding for post-training quantization", 2020.
    """
    if steps < 1 or not 0 <= warm < 1:
        raise ValueError(f"`adaround`: `steps` is at least 1, `warm` is at least 0 and below 1; got {steps}, {warm}.")

    def loss(v: jax.Array, low: jax.Array, layer: Layer, grid: Integers, unit: jax.Array, done: Any) -> jax.Array:
        sharp = sharpness[1] + (sharpness[0] - sharpness[1]) * 0.5 * (1 + jnp.cos(done * jnp.pi))
        up = _soft(v)
        off = _clipped(low + up, layer, grid) * layer.affine.scale - layer.w
        undecided = jnp.sum(1 - jnp.abs(2 * up - 1) ** sharp)
        return quadratic(off, layer.seen.second) / unit + jnp.where(done > 0, weight, 0) * undecided

    def solve(layer: Layer, grid: Grid) -> Found:
        if not isinstance(grid, Integers):
            raise ValueError(f"`adaround`: only integers are rounded up or down; got {grid}.")
        low, v = _start(layer)
        unit = quadratic(layer.w - layer.decode(layer.round(grid), grid), layer.seen.second) / max(layer.w.size, 1)
        unit = jnp.where(unit > 0, unit, 1)

        def slope(v, i):
            return jax.grad(loss)(v, low, layer, grid, unit, jnp.clip((i / steps - warm) / (1 - warm), 0, 1))

        soft = _soft(_adam(slope, v, steps, rate))
        codes = jnp.clip(low + jnp.where(soft >= 0.5, 1.0, 0.0) + _zero(layer), grid.lowest, grid.highest)
        undecided = jnp.mean((jnp.abs(soft - 0.5) < 0.4).astype(jnp.float32))
        return Found(codes.astype(jnp.int8), notes={"undecided": undecided})

    return Method(gram(), solve)


def _adam(slope: Callable, v: jax.Array, steps: int, rate: float) -> jax.Array:
    def step(i, carry):
        v, m, n = carry
        g = slope(v, i)
        m, n = 0.9 * m + 0.1 * g, 0.999 * n + 0.001 * g * g
        size = jnp.sqrt(n / (1 - 0.999 ** (i + 1.0))) + 1e-8
        return v - rate * m / (1 - 0.9 ** (i + 1.0)) / size, m, n

    return lax.fori_loop(0, steps, step, (v, jnp.zeros_like(v), jnp.zeros_like(v)))[0]


def _start(layer: Layer) -> tuple[jax.Array, jax.Array]:
    """Return the lower neighbours, and `v` such that `low + h(v)` is the weight itself."""
    steps = layer.w * layout.spread(1 / layer.affine.scale, layer.w.shape)
    low = jnp.floor(steps)
    part = jnp.clip(steps - low, 0.01, 0.99)
    inner = (part - STRETCH[0]) / (STRETCH[1] - STRETCH[0])
    return low, jnp.log(inner) - jnp.log1p(-inner)


def _soft(v: jax.Array) -> jax.Array:
    return jnp.clip(jax.nn.sigmoid(v) * (STRETCH[1] - STRETCH[0]) + STRETCH[0], 0, 1)


def _clipped(steps: jax.Array, layer: Layer, grid: Integers) -> jax.Array:
    return jnp.clip(steps, grid.lowest - _zero(layer), grid.highest - _zero(layer))


def _zero(layer: Layer) -> jax.Array | int:
    zero = layer.affine.zero_point
    return 0 if zero is None else zero.astype(layer.w.dtype)
