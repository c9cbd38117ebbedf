"""What does dynamic sparsity cost on a pod? `python -m benchmarks.refresh_pod [--quick] [--out FILE]`.

The training step of a 7B transformer, refresh included, for each method that moves masks, compiled by the TPU compiler
for 256 v5e chips, and held against the dense step. Nothing runs. Bytes are those that the compiler counts: the body of
a loop once, whether it turns or not, so that they hold one pass of every search.
"""

import argparse
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

import jaxopt_compress as jc
from benchmarks import _aot, _transformer, harness

POD, SHAPE, EVERY = "v5e:16x16", (16, 16), 100
MODEL = _transformer.Transformer(
    layers=32, width=4096, heads=32, key_heads=32, hidden=11_264, vocabulary=32_768, batch=256, length=1024
)
SMALL = _transformer.Transformer(
    layers=2, width=2048, heads=16, key_heads=16, hidden=4096, vocabulary=2048, batch=32, length=64
)


def methods() -> dict[str, jc.ParamTransform]:
    """Return every method that moves masks, with its refresh rate inside."""
    p, key = jc.pruning, jax.random.key(0)
    gradual = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=1_000)
    moving = optax.cosine_decay_schedule(0.3, 10_000)
    now_and_then = {
        "magnitude": p.prune(p.magnitude, gradual),
        "RigL": p.rigl(key, 0.9, moving, allocation=None),
        "SET": p.set_(key, 0.9, moving, allocation=None),
        "Top-KAST": p.top_kast(0.9, 0.8),
        "2:4, straight-through": jc.straight_through(p.prune(p.magnitude, pattern=p.n_of_m(2, 4))),
        "blocks of 64 x 64": p.prune(p.magnitude, gradual, pattern=p.blocks(64, 64)),
        "channels": p.prune(p.magnitude, gradual, pattern=p.channels()),
        "Wanda's groups": p.prune(p.magnitude, gradual, pattern=p.within()),
    }
    found = {name: jc.periodic(t, EVERY) for name, t in now_and_then.items()}
    return found | {"movement": p.movement_pruning(gradual, every=EVERY)}


def compile_step(c: _transformer.Transformer, tx: Any, step: Any) -> _aot.Program:
    """Compile a step on abstract, sharded arguments."""
    on, specs = _aot.mesh(POD, SHAPE), _transformer.specs(c)
    params = jax.eval_shape(lambda: _transformer.init(c))
    state = jax.eval_shape(tx.init, params)
    placed = _aot.abstract(on, (params, state), (specs, _aot.state_specs(on, state, specs)))
    tokens = _aot.abstract(on, jax.ShapeDtypeStruct((c.batch, c.length), jnp.int32), P("data"))
    return _aot.program(on, step, *placed, tokens, donate=(0, 1))


def rows(c: _transformer.Transformer, names: list[str]) -> dict[str, dict[str, Any]]:
    """Compile the dense step and those of some methods."""
    dense = compile_step(c, *_transformer.dense_step(c))
    found = {"dense": row(dense, dense)}
    for name in names:
        t = methods()[name]
        found[name] = row(compile_step(c, *_transformer.transformed_step(c, t, jc.stacked(t))), dense)
        print(f"{name}: {found[name]['seconds']:.0f} s", flush=True)
    return found


def row(program: _aot.Program, dense: _aot.Program) -> dict[str, Any]:
    """Return what is told of one program; gathers and sums of the dense step may be cut differently in it."""
    widest = lambda found: sorted(found.items(), key=lambda item: -math.prod(item[0][1]) * item[1])  # noqa: E731
    names = lambda found: {f"{kind} {list(shape)}": n for (kind, shape), n in widest(found)}  # noqa: E731
    return {
        "memory": program.memory,
        "memory over dense": program.memory / dense.memory,
        "bytes over dense": program.bytes / dense.bytes,
        "on the wires over dense": entries(program) / entries(dense),
        "seconds": program.seconds,
        "collectives added": names(program.collectives - dense.collectives),
        "collectives gone": names(dense.collectives - program.collectives),
    }


def entries(program: _aot.Program) -> int:
    """Count the entries of all that collectives return, loops once."""
    return sum(n * math.prod(shape) for (_, shape), n in program.collectives.items())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args(arguments)
    if reason := _aot.missing():
        raise SystemExit(reason)
    c = SMALL if options.quick else MODEL
    found = rows(c, ["RigL"] if options.quick else list(methods()))
    size = sum(w.size for w in jax.tree.leaves(jax.eval_shape(lambda: _transformer.init(c))))
    harness.show(
        f"step of a transformer with {size / 1e6:,.0f}M parameters on {POD}, compiled and not run, for each chip",
        (
            "method",
            "memory, GB",
            "over dense",
            "bytes, over dense",
            "compiled in, s",
            "the widest collectives of those added",
        ),
        [(name, *cells(found[name])) for name in found],
    )
    keys = {
        "dynamic_pod_memory": max(r["memory over dense"] for r in found.values()),
        "rigl_pod_bytes": found["RigL"]["bytes over dense"],
        "dynamic_pod_wires": max(r["on the wires over dense"] for r in found.values()),
    }
    harness.finish(keys, options.out, rows=found, model=c.__dict__, every=EVERY)


def cells(r: dict[str, Any]) -> tuple[Any, ...]:
    """Return one line of the table."""
    names = ("memory over dense", "bytes over dense", "on the wires over dense", "seconds")
    added = ", ".join(f"{n} {name}" for name, n in list(r["collectives added"].items())[:3])
    return r["memory"] / 1e9, *(r[name] for name in names), added


if __name__ == "__main__":
    main()
