"""What does compression cost in a training step? `python -m benchmarks.train_step [--quick] [--out FILE]`.

A 10M-parameter MLP at batch 128, every variant against the dense `optax.adam` step, donated state, interleaved.
`without refresh` is the step between two mask refreshes of the same compiled program, `refresh` the step at one.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from benchmarks import _steps, harness
from benchmarks._mlp import WIDTHS, forward, init

KEYS = {
    "prune, without refresh": "prune_step_time",
    "prune, refresh": "magnitude_refresh_step",
    "packed mask, fixed": "packed_mask_time",
    "prune + int8 weights, without refresh": "prune_quantize_step_time",
    "prune + int8 weights + distillation, without refresh": "compressed_step_time",
}


class Bench:
    """Compiles steps on one model and one batch, and holds a state for each."""

    def __init__(self, widths, batch: int):
        self.params = init(jax.random.key(0), widths)
        self.batch = (
            jax.random.normal(jax.random.key(1), (batch, widths[0])),
            jnp.zeros(batch, jnp.int32),
            init(jax.random.key(2), widths),
        )
        self.steps: dict[str, Callable] = {}
        self.temporaries: dict[str, int] = {}
        self.compilations: dict[str, int] = {}

    def add(self, name: str, step: Callable, tx: Any, clock: int | None = None) -> None:
        """Compile a step; `clock` freezes the transform's step, at a refresh (0) or between two (1)."""
        params = jax.tree.map(jnp.copy, self.params)
        state = (params, tx.init(params))
        jitted = jax.jit(step, donate_argnums=0)
        self.temporaries[name] = harness.temporary_bytes(jitted.lower(state, *self.batch).compile())
        held = [jitted(state, *self.batch)[0]]

        def run():
            params, opt_state = held[0]
            if clock is not None:
                opt_state = opt_state._replace(step=jnp.asarray(clock, jnp.int32))
            held[0], loss = jitted((params, opt_state), *self.batch)
            self.compilations[name] = jitted._cache_size()
            return held[0], loss

        self.steps[name] = run


def build(widths=WIDTHS, batch: int = 128) -> Bench:
    bench = Bench(widths, batch)
    bench.add("dense", _steps.dense(forward), _steps.ADAM)
    bench.add("dense + teacher", _steps.dense(forward, distilled=True), _steps.ADAM)
    for name, t, distilled in (
        ("packed mask, fixed", _steps.fixed(), False),
        ("prune", _steps.pruning(), False),
        ("prune + int8 weights", jc.chain(_steps.pruning(), _steps.int8()), False),
        ("prune + int8 weights + distillation", jc.chain(_steps.pruning(), _steps.int8()), True),
    ):
        tx = jc.attach(_steps.ADAM, t)
        step = _steps.compressed(forward, tx, distilled)
        if "fixed" in name:
            bench.add(name, step, tx)
            continue
        bench.add(f"{name}, without refresh", step, tx, clock=1)
        bench.add(f"{name}, refresh", step, tx, clock=0)
    return bench


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args(arguments)
    bench = build(batch=128)
    times = harness.interleaved(bench.steps, 5 if options.quick else 101)
    rows, keys = {}, {}
    for name in bench.steps:
        base = "dense + teacher" if "distillation" in name or "teacher" in name else "dense"
        rows[name] = {
            "ms": 1e3 * float(np.median(times[name])),
            "against": base,
            "time": harness.ratio(times, name, base),
            "memory": bench.temporaries[name] / bench.temporaries[base],
            "compilations": bench.compilations[name],
        }
        if name in KEYS:
            keys[KEYS[name]] = rows[name]["time"]
    keys["prune_step_memory"] = rows["prune, without refresh"]["memory"]
    keys["compressed_step_memory"] = rows["prune + int8 weights + distillation, without refresh"]["memory"]
    keys["compilations"] = max(row["compilations"] for row in rows.values())
    size = sum(x.size for x in jax.tree.leaves(bench.params))
    harness.show(
        f"training step of an MLP with {size / 1e6:.1f}M parameters, batch 128, against the dense optax.adam step",
        ("step", "ms", "against", "time, ratio", "temporaries, ratio", "compilations"),
        [(name, *row.values()) for name, row in rows.items()],
    )
    harness.finish(keys, options.out, rows=rows, widths=WIDTHS, batch=128)


if __name__ == "__main__":
    main()
