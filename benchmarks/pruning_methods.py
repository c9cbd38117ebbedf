"""Does each pruning method beat random pruning? `python -m benchmarks.pruning_methods [--quick] [--out FILE]`.

LeNet-300-100 on Fashion-MNIST: paired seeds (same initialization, same order of images), equal density and equal budget
within each group, biases dense. Which weights to take at once from a trained net, without retraining; which neurons;
which masks to find before training; how to train sparsely from scratch; how to prune a trained net while it is tuned.
"At once" is without retraining, of a net that was trained to the end, or for one epoch and has not learned the images
by heart: what the loss says of weights is worth more there.
Errors are on the test images; choices were made on the validation images, of which `--validation` shows the errors.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from benchmarks import _lenet, _methods, harness
from benchmarks._lenet import KERNELS, Part, Recipe
from benchmarks._methods import Pulled, Settled, kernels

CALIBRATION = 2000  # images that criteria may look at
DEEP = (784, *[100] * 6, 10)
EVEN = (784, 304, 96, 10)  # groups of sixteen fit
HIDDEN = ("dense_0/kernel", "dense_1/kernel")
DRAWN = (
    "from scratch, 1 % kept",
    "while tuning, 5 % kept",
    "10 % at once, after one epoch",
    "before training, seven layers, 1 % kept",
)
Nets = dict[str, Any]


class Bench:
    """The groups, each a function of a key to the nets that its methods ship; all of a group is one program.

    Made where that is traced, so that the images are an argument of the program and not a constant in it.
    """

    def __init__(self, train: Part, epochs: int, widths: tuple[int, ...] = _lenet.WIDTHS):
        self.of = lambda other: Bench(train, epochs, other)
        self.data, self.recipe, self.widths = train, Recipe(epochs), widths
        self.tuning = Recipe(max(epochs // 2, 1), learning_rate=0.02)
        known = min(CALIBRATION, len(train.label) // 100 * 100)
        self.part = jax.tree.map(lambda x: x[:known], train)

    def init(self, key: jax.Array) -> Any:
        """Make parameters."""
        return _lenet.init(key, self.widths)

    def train(self, key: jax.Array, start: Any, t: jc.ParamTransform, recipe: Recipe | None = None, **more: Any) -> Any:
        """Train from what `t` leaves of `start`, and return what would be shipped."""
        start = t.apply(start, t.init(start))
        params, state = _lenet.train(recipe or self.recipe, self.data, jax.random.fold_in(key, 1), start, t, **more)
        return t.apply(params, state)

    def dense(self, key: jax.Array, epochs: int | None = None) -> Any:
        """Train a dense net."""
        recipe = self.recipe._replace(epochs=epochs or self.recipe.epochs)
        return self.train(key, self.init(key), jc.chain(), recipe)

    def each(self, key: jax.Array, start: Any, methods: dict[str, Pulled], recipe: Recipe | None = None) -> Nets:
        """Train from `start` with every method."""
        nets = {}
        for name, (t, rate) in methods.items():
            t = kernels(t)
            pull = lambda params, state, t=t, rate=rate: rate * jc.pruning.distance(t, params, state)  # noqa: E731
            nets[name] = self.train(key, start, t, recipe, **({"penalty": pull} if rate else {}))
        return nets

    def at_once(self, density: float, epochs: int | None, key: jax.Array) -> Nets:
        """Prune a trained net, and do not retrain it."""
        params = self.dense(key, epochs)
        return self.settled(params, KERNELS, _methods.at_once(density, params, self.part, key))

    def n_of_m_at_once(self, epochs: int | None, key: jax.Array) -> Nets:
        """Take two of every four weights of a trained net, and do not retrain it."""
        return self.settled(self.dense(key, epochs), KERNELS, _methods.n_of_m_at_once(2, 4, key))

    def neurons(self, density: float, epochs: int | None, key: jax.Array) -> Nets:
        """Take a fraction of the hidden neurons of a trained net, and do not retrain it."""
        params = self.dense(key, epochs)
        return self.settled(params, HIDDEN, _methods.neurons(density, params, self.part, key))

    def settled(self, params: Any, where: Any, methods: dict[str, Settled]) -> Nets:
        """Prune with every method in as many rounds as it wants."""
        nets, stats = {"dense": params}, _methods.norms_of_inputs(params, self.part)
        for name, (t, rounds) in methods.items():
            t = jc.select(where, t)
            nets[name] = t.apply(params, jc.pruning.settle(t, params, rounds, stats=stats))
        return nets

    def scaled_neurons(self, key: jax.Array) -> Nets:
        """Prune half of the hidden neurons of a net with scales, which an L1 penalty draws to zero in training."""
        start = self.init(key)
        scales = {f"dense_{i}": {"scale": jnp.ones(self.widths[i + 1])} for i in (0, 1)}
        start |= {name: start[name] | scale for name, scale in scales.items()}
        pull = lambda params, state: 1e-3 * sum(jnp.sum(jnp.abs(params[name]["scale"])) for name in scales)  # noqa: E731
        params = self.train(key, start, jc.chain(), penalty=pull)
        nets = {"dense": params}
        for name, t in _methods.scaled_neurons(key).items():
            nets[name] = t.apply(params, jc.pruning.settle(t, params, 1))
        return nets

    def before(self, density: float, key: jax.Array) -> Nets:
        """Find masks at initialization, and train with them."""
        start = self.init(key)
        return self.each(key, start, _methods.before_training(density, start, self.part, key))

    def scratch(self, density: float, key: jax.Array) -> Nets:
        """Train sparsely from scratch, or dense at first and sparse in the end."""
        methods = _methods.from_scratch(density, self.recipe.steps(self.data), key)
        return self.each(key, self.init(key), methods)

    def uniform_or_erk(self, density: float, key: jax.Array) -> Nets:
        """Train sparsely with either allocation."""
        methods = _methods.uniform_or_erk(density, self.recipe.steps(self.data), key)
        return self.each(key, self.init(key), methods)

    def tuned(self, density: float, key: jax.Array) -> Nets:
        """Prune a trained net while it is tuned."""
        params, steps = self.dense(key), self.tuning.steps(self.data)
        return {"dense": params} | self.each(key, params, _methods.while_tuning(density, steps, key), self.tuning)

    def n_of_m(self, n: int, m: int, key: jax.Array) -> Nets:
        """Train with `n` of every `m` weights."""
        methods = _methods.n_of_m(n, m, self.recipe.steps(self.data), key)
        return {"dense": self.dense(key)} | self.each(key, self.init(key), methods)


Group = Callable[[Bench], Callable[[jax.Array], Nets]]
QUICK = "half of the neurons at once, after one epoch"  # compiles fastest
GROUPS: dict[str, Group] = {
    QUICK: lambda bench: partial(bench.neurons, 0.5, 1),
    "30 % of the neurons at once, after one epoch": lambda bench: partial(bench.neurons, 0.3, 1),
    "30 % of the neurons at once": lambda bench: partial(bench.neurons, 0.3, None),
    "half of the neurons of a net with scales at once": lambda bench: bench.scaled_neurons,
    "10 % at once, after one epoch": lambda bench: partial(bench.at_once, 0.1, 1),
    "20 % at once": lambda bench: partial(bench.at_once, 0.2, None),
    "10 % at once": lambda bench: partial(bench.at_once, 0.1, None),
    "2:4 at once, after one epoch": lambda bench: partial(bench.n_of_m_at_once, 1),
    "before training, 5 % kept": lambda bench: partial(bench.before, 0.05),
    "before training, seven layers, 1 % kept": lambda bench: partial(bench.of(DEEP).before, 0.01),
    "from scratch, 5 % kept": lambda bench: partial(bench.scratch, 0.05),
    "from scratch, 1 % kept": lambda bench: partial(bench.scratch, 0.01),
    "from scratch, 2 % kept, allocations": lambda bench: partial(bench.uniform_or_erk, 0.02),
    "while tuning, 5 % kept": lambda bench: partial(bench.tuned, 0.05),
    "from scratch, 2:4": lambda bench: partial(bench.n_of_m, 2, 4),
    "from scratch, 1:16": lambda bench: partial(bench.of(EVEN).n_of_m, 1, 16),
}


def run(
    group: Group, data: Part, scored: Part, epochs: int, seeds: int, widths: tuple[int, ...] = _lenet.WIDTHS
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the errors of every method, one a seed, and the layers of the first seed's nets."""
    compiled = jax.jit(lambda train, key: group(Bench(train, epochs, widths))(key))
    errors: dict[str, list[float]] = {}
    layers: dict[str, Any] = {}
    for seed in range(seeds):
        for name, params in compiled(data, jax.random.key(seed)).items():
            errors.setdefault(name, []).append(float(_lenet.error(params, scored)))
            layers.setdefault(name, _lenet.kept(params))
    jax.clear_caches()  # programs of this size fill the memory
    return errors, layers


