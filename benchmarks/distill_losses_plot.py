"""Draw what `benchmarks.distill_losses` found: the score of a student by the loss that it was trained with.

python -m benchmarks.distill_losses_plot benchmarks/results/distill_losses_{cnn,text}.json --out docs/images/losses.png
"""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import _picture

TITLES = {
    "cnn": ("residual CNN, a third of the width", "test error on Fashion-MNIST, %"),
    "text": ("transformer, half the width", "bits per character of a novel"),
}
NOT_STUDENTS = ("seed", "teacher")


def draw(ax: Any, path: Path) -> None:
    """Draw one pair: a row a loss, the best on top, with the mean of its seeds and each of them as a small point."""
    found = json.loads(path.read_text())
    rows = found["rows"]
    names = sorted((n for n in rows[0] if n not in NOT_STUDENTS), key=lambda n: mean(row[n] for row in rows))
    for place, name in enumerate(names):
        values = [row[name] for row in rows]
        color = {"plain": "C7", "soft targets": "C3"}.get(name, "C0")
        ax.plot(values, [place] * len(values), ".", color=color, alpha=0.4, markersize=5)
        ax.plot(mean(values), place, "o", color=color)
    for name, color in (("plain", "C7"), ("soft targets", "C3")):
        ax.axvline(mean(row[name] for row in rows), color=color, linewidth=0.8, label=name)
    title, unit = TITLES[found["options"]["net"]]
    ax.set(title=title, xlabel=unit, yticks=range(len(names)), yticklabels=names)
    ax.invert_yaxis()
    ax.grid(alpha=0.3)


if __name__ == "__main__":
    _picture.draw(__doc__, draw)
