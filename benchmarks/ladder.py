"""How much does each bit cost, and what do better methods give back?

    python -m benchmarks.ladder --net cnn --seeds 5 --out benchmarks/results/ladder_cnn.json
    python -m benchmarks.ladder --net text --seeds 3 --out benchmarks/results/ladder_text.json

A residual CNN with batch normalization is trained on Fashion-MNIST, a transformer on the characters of five novels (the
sixth is the test; `benchmarks._novels` says where they are looked for). Weights are rounded to 8, 6, 4, 3 and 2 bits
(all layers, one scale a channel), activations to 8 bits with ranges observed on 1,024 examples; of the transformer the
products of two activations too. After training: rounding to nearest, bias correction, cross-layer equalization, AWQ,
AdaRound, GPTQ, and at 4 bits and fewer reconstruction, block by block. With training, at 4 bits and fewer:
quantization-aware training for one more epoch (of the novels a quarter), and learned step sizes (LSQ) that start at
those of least square error; the float net gets that epoch too.
What is scored is the served function, which multiplies integers. Choices were made with `--validation`.
"""

import argparse
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks import _ladder, _nets, _novels, _seeds, harness
from benchmarks._ladder import Task
from benchmarks._lenet import Part, parts
from benchmarks.structured import digits, error

BITS = (8, 6, 4, 3, 2)
TRAINED = 4  # more bits lose nothing that training could bring back
FEW = ("block by block",)  # the same is true of these
AFTER = ("nearest", "bias corrected", "equalized", "equalized, bias corrected", "awq", "adaround", "gptq")
UNITS = {"cnn": "error, %", "text": "bits per character"}


def images(options: argparse.Namespace) -> Task:
    """Return the CNN and Fashion-MNIST."""
    data = digits() if options.quick else parts("fashion-mnist", whole=not options.validation)
    scored = data.validation if options.validation else data.test
    score = lambda fn, variables: error(lambda p, x: fn(p, x), variables, scored)  # noqa: E731
    return Task(_nets.cnn, data.train, data.train, score, 1 if options.quick else 3, 128, _nets.cnn_blocks())


def text(options: argparse.Namespace) -> Task:
    """Return the transformer and the novels."""
    data = _novels.novels(whole=not options.validation)
    scored = data.validation if options.validation else data.test
    quarter = np.random.default_rng(0).permutation(len(data.train.label))[: len(data.train.label) // 4]
    more = Part(data.train.image[quarter], data.train.label[quarter])
    score = lambda fn, variables: _novels.bits_per_character(fn, variables, scored)  # noqa: E731
    return Task(_novels.net, data.train, more, score, 2, 16, _novels.blocks())


TASKS = {"cnn": images, "text": text}


def run(task: Task, seed: int, bits: tuple[int, ...], methods: tuple[str, ...], training: bool) -> dict[str, Any]:
    """Return the scores of one seed, by bits and method."""
    variables = _ladder.float_net(task, seed)
    row: dict[str, Any] = {"seed": seed, "float": task.score(task.net.apply, variables)}
    if training:
        row["float, trained on"] = task.score(task.net.apply, _ladder.trained_on(task, task.net.apply, variables, seed))
    rungs = _ladder.Rungs(task, variables)
    for width in bits:
        row[str(width)] = rungs.after_training(width, methods + (FEW if width <= TRAINED and training else ()))
        if width <= TRAINED and training:
            row[str(width)]["qat"] = _ladder.qat(task, width, variables, seed)
            row[str(width)]["lsq"] = _ladder.lsq(task, width, variables, seed)
        print(f"seed {seed}, {width} bits: {row[str(width)]}, float {row['float']:.2f}", flush=True)
    return row


def summary(rows: list[dict[str, Any]], bits: tuple[int, ...]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return mean and deviation by method and bits."""
    spread = lambda found: (mean(found), stdev(found) if len(found) > 1 else 0.0)  # noqa: E731
    return {
        method: {str(b): spread([row[str(b)][method] for row in rows]) for b in bits if method in rows[0][str(b)]}
        for method in rows[0][str(bits[-1])]
    }


def keys(rows: list[dict[str, Any]], bits: tuple[int, ...]) -> dict[str, float]:
    """Return what AdaRound and GPTQ give back at the fewest bits but one, and what they still lose to the float net."""
    worst = str(bits[-2:][0])
    at = {method: each[worst][0] for method, each in summary(rows, bits).items()}
    dense = mean(row["float"] for row in rows)
    found = {f"nearest_minus_{method}": at["nearest"] - at[method] for method in ("adaround", "gptq")}
    return found | {f"{method}_minus_float": at[method] - dense for method in ("nearest", "adaround", "gptq")}


def main() -> None:
    parser = _seeds.arguments(__doc__, "the digits, one epoch, 4 bits, no training afterwards")
    parser.add_argument("--net", choices=TASKS, default="cnn")
    options = parser.parse_args()
    bits, methods = ((4,), ("nearest", "gptq", "adaround")) if options.quick else (BITS, AFTER)
    task, at = TASKS[options.net](options), lambda rows: keys(rows, bits)
    rows = _seeds.over(options, at, lambda seed: [run(task, seed, bits, methods, not options.quick)])
    show = lambda pair: "{:.2f} +- {:.2f}".format(*pair) if pair else ""  # noqa: E731
    cells = [(name, *(show(each.get(str(b))) for b in bits)) for name, each in summary(rows, bits).items()]
    dense = ", ".join(f"{n} {mean(row[n] for row in rows):.2f}" for n in ("float", "float, trained on") if n in rows[0])
    harness.show(f"{UNITS[options.net]}, by bits of the weights ({dense})", ("method", *map(str, bits)), cells)
    _seeds.finish(options, at(rows), rows)


if __name__ == "__main__":
    main()
