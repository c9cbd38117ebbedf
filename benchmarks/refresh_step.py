"""What does a step with new masks cost? `python -m benchmarks.refresh_step [--quick] [--out FILE] [--jaxpruner PATH]`.

Magnitude pruning, SET and RigL on a 10M-parameter MLP at 90 % sparsity and batch 128, every step against the dense
`optax.adam` step: the step at which masks are drawn, and the one between two such. The peer is jaxpruner's way, masks
by argsort, and jaxpruner itself where a checkout is given. A round of it takes half a minute, so it runs fewer.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc
from benchmarks import _argsort, _steps, harness
from benchmarks._mlp import WIDTHS, forward, init

SPARSITY, EVERY = 0.9, 100
KEYS = {
    "ours, magnitude, new masks": "magnitude_refresh_step",
    "ours, RigL, new masks": "rigl_refresh_step",
    "ours, SET, new masks": "set_refresh_step",
    "ours, RigL": "rigl_step",
    "ours, SET": "set_step",
    "argsort, magnitude, new masks": "argsort_magnitude_refresh_step",
    "argsort, RigL, new masks": "argsort_rigl_refresh_step",
    "argsort, SET, new masks": "argsort_set_refresh_step",
}


def methods() -> dict[str, jc.ParamTransform]:
    """Return our three methods."""
    key, moving = jax.random.key(0), optax.cosine_decay_schedule(0.3, 10_000)
    return {
        "magnitude": jc.pruning.prune(jc.pruning.magnitude, SPARSITY),
        "RigL": jc.pruning.rigl(key, SPARSITY, moving, allocation=None),
        "SET": jc.pruning.set_(key, SPARSITY, moving, allocation=None),
    }


class Bench:
    """Compiles steps on one model and one batch, and holds a state for each."""

    def __init__(self, widths, batch: int):
        self.params = init(jax.random.key(0), widths)
        self.batch = (jax.random.normal(jax.random.key(1), (batch, widths[0])), jnp.zeros(batch, jnp.int32))
        self.steps: dict[str, Callable[[], Any]] = {}
        self.temporaries: dict[str, int] = {}

    def add(self, name: str, step: Callable, state: Any, set_clock: Callable | None = None) -> None:
        """Compile a step, and run it with its clock at a refresh and between two, if it has one."""
        state = jax.tree.map(jnp.copy, state)
        jitted = jax.jit(step, donate_argnums=0)
        self.temporaries[name] = harness.temporary_bytes(jitted.lower(state, *self.batch).compile())
        held = [state]

        def run(clock=None):
            now = held[0] if set_clock is None else set_clock(held[0], jnp.asarray(clock, jnp.int32))
            held[0], loss = jitted(now, *self.batch)
            return held[0], loss

        if set_clock is None:
            self.steps[name] = run
        else:
            self.steps[name] = partial(run, 1)
            self.steps[f"{name}, new masks"] = partial(run, EVERY)

    def add_ours(self) -> None:
        """Add the three methods of this library."""
        for name, t in methods().items():
            tx = jc.attach(_steps.ADAM, jc.select(_steps.KERNELS, jc.periodic(t, EVERY)))
            step = _steps.compressed(forward, tx)
            clock = lambda state, now: (state[0], state[1]._replace(step=now))  # noqa: E731
            run = lambda state, x, y, step=step: step(state, x, y, None)  # noqa: E731
            self.add(f"ours, {name}", run, (self.params, tx.init(self.params)), clock)

    def add_argsort(self) -> None:
        """Add the three methods in the peer's way."""
        for name, refresh in (
            ("magnitude", _argsort.magnitude(SPARSITY)),
            ("RigL", _argsort.moving(random=False)),
            ("SET", _argsort.moving(random=True)),
        ):
            step = _argsort.step(loss, _steps.ADAM, refresh, EVERY)
            clock = lambda state, now: (state[0], (state[1][0], now, state[1][2]))  # noqa: E731
            self.add(f"argsort, {name}", step, _argsort.start(self.params, SPARSITY, _steps.ADAM), clock)

    def add_jaxpruner(self, path: str) -> None:
        """Add the three methods of the peer itself."""
        library = _argsort.jaxpruner(path)
        budget = partial(library.sparsity_distributions.uniform, sparsity=SPARSITY)
        when = library.sparsity_schedules.PeriodicSchedule(EVERY, 0, 10**6)
        for name, method in (("magnitude", "MagnitudePruning"), ("RigL", "RigL"), ("SET", "SET")):
            updater = getattr(library, method)(sparsity_distribution_fn=budget, scheduler=when)
            tx = updater.wrap_optax(_steps.ADAM)

            def step(state, x, y, updater=updater, tx=tx):
                params, opt_state = state
                value, grads = jax.value_and_grad(loss)(params, x, y)
                updates, opt_state = tx.update(grads, opt_state, params)
                params = updater.post_gradient_update(optax.apply_updates(params, updates), opt_state)
                return (params, opt_state), value

            clock = lambda state, now: (state[0], state[1]._replace(count=now))  # noqa: E731
            self.add(f"jaxpruner, {name}", step, (self.params, tx.init(self.params)), clock)


def loss(params, x, y):
    return jc.distillation.cross_entropy(forward(params, x), y).mean()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="write the results as JSON")
    parser.add_argument("--jaxpruner", metavar="PATH", help="a checkout of google-research/jaxpruner")
    options = parser.parse_args(arguments)
    widths = (256, 512, 10) if options.quick else WIDTHS
    bench = Bench(widths, 128)
    dense = _steps.dense(forward)
    run = lambda state, x, y: dense(state, x, y, None)  # noqa: E731
    bench.add("dense", run, (bench.params, _steps.ADAM.init(bench.params)))
    bench.add_ours()
    times = harness.interleaved(bench.steps, 5 if options.quick else 51)
    rows = summary(bench, times, list(bench.steps))
    bench.add_argsort()
    if options.jaxpruner:
        bench.add_jaxpruner(options.jaxpruner)
    times = harness.interleaved(bench.steps, 3 if options.quick else 5)
    rows |= summary(bench, times, [name for name in bench.steps if name not in rows])
    size = sum(x.size for x in jax.tree.leaves(bench.params))
    harness.show(
        f"step of an MLP with {size / 1e6:.1f}M parameters, batch 128, against the dense optax.adam step",
        ("step", "ms", "time, ratio", "temporaries, ratio", "rounds"),
        [(name, *row.values()) for name, row in rows.items()],
    )
    keys = {key: rows[name]["time"] for name, key in KEYS.items()}
    harness.finish(keys, options.out, rows=rows, widths=widths, batch=128, sparsity=SPARSITY)


def summary(bench: Bench, times: dict[str, list[float]], names: list[str]) -> dict[str, dict[str, float]]:
    """Return a row of the table for each step."""
    return {
        name: {
            "ms": 1e3 * float(np.median(times[name])),
            "time": harness.ratio(times, name, "dense"),
            "memory": bench.temporaries[name.removesuffix(", new masks")] / bench.temporaries["dense"],
            "rounds": len(times[name]),
        }
        for name in names
    }


if __name__ == "__main__":
    main()
