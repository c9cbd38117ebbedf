"""How fast are weights pruned in blocks? `python -m benchmarks.block_sparse [--quick] [--rounds N] [--out FILE]`.

A dense layer of 4096 x 4096 of which half to 95 % of the blocks of 64 x 64 are zero, the same share in each column of
them, with `skip_blocks` in float32 and, after `quantization.convert`, in int8 (w8a8, dynamic); and the same layer with
as many of its inputs removed, which is the most that could be gained. All against the dense layer in float32, compiled,
interleaved, medians of ratios (2 is twice as fast). The zeros themselves, left where they are, gain nothing.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxopt_compress import skip_blocks
from jaxopt_compress.quantization import Scheme, convert, quantize

BLOCK, BATCHES = 64, (1, 16, 128)


def layer(w: jax.Array, x: jax.Array) -> jax.Array:
    """Multiply."""
    return x @ w


def pruned(n: int, sparsity: float) -> jax.Array:
    """Return a layer with zeros in blocks."""
    rng, count = np.random.default_rng(0), n // BLOCK
    order = rng.permuted(np.tile(np.arange(count)[:, None], (1, count)), axis=0)
    keep = order < max(round(count * (1 - sparsity)), 1)
    w = rng.normal(size=(count, BLOCK, count, BLOCK)) * keep[:, None, :, None]
    return jnp.asarray(w.reshape(n, n) / n**0.5, jnp.float32)


def variants(n: int, sparsity: float, x: jax.Array) -> dict[str, Callable[[], Any]]:
    """Return functions of no arguments that answer one batch."""
    w, plain = pruned(n, sparsity), jax.jit(layer)
    blocks, sparse = skip_blocks(layer, w, x, least=0.0)
    q = quantize(layer, w, x, rules={"**": Scheme()})
    int_fn, int_params = convert(q, w, q.init())
    int_blocks, int_sparse = skip_blocks(int_fn, int_params, x, least=0.0)
    kept = max(round(n * (1 - sparsity) / BLOCK), 1) * BLOCK
    part, some = w[:kept] + 0, x[:, :kept] + 0
    return {
        "dense": lambda: plain(w, x),
        "blocks": lambda: blocks(sparse, x),
        "int8": lambda: int_fn(int_params, x),
        "int8 blocks": lambda: int_blocks(int_sparse, x),
        "inputs removed": lambda: plain(part, some),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="512 x 512, 90 % alone")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    n, shares = (512, (0.9,)) if options.quick else (4096, (0.5, 0.75, 0.9, 0.95))
    rows = []
    for sparsity in shares:
        for batch in BATCHES:
            x = jax.random.normal(jax.random.key(1), (batch, n))
            runs = variants(n, sparsity, x)
            times = harness.interleaved(runs, 3 if options.quick else options.rounds)
            speed = {name: harness.ratio(times, "dense", name) for name in runs}
            rows.append({"sparsity": sparsity, "batch": batch, "speed": speed})
    names = [name for name in rows[0]["speed"] if name != "dense"]
    lines = [(f"{row['sparsity']:.0%}", row["batch"], *(row["speed"][name] for name in names)) for row in rows]
    harness.show("times as fast as the dense layer in float32", ("zero blocks", "batch", *names), lines)
    at = {(row["sparsity"], row["batch"]): row["speed"] for row in rows}
    keys = {f"block90_b{batch}": at[0.9, batch]["blocks"] for batch in BATCHES}
    keys |= {f"block90_int8_b{batch}": at[0.9, batch]["int8 blocks"] for batch in BATCHES}
    harness.finish(keys, options.out, rows=rows, options=vars(options))


if __name__ == "__main__":
    main()
