"""A picture of committed results: a panel for each file."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def draw(description: str | None, panel: Callable[[Any, Path], None]) -> None:
    """Draw what the command line names, side by side; the first panel has the legend."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    count = len(args.results)
    figure, axes = pyplot.subplots(1, count, figsize=(5 * count, 4), layout="constrained", squeeze=False)
    for ax, path in zip(axes[0], args.results):
        panel(ax, path)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(args.out, dpi=120)
