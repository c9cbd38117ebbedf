"""Draw what `benchmarks.structured` found: error against measured time, shrunk nets beside small ones.

python -m benchmarks.structured_plot benchmarks/results/structured_{cnn,vit}.json --out docs/images/structured.png
"""

import argparse
import json
from pathlib import Path
from statistics import mean, median
from typing import Any

STYLES = {"dense": ("k", "s"), "shrunk": ("C0", "o"), "small": ("C1", "^")}


def draw(ax: Any, rows: list[dict[str, Any]], title: str) -> None:
    """Draw one net: a point a seed, a larger one for the mean, which is labelled with the share of multiply-adds."""
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
    ax.set_title(title)
    ax.set_xlabel("time of a batch of 128 on one CPU core, dense = 1")
    ax.grid(alpha=0.3)


def main():
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    figure, panels = pyplot.subplots(1, len(args.results), figsize=(5 * len(args.results), 4), layout="constrained")
    for ax, path in zip([panels] if len(args.results) == 1 else panels, args.results):
        rows = json.loads(Path(path).read_text())["seeds"]
        draw(ax, rows, f"{Path(path).stem.removeprefix('structured_')}, {len(rows)} seeds; shares of multiply-adds")
    first = figure.axes[0]
    first.set_ylabel("test error on Fashion-MNIST, %")
    first.legend(frameon=False)
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
