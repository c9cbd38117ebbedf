"""Draw what `benchmarks.hinton --sweep` found: a student's errors by the temperature of its teacher, for each width.

python -m benchmarks.hinton_plot benchmarks/results/hinton_temperatures_mnist.json --out docs/images/temperatures.png
"""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import _picture

NOT_TEMPERATURES = ("seed", "width", "plain")
COLORS = ("C0", "C1", "C2")


def draw(ax: Any, path: Path) -> None:
    """Draw one data set: a line a width through the means of its seeds, which are small points."""
    found = json.loads(path.read_text())
    widths = list(dict.fromkeys(row["width"] for row in found["rows"]))
    names = [name for name in found["rows"][0] if name not in NOT_TEMPERATURES]
    places = [float(name) for name in names]
    for width, color in zip(widths, COLORS):
        rows = [row for row in found["rows"] if row["width"] == width]
        plain = mean(row["plain"] for row in rows)
        means = [mean(row[name] for row in rows) / plain for name in names]
        ax.plot(places, means, "o-", color=color, label=f"{width} neurons (alone {plain:.0f} errors)")
        for row in rows:
            ax.plot(places, [row[name] / row["plain"] for name in names], ".", color=color, alpha=0.4, markersize=4)
    ax.axhline(1, color="k", linewidth=0.8)
    ax.set(xscale="log", xticks=places, xticklabels=names, xlabel="temperature", ylabel="errors, of those when alone")
    ax.set_title(f"{found['options']['data']}, validation images")
    ax.minorticks_off()
    ax.grid(alpha=0.3)


if __name__ == "__main__":
    _picture.draw(__doc__, draw)
