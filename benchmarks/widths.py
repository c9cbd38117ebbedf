"""How much faster a wide net is with half of its multiply-adds removed, by the multiple that widths are kept to.

    python -m benchmarks.widths --out benchmarks/results/widths_cpu.json

The nets are those of `benchmarks.structured`, wider and not trained: it does not matter here what is removed.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from benchmarks import _nets, harness

NETS = {"cnn": _nets.cnn, "vit": _nets.vit}
WIDTHS = {"cpu": {"cnn": 64, "vit": 256}, "gpu": {"cnn": 256, "vit": 1024}}
BATCH = {"cpu": 128, "gpu": 1024}
MULTIPLES = (1, 8, 32)


def compare(name: str, width: int, dtype: str, batch: int, multiples: tuple[int, ...], rounds: int) -> dict[int, Any]:
    """Return by multiple the shares of the multiply-adds and of the time that are left."""
    net, image = NETS[name], jax.random.normal(jax.random.key(1), (batch, 784), dtype)
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), net.init(jax.random.key(0), width))
    scores = jax.tree.map(lambda leaf: jax.random.uniform(jax.random.key(leaf.size), leaf.shape), variables)
    graph = jc.graph.trace(net.apply, variables, image[:2])
    runs, work = {0: _runner(net.apply, variables, image)}, {}
    for multiple in multiples:
        cut = jc.shrinking.choose(graph, scores, multiply_adds=0.5, multiple=multiple)
        small = jc.shrinking.remove(graph, variables, cut, image[:2])
        runs[multiple] = _runner(small.fn, small.params, image)
        work[multiple] = jc.graph.multiply_adds(small.fn, small.params, image[:1])
    times = harness.interleaved({str(multiple): run for multiple, run in runs.items()}, rounds)
    whole = jc.graph.multiply_adds(net.apply, variables, image[:1])
    return {m: {"multiply_adds": work[m] / whole, "time": harness.ratio(times, str(m), "0")} for m in multiples}


def _runner(fn: Any, variables: Any, image: jax.Array) -> Any:
    compiled = jax.jit(fn).lower(variables, image).compile()
    return lambda: compiled(variables, image)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()
    platform = "gpu" if jax.default_backend() == "gpu" else "cpu"
    multiples, rounds = (MULTIPLES[1:2], 3) if args.quick else (MULTIPLES, args.rounds)
    batch = 16 if args.quick else BATCH[platform]
    rows, keys = [], {}
    for name, width in WIDTHS[platform].items():
        for dtype in ("float32", "bfloat16") if platform == "gpu" else ("float32",):
            found = compare(name, width, dtype, batch, multiples, rounds)
            for multiple, shares in found.items():
                rows.append([f"{name} {width}, {dtype}", multiple, shares["multiply_adds"], shares["time"]])
                keys |= {f"{name}_{jnp.dtype(dtype).name}_{multiple}_{field}": x for field, x in shares.items()}
    harness.show(f"half removed, {platform}: what is left", ["net", "multiple of", "multiply-adds", "time"], rows)
    harness.finish(keys, args.out, widths=WIDTHS[platform], batch=batch, rounds=rounds)


if __name__ == "__main__":
    main()
