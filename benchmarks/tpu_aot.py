"""What does the TPU compiler make of it? `python -m benchmarks.tpu_aot [--quick] [--out FILE]`.

Compiles for TPUs that are not here (`pip install "jaxopt_compress[tpu]"`), on abstract shapes; nothing runs. Bytes are
the compiler's count of bytes accessed. It counts the body of a loop once: the passes of a mask refresh are counted on
the CPU, on normal weights, and put in. `--quick` takes small models, whose ratios say little, and one chip.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import jaxopt_compress as jc
from benchmarks import _aot, _mlp, _steps, _transformer, _vit, harness
from benchmarks.mask_update import DENSITY, argsort_masks, score
from jaxopt_compress.pruning.search import candidates, counting, ranking

EVERY = 100  # steps between two mask refreshes
CHIPS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
POD, POD_MESH = "v5p:4x4x16", (16, 16)
MLP, VIT = "v5e, MLP 10M, batch 128", "v5e, ViT 5M, batch 128"
SMALL_POD = _transformer.Transformer(
    layers=2, width=1024, heads=16, key_heads=16, hidden=2048, vocabulary=4096, batch=32, length=128
)
WHOLE = "prune + int8 + distill"  # the mean over a period
FIXED = "the same with fixed masks"
BRIEF = ("dense", "dense + teacher", FIXED, WHOLE)
Rows = dict[str, dict[str, Any]]


def compressed() -> jc.ParamTransform:
    return jc.chain(_steps.pruning(EVERY), _steps.int8())


def variants(forward: Callable) -> dict[str, tuple[Any, Callable]]:
    """Return optimizer and step by name."""
    found: dict[str, tuple[Any, Callable]] = {
        "dense": (_steps.ADAM, _steps.dense(forward)),
        "dense + teacher": (_steps.ADAM, _steps.dense(forward, distilled=True)),
    }
    for name, t, distilled in (
        ("packed mask, fixed", _steps.fixed(), False),
        ("int8 weights", _steps.int8(), False),
        (FIXED, jc.chain(_steps.fixed(), _steps.int8()), True),
        (WHOLE, compressed(), True),
    ):
        tx = jc.attach(_steps.ADAM, t)
        found[name] = tx, _steps.compressed(forward, tx, distilled)
    return found


def arguments(model: Any, shape: tuple[int, ...], tx: Any) -> tuple[Any, ...]:
    """Return the shapes that a step takes."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = params, jax.eval_shape(tx.init, params)
    images, labels = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    return state, images, labels, params


def steps(chip: str, model: Any, shape: tuple[int, ...], only: tuple[str, ...] = ()) -> Rows:
    """Compile the steps of one model for one chip."""
    on, rows = _aot.mesh(chip), {}
    for name, (tx, step) in variants(model.forward).items():
        if only and name not in only:
            continue
        args = arguments(model, shape, tx)
        p = _aot.program(on, step, *_aot.abstract(on, args), donate=(0,))
        base = rows.get("dense + teacher" if name in (FIXED, WHOLE) else "dense", {})
        rows[name] = {
            "bytes": _mean(on, model.forward, args) if name == WHOLE else p.bytes,
            "temporaries": p.temporaries,
            "seconds": p.seconds,
            "cuda": _aot.lowers_for_cuda(step, *args),
        }
        rows[name]["over dense"] = rows[name]["bytes"] / base["bytes"] if base else 1.0
    return rows


def _mean(on, forward: Callable, args: tuple[Any, ...]) -> float:
    """Return the mean bytes of the whole step over a period of refreshes.

    The compiler counts a refresh in every step, and each loop of its search once. So: the step with a refresh that does
    next to nothing, and what a refresh takes by itself, counted as often as its loops turn, once in a period.
    """
    tx = jc.attach(_steps.ADAM, jc.chain(jc.periodic(_hardly(_steps.pruning(1)), EVERY), _steps.int8()))
    state, images, labels, teacher = args
    params = state[0]
    args = (params, jax.eval_shape(tx.init, params)), images, labels, teacher
    step = _aot.program(on, _steps.compressed(forward, tx, distilled=True), *_aot.abstract(on, args), donate=(0,))
    t = _steps.pruning(1)
    masks = jax.eval_shape(t.init, params)
    refresh = _aot.program(on, lambda p, s: t.update(p, s, step=0), *_aot.abstract(on, (params, masks)))
    kernels = [w for path, w in jc.tree.weights(params).items() if path.endswith("kernel")]
    return step.bytes + (refresh.bytes + sum(search(w.shape)["uncounted"] for w in kernels)) / EVERY


