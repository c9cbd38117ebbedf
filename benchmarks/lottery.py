"""Do winning tickets win? `python -m benchmarks.lottery [--data mnist] [--quick] [--out FILE] [--plot FILE]`.

Frankle & Carbin's experiment: LeNet-300-100, Glorot initialization, pixels in [0, 1], Adam at 1.2e-3, batches of 60;
train, prune a fifth of the largest layers' weights and a tenth of the output layer's, rewind, again. Each ticket
against the same mask with another initialization. Errors are on the test images at the step of the lowest validation
loss, as in the paper; all rounds of a seed are one program. The crossings are what is compared: where tickets are
better than the dense net, where they are as good again, where other initializations become worse for good.
"""

import argparse
import statistics
import time
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxopt_compress as jc
from benchmarks import _lenet, harness
from benchmarks._lenet import KERNELS, Part

ROUNDS, STEPS, BATCH, EACH = 17, 20_000, 60, 500


class Plan(NamedTuple):
    """How long a run is.

    Attributes:
      rounds: how many nets are trained in turn, the dense one first.
      steps: of one training.
      each: how many steps lie between two looks at the validation images.
    """

    rounds: int = ROUNDS
    steps: int = STEPS
    each: int = EACH


def glorot(key: jax.Array) -> Any:
    """Make the parameters as the paper does."""
    keys = jax.random.split(key, len(_lenet.WIDTHS) - 1)
    normal = jax.nn.initializers.glorot_normal()
    return {
        f"dense_{i}": {"kernel": normal(k, (n, m)), "bias": jnp.zeros(m)}
        for i, (k, n, m) in enumerate(zip(keys, _lenet.WIDTHS[:-1], _lenet.WIDTHS[1:]))
    }


def pruning() -> jc.ParamTransform:
    """Remove a fifth of what is left in every round, a tenth in the output layer."""
    fifth = lambda number: 1 - jnp.power(0.8, jnp.asarray(number, jnp.float32) + 1)  # noqa: E731
    tenth = lambda number: 1 - jnp.power(0.9, jnp.asarray(number, jnp.float32) + 1)  # noqa: E731
    return jc.select(KERNELS, jc.pruning.prune(jc.pruning.magnitude, {"dense_2/kernel": tenth, "**": fifth}))


def train(plan: Plan, data: _lenet.Parts, key: jax.Array, params: Any, state: Any) -> tuple[Any, dict[str, Any]]:
    """Train a masked net; return it, and the test error where the validation loss was lowest."""
    t = jc.held(pruning(), state)
    tx = jc.attach(optax.adam(1.2e-3), t)
    params = t.apply(params, state)

    def step(carry, number):
        params, opt_state = carry
        rows = jax.random.randint(jax.random.fold_in(key, number), (BATCH,), 0, len(data.train.label))
        here = Part(data.train.image[rows], data.train.label[rows])
        grads = jax.grad(lambda p: _lenet.loss(tx.apply(p, opt_state), here))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def stretch(carry, first):
        carry, _ = jax.lax.scan(step, carry, first + jnp.arange(plan.each))
        seen = t.apply(carry[0], state)
        return carry, (_lenet.loss(seen, data.validation), _lenet.error(seen, data.test))

    starts = jnp.arange(0, plan.steps, plan.each)
    (params, _), (losses, errors) = jax.lax.scan(stretch, (params, tx.init(params)), starts)
    best = jnp.argmin(losses)
    return params, {"early": errors[best], "last": errors[-1], "stop": starts[best] + plan.each, "state": state}