def against_random(errors: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Compare every method with the random one of its kind, seed by seed."""
    rows = {}
    for name, values in errors.items():
        base = f"{name.split()[0]} random" if f"{name.split()[0]} random" in errors else "random"
        gains = [b - a for a, b in zip(values, errors[base], strict=True)]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        rows[name] = {
            "error": statistics.mean(values),
            "deviation": spread,
            "better by": statistics.mean(gains),
            "better in": sum(gain > 0 for gain in gains),
        }
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, one group")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", help="run the groups whose name contains this")
    parser.add_argument("--validation", action="store_true", help="train without the validation images and score them")
    parser.add_argument("--out", help="write the results as JSON")
    parser.add_argument("--plot", help="draw four of the groups into a file")
    options = parser.parse_args(arguments)
    seeds, epochs = (1, 1) if options.quick else (options.seeds, options.epochs)
    data = _lenet.parts("fashion-mnist", whole=not options.validation)
    titles = [QUICK] if options.quick else [title for title in GROUPS if (options.only or "") in title]
    found, keys = {}, {}
    for title in titles:
        start = time.perf_counter()
        scored = data.validation if options.validation else data.test
        errors, layers = run(GROUPS[title], data.train, scored, epochs, seeds)
        rows, seconds = against_random(errors), time.perf_counter() - start
        found[title] = {"rows": rows, "errors": errors, "kept by layer, first seed": layers, "seconds": seconds}
        keys |= {f"{title}: {name}": row["better by"] for name, row in rows.items() if name != "random"}
        harness.show(
            f"{title}: error in %, {seeds} paired seeds, {seconds:.0f} s",
            ("method", "error", "deviation", "better than random by", f"seeds of {seeds} in which"),
            [(name, *row.values()) for name, row in rows.items()],
        )
        harness.write(keys, options.out, groups=found, seeds=list(range(seeds)), recipe=Recipe(epochs)._asdict())
    if options.plot:
        draw({title: found[title]["errors"] for title in DRAWN if title in found}, options.plot)
    harness.finish(keys, None)


def draw(groups: dict[str, dict[str, list[float]]], path: str) -> None:
    """Draw one panel a group: the mean of every method, and the range over the seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    for ax, (title, errors) in zip(axes.flat, groups.items()):
        names = sorted(errors, key=lambda name: -statistics.mean(errors[name]))
        for row, name in enumerate(names):
            color = "tab:red" if "random" in name else "black" if name == "dense" else "tab:blue"
            ax.plot([min(errors[name]), max(errors[name])], [row, row], color=color, linewidth=4, alpha=0.3)
            ax.plot(statistics.mean(errors[name]), row, "o", color=color)
        ax.set_yticks(range(len(names)), names)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("{x:g}")
        ax.set_xlabel("error, %")
        ax.set_title(title)
        ax.grid(alpha=0.3, which="both", axis="x")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
