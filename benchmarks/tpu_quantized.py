"""What does the TPU compiler make of quantized programs? `python -m benchmarks.tpu_quantized [--quick] [--out FILE]`.

Compiles for one v5e chip that is not here (`pip install "jaxopt_compress[tpu]"`); nothing runs. Serving: an MLP with
10M parameters at batch 16 and LeNet-5 at batch 128, stored codes against bfloat16. Training: the w8a8 step of that MLP
(batch 128) and of a vision transformer with 5M (batch 128) against the dense step. Bytes are the compiler's count of
bytes accessed; it counts an array that is copied to on-chip memory ahead of its use four times for that and once for
the use, so that a second column counts it once.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import _aot, _lenet5, _mlp, _vit, harness
from benchmarks.quantized_step import ADAM, step_of
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Scheme, convert, observers, quantize, schemes

CHIP = "v5e:2x2"
SERVED = {
    "w8a8 dynamic": Scheme(),
    "w8a8 static": schemes.static(observers.minmax()),
    "w8": schemes.weight_only(8),
    "w4": schemes.weight_only(4),
    "w4 g128": schemes.weight_only(4, group_size=128, compute=jnp.bfloat16),
    "w4a8 dynamic": Scheme(Integers(4)),
    "w4a8 static": schemes.static(observers.minmax(), bits=4),
}


def row(program: _aot.Program) -> dict[str, Any]:
    """Return what is said of a program."""
    once = program.bytes - 4 * program.prefetched
    return {"bytes": program.bytes, "bytes once": once, "temporaries": program.temporaries, "seconds": program.seconds}


def serving(net: Any, batch: int, inputs: int, schemes: Mapping[str, Scheme]) -> dict[str, dict[str, Any]]:
    """Compile the forward pass in bfloat16 and on stored codes."""
    on = _aot.mesh(CHIP)
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), net.init(jax.random.key(0)))
    x = jnp.ones((batch, inputs), jnp.bfloat16)
    rows = {"bfloat16": row(_aot.program(on, net.forward, *_aot.abstract(on, (params, x))))}
    for name, scheme in schemes.items():
        q = quantize(net.forward, params, x, rules={"**": scheme})
        int_fn, int_params = convert(q, params, q.observe(params, q.init(), x), platform="tpu")
        rows[name] = row(_aot.program(on, int_fn, *_aot.abstract(on, (int_params, x))))
    return rows


def training(model: Any, shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Compile the dense training step and the quantized one."""
    on, x, label = _aot.mesh(CHIP), jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    q = quantize(model.forward, params, x, rules={"**/kernel": Scheme()})
    forwards = {"dense": model.forward, "w8a8": lambda params, x: q(params, q.init(), x)}
    args = (params, jax.eval_shape(ADAM.init, params)), x, label
    placed = _aot.abstract(on, args)
    return {name: row(_aot.program(on, step_of(fn), *placed, donate=(0,))) for name, fn in forwards.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    if reason := _aot.missing():
        raise SystemExit(reason)
    small = SimpleNamespace(init=partial(_mlp.init, widths=(256, 256, 10)), forward=_mlp.forward)
    mlp, inputs = (small, 256) if options.quick else (_mlp, 1024)
    found = {"serving, MLP 10M, batch 16": serving(mlp, 16, inputs, SERVED)}
    if not options.quick:
        found["serving, LeNet-5, batch 128"] = serving(_lenet5, 128, 784, {"w8a8 static": SERVED["w8a8 static"]})
        found["training, MLP 10M, batch 128"] = training(_mlp, (128, 1024))
        found["training, ViT 5M, batch 128"] = training(_vit, (128, 32, 32, 3))
    for title, rows in found.items():
        base = next(iter(rows.values()))
        cells = [
            (
                n,
                r["bytes"] / 1e6,
                r["bytes"] / base["bytes"],
                r["bytes once"] / base["bytes once"],
                r["temporaries"] / 1e6,
            )
            for n, r in rows.items()
        ]
        columns = ("program", "bytes, MB", "ratio", "ratio, prefetched once", "temporaries, MB")
        harness.show(f"{title}: compiled for a v5e by the TPU compiler, not run", columns, cells)
    harness.finish(keys(found), options.out, rows=found, options=vars(options))


def keys(found: dict[str, dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Return the figures of the table of targets."""
    rows = found["serving, MLP 10M, batch 16"]
    least = lambda *names: min(rows[name]["bytes"] for name in names) / rows["bfloat16"]["bytes"]  # noqa: E731
    result = {
        "tpu_w8a8_bytes": least("w8a8 dynamic", "w8a8 static"),
        "tpu_w8_bytes": least("w8"),
        "tpu_w4_bytes": least("w4"),
        "tpu_w4a8_bytes": least("w4a8 dynamic", "w4a8 static"),
    }
    if each := found.get("serving, LeNet-5, batch 128"):
        result["tpu_cnn_w8a8_bytes"] = each["w8a8 static"]["bytes"] / each["bfloat16"]["bytes"]
    for key, title in (("mlp", "training, MLP 10M, batch 128"), ("vit", "training, ViT 5M, batch 128")):
        if each := found.get(title):
            result[f"tpu_qat_{key}_bytes"] = each["w8a8"]["bytes"] / each["dense"]["bytes"]
            if key == "vit":
                result["tpu_qat_temp"] = each["w8a8"]["temporaries"] / each["dense"]["temporaries"]
    return result


if __name__ == "__main__":
    main()
