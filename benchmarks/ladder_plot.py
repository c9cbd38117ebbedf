"""Draw what `benchmarks.ladder` found: what a net loses, by the bits of its weights, for each method.

python -m benchmarks.ladder_plot benchmarks/results/ladder_{cnn,text}.json --out docs/images/ladder.png
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

STYLES = {
    "nearest": ("C7", "o-"),
    "bias corrected": ("C7", "v--"),
    "equalized": ("C7", "x:"),
    "awq": ("C5", "D-"),
    "adaround": ("C0", "^-"),
    "gptq": ("C2", "s-"),
    "block by block": ("C3", "o-"),
    "qat": ("C1", "P--"),
    "lsq": ("C4", "X--"),
}
TITLES = {
    "cnn": ("residual CNN, Fashion-MNIST", "test error, %"),
    "text": ("transformer, characters of a novel", "bits per character"),
}


def draw(ax: Any, rows: list[dict[str, Any]], net: str) -> None:
    """Draw one net: a line a method through the means of its seeds, which are small points."""
    bits = [key for key in rows[0] if key.isdigit()]
    for method, (color, style) in STYLES.items():
        known = [b for b in bits if method in rows[0][b]]
        places = [bits.index(b) for b in known]
        ax.plot(places, [mean(row[b][method] for row in rows) for b in known], style, color=color, label=method)
        for row in rows if len(rows) > 1 else []:
            ax.plot(places, [row[b][method] for b in known], ".", color=color, alpha=0.4, markersize=4)
    ax.axhline(mean(row["float"] for row in rows), color="k", linewidth=0.8, label="float32")
    title, unit = TITLES[net]
    ax.set_title(f"{title} ({len(rows)} seed{'s' * (len(rows) > 1)})")
    ax.set(yscale="log", xticks=range(len(bits)), xticklabels=bits, xlabel="bits of the weights", ylabel=unit)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.tick_params(axis="y", which="minor", labelsize=7)
    ax.grid(alpha=0.3, which="both")


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
        found = json.loads(Path(path).read_text())
        draw(ax, found["rows"], found["options"]["net"])
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
