"""How few bits are enough for LeNet-5? `python -m benchmarks.quantized_lenet5 [--data NAME] [--quick] [--out FILE]`.

A float net is trained, and from there nets whose weights and activations have 8, 4 and 2 bits, in all layers, with
learned step sizes (LSQ): a scale a channel of the weights, one for an activation. Images keep the 8 bits in which they
come. The float net is trained for these epochs too. What is scored is what multiplies integers, read from its file.
Published, on MNIST, floats 0.64 %: Relaxed Quantization 0.55, 0.58 and 0.76 % (0.63 % with straight-through gradients),
SR+DR 0.58, 0.66 and 1.03 % (Louizos et al., 2019). Dropout on the dense layers, no augmentation; choices were made with
`--validation`.
"""

from statistics import mean, stdev
from typing import Any

import jax

from benchmarks import _lenet, _lenet5, _seeds, harness
from benchmarks._lenet import Part
from benchmarks._lenet5 import Recipe
from benchmarks.structured import digits, error
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Scheme, Served, convert, fits, learned, quantize

BITS = (8, 4, 2)
FIRST = Recipe(15)
MORE = {8: Recipe(5, rate=0.02), 4: Recipe(5, rate=0.02), 2: Recipe(10, rate=0.05)}
IMAGES = 8  # bits of a pixel


def scheme(bits: int, activation_bits: int) -> Scheme:
    """Round weights, and activations that are at least 0, with learned steps."""
    steps = fits.mse()
    grid = Integers(activation_bits, restricted=False)
    return Scheme(Integers(bits), grid, learned.lsq(positive=True, fit=steps), learned=learned.lsq(fit=steps))


def quantized(bits: int, params: Any, data: Part, recipe: Recipe, seed: int) -> tuple[Any, Served]:
    """Train from a float net with few bits; return the function that multiplies integers, and its parameters."""
    rules, image = {"conv_0/**": scheme(bits, IMAGES), "**": scheme(bits, bits)}, data.image[:1000]
    q = quantize(_lenet5.forward, params, image, rules=rules)
    dropping = quantize(_lenet5.forward, params, image, jax.random.key(0), rules=rules, integers=False)
    steps, shape = jax.tree.flatten(q.observe(params, q.init(), image))
    sizes = [leaf.shape for leaf in steps]

    def ranges(trained: Any) -> Any:  # flat in training, so that weight decay leaves them alone
        return jax.tree.unflatten(shape, [leaf.reshape(size) for leaf, size in zip(trained["steps"], sizes)])

    start = {"params": params, "steps": [leaf.ravel() for leaf in steps]}
    after = _lenet5.train(lambda v, x, key: dropping(v["params"], ranges(v), x, key), start, data, recipe, seed)
    return convert(q, after["params"], ranges(after))


def run(seed: int, data: Part, scored: Part, bits: tuple[int, ...], first: Recipe, quick: bool) -> dict[str, Any]:
    """Return errors and bytes of one seed."""
    params = _lenet5.train(_lenet5.forward, _lenet5.init(jax.random.key(seed)), data, first, seed)
    params, size = harness.saved(params)
    row: dict[str, Any] = {"seed": seed, "float": {"error": error(_lenet5.forward, params, scored), "bytes": size}}
    longer = max(MORE.values())
    for width in bits:
        recipe = MORE[width]._replace(epochs=1) if quick else MORE[width]
        fn, served = quantized(width, params, data, recipe, seed + 100)
        held, size = harness.saved(served._asdict())
        row[f"{width}/{width}"] = {"error": error(fn, Served(**held), scored), "bytes": size}
        print(seed, width, row[f"{width}/{width}"], row["float"], flush=True)
    if not quick:
        after = _lenet5.train(_lenet5.forward, params, data, longer, seed + 100)
        row["float, trained on"] = {"error": error(_lenet5.forward, after, scored), "bytes": row["float"]["bytes"]}
    return row


def main() -> None:
    options = _seeds.arguments(__doc__, "the digits, one epoch each, 2 bits", "mnist").parse_args()
    data = digits() if options.quick else _lenet.parts(options.data, not options.validation, standardized=False)
    scored = data.validation if options.validation else data.test
    bits, first = ((2,), FIRST._replace(epochs=1)) if options.quick else (BITS, FIRST)
    rows = _seeds.over(options, keys, lambda seed: [run(seed, data.train, scored, bits, first, options.quick)])
    cells = []
    for name in [name for name in rows[0] if name != "seed"]:
        errors = [row[name]["error"] for row in rows]
        spread = stdev(errors) if len(errors) > 1 else 0.0
        cells.append((name, f"{mean(errors):.2f} +- {spread:.2f}", mean(row[name]["bytes"] for row in rows)))
    harness.show(f"LeNet-5 on {options.data}, bits of weights/activations", ("", "error, %", "bytes"), cells)
    _seeds.finish(options, keys(rows), rows)


def keys(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean errors."""
    names = [name for name in rows[0] if name != "seed"]
    return {
        f"lenet5_{name.replace('/', '_').replace(', ', '_')}_error": mean(r[name]["error"] for r in rows)
        for name in names
    }


if __name__ == "__main__":
    main()