def run(plan: Plan, data: _lenet.Parts, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Find tickets, and train their masks from other initializations."""
    _, tickets = jc.pruning.find_ticket(partial(train, plan, data, key), pruning(), glorot(key), plan.rounds)

    def again(number_and_state):
        number, state = number_and_state
        other = jax.random.fold_in(key, 1000 + number)
        return train(plan, data, other, glorot(other), state)[1]

    return tickets, jax.lax.map(again, (jnp.arange(plan.rounds), tickets["state"]))


def left(number: int) -> float:
    """Return the fraction of all weights that is left before a round."""
    sizes = [n * m for n, m in zip(_lenet.WIDTHS[:-1], _lenet.WIDTHS[1:])]
    rates = (0.8, 0.8, 0.9)
    return sum(rate**number * size for rate, size in zip(rates, sizes, strict=True)) / sum(sizes)


def crossings(tickets: dict[float, list[float]], others: dict[float, list[float]]) -> dict[str, float]:
    """Return the densities at which the means cross that of the dense net."""
    mean = {d: statistics.mean(e) for d, e in tickets.items()}
    other = {d: statistics.mean(e) for d, e in others.items()}
    dense = mean[1.0]
    best = min(mean, key=lambda d: mean[d])
    return {
        "best_ticket_at": best,
        "best_ticket_gain": dense - mean[best],
        "gain_at_17": dense - mean[min(mean, key=lambda d: abs(d - 0.17))],
        "ticket_as_good_down_to": min(d for d in mean if mean[d] <= dense),
        "other_initialization_worse_from": max(takewhile(lambda d: other[d] > dense, sorted(other)), default=0.0),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("mnist", "fashion-mnist"), default="mnist")
    parser.add_argument("--quick", action="store_true", help="one seed, three rounds of 500 steps")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", help="write the results as JSON")
    parser.add_argument("--plot", help="draw the curves into a file")
    options = parser.parse_args(arguments)
    plan, seeds = (Plan(3, 500, 250), 1) if options.quick else (Plan(), options.seeds)
    data, start = _lenet.parts(options.data, whole=False, standardized=False), time.perf_counter()
    compiled, found, keys = jax.jit(partial(run, plan, data)), {}, {}
    for seed in range(seeds):
        for name, reports in zip(("tickets", "others"), compiled(jax.random.key(seed)), strict=True):
            for kind in ("early", "last", "stop"):
                by_density = found.setdefault(kind, {}).setdefault(name, {left(r): [] for r in range(plan.rounds)})
                for number, value in enumerate(reports[kind]):
                    by_density[left(number)].append(float(value))
        keys = crossings(found["early"]["tickets"], found["early"]["others"])
        print(f"{seed + 1} seeds, {time.perf_counter() - start:.0f} s: {keys}", flush=True)
    seconds = time.perf_counter() - start
    show(options.data, found, seconds)
    if options.plot:
        draw(options.data, found["early"], options.plot)
    more = {"plan": plan._asdict(), "data": options.data, "seeds": list(range(seeds)), "seconds": seconds}
    harness.finish(keys, options.out, found=found, **more)


def show(name: str, found: dict[str, Any], seconds: float) -> None:
    """Print the table."""
    mean = lambda kind, who, d: statistics.mean(found[kind][who][d])  # noqa: E731
    rows = [
        (f"{d:.1%}", *(mean(kind, who, d) for kind in ("early", "last", "stop") for who in ("tickets", "others")))
        for d in found["early"]["tickets"]
    ]
    harness.show(
        f"lottery tickets, LeNet-300-100 on {name}: test error in %, stopped early and at the end ({seconds:.0f} s)",
        ("left", "ticket", "other init", "ticket, end", "other init, end", "ticket stops at", "other stops at"),
        rows,
    )


def draw(name: str, early: dict[str, dict[float, list[float]]], path: str) -> None:
    """Draw both curves and the dense net's error."""
    import matplotlib

    matplotlib.use("agg")
    ax = jc.report.density_error({"winning ticket": early["tickets"], "other initialization": early["others"]})
    ax.axhline(statistics.mean(early["tickets"][1.0]), linestyle=":", color="gray", label="dense")
    ax.set_title(f"lottery tickets, LeNet-300-100 on {name}")
    ax.legend(frameon=False)
    ax.figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
