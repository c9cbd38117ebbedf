"""How much accuracy does each bit cost, and what do better methods give back?

    python -m benchmarks.ladder --seeds 5 --out benchmarks/results/ladder.json

A residual CNN with batch normalization is trained on Fashion-MNIST; its weights are rounded to 8, 6, 4, 3 and 2 bits
(all layers, one scale a channel), its activations to 8 bits with ranges observed on 1,024 training images. After
training: rounding to nearest, bias correction, GPTQ, AdaRound, AWQ. With training, at 4 bits and fewer: one more
epoch of quantization-aware training, and of learned step sizes (LSQ) that start at those of least square error; the
float net gets that epoch too. What is scored is the served function, which multiplies integers. Choices were made with
`--validation`.
"""

import argparse
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

import jax

from benchmarks import _nets, harness
from benchmarks._lenet import Part, Parts, parts
from benchmarks.structured import digits, error, train
from jaxopt_compress.calibration import calibrate, gram
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Quantization, Scheme, bases, convert, fits, learned, observers, quantize
from jaxopt_compress.quantization import post_training as pt

BITS = (8, 6, 4, 3, 2)
TRAINED = 4  # more bits lose nothing that training could bring back
BATCHES = [slice(i, i + 128) for i in range(0, 1024, 128)]
ROUNDING = {
    "nearest": pt.nearest(),
    "bias corrected": pt.corrected(pt.nearest(gram())),
    "gptq": pt.gptq(),
    "gptq, largest first": pt.gptq(act_order=True),
    "gptq, bias corrected": pt.corrected(pt.gptq(act_order=True)),
    "adaround": pt.adaround(),
    "adaround, bias corrected": pt.corrected(pt.adaround()),
}
NET = _nets.cnn
SLOW = NET._replace(rate=NET.rate / 10)


def scheme(bits: int, **more: Any) -> Scheme:
    """Round weights to some bits, activations to eight with a zero point."""
    return Scheme(Integers(bits), Integers(8, restricted=False), observers.minmax(), zero_point=True, **more)


def observed(q: Quantization, variables: Any, ranges: Any, image: jax.Array) -> Any:
    """Observe the ranges of activations."""
    observe = jax.jit(q.observe)
    for rows in BATCHES:
        ranges = observe(variables, ranges, image[rows])
    return ranges


def after_training(
    bits: int, variables: Any, data: Part, states: Any, score: Callable, methods: dict[str, pt.Method]
) -> dict[str, float]:
    """Return the error of every method that needs no labels."""
    batches = [data.image[rows] for rows in BATCHES]
    q = quantize(NET.apply, variables, batches[0], rules={"**": scheme(bits)})
    ranges, found = observed(q, variables, q.init(), data.image), {}
    for name, method in methods.items():
        rounded = pt.round_weights(q, variables, (), method, states=states)
        found[name] = score(*convert(q, variables, ranges, rounded.weights))
    turned = quantize(NET.apply, variables, batches[0], rules={"**": scheme(bits, basis=bases.diagonal())})
    ranges = observed(turned, variables, pt.awq(turned, variables, turned.init(), (), states=states), data.image)
    found["awq"] = score(*convert(turned, variables, ranges))
    return found


def with_training(bits: int, variables: Any, data: Part, epochs: int, seed: int, score: Callable) -> dict[str, float]:
    """Return the error after some more epochs, with scales that are fitted, and with step sizes that are learned."""
    stats, found = variables["stats"], {}
    q = quantize(NET.apply, variables, data.image[:128], rules={"**": scheme(bits)})
    ranges = observed(q, variables, q.init(), data.image)
    forward = lambda v, x: (q({**v, "stats": stats}, ranges, x), stats)  # noqa: E731
    after = train(SLOW, forward, variables, data, epochs, seed)
    found["qat"] = score(*convert(q, after, observed(q, after, q.init(), data.image)))
    steps = scheme(bits, learned=learned.lsq(fit=fits.mse()))
    q = quantize(NET.apply, variables, data.image[:128], rules={"**": steps})
    ranges, shape = jax.tree.flatten(observed(q, variables, q.init(), data.image))
    sizes = [leaf.shape for leaf in ranges]

    def learning(v: Any, x: jax.Array) -> Any:
        params = {name: leaf for name, leaf in v["params"].items() if name != "steps"}
        return q({"params": params, "stats": stats}, unflatten(v["params"]["steps"]), x), stats

    def unflatten(steps: list[jax.Array]) -> Any:  # they are flat in training, so that weight decay leaves them alone
        return jax.tree.unflatten(shape, [leaf.reshape(size) for leaf, size in zip(steps, sizes)])

    start = {"params": {**variables["params"], "steps": [leaf.ravel() for leaf in ranges]}, "stats": stats}
    after = train(SLOW, learning, start, data, epochs, seed)
    ranges = unflatten(after["params"].pop("steps"))
    found["lsq"] = score(*convert(q, after, ranges))
    return found


