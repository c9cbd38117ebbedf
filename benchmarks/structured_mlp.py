"""LeNet-300-100 on MNIST, pruned, quantized, and without its dead neurons: bytes of the file and error.

    python -m benchmarks.structured_mlp --out benchmarks/results/structured_mlp.json

Gradual magnitude pruning with weights of few bits in the forward pass, one run from scratch. Neurons that nothing feeds
or nothing reads are removed physically; what the file holds is a smaller net. Each file is read by a fresh process,
which scores the test images once. RigL+ (Evci et al., 2020, appendix B) has 16,113 bytes at 1.69 %.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from benchmarks import _lenet, density_error, harness
from benchmarks._lenet import KERNELS, Recipe

RECIPE = Recipe(epochs=40, smoothing=0.1)


def transform(recipe: Recipe, data: _lenet.Part, density: float, bits: int) -> jc.ParamTransform:
    """Prune, then quantize with one scale a layer."""
    prune = density_error.pruning(recipe.steps(data), jnp.float32(density))
    fit = jc.periodic(jc.quantization.fake_quantize(bits=bits, channel_axes=()), 20)
    return jc.chain(prune, jc.select(KERNELS, fit))


def run(recipe: Recipe, data: _lenet.Part, density: float, bits: int, key: jax.Array) -> Any:
    """Train one net and return its stored form."""
    t = transform(recipe, data, density, bits)
    params, state = _lenet.train(recipe, data, jax.random.fold_in(key, 1), _lenet.init(key), t)
    return t.encode(params, state)


def clean(params: Any) -> Any:
    """Zero what makes neurons that nothing reads; hand on what neurons that nothing feeds say, and zero them too."""
    params = jax.tree.map(np.array, params)
    for _ in range(len(params)):
        for i in range(len(params) - 1):
            here, after = params[f"dense_{i}"], params[f"dense_{i + 1}"]
            unread, unfed = ~after["kernel"].any(axis=1), ~here["kernel"].any(axis=0)
            after["bias"] += np.maximum(here["bias"] * unfed, 0) @ after["kernel"]
            here["kernel"][:, unread] = 0
            here["bias"][unread | unfed] = 0
    return params


def shrink(model: Any, image: jax.Array) -> tuple[Any, list[int]]:
    """Remove dead neurons from a stored model; return it and the widths that are left."""
    params = clean(jc.decode(model))
    graph = jc.graph.trace(_lenet.forward, params, image)
    small = jc.shrinking.remove(graph, params, jc.shrinking.dead(graph, params), image)
    codes = {name: {"kernel": layer["kernel"].codes, "bias": params[name]["bias"]} for name, layer in model.items()}
    narrow = small.narrow(codes)
    left = {
        name: {
            "kernel": jc.Quantized.of(layer["kernel"], *_rest(model[name]["kernel"])),
            "bias": jnp.asarray(small.params[name]["bias"], jnp.float16),
        }
        for name, layer in narrow.items()
    }
    return left, [layer["kernel"].shape[1] for layer in narrow.values()]


def _rest(stored: jc.Quantized) -> tuple[Any, Any, str]:
    return stored.scale, stored.grid, stored.dtype


def score(path: str) -> float:
    """Read a file and return the error on the test images; for a fresh process."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), jc.decode(jc.export.load(path)))
    return float(_lenet.error(params, _lenet.parts("mnist").test))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--density", type=float, default=0.03)
    parser.add_argument("--bits", type=int, default=5)
    parser.add_argument("--validation", action="store_true", help="train without the validation images and score them")
    parser.add_argument("--score", help="score one file and stop")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.score:
        print(json.dumps(score(args.score)))
        return
    data = _lenet.parts("mnist", whole=not args.validation)
    one = jax.jit(partial(run, RECIPE, data.train, args.density, args.bits))
    rows = []
    for seed in range(args.seeds):
        model, widths = shrink(one(jax.random.key(seed)), data.train.image[:8])
        rows.append({"seed": seed, "widths": widths, **stored(model, data, args.validation)})
        print(rows[-1], flush=True)
    errors, sizes = [row["error"] for row in rows], [row["bytes"] for row in rows]
    keys = {"structured_mlp_error": statistics.mean(errors), "structured_mlp_bytes": statistics.mean(sizes)}
    keys["structured_mlp_bytes_vs_rigl"] = keys["structured_mlp_bytes"] / 16_113
    harness.show(
        "LeNet-300-100 on MNIST without its dead neurons",
        ["seed", "widths", "error %", "bytes"],
        [(row["seed"], "-".join(map(str, row["widths"])), f"{row['error']:.2f}", row["bytes"]) for row in rows],
    )
    more = {"density": args.density, "bits": args.bits, "recipe": RECIPE._asdict()}
    harness.finish(keys, args.out, seeds=rows, scored_on_validation=args.validation, **more)


def stored(model: Any, data: _lenet.Parts, validation: bool) -> dict[str, Any]:
    """Save a model, and score it: on the validation images here, on the test images in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.jc"
        jc.export.save(path, model)
        size = path.stat().st_size
        if validation:
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), jc.decode(model))
            return {"error": float(_lenet.error(params, data.validation)), "bytes": size}
        command = [sys.executable, "-m", "benchmarks.structured_mlp", "--score", str(path)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        return {"error": json.loads(found.stdout.splitlines()[-1]), "bytes": size}


if __name__ == "__main__":
    main()
