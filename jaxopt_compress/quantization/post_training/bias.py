"""Bias correction: what rounding shifts on average is added again."""

from jaxopt_compress.calibration import moments
from jaxopt_compress.grids import Grid
from jaxopt_compress.quantization.post_training.method import Found, Layer, Method


def corrected(method: Method) -> Method:
    """Let another method choose the codes, and add `E[x] @ (w - w_q).T` to the output.

    Reference: Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019, with the
    mean of what was seen in place of that of a normalization.
    """

    def solve(layer: Layer, grid: Grid) -> Found:
        found = method.solve(layer, grid)
        off = (layer.w - layer.decode(found.codes, grid)) @ layer.seen.mean
        return found._replace(bias=off if found.bias is None else found.bias + off)

    return Method(method.statistic or moments(), solve)
