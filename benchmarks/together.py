"""Do pruning, quantization and distillation add up? `python -m benchmarks.together [--quick] [--out FILE]`.

LeNet-300-100 is trained with each of the three, with every two, with all and with none, always for the same epochs,
from the same start and on images in the same order: kernels pruned to 5 %, kernels of 4 bits, and the logits of a
residual CNN. What is scored has been through its file, and the bytes are those of the file. `--validation` scores
images that choices may be made on.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from statistics import mean, stdev
from typing import Any

import jax
import optax

import jaxopt_compress as jc
from benchmarks import _lenet, _nets, _seeds, harness
from benchmarks._lenet import KERNELS, Part, Recipe, Taught
from benchmarks.structured import digits
from benchmarks.structured import train as train_alone

PARTS = ("pruned", "quantized", "distilled")
VARIANTS = [" + ".join(some) or "none" for count in range(4) for some in combinations(PARTS, count)]
RECIPE = Recipe(epochs=30, longest=1.0)  # a teacher at a high temperature has steep slopes
TEACHER_EPOCHS = 4
SPARSITY, BITS = 0.95, 4
TEMPERATURE, ALPHA = 4.0, 0.9


def transform(variant: str, steps: int) -> jc.ParamTransform:
    """Return what the forward pass sees of the parameters."""
    sparsity = optax.polynomial_schedule(0.0, SPARSITY, 3, transition_steps=steps // 2, transition_begin=steps // 10)
    prune = jc.periodic(jc.pruning.prune(jc.pruning.magnitude, sparsity, scope="global"), every=max(steps // 200, 1))
    parts = {"pruned": prune, "quantized": jc.quantization.fake_quantize(bits=BITS)}
    return jc.chain(*(jc.select(KERNELS, t) for name, t in parts.items() if name in variant))


@partial(jax.jit, static_argnames=("variant", "recipe"))
def train(variant: str, recipe: Recipe, data: Part, said: jax.Array, seed: jax.Array) -> tuple[Any, Any]:
    """Return parameters and the state of the transform."""
    start, order = jax.random.split(jax.random.key(seed))
    taught = Taught(said, TEMPERATURE, ALPHA) if "distilled" in variant else None
    t = transform(variant, recipe.steps(data))
    return _lenet.train(recipe, data, order, _lenet.init(start), t, taught=taught)


def teach(data: Part, epochs: int, seed: int) -> Callable[[jax.Array], jax.Array]:
    """Train the CNN; return what it says of images, some at a time."""
    start = _nets.cnn.init(jax.random.key(seed), _nets.cnn.width)
    variables = train_alone(_nets.cnn, _nets.cnn.train, start, data, epochs, seed)
    return jax.jit(lambda image: jax.lax.map(lambda x: _nets.cnn.apply(variables, x)[0], image, batch_size=256))


def run(seed: int, data: Part, scored: Part, recipe: Recipe, teacher_epochs: int) -> dict[str, Any]:
    """Return errors and bytes of one seed."""
    teacher = teach(data, teacher_epochs, seed)
    wrong = teacher(scored.image).argmax(-1) != scored.label
    row: dict[str, Any] = {"seed": seed, "teacher": {"error": float(100 * wrong.mean())}}
    said = teacher(data.image)
    for variant in VARIANTS:
        params, state = train(variant, recipe, data, said, seed)
        held, size = harness.saved(transform(variant, recipe.steps(data)).encode(params, state))
        row[variant] = {"error": round(float(_lenet.error(jc.decode(held), scored)), 2), "bytes": size}
        print(seed, variant, row[variant], flush=True)
    return row


def main() -> None:
    options = _seeds.arguments(__doc__, "the digits, a few epochs", "fashion-mnist").parse_args()
    data = digits() if options.quick else _lenet.parts(options.data, whole=not options.validation)
    scored = data.validation if options.validation else data.test
    recipe, epochs = (RECIPE._replace(epochs=3), 1) if options.quick else (RECIPE, TEACHER_EPOCHS)
    rows = _seeds.over(options, keys, lambda seed: [run(seed, data.train, scored, recipe, epochs)])
    columns = ("", "error, %", "to none, points", "bytes")
    harness.show(f"LeNet-300-100 on {options.data}", columns, cells(rows))
    _seeds.finish(options, keys(rows), rows)


def cells(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return the lines of the table: means and deviations, and what the same seed has more than without anything."""
    lines = [("teacher", _spread([row["teacher"]["error"] for row in rows]), "", "")]
    for variant in VARIANTS:
        more = _spread([row[variant]["error"] - row["none"]["error"] for row in rows])
        size = f"{mean(row[variant]['bytes'] for row in rows):,.0f}"
        lines.append((variant, _spread([row[variant]["error"] for row in rows]), more, size))
    return lines


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" +- {stdev(values):.2f}" if len(values) > 1 else "")


def keys(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean errors, and how many times smaller files are."""
    found = {}
    for variant in VARIANTS:
        name = variant.replace(" + ", "_")
        found[f"together_{name}_error"] = mean(row[variant]["error"] for row in rows)
        found[f"together_{name}_smaller"] = mean(row["none"]["bytes"] / row[variant]["bytes"] for row in rows)
    return found


if __name__ == "__main__":
    main()