def run(
    seed: int, data: Parts, scored: Part, epochs: int, more: int, bits: tuple[int, ...], methods: dict[str, pt.Method]
) -> dict[str, Any]:
    """Return the errors of one seed, by bits and method."""
    variables = train(NET, NET.train, NET.init(jax.random.key(seed), NET.width), data.train, epochs, seed)
    score = lambda fn, params: error(lambda p, x: fn(p, x), params, scored)  # noqa: E731
    stats = variables["stats"]
    fixed = lambda v, x: (NET.apply({**v, "stats": stats}, x), stats)  # noqa: E731
    again = train(SLOW, fixed, variables, data.train, more, seed + 100) if more else variables
    row: dict[str, Any] = {"float": score(NET.apply, variables), "float, trained on": score(NET.apply, again)}
    states = calibrate(NET.apply, variables, [data.train.image[rows] for rows in BATCHES], gram())
    for width in bits:
        row[str(width)] = after_training(width, variables, data.train, states, score, methods)
        if width <= TRAINED and more:
            row[str(width)] |= with_training(width, variables, data.train, more, seed + 100, score)
        print(f"seed {seed}, {width} bits: {row[str(width)]}, float {row['float']:.2f}", flush=True)
    return row


def summary(rows: list[dict[str, Any]], bits: tuple[int, ...]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return mean and deviation by method and bits."""
    spread = lambda found: (mean(found), stdev(found) if len(found) > 1 else 0.0)  # noqa: E731
    return {
        method: {str(b): spread([row[str(b)][method] for row in rows]) for b in bits if method in rows[0][str(b)]}
        for method in rows[0][str(bits[-1])]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the digits, one epoch, 4 bits, no training afterwards")
    parser.add_argument("--validation", action="store_true", help="score validation images, and do not train on them")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--more", type=int, default=1)
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    data = digits() if options.quick else parts("fashion-mnist", whole=not options.validation)
    scored = data.validation if options.validation else data.test
    bits = (4,) if options.quick else BITS
    methods = {"nearest": pt.nearest(), "gptq": pt.gptq(), "adaround": pt.adaround(50)} if options.quick else ROUNDING
    rows = []
    for seed in range(options.first, options.first + (1 if options.quick else options.seeds)):
        rows.append(
            run(
                seed,
                data,
                scored,
                1 if options.quick else options.epochs,
                0 if options.quick else options.more,
                bits,
                methods,
            )
        )
        harness.write({}, options.out, rows=rows, options=vars(options))
    table = summary(rows, bits)
    show = lambda pair: "{:.2f} +- {:.2f}".format(*pair) if pair else ""  # noqa: E731
    cells = [(method, *(show(each.get(str(b))) for b in bits)) for method, each in table.items()]
    dense = ", ".join(f"{name} {mean(row[name] for row in rows):.2f}" for name in ("float", "float, trained on"))
    harness.show(f"test error, %, by bits of the weights ({dense})", ("method", *map(str, bits)), cells)
    worst = str(bits[-2] if len(bits) > 1 else bits[0])
    at = {m: each[worst][0] for m, each in table.items()}
    keys = {"nearest_minus_adaround": at["nearest"] - at["adaround"], "nearest_minus_gptq": at["nearest"] - at["gptq"]}
    harness.finish(keys, options.out, rows=rows, options=vars(options))


if __name__ == "__main__":
    main()
