"""What does a step cost on more shards? `python -m benchmarks.shards [--quick] [--out FILE]`.

A 10M-parameter MLP whose layers are split over 1, 2, 4 and 8 devices, dense and with magnitude pruning, RigL and SET,
at a step that draws masks. The devices are simulated on one processor: what falls with the number of shards is the
memory of each; the times say what the splitting itself costs. Masks of all counts are compared, bit for bit.
"""

import argparse
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_compress as jc
from benchmarks import _aot, _steps, harness
from benchmarks._mlp import WIDTHS, forward, init
from benchmarks.refresh_step import EVERY, methods

COUNTS = (1, 2, 4, 8)


def place(on: Mesh, tree: Any) -> Any:
    """Split matrices by columns and rows in turn, as tensor-parallel layers are; masks lie like their weights."""

    def one(path, leaf):
        name = jc.tree.path_str(path)
        even = any(f"dense_{i}/" in name for i in (0, 2))
        spec = P() if leaf.ndim != 2 else P(None, "model") if even else P("model", None)
        fits = all(axis is None or n % on.size == 0 for n, axis in zip(leaf.shape, spec, strict=False))
        return jax.device_put(leaf, NamedSharding(on, spec if fits else P()))

    return jax.tree_util.tree_map_with_path(one, tree)


def build(
    on: Mesh, widths: tuple[int, ...], chosen: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Any]]:
    """Compile all steps on one mesh: functions to time, what the compiler says of each, and the masks they drew."""
    params, x = init(jax.random.key(0), widths), jax.random.normal(jax.random.key(1), (128, widths[0]))
    y, steps, facts, drawn = jnp.zeros(128, jnp.int32), {}, {}, {}
    for name, t in ({"dense": None} | chosen).items():
        tx: Any = _steps.ADAM if t is None else jc.attach(_steps.ADAM, jc.select(_steps.KERNELS, jc.periodic(t, EVERY)))
        step = _steps.dense(forward) if t is None else _steps.compressed(forward, tx)
        state = place(on, (params, tx.init(params)))
        if t is not None:
            drawn[name] = jax.device_get(first_masks(tx, place(on, params), place(on, tx.init(params))))
        with jax.set_mesh(on):
            compiled = jax.jit(partial(step, teacher=None)).lower(state, x, y).compile()
        memory: Any = compiled.memory_analysis()
        found = _aot.collectives(compiled.as_text())
        facts[name] = {
            "all-reduces": sum(n for (kind, _), n in found.items() if kind == "all-reduce"),
            "widest gather": max((math.prod(s) for (kind, s), _ in found.items() if kind == "all-gather"), default=0),
            "arguments": memory.argument_size_in_bytes,
            "temporaries": harness.temporary_bytes(compiled),
        }
        steps[name] = partial(compiled, state, x, y)
    return steps, facts, drawn


def first_masks(tx: jc.optimizers.Attached, params: Any, state: Any) -> Any:
    """Draw masks once, with gradients that are the parameters: the same numbers, however they are split."""
    update = jax.jit(lambda p, s: tx.transform.update(p, s, step=jnp.int32(0), grads=p))
    return update(params, jc.optimizers.compress_state(state))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", max(COUNTS))
    widths = (256, 512, 512, 256, 16) if options.quick else WIDTHS
    counts, chosen = ((1, 8), {"RigL": methods()["RigL"]}) if options.quick else (COUNTS, methods())
    rows, masks, cells = {}, {}, []
    for count in counts:
        on = jax.make_mesh((count,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
        steps, facts, masks[count] = build(on, widths, chosen)
        times = harness.interleaved(steps, 3 if options.quick else 11)
        rows[count] = {
            name: {
                "ms": 1e3 * float(np.median(times[name])),
                "over dense": harness.ratio(times, name, "dense"),
                **facts[name],
            }
            for name in steps
        }
        cells += [(count, name, *row.values()) for name, row in rows[count].items()]
    same = all(
        np.array_equal(a, b)
        for count in counts
        for a, b in zip(jax.tree.leaves(masks[1]), jax.tree.leaves(masks[count]), strict=True)
    )
    harness.show(
        f"a step that draws masks, on simulated devices; the masks of all counts are {'' if same else 'NOT '}the same",
        (
            "shards",
            "method",
            "ms",
            "over dense",
            "all-reduces",
            "widest gather",
            "arguments, bytes",
            "temporaries, bytes",
        ),
        cells,
    )
    last = rows[counts[-1]]
    keys = {"masks_equal": float(same), "widest_gather_8": max(row["widest gather"] for row in last.values())}
    keys |= {f"{name.lower()}_refresh_{count}": rows[count][name]["over dense"] for count in counts for name in chosen}
    harness.finish(keys, options.out, rows=rows, widths=widths)


if __name__ == "__main__":
    main()
