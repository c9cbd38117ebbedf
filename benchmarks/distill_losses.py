"""What is each loss of distillation worth?

    python -m benchmarks.distill_losses --net cnn --seeds 5 --out benchmarks/results/distill_losses_cnn.json

A residual CNN teaches one of a third of its width on 10,000 images of Fashion-MNIST (few, so that each is seen often in
some minutes), a transformer one of half its width on the characters of five novels (the sixth is the test).
Every student is trained for as many steps, with the labels and one loss more; what the teacher says is computed once
and read from a store. The gradient of that loss is a share of the length of the labels' gradient; `--validation` tries
shares on validation data, and `SHARES` holds the best that was tried of each loss. Plain distillation is "soft
targets".
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import jax

from benchmarks import _distillation_methods as methods
from benchmarks import _nets, _novels, _seeds, harness
from benchmarks._distilled import PLAIN, Method, Pair, Recipe, train
from benchmarks._lenet import Part, Parts, parts
from benchmarks.structured import digits, error
from benchmarks.structured import train as train_alone

IMAGES = 10_000
TRIED = (0.125, 0.5, 2.0, 8.0)
SHARES: dict[str, dict[str, float]] = {
    "cnn": {
        "soft targets": 8.0,
        "reverse": 8.0,
        "jsd": 8.0,
        "dkd": 0.125,
        "dist": 0.5,
        "standardized": 2.0,
        "top 3": 2.0,
        "two momenta": 8.0,
        "hint": 0.5,
        "attention": 0.125,
        "selectivity": 0.125,
        "vid": 0.125,
        "ofd": 0.5,
        "review": 0.5,
        "distances, angles": 0.5,
        "similarity": 0.125,
        "pkt": 0.5,
        "crd": 0.5,
    },
    "text": {
        "soft targets": 2.0,
        "reverse": 0.5,
        "jsd": 0.5,
        "dkd": 0.5,
        "dist": 0.5,
        "standardized": 0.125,
        "top 3": 0.5,
        "hint": 0.5,
        "attention": 0.5,
        "selectivity": 0.125,
        "vid": 0.125,
        "distances, angles": 0.125,
        "similarity": 0.125,
        "pkt": 0.125,
        "crd": 0.125,
    },
}
UNITS = {"cnn": "error, %", "text": "bits per character"}


class Task(NamedTuple):
    """A pair of nets and what they are for.

    Attributes:
      teacher: the large net.
      student: the small one.
      data: all parts.
      score: `(fn, variables, part) -> number`, of which less is better.
      methods: the losses.
    """

    teacher: Recipe
    student: Recipe
    data: Parts
    score: Callable[[Callable, Any, Part], float]
    methods: dict[str, Method]


def images(options: argparse.Namespace) -> Task:
    """Return the CNNs and Fashion-MNIST."""
    data = digits() if options.quick else parts("fashion-mnist", whole=not options.validation)
    data = data._replace(train=Part(data.train.image[:IMAGES], data.train.label[:IMAGES]))
    last = lambda v: tuple(v["params"]["b1"]["second"][name] for name in ("scale", "shift"))  # noqa: E731
    of_pictures = methods.of_pictures(("a1", "b1"), "params/b1/second", "in:params/head/kernel", last)
    teacher = Recipe(_nets.cnn, 1 if options.quick else 24, 128)
    student = Recipe(_nets.cnn._replace(width=8), 1 if options.quick else 12, 64)
    return Task(teacher, student, data, error, methods.of_logits() | of_pictures)


def text(options: argparse.Namespace) -> Task:
    """Return the transformers and the novels."""
    data = _novels.novels(whole=not options.validation)
    losses = methods.of_logits() | methods.of_sequences("in:params/words#2")
    student = Recipe(_novels.net._replace(width=64, rate=5e-3), 2, 8)
    return Task(Recipe(_novels.net, 2, 16), student, data, _novels.bits_per_character, losses)


TASKS = {"cnn": images, "text": text}


def run(task: Task, scored: Part, seed: int, shares: dict[str, tuple[float, ...]]) -> dict[str, Any]:
    """Return the scores of one seed, by loss and share."""
    net, epochs, batch = task.teacher
    start = net.init(jax.random.key(seed), net.width)
    teacher = train_alone(net, net.train, start, task.data.train, epochs, seed, batch)
    apply = task.student.net.apply
    row: dict[str, Any] = {"seed": seed, "teacher": task.score(net.apply, teacher, scored)}
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(task.student, teacher, task.data.train, Path(folder))
        for name, tried in {"plain": (0.0,), **shares}.items():
            method = PLAIN if name == "plain" else task.methods[name]
            for share in tried:
                key = name if len(tried) == 1 else f"{name}, {share:g}"
                row[key] = task.score(apply, train(pair, method, share, seed + 100), scored)
                print(seed, key, row[key], flush=True)
    return row


def main() -> None:
    parser = _seeds.arguments(__doc__, "the digits, two losses")
    parser.add_argument("--net", choices=TASKS, default="cnn")
    parser.add_argument("--losses", nargs="+", help="by default all")
    parser.add_argument("--tried", nargs="+", type=float, default=TRIED, help="shares, with --validation")
    options = parser.parse_args()
    task = TASKS[options.net](options)
    names = options.losses or (["soft targets", "review"] if options.quick else list(task.methods))
    shares = {n: tuple(options.tried) if options.validation else (SHARES[options.net][n],) for n in names}
    scored = task.data.validation if options.validation else task.data.test
    options.shares = shares  # to be kept with the results, as are the recipes
    options.recipes = [[r.net.width, r.net.rate, r.epochs, r.batch] for r in (task.teacher, task.student)]
    of_net = lambda rows: keys(rows, options.net)  # noqa: E731
    rows = _seeds.over(options, of_net, lambda seed: [run(task, scored, seed, shares)])
    harness.show(f"{options.net}: {UNITS[options.net]}", ("", "mean", "deviation", "of soft targets"), cells(rows))
    _seeds.finish(options, of_net(rows), rows)


def cells(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return the lines of the table; the last column is the mean over seeds of what plain distillation has more."""
    lines = []
    for name in [name for name in rows[0] if name != "seed"]:
        values = [row[name] for row in rows]
        spread = f"{stdev(values):.3f}" if len(values) > 1 else ""
        gains = [row["soft targets"] - row[name] for row in rows if "soft targets" in row]
        lines.append((name, f"{mean(values):.3f}", spread, f"{mean(gains):+.3f}" if gains else ""))
    return lines


def keys(rows: list[dict[str, Any]], net: str) -> dict[str, float]:
    """Return the means."""
    names = [name for name in rows[0] if name != "seed"]
    return {
        f"distilled_{net}_" + name.replace(", ", "_").replace(" ", "_"): mean(row[name] for row in rows)
        for name in names
    }


if __name__ == "__main__":
    main()
