"""How fast is an exact pruning mask? `python -m benchmarks.mask_update [--quick] [--out FILE]`.

The peer is jaxpruner's way, written from its description: a stable descending argsort of |w|, then a scatter. Both
must give the same mask, ties included; times are medians of interleaved runs, speeds medians of ratios.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxopt_compress.pruning import magnitude
from jaxopt_compress.pruning.search.ranking import top_k_masks

DENSITY = 0.2


@partial(jax.jit, static_argnames="k")
def argsort_masks(leaves: list[jax.Array], k: int) -> list[jax.Array]:
    """Mark the k largest magnitudes by sorting them all."""
    flat = jnp.concatenate([jnp.abs(w).ravel() for w in leaves])
    kept = jnp.argsort(-flat, stable=True)[:k]
    mask = jnp.zeros(flat.shape, bool).at[kept].set(True)
    parts = jnp.split(mask, np.cumsum([w.size for w in leaves])[:-1])
    return [part.reshape(w.shape) for part, w in zip(parts, leaves, strict=True)]


def score(w: jax.Array) -> jax.Array:
    return magnitude(w)


def inputs(size: int, kind: str) -> jax.Array:
    """Make weights with the distribution that the name says."""
    w = jax.random.normal(jax.random.key(0), (size // 1000, 1000))
    if kind == "70 % zeros":
        return jnp.where(jax.random.uniform(jax.random.key(1), w.shape) < 0.7, 0.0, w)
    if kind == "all equal":
        return jnp.ones_like(w)
    return jnp.round(w * 30) / 30 if kind == "int8 grid" else w


def compare(leaves: list[jax.Array], rounds: int) -> dict[str, float]:
    """Measure both ways on the same leaves, ranked together."""
    total = sum(w.size for w in leaves)
    k = round(DENSITY * total)
    ours = top_k_masks.lower(leaves, jnp.int32(k), score).compile()
    same = all(
        bool(jnp.array_equal(a, b)) for a, b in zip(ours(leaves, jnp.int32(k)), argsort_masks(leaves, k), strict=True)
    )
    if not same:
        raise RuntimeError("the masks differ")
    times = harness.interleaved(
        {"ours": lambda: ours(leaves, jnp.int32(k)), "argsort": lambda: argsort_masks(leaves, k)}, rounds
    )
    peer = argsort_masks.lower(leaves, k).compile()
    return {
        "speed": harness.ratio(times, "argsort", "ours"),
        "ours_ms": 1e3 * float(np.median(times["ours"])),
        "argsort_ms": 1e3 * float(np.median(times["argsort"])),
        "ours_bytes": harness.temporary_bytes(ours) / total,
        "argsort_bytes": harness.temporary_bytes(peer) / total,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args(arguments)
    rounds = {10**6: 3 if options.quick else 15, 10**7: 1 if options.quick else 5}
    kinds = ("normal",) if options.quick else ("normal", "70 % zeros", "all equal", "int8 grid")
    found = {}
    for size, number in rounds.items():
        for kind in kinds:
            found[f"one leaf of {size:.0e}, {kind}"] = compare([inputs(size, kind)], number)
    four = jnp.split(inputs(10**7, "normal"), (1000, 3000, 6000))
    found["global, 1e7 in 4 leaves"] = compare(four, rounds[10**7])
    harness.show(
        f"exact mask of the largest {DENSITY:.0%}, identical to a stable argsort in every row",
        ("input", "ours, ms", "argsort, ms", "times faster", "ours, temporary bytes/weight", "argsort, bytes/weight"),
        [(n, r["ours_ms"], r["argsort_ms"], r["speed"], r["ours_bytes"], r["argsort_bytes"]) for n, r in found.items()],
    )
    keys = {
        "mask_1e6": found["one leaf of 1e+06, normal"]["speed"],
        "mask_1e7": found["one leaf of 1e+07, normal"]["speed"],
        "mask_global_1e7": found["global, 1e7 in 4 leaves"]["speed"],
        "mask_bytes_per_weight": max(r["ours_bytes"] for r in found.values()),
    }
    harness.finish(keys, options.out, rows=found, rounds={str(k): v for k, v in rounds.items()})


if __name__ == "__main__":
    main()
