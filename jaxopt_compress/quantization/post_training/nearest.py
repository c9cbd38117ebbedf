"""Rounding to nearest: the baseline of all other methods."""

from jaxopt_compress.calibration import Statistic
from jaxopt_compress.grids import Grid
from jaxopt_compress.quantization.post_training.method import Found, Layer, Method


def nearest(statistic: Statistic | None = None) -> Method:
    """Round every weight for itself, as training does.

    Args:
      statistic: to gather all the same; with `calibration.gram()` the error of the outputs is in the report.
    """

    def solve(layer: Layer, grid: Grid) -> Found:
        return Found(layer.round(grid))

    return Method(statistic, solve)
