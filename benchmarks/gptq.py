"""How long does GPTQ take for a layer? `python -m benchmarks.gptq [--quick] [--out FILE]`.

A layer of 1,024 inputs and 256 outputs to 4 bits, its Gram matrix known: compiled once for all layers of one shape,
here for one layer and for eight together. qwix's GPTQ runs beside it if it is installed, and its error is compared. The
ratio is how many times faster a call is than one of qwix.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _peers, harness
from jaxopt_compress.calibration import calibrate, gram
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import post_training as pt
from jaxopt_compress.quantization import quantize, schemes

LAYERS = 8
WHOLE = Integers(4, restricted=False)  # -8 to 7, as qwix has them


def layer(quick: bool) -> tuple[Any, jax.Array]:
    """Return weights `(ins, outs)` of several layers, and inputs that go together."""
    ins, outs = (128, 64) if quick else (1024, 256)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2048, ins)) @ (rng.normal(size=(ins, ins)) * np.linspace(0.1, 2, ins))
    w = {f"{i}": jnp.asarray(rng.normal(size=(ins, outs)) / ins**0.5, jnp.float32) for i in range(LAYERS)}
    return w, jnp.asarray(x / ins**0.5, jnp.float32)


def qwix(w: jax.Array, x: jax.Array) -> Any:
    """Return a call of qwix's GPTQ on one layer, and a function that gives the error of its result."""
    if not _peers.installed("qwix"):
        return None
    from qwix._src.core import qarray  # pyright: ignore[reportMissingImports]
    from qwix.contrib import gptq_core  # pyright: ignore[reportMissingImports]

    how = qarray.HowToQuantize(qtype=jnp.int4, channelwise_axes=(0,))
    hessian = gptq_core.compute_hessian(x.T)
    return lambda: gptq_core.quantize_weight(w.T, hessian, how)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    weights, x = layer(options.quick)
    method, rows, runs = pt.gptq(), {}, {}
    for name, some in (("one layer", {"0": weights["0"]}), (f"{LAYERS} layers together", weights)):
        fn = lambda p, x: [x @ w for w in p.values()]  # noqa: E731
        q = quantize(fn, some, x, rules={"**": schemes.weight_only(WHOLE)})
        states = calibrate(fn, some, [x], gram())
        call = lambda q=q, p=some, s=states: pt.round_weights(q, p, (), method, states=s)  # noqa: E731
        start = time.perf_counter()
        found = jax.block_until_ready(call())
        rows[name] = {"first": time.perf_counter() - start, "error": float(found.notes["0"]["error"][0])}
        runs[name] = call
    if peer := qwix(weights["0"], x):
        start = time.perf_counter()
        found = peer()
        rows["qwix, one layer"] = {"first": time.perf_counter() - start, "error": error(found, weights["0"], x)}
        runs["qwix, one layer"] = peer
    times = harness.interleaved(runs, 2 if options.quick else options.rounds)
    for name, row in rows.items():
        row["seconds"] = float(np.median(times[name]))
    cells = [(name, row["first"], row["seconds"], row["error"]) for name, row in rows.items()]
    harness.show("GPTQ to 4 bits", ("", "first call, s", "a call, s", "error of the output"), cells)
    keys = {"gptq_seconds": rows["one layer"]["seconds"]}
    if peer:
        keys["gptq_vs_qwix"] = harness.ratio(times, "qwix, one layer", "one layer")
    harness.finish(keys, options.out, rows=rows, options=vars(options))


def error(found: Any, w: jax.Array, x: jax.Array) -> float:
    """Return the mean square error of the output of a quantized weight, as a fraction of its mean square."""
    from qwix._src.core import qarray  # pyright: ignore[reportMissingImports]

    wanted = x @ w
    return float(jnp.mean((x @ qarray.dequantize(found).T - wanted) ** 2) / jnp.mean(wanted**2))


if __name__ == "__main__":
    main()