def _hardly(t: jc.ParamTransform) -> jc.ParamTransform:
    """Replace the refresh of packed masks by one that reads them, writes them and may change a bit."""

    def update(params, state, *, step, **extra):
        return jax.tree.map(lambda mask: mask | (step < 0).astype(mask.dtype), state)

    return t._replace(update=update)


@cache
def search(shape: tuple[int, ...]) -> dict[str, int]:
    """Run the search of a TPU on the CPU, on normal weights, and count what its passes read.

    Returns:
      How often the search reads the weights; the bytes that all passes read beyond those that the compiler counts,
      which has every loop turn once: also one that does not turn, so that they can be fewer.
    """
    w = jax.random.normal(jax.random.key(0), shape)
    collected = candidates.worthwhile([w])
    find = ranking._cut_collected if collected else ranking._cut_fused
    traced, ran = Counter(), Counter()

    def count(operands, key, probes):
        size = sum(x.nbytes for x in jax.tree.leaves(operands))
        traced[size] += 1
        jax.debug.callback(lambda: ran.update([size]))
        return counting.count_fused(operands, key, probes)

    key = lambda operand, index: ranking.ordered_keys(score(operand))  # noqa: E731
    jax.block_until_ready(jax.jit(lambda w: find([w], key, jnp.int32(round(DENSITY * w.size)), count))(w))
    jax.effects_barrier()
    return {
        "readings": collected + ran[w.nbytes],
        "uncounted": sum(size * (ran[size] - traced[size]) for size in traced),
    }


def mask_against_sort(shape: tuple[int, int]) -> dict[str, Any]:
    """Compare the mask of one array on one v5e chip: ours, an argsort, and a threshold from a sort.

    Loops count as often as they turn, and a prefetch as the one reading that it is. How often a sort passes over its
    input is not in the compiler's count.
    """
    on, size = _aot.mesh("v5e:2x2"), shape[0] * shape[1]
    w = _aot.abstract(on, jax.ShapeDtypeStruct(shape, jnp.float32))
    k = round(DENSITY * size)
    programs = {
        "ours": _aot.program(on, lambda w: ranking.top_k_masks([w], jnp.int32(k), score), w),
        "argsort": _aot.program(on, lambda w: argsort_masks([w], k), w),
        "sort": _aot.program(on, lambda w: jnp.abs(w) >= jnp.sort(jnp.abs(w).ravel())[size - k], w),
    }
    found = search(shape)
    read = {name: p.bytes - 4 * p.prefetched for name, p in programs.items()}
    read["ours"] += found["uncounted"]
    return {
        "shape": shape,
        **found,
        "bytes": read,
        "as the compiler counts": {name: p.bytes for name, p in programs.items()},
        "temporaries": {name: p.temporaries for name, p in programs.items()},
        "ratio": min(read["argsort"], read["sort"]) / read["ours"],
    }


def pod(c: _transformer.Transformer, rounds: int = 1) -> dict[str, Any]:
    """Compile the training step of a transformer for 256 v5p chips, dense and compressed by turns."""
    on, specs = _aot.mesh(POD, POD_MESH), _transformer.specs(c)
    params = jax.eval_shape(partial(_transformer.init, c))
    tokens = _aot.abstract(on, jax.ShapeDtypeStruct((c.batch, c.length), jnp.int32), P("data"))
    found: dict[str, list[_aot.Program]] = {"dense": [], "prune + int8": []}
    for _ in range(rounds):
        for programs, (tx, step) in zip(
            found.values(), (_transformer.dense_step(c), _transformer.compressed_step(c, EVERY)), strict=True
        ):
            state = jax.eval_shape(tx.init, params)
            placed = _aot.abstract(on, (params, state), (specs, _aot.state_specs(on, state, specs)))
            programs.append(_aot.program(on, step, *placed, tokens, donate=(0, 1)))
    dense, ours = (programs[0] for programs in found.values())
    added = ours.collectives - dense.collectives
    wide = [(kind, shape) for kind, shape in added if kind != "all-reduce" or not per_channel(shape, c.layers)]
    if wide:
        raise RuntimeError(f"more than scalars and channels went over the wires: {wide}")
    return {
        "parameters": sum(w.size for w in jax.tree.leaves(params)),
        "rows": {
            name: {"seconds": [p.seconds for p in programs], "memory": programs[0].memory, "bytes": programs[0].bytes}
            for name, programs in found.items()
        },
        "added collectives": {f"{kind} {list(shape)}": n for (kind, shape), n in sorted(added.items())},
        "pod_memory": ours.memory / dense.memory,
        "pod_compile": median(b.seconds / a.seconds for a, b in zip(*found.values(), strict=True)),
    }


