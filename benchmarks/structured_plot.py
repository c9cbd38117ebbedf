"""Draw what `benchmarks.structured` found: error against measured time, shrunk nets beside small ones.

python -m benchmarks.structured_plot benchmarks/results/structured_{cnn,vit}.json --out docs/images/structured.png
"""

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import _picture

STYLES = {"dense": ("k", "s"), "shrunk": ("C0", "o"), "small": ("C1", "^")}


def draw(ax: Any, path: Path) -> None:
    """Draw one net: a point a seed, a larger one for the mean, which is labelled with the share of multiply-adds."""
    rows = json.loads(path.read_text())["seeds"]
    for variant in rows[0]:
        kind, _, cut = variant.partition(" ")
        color, marker = STYLES[kind]
        times = [row[variant]["cpu_128"] for row in rows]
        errors = [row[variant]["error"] for row in rows]
        ax.plot(times, errors, marker, color=color, alpha=0.25, markersize=4)
        first = kind == "dense" or cut == "50%"
        label = {"dense": "dense", "shrunk": "shrunk and retrained", "small": "small, trained for as long"}[kind]
        ax.plot(median(times), mean(errors), marker, color=color, markersize=9, label=label if first else None)
        share = median(row[variant]["multiply_adds"] / row["dense"]["multiply_adds"] for row in rows)
        where = {"textcoords": "offset points", "xytext": (8, 6), "fontsize": 8, "color": color}
        ax.annotate(f"{share:.0%}", (median(times), mean(errors)), **where)
    ax.set_title(f"{path.stem.removeprefix('structured_')}, {len(rows)} seeds; shares of multiply-adds")
    ax.set_ylabel("test error on Fashion-MNIST, %")
    ax.set_xlabel("time of a batch of 128 on one CPU core, dense = 1")
    ax.grid(alpha=0.3)


if __name__ == "__main__":
    _picture.draw(__doc__, draw)
