"""Hinton's distillation of MNIST, and of Fashion-MNIST. `python -m benchmarks.hinton [--data NAME] [--out FILE]`.

A net of two layers of 1,200 ReLUs is trained with dropout, bounded norms and images that are shifted by up to two
pixels; one of two layers of 800 with nothing of it, by the labels alone, or by the large net's soft targets alone, of
the images as they are; or longer, on shifted images, with targets that are the mean of what the teacher says of an
image and of four more, one pixel from it. Then the small net never sees a 3 (the withheld digit): the bias of that
class is raised by what is best on validation images. A student and its distilled twin train equally long. Published,
errors of 10,000: teacher 67, student 146, distilled 74; without threes 206, and with the bias 109 (Hinton et al.,
2015). For Fashion-MNIST the teacher has neither dropout nor bounds and the temperature is 2, which did better there on
validation images. Nothing is chosen by the test set: `--validation` scores other images, and `--sweep` tries
temperatures on them, for a small student too.
"""

import argparse
from statistics import mean, stdev
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks import _hinton, _lenet, _seeds, harness
from benchmarks._hinton import Recipe
from benchmarks._lenet import Part, Parts
from benchmarks.structured import digits

LARGE = Recipe((784, 1200, 1200, 10), 150, batch=200, regularized=True, shifts=True)
TEACHERS = {"mnist": LARGE, "fashion-mnist": LARGE._replace(epochs=100, regularized=False)}
STUDENT = Recipe((784, 800, 800, 10), 20, batch=25)
SHIFTED = STUDENT._replace(epochs=100, batch=100, shifts=True, averaged=True)
TEMPERATURE = {"mnist": 20.0, "fashion-mnist": 2.0}
WITHHELD = 3
WIDTHS, TEMPERATURES = (800, 30), (1.0, 2.0, 4.0, 8.0, 20.0, 40.0)
BIASES = np.arange(0.0, 10.01, 0.1)


class Plan(NamedTuple):
    """How the nets are trained, and at which temperature the small ones are taught."""

    teacher: Recipe
    student: Recipe
    shifted: Recipe
    temperature: float


def planned(options: argparse.Namespace) -> Plan:
    """Return the plan for a data set; with `--quick` one epoch each."""
    teacher, student, shifted = (
        recipe._replace(epochs=1 if options.quick else recipe.epochs)
        for recipe in (TEACHERS[options.data], STUDENT, SHIFTED)
    )
    return Plan(teacher, student, shifted, TEMPERATURE[options.data])


def wrong(params: Any, part: Part) -> int:
    """Return how many images are not recognized."""
    return int(jnp.sum(jnp.argmax(_hinton.logits(params, part.image), -1) != part.label))


def biased(params: Any, validation: Part, scored: Part) -> dict[str, Any]:
    """Return the errors without threes in training, before and after the bias of that class is raised."""
    raised = jnp.arange(10) == WITHHELD
    seen, found = (np.asarray(_hinton.logits(params, part.image)) for part in (validation, scored))
    errors = [np.sum(np.argmax(seen + b * raised, -1) != validation.label) for b in BIASES]
    bias = float(BIASES[np.argmin(errors)])
    miss = np.argmax(found + bias * raised, -1) != scored.label
    before = int(np.sum(np.argmax(found, -1) != scored.label))
    of_threes = int(np.sum(miss & (np.asarray(scored.label) == WITHHELD)))
    return {"errors": int(miss.sum()), "before": before, "bias": round(bias, 1), "of threes": of_threes}


def run(seed: int, plan: Plan, data: Parts, scored: Part, rest: Part) -> dict[str, Any]:
    """Return the errors of one seed; the bias is chosen on validation images, which are not in `rest`."""
    known = np.flatnonzero(np.asarray(rest.label) != WITHHELD)
    others = Part(rest.image[known], rest.label[known])
    teacher = _hinton.train(plan.teacher, data.train, None, seed)
    row: dict[str, Any] = {"seed": seed, "teacher": wrong(teacher, scored)}
    for recipe, name in ((plan.student, ""), (plan.shifted, ", shifted")):
        taught = recipe._replace(alpha=1.0, temperature=plan.temperature)
        row["student" + name] = wrong(_hinton.train(recipe, data.train, None, seed + 100), scored)
        row["distilled" + name] = wrong(taught_by(teacher, taught, data.train, seed + 100), scored)
        print(row, flush=True)
        without = taught_by(teacher, taught, others, seed + 100)
        row["without threes" + name] = biased(without, data.validation, scored)
    return row


def taught_by(teacher: Any, recipe: Recipe, data: Part, seed: int) -> Any:
    """Return the parameters of a student of a teacher."""
    return _hinton.train(recipe, data, _hinton.says(recipe, teacher, data.image), seed)


def sweep(seed: int, plan: Plan, data: Parts) -> list[dict[str, Any]]:
    """Return the validation errors of students by their width and the temperature."""
    teacher = _hinton.train(plan.teacher, data.train, None, seed)
    said = _hinton.says(plan.student, teacher, data.train.image)
    rows = []
    print({"seed": seed, "teacher": wrong(teacher, data.validation)}, flush=True)
    for width in WIDTHS:
        small = plan.student._replace(widths=(784, width, width, 10))
        plain = wrong(_hinton.train(small, data.train, None, seed + 100), data.validation)
        row: dict[str, Any] = {"seed": seed, "width": width, "plain": plain}
        for temperature in TEMPERATURES:
            taught = small._replace(alpha=1.0, temperature=temperature)
            row[f"{temperature:g}"] = wrong(_hinton.train(taught, data.train, said, seed + 100), data.validation)
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = _seeds.arguments(__doc__, "the digits, one epoch", "mnist")
    parser.add_argument("--sweep", action="store_true", help="temperatures, on validation data")
    options = parser.parse_args()
    whole = not (options.validation or options.sweep)
    data = digits() if options.quick else _lenet.parts(options.data, whole, standardized=False)
    rest = _lenet.parts(options.data, False, standardized=False).train if whole and not options.quick else data.train
    scored = data.validation if options.validation else data.test
    trained = planned(options)

    def each(seed: int) -> _seeds.Rows:
        return sweep(seed, trained, data) if options.sweep else [run(seed, trained, data, scored, rest)]

    rows = _seeds.over(options, keys, each)
    images = len((data.validation if options.sweep else scored).label)
    harness.show(f"errors of {images:,} images of {options.data}", ("", "mean", "deviation"), cells(rows))
    _seeds.finish(options, keys(rows), rows)


def figures(row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a row by name."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {name: value["before"], name + ", bias": value["errors"]}
        elif name not in ("seed", "width"):
            flat[f"{row['width']}, {name}" if "width" in row else name] = value
    return flat


def gathered(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the numbers of all seeds by name."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in figures(row).items():
            found.setdefault(name, []).append(value)
    return found


def cells(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return the lines of the table."""
    return [
        (name, f"{mean(values):.1f}", f"{stdev(values):.1f}" if len(values) > 1 else "")
        for name, values in gathered(rows).items()
    ]


def keys(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean errors."""
    return {
        "hinton_" + name.replace(", ", "_").replace(" ", "_"): mean(values) for name, values in gathered(rows).items()
    }


if __name__ == "__main__":
    main()
