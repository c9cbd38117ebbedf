"""How much faster are stored codes? `python -m benchmarks.serving [--quick] [--only PART...] [--out FILE]`.

One dense layer of 4096 x 4096 in every format that is served, and whole nets (an MLP with 10M parameters, a vision
transformer with 5M, a residual CNN with 11M at 32 x 32 pixels) in int8, against float32 in JAX, at several batch sizes:
compiled, interleaved, medians of ratios (2 is twice as fast). qwix, AQT, PyTorch, torchao and onnxruntime run beside
them if they are installed, with `OMP_WAIT_POLICY=PASSIVE` in the environment, so that idle threads do not spin while
others are timed. Masked or rounded floats are no faster than floats and are not in the table.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _linen, _peers, harness
from jaxopt_compress import grids
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Scheme, convert, observers, quantize, schemes

FORMATS = {
    "w8a8 dynamic": Scheme(),
    "w8a8 static": schemes.static(observers.minmax()),
    "w4a8": Scheme(Integers(4)),
    "w8": schemes.weight_only(8),
    "w8 bfloat16": schemes.weight_only(8, compute=jnp.bfloat16),
    "w4": schemes.weight_only(4),
    "w4 g128": schemes.weight_only(4, group_size=128),
    "nf4 g64": schemes.weight_only(grids.NF4, group_size=64),
}
QWIX = {
    "qwix w8a8": {"weight_qtype": "int8", "act_qtype": "int8"},
    "qwix w4a8": {"weight_qtype": "int4", "act_qtype": "int8"},
    "qwix w8": {"weight_qtype": "int8"},
}


def dense(quick: bool) -> dict[str, tuple[Any, jax.Array, dict[str, Scheme], tuple[int, ...]]]:
    """Return the layer: the module, an input, its formats, the batch sizes."""
    n = 512 if quick else 4096
    model = nn.Dense(n, use_bias=False)
    return {"dense": (model, jax.random.normal(jax.random.key(1), (64, n)), FORMATS, (1, 16, 64))}


def nets(quick: bool) -> dict[str, tuple[Any, jax.Array, dict[str, Scheme], tuple[int, ...]]]:
    """Return the nets likewise."""
    formats = {name: FORMATS[name] for name in ("w8a8 dynamic", "w8a8 static")}
    images = jax.random.normal(jax.random.key(1), (16, 32, 32, 3))
    return {
        "mlp": (*_linen.mlp(quick), formats, (1, 16, 128)),
        "vit": (*_linen.vit(quick), formats, (1, 16)),
        "cnn": (_linen.ResNet(8 if quick else 64), images, formats, (1, 16)),
    }


def variants(name: str, model: Any, variables: Any, x: jax.Array, formats: dict[str, Scheme]) -> dict[str, Callable]:
    """Return functions of no arguments that answer one batch."""
    plain = jax.jit(model.apply)
    runs: dict[str, Callable] = {"f32": lambda: plain(variables, x)}
    for kind, scheme in formats.items():
        q = quantize(model.apply, variables, x, rules={"**": scheme})
        int_fn, int_params = convert(q, variables, q.observe(variables, q.init(), x))
        runs[kind] = lambda f=int_fn, p=int_params: f(p, x)
    for kind, rule in QWIX.items() if name == "dense" else [("qwix w8a8", QWIX["qwix w8a8"])]:
        found = _peers.qwix(model, variables, x, **rule)
        runs |= {} if found is None else {kind: found}
    if name in ("dense", "mlp"):
        params = variables["params"]
        layers = _peers.mlp_layers({"": params} if name == "dense" else params)
        runs |= _peers.aqt_layers(layers, x) | _peers.torch_layers(layers, x) | _peers.onnx_layers(layers, x)
    return runs


def measure(name: str, case: Any, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each batch size: how many times faster than float32 each variant is."""
    model, x, formats, batches = case
    variables, rows = model.init(jax.random.key(0), x), []
    for batch in batches:
        runs = variants(name, model, variables, x[:batch], formats)
        times = harness.interleaved(runs, rounds)
        speed = {kind: harness.ratio(times, "f32", kind) for kind in runs}
        rows.append({"net": name, "batch": batch, "f32_ms": 1e3 * float(np.median(times["f32"])), "speed": speed})
    return rows


def keys_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the figures of the table of targets."""
    at = {(row["net"], row["batch"]): row["speed"] for row in rows}
    found, ours = {}, [kind for kind in FORMATS if kind != "nf4 g64"]  # whose docstring says that it is slow
    for batch in (1, 16, 64):
        if speed := at.get(("dense", batch)):
            found[f"w8a8_b{batch}"] = max(speed["w8a8 dynamic"], speed["w8a8 static"])
            found |= {f"int4_b{batch}": max(speed["w4a8"], speed["w4"])} if batch < 64 else {}
            found |= {"w8only_b16": max(speed["w8"], speed["w8 bfloat16"])} if batch == 16 else {}
    for net, batch, key in (
        *(("mlp", batch, f"mlp_int8_b{batch}") for batch in (1, 16, 128)),
        *(("vit", 16, "vit_int8_b16"), ("cnn", 16, "cnn_int8")),
    ):
        if speed := at.get((net, batch)):
            found[key] = max(speed["w8a8 dynamic"], speed["w8a8 static"])
    found["worst_vs_f32"] = min(speed[kind] for speed in at.values() for kind in ours if kind in speed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small layers, without the transformer and the CNN")
    parser.add_argument("--only", nargs="+", default=["dense", "mlp", "vit", "cnn"])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    options.only = ["dense", "mlp"] if options.quick else options.only
    cases = {name: case for name, case in (dense(options.quick) | nets(options.quick)).items() if name in options.only}
    rows = [row for name, case in cases.items() for row in measure(name, case, 3 if options.quick else options.rounds)]
    for name in cases:
        mine = [row for row in rows if row["net"] == name]
        columns = [f"batch {row['batch']} ({row['f32_ms']:.3g} ms)" for row in mine]
        lines = [(kind, *(row["speed"][kind] for row in mine)) for kind in mine[0]["speed"]]
        harness.show(f"{name}: times as fast as float32 in JAX", ("", *columns), lines)
    harness.finish(keys_of(rows), options.out, rows=rows, options=vars(options))


if __name__ == "__main__":
    main()
