"""AdaRound: learn for every weight whether it is rounded up or down."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_compress.calibration import gram
from jaxopt_compress.grids import Grid
from jaxopt_compress.quantization.post_training import adam, soft
from jaxopt_compress.quantization.post_training.adam import Adam
from jaxopt_compress.quantization.post_training.method import Found, Layer, Method, quadratic
from jaxopt_compress.quantization.post_training.soft import Schedule


def adaround(steps: int = 1000, rate: float = 0.03, schedule: Schedule = soft.DEFAULT) -> Method:
    """Choose between rounding up and down by gradient descent on the error of the outputs of a layer.

        loss = E|x w_q^T - x w^T|^2 + weight * sum(undecided)

    with soft rounding as in `post_training.soft`. The expectation is exact over all that was seen, since it is a
    quadratic form in `w_q - w`; it is counted in units of what nearest rounding would give on average for a weight, so
    that `weight` means the same in every layer.

    Args:
      steps: of Adam; the authors take 10,000 on small batches.
      rate: the learning rate.
      schedule: of what drives weights to a neighbour; the authors' weight, 0.01, is in units that differ by layer.

    Reference: Nagel et al., "Up or down? Adaptive rounding for post-training quantization", 2020.
    """
    if steps < 1 or not 0 <= schedule.warm < 1:
        raise ValueError(
            f"`adaround`: `steps` is at least 1, `warm` is at least 0 and below 1; got {steps}, {schedule.warm}."
        )

    def solve(layer: Layer, grid: Grid) -> Found:
        grid = soft.check("adaround", grid)
        low, v = soft.start(layer.w, layer.affine)
        unit = quadratic(layer.w - layer.decode(layer.round(grid), grid), layer.seen.second) / max(layer.w.size, 1)
        unit = jnp.where(unit > 0, unit, 1)

        def loss(v: jax.Array, done: jax.Array) -> jax.Array:
            h = soft.up(v)
            off = soft.decode(low, h, layer.affine, grid) - layer.w
            return quadratic(off, layer.seen.second) / unit + schedule.undecided(h, done)

        def step(i: jax.Array, at: Adam) -> Adam:
            return adam.step(at, jax.grad(loss)(at.x, i / steps), i, rate)

        h = soft.up(lax.fori_loop(0, steps, step, adam.start(v)).x)
        return Found(soft.codes(low, h, layer.affine, grid), notes={"undecided": soft.part_undecided(h)})

    return Method(gram(), solve)
