"""One seed after the other: the arguments that such benchmarks share, and a run that can be interrupted."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

Rows = list[dict[str, Any]]


def arguments(doc: str | None, quick: str, data: str | None = None) -> argparse.ArgumentParser:
    """Return a parser of what all of them take.

    Args:
      doc: of the module.
      quick: what is less in the quick form.
      data: the set of images that is taken by default; None for no choice.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        parser.add_argument("--data", choices=("mnist", "fashion-mnist"), default=data)
    parser.add_argument("--quick", action="store_true", help=f"one seed, {quick}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validation", action="store_true", help="score validation data, and do not train on them")
    parser.add_argument("--out", help="write the results as JSON, after each seed")
    parser.add_argument("--resume", action="store_true", help="keep the seeds that this file holds, and run the others")
    return parser


def over(options: argparse.Namespace, keys: Callable[[Rows], Mapping[str, float]], run: Callable[[int], Rows]) -> Rows:
    """Run every seed that is missing.

    Args:
      options: the parsed arguments; they are kept with the results.
      keys: from all rows to the ratios.
      run: from a seed to its rows, each with its `"seed"`.

    Returns:
      The rows of all seeds.

    Raises:
      SystemExit: the file to resume holds results of other options.
    """
    rows = _done(options)
    done = {row["seed"] for row in rows}
    for seed in range(1 if options.quick else options.seeds):
        if seed not in done:
            rows = sorted(rows + run(seed), key=lambda row: row["seed"])
            print(f"seed {seed}:", *(row for row in rows if row["seed"] == seed), flush=True)
            harness.write(keys(rows), options.out, rows=rows, options=vars(options))
    return rows


def finish(options: argparse.Namespace, ratios: Mapping[str, float], rows: Sequence[Any]) -> None:
    """Write the results, and print the ratios as the last line."""
    harness.finish(ratios, options.out, rows=rows, options=vars(options))


def _done(options: argparse.Namespace) -> Rows:
    if not (options.resume and options.out and Path(options.out).exists()):
        return []
    there = json.loads(Path(options.out).read_text())
    here = json.loads(json.dumps(vars(options)))
    differing = [n for n in here if n not in ("seeds", "out", "resume") and here[n] != there["options"].get(n)]
    if differing:
        raise SystemExit(f"{options.out} holds results of other options: {', '.join(differing)}.")
    return there["rows"]
