"""Plots; they need matplotlib, which `pip install "jaxopt_compress[plots]"` brings."""

from collections.abc import Mapping, Sequence
from typing import Any


def density_error(
    curves: Mapping[str, Mapping[float, Sequence[float]]],
    published: Mapping[str, Mapping[float, float]] | None = None,
    ax: Any = None,
) -> Any:
    """Draw error against the fraction of weights kept, one curve a method.

    Args:
      curves: for each method the errors at each density, one number a seed; the line is their mean, the band goes from
        the lowest to the highest.
      published: the same for figures from papers, one number a density, drawn as points.
      ax: a matplotlib axes to draw into, or `None` for a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: a method without a density, or a density without errors.
    """
    for name, curve in curves.items():
        if not curve or not all(len(errors) for errors in curve.values()):
            raise ValueError(
                f"`density_error`: a curve has densities, and errors at each; got {dict(curve)} for {name!r}."
            )
    from matplotlib import pyplot

    ax = pyplot.subplots(figsize=(7, 4.5), layout="constrained")[1] if ax is None else ax
    for name, curve in curves.items():
        densities = sorted(curve)
        means = [sum(curve[d]) / len(curve[d]) for d in densities]
        (line,) = ax.plot([100 * d for d in densities], means, marker=".", label=name)
        low, high = ([end(curve[d]) for d in densities] for end in (min, max))
        ax.fill_between([100 * d for d in densities], low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    for marker, (name, points) in zip("sD^vPX*" * len(published or {}), (published or {}).items()):
        ax.plot([100 * d for d in points], list(points.values()), marker, fillstyle="none", label=name)
    ax.set_xscale("log")
    ax.set_xlabel("weights kept, %")
    ax.set_ylabel("test error, %")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(alpha=0.3, which="both")
    ax.legend(frameon=False)
    return ax
