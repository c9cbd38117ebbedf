"""Measure variants side by side: interleaved runs in one process, medians of ratios, a table, and one JSON line."""

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import jaxopt_compress as jc


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time every variant once a round, after one run to warm up.

    The order is shuffled anew each round, so that none always runs behind the same other, or behind itself.

    Returns:
      Seconds by variant, one number a round.
    """
    for run in variants.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in variants}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(sorted(variants)):
            start = time.perf_counter()
            jax.block_until_ready(variants[name]())
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """Return the median over rounds of the ratio of two variants."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def temporary_bytes(compiled) -> int:
    """Return what a compiled function needs beside its arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def stepper(compiled: Callable, state: Any, *args: Any) -> Callable[[], Any]:
    """Return a function of no arguments that runs a step with donated state again and again."""
    held = [state]

    def run():
        held[0] = compiled(held[0], *args)[0]
        return held[0]

    return run


def environment() -> dict[str, str]:
    """Name what the figures depend on."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "jaxopt_compress": jc.__version__,
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "command": " ".join(["python", "-m", *sys.orig_argv[2:]]),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith("model name")]
        return f"{lines[0].split(':', 1)[1].strip()}, {len(lines)} cores"
    except (OSError, IndexError):
        return platform.processor()


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=max(Console().width, 116)).print(table)


def saved(model: Any) -> tuple[Any, int]:
    """Return what a file holds of a model, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.jc"
        size = jc.export.save(path, model)
        return jc.export.load(path), size


def rounded(keys: Mapping[str, float]) -> dict[str, float]:
    """Return ratios with the digits that they deserve."""
    return {name: float(f"{value:.4g}") for name, value in keys.items()}


def write(keys: Mapping[str, float], out: str | None, **more: Any) -> None:
    """Write the results where asked."""
    if out:
        with open(out, "w") as file:
            json.dump({"ratios": rounded(keys), **more, "environment": environment()}, file, indent=1)
            file.write("\n")


def finish(keys: Mapping[str, float], out: str | None, **more: Any) -> None:
    """Write the results where asked, and print the ratios as the last line."""
    write(keys, out, **more)
    print(json.dumps(rounded(keys)))