def per_channel(shape: tuple[int, ...], layers: int) -> bool:
    """Tell whether an array holds one number a layer, or one a layer and channel."""
    return len([n for n in shape if n != layers]) <= 1


def main(options: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="write the results as JSON")
    given = parser.parse_args(options)
    if reason := _aot.missing():
        raise SystemExit(reason)
    if given.quick:
        found = {"v5e, a small MLP": steps("v5e:2x2", small_mlp(), (16, 256), BRIEF)}
    else:
        found = {MLP: steps("v5e:2x2", _mlp, (128, 1024)), VIT: steps("v5e:2x2", _vit, (128, 32, 32, 3))}
        for chips in CHIPS:
            chip = chips.split(":")[0]
            if chip != "v5e":
                found[MLP.replace("v5e", chip)] = steps(chips, _mlp, (128, 1024), BRIEF)
    mask = mask_against_sort((128, 64) if given.quick else (2560, 4096))
    big = pod(SMALL_POD) if given.quick else pod(_transformer.Transformer(), rounds=3)
    report(found, mask, big)
    harness.finish(keys(found, mask, big), given.out, steps=found, mask=mask, pod=big, every=EVERY)


def small_mlp() -> Any:
    """Return the model of the quick run."""
    return SimpleNamespace(init=partial(_mlp.init, widths=(256, 128, 10)), forward=_mlp.forward)


def keys(found: dict[str, Rows], mask: dict[str, Any], big: dict[str, Any]) -> dict[str, float]:
    """Gather the ratios; temporaries are those of the ViT, as the MLP's dense step has none."""
    v5e = {name: rows for name, rows in found.items() if name.startswith("v5e")}
    result = {"tpu_step_bytes": max(rows[WHOLE]["over dense"] for rows in v5e.values())}
    for model, name in (("vit", VIT), ("mlp", MLP)):
        rows = v5e.get(name, {})
        if "int8 weights" in rows:
            result[f"tpu_weight_qat_{model}_bytes"] = rows["int8 weights"]["over dense"]
        if model == "vit" and rows:
            result["tpu_weight_qat_temp"] = rows["int8 weights"]["temporaries"] / rows["dense"]["temporaries"]
            result["tpu_step_temp"] = rows[WHOLE]["temporaries"] / rows["dense + teacher"]["temporaries"]
    return result | {
        "tpu_mask_vs_sort": mask["ratio"],
        "pod_memory": big["pod_memory"],
        "pod_compile": big["pod_compile"],
    }


def report(found: dict[str, Rows], mask: dict[str, Any], big: dict[str, Any]) -> None:
    """Print the tables."""
    columns = ("step", "bytes, MB", "over dense", "temporaries, MB", "compiled in, s", "lowered for cuda, KB")
    for name, rows in found.items():
        cells = [
            (n, r["bytes"] / 1e6, r["over dense"], r["temporaries"] / 1e6, r["seconds"], r["cuda"] / 1e3)
            for n, r in rows.items()
        ]
        harness.show(f"{name}: compiled by the TPU compiler, not run", columns, cells)
    counts = (mask["bytes"], mask["as the compiler counts"], mask["temporaries"])
    cells = [(n, *(count[n] / 1e6 for count in counts)) for n in mask["bytes"]]
    title = f"a mask of {mask['shape']} on one v5e chip; the search reads the weights {mask['readings']} times"
    harness.show(title, ("way", "bytes, MB", "as the compiler counts, MB", "temporaries, MB"), cells)
    rows = [(n, r["memory"] / 1e9, r["bytes"] / 1e9, median(r["seconds"])) for n, r in big["rows"].items()]
    title = f"a transformer with {big['parameters'] / 1e6:,.0f}M parameters on 256 v5p chips, per chip"
    harness.show(title, ("step", "memory, GB", "bytes, GB", "compiled in, s"), rows)
    harness.show("collectives added", ("kind and shape", "times"), list(big["added collectives"].items()))


if __name__ == "__main__":
    main()
