"""Draw what `benchmarks.ladder` found: what a net loses, by the bits of its weights, for each method.

python -m benchmarks.ladder_plot benchmarks/results/ladder_{cnn,text}.json --out docs/images/ladder.png
"""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import _picture

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


def draw(ax: Any, path: Path) -> None:
    """Draw one net: a line a method through the means of its seeds, which are small points."""
    found = json.loads(path.read_text())
    rows = found["rows"]
    bits = [key for key in rows[0] if key.isdigit()]
    for method, (color, style) in STYLES.items():
        known = [b for b in bits if method in rows[0][b]]
        places = [bits.index(b) for b in known]
        ax.plot(places, [mean(row[b][method] for row in rows) for b in known], style, color=color, label=method)
        for row in rows if len(rows) > 1 else []:
            ax.plot(places, [row[b][method] for b in known], ".", color=color, alpha=0.4, markersize=4)
    ax.axhline(mean(row["float"] for row in rows), color="k", linewidth=0.8, label="float32")
    title, unit = TITLES[found["options"]["net"]]
    ax.set_title(f"{title} ({len(rows)} seed{'s' * (len(rows) > 1)})")
    ax.set(yscale="log", xticks=range(len(bits)), xticklabels=bits, xlabel="bits of the weights", ylabel=unit)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.tick_params(axis="y", which="minor", labelsize=7)
    ax.grid(alpha=0.3, which="both")


if __name__ == "__main__":
    _picture.draw(__doc__, draw)
