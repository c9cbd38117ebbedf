"""Save a compressed model to one file and load it again, bit for bit: `python -m examples.save_load [FILE]`."""

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc


def main(path: str | None = None) -> tuple[int, int]:
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (512, 256)), "bias": jnp.zeros(256)}}
    compress = jc.select(
        "**/kernel", jc.chain(jc.pruning.prune(jc.pruning.magnitude, 0.9), jc.quantization.fake_quantize(8))
    )
    state = compress.update(params, compress.init(params), step=0)
    seen_in_training = compress.apply(params, state)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(path or Path(folder) / "model.jc")
        size = jc.export.save(file, compress.encode(params, state))
        loaded = jc.decode(jc.export.load(file, like=params))

    for before, after in zip(jax.tree.leaves(seen_in_training), jax.tree.leaves(loaded), strict=True):
        if np.asarray(before).tobytes() != np.asarray(after).tobytes():
            raise RuntimeError("the file does not decode to what was trained")
    dense = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(f"{dense:,} bytes of float32 became a file of {size:,} bytes ({dense / size:.1f}x), identical bit for bit")
    return dense, size


if __name__ == "__main__":
    main(*sys.argv[1:2])
