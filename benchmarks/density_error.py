"""How much error does sparsity cost? `python -m benchmarks.density_error [--data NAME] [--quick] [--plot FILE]`.

LeNet-300-100 at eight densities: gradual magnitude pruning, one ranking of all weights, from scratch in one run; the
same recipe, budget and seeds at every density, the dense net among them, no augmentation, no distillation. Density is
the fraction of kernel entries that are not zero; the 410 biases are dense. All choices were made on the last sixth of
the training images (`--validation`); the test images are scored once, by nets trained on all others.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import optax

import jaxopt_compress as jc
from benchmarks import _lenet, harness
from benchmarks._lenet import Recipe

DENSITIES = (0.005, 0.01, 0.018, 0.03, 0.05, 0.083, 0.2, 1.0)
RECIPE = Recipe(epochs=40, smoothing=0.1)
EVERY = 100
PUBLISHED = {  # error in % by density, LeNet-300-100 on MNIST
    "Sparse Momentum (Dettmers & Zettlemoyer, 2019)": {0.01: 2.36, 0.018: 1.98, 0.05: 1.53, 0.083: 1.43},
    "DNS (Guo et al., 2016)": {0.018: 1.99},
    "SNIP (Lee et al., 2019)": {0.02: 2.4, 0.05: 1.6},
}
TARGETS = {0.01: 2.30, 0.018: 1.95, 0.05: 1.50, 0.083: 1.43}


def pruning(steps: int, density: jax.Array) -> jc.ParamTransform:
    """Prune from a tenth to six tenths of the run."""
    begin, end = steps // 10, 6 * steps // 10

    def sparsity(step):
        done = optax.polynomial_schedule(0.0, 1.0, power=3, transition_steps=end - begin, transition_begin=begin)
        return (1 - density) * done(step)

    t = jc.pruning.prune(jc.pruning.magnitude, sparsity, scope="global")
    return jc.select(_lenet.KERNELS, jc.periodic(t, EVERY))


def run(recipe: Recipe, data: _lenet.Part, key: jax.Array, density: jax.Array):
    """Train one net and return what would be shipped; one compilation for all keys and densities."""
    t = pruning(recipe.steps(data), density)
    params, state = _lenet.train(recipe, data, jax.random.fold_in(key, 1), _lenet.init(key), t)
    return t.apply(params, state)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("mnist", "fashion-mnist"), default="mnist")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, two densities")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validation", action="store_true", help="train without the validation images and score them")
    parser.add_argument("--out", help="write the results as JSON")
    parser.add_argument("--plot", help="draw the curve into a file")
    options = parser.parse_args(arguments)
    recipe = RECIPE._replace(epochs=2) if options.quick else RECIPE
    seeds, densities = (1, (0.05, 1.0)) if options.quick else (options.seeds, DENSITIES)
    data, start = _lenet.parts(options.data, whole=not options.validation), time.perf_counter()
    scored = data.validation if options.validation else data.test
    one, errors, kept = jax.jit(partial(run, recipe, data.train)), {}, {}
    for density in densities:
        nets = [one(jax.random.key(seed), jnp.float32(density)) for seed in range(seeds)]
        errors[density] = [float(_lenet.error(net, scored)) for net in nets]
        kept[density] = [_lenet.kept(net) for net in nets]
        print(f"{density:.1%}: {' '.join(f'{e:.2f}' for e in errors[density])}", flush=True)
    seconds = time.perf_counter() - start
    show(options.data, errors, kept, seconds)
    if options.plot:
        draw(options.data, errors, options.plot)
    keys = {f"error_at_{density:g}": statistics.mean(found) for density, found in errors.items()}
    more = {"recipe": recipe._asdict(), "seeds": list(range(seeds)), "seconds": seconds, "data": options.data}
    harness.finish(keys, options.out, errors=errors, kept=kept, scored_on_validation=options.validation, **more)


def show(name: str, errors: dict[float, list[float]], kept: dict[float, list[dict[str, int]]], seconds: float) -> None:
    """Print the table."""
    rows = []
    for density, found in errors.items():
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        others = ", ".join(
            f"{n.split(' (')[0]} {points[density]}" for n, points in PUBLISHED.items() if density in points
        )
        target = TARGETS.get(density, "")
        on_mnist = (target, others) if name == "mnist" else ("", "")
        weights = sum(kept[density][0].values())
        rows.append((f"{density:.1%}", weights, statistics.mean(found), spread, min(found), max(found), *on_mnist))
    harness.show(
        f"LeNet-300-100 on {name}: error in %, {len(next(iter(errors.values())))} seeds, {seconds / 60:.0f} minutes",
        ("kept", "weights", "mean", "deviation", "lowest", "highest", "target", "published"),
        rows,
    )


def draw(name: str, errors: dict[float, list[float]], path: str) -> None:
    """Draw the curve over the published figures, which are for MNIST."""
    import matplotlib

    matplotlib.use("agg")
    ax = jc.report.density_error({"jaxopt_compress, gradual magnitude": errors}, PUBLISHED if name == "mnist" else None)
    dense = statistics.mean(errors[1.0])
    ax.axhline(dense, linestyle=":", color="gray", label="dense, same recipe and budget")
    ax.legend(frameon=False)
    ax.set_title(f"LeNet-300-100 on {name}")
    ax.figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
