"""The table and the plot of the demo."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from examples.demo.measuring import Measured

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLORS = {"teacher": "#7a7a7a", "dense student": "#2b6cb0", "compressed student": "#c05621"}


def print_table(rows: Sequence[Measured], title: str, console: Console) -> None:
    """Print one row a model."""
    table = Table(title=title)
    table.add_column("")
    for name in ("test accuracy", "bytes", "sparsity", "bits", "multiply-adds", "of them nonzero", "batch-1 ms"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            spread(row.accuracy),
            f"{round(statistics.mean(row.file_bytes)):,}",
            f"{row.sparsity:.1%}",
            str(row.bits),
            f"{row.multiply_adds:,}",
            f"{row.nonzero_multiply_adds:,}",
            f"{row.latency_ms:.3f}",
        )
    console.print(table)


def spread(values: Sequence[float]) -> str:
    """Write a mean with its standard deviation, in percent."""
    mean = f"{100 * statistics.mean(values):.2f} %"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def plot(rows: Sequence[Measured], history: dict[str, list[float]], kernel: np.ndarray, path: Path, title: str) -> None:
    """Save the picture of the run.

    Args:
      rows: the table.
      history: validation accuracy by run, and `sparsity`, one value an epoch of the first seed.
      kernel: one layer of the compressed student, whose zeros are shown.
      path: where to save the PNG.
      title: its title.
    """
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.4), width_ratios=(1.15, 1.15, 0.8))
    _accuracy_against_bytes(left, rows)
    _training(middle, history)
    _kept(right, kernel)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _accuracy_against_bytes(axes, rows: Sequence[Measured]) -> None:
    for row in rows:
        color = COLORS[row.name]
        percent = [100 * a for a in row.accuracy]
        axes.scatter(row.file_bytes, percent, color=color, alpha=0.35, s=28, linewidths=0)
        x, y = statistics.mean(row.file_bytes), statistics.mean(percent)
        axes.scatter([x], [y], color=color, s=110, zorder=3, edgecolors="white")
        axes.annotate(row.name, (x, y), xytext=(0, 12), textcoords="offset points", ha="center", color=color)
    dense, small = (statistics.mean(row.file_bytes) for row in rows[1:3])
    axes.set(xscale="log", xlabel="bytes (file; float32 where dense)", ylabel="test accuracy, %")
    axes.set_title(f"{dense / small:.1f}x smaller than the dense student", loc="left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.18 * (high - low))
    axes.margins(x=0.3)
    axes.grid(alpha=0.25)


def _training(axes, history: dict[str, list[float]]) -> None:
    for name in ("dense student", "compressed student"):
        values = [100 * a for a in history[name]]
        axes.plot(range(1, len(values) + 1), values, color=COLORS[name], label=name, linewidth=1.8)
    final = [v for name in COLORS if name in history for v in history[name][len(history[name]) // 5 :]]
    axes.set_ylim(100 * min(final) - 1, 100.2)
    axes.set(xlabel="epoch", ylabel="validation accuracy, %")
    axes.set_title("pruned while it learns (first seed)", loc="left")
    other = axes.twinx()
    percent = [100 * s for s in history["sparsity"]]
    other.fill_between(range(1, len(percent) + 1), percent, color="#c05621", alpha=0.12, linewidth=0, label="sparsity")
    other.set(ylim=(0, 100), ylabel="sparsity, %")
    other.spines["right"].set_visible(True)
    lines = [part for a in (axes, other) for part in a.get_legend_handles_labels()[0]]
    axes.legend(lines, [line.get_label() for line in lines], loc="lower right", frameon=False)
    axes.grid(alpha=0.25)


def _kept(axes, kernel: np.ndarray) -> None:
    kept = kernel != 0
    by_row, by_column = (np.argsort(-kept.sum(axis), kind="stable") for axis in (1, 0))
    axes.imshow(kept[by_row][:, by_column], cmap="Greys", aspect="auto", interpolation="nearest")
    axes.set_title(f"what is left of a layer: {kept.mean():.0%}", loc="left")
    axes.set(xlabel=f"{kernel.shape[1]} outputs, fullest first", ylabel=f"{kernel.shape[0]} inputs, fullest first")
    axes.set_xticks([])
    axes.set_yticks([])
