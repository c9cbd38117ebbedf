"""How long it takes to trace a transformer and to plan the removal of half of its units, by depth.

python -m benchmarks.graph_time
"""

import argparse
import time
from statistics import median

import jax

import jaxopt_compress as jc
from benchmarks import harness
from benchmarks._transformer_layers import forward, shapes

DEPTHS = (10, 30, 100)


def seconds(depth: int, width: int, heads: int) -> dict[str, float]:
    """Time the parts of one plan: the jaxpr alone, the trace with its groups, the choice, and the count of the work."""
    params, tokens = shapes(depth, width), jax.ShapeDtypeStruct((2, 128), "int32")
    call = lambda p, t: forward(p, t, heads)  # noqa: E731
    start = time.perf_counter()
    jax.make_jaxpr(call)(params, tokens)
    jaxpr = time.perf_counter()
    graph = jc.graph.trace(call, params, tokens)
    groups = len(graph.groups)
    traced = time.perf_counter()
    scores = jax.tree.map(lambda leaf: jax.numpy.ones(leaf.shape, "float32"), params)
    scored = time.perf_counter()
    cut = jc.shrinking.choose(graph, scores, multiply_adds=0.5)
    planned = time.perf_counter()
    return {
        "jaxpr": jaxpr - start,
        "trace and groups": traced - jaxpr,
        "plan": planned - scored,
        "total": (traced - jaxpr) + (planned - scored),
        "groups": groups,
        "cut": len(cut.units),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    depths, rounds = (DEPTHS[:2], 1) if args.quick else (DEPTHS, args.rounds)
    seconds(1, args.width, args.heads)  # imports and first compilations
    found = {}
    for depth in depths:
        runs = [seconds(depth, args.width, args.heads) for _ in range(rounds)]
        found[depth] = {name: median(run[name] for run in runs) for name in runs[0]}
    columns = list(found[depths[0]])
    rows = [[str(depth), *(float(row[name]) for name in columns)] for depth, row in found.items()]
    harness.show(f"transformer, width {args.width}, seconds (median of {rounds})", ["layers", *columns], rows)
    keys = {f"graph_seconds_{depth}": row["total"] for depth, row in found.items()}
    low, high = depths[0], depths[-1]
    keys["graph_seconds_per_layer_growth"] = (found[high]["total"] / high) / (found[low]["total"] / low)
    harness.finish(keys, args.out, width=args.width, heads=args.heads)


if __name__ == "__main__":
    main()
