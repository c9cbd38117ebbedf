"""How `model_v1.jc` was made: `python tests/golden/make_model_v1.py`, once, with version 1 of the format.

The file is never made again: what it was made of is computed here from a formula, and a test compares. A new version
of the format gets a script and a file of its own beside these.
"""

import pathlib

import jax.numpy as jnp
import numpy as np

from jaxopt_compress import export
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.grids import Integers


def mixed(count: int, seed: int) -> np.ndarray:
    """Return integers in [0, 2^31) that look random: SplitMix64, whose products wrap."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return (z ^ z >> np.uint64(31)) >> np.uint64(33)


def codes(shape: tuple[int, ...], bits: int, seed: int, keep_one_in: int = 1) -> jnp.ndarray:
    """Return codes over the whole range of `bits`, most of them zero if `keep_one_in` is large."""
    count, top = int(np.prod(shape)), 2 ** (bits - 1) - 1
    kept = mixed(count, seed + 1) % np.uint64(keep_one_in) == 0
    values = (mixed(count, seed) % np.uint64(2 * top + 1)).astype(np.int64) - top
    return jnp.asarray(np.where(kept, values, 0).reshape(shape).astype(np.int8))


def scale(*shape: int) -> jnp.ndarray:
    """Return the scales 1/64, 2/64, ..."""
    return jnp.asarray((np.arange(1, np.prod(shape) + 1, dtype=np.float32) / 64).reshape(shape))


def model() -> dict:
    """Return the tree in the file: every kind of node, coding and dtype width."""
    specials = np.array([0x80000000, 0x7FC00001, 0xFFA00000, 0x7F800000, 0xFF800000, 1, 0x3F800000, 0], np.uint32)
    return {
        "blocks": {0: {"w": mixed(35, 1).astype(np.uint16).view(jnp.bfloat16).reshape(5, 7)}, 7: {}},
        "encoder": {"bias": specials.view(np.float32), "kernel": Quantized.of(codes((64, 48), 8, 2, 10), scale(1, 48))},
        "flags": mixed(11, 3) % np.uint64(2) == 0,
        "half": np.where(mixed(600, 8) % np.uint64(2) == 0, mixed(600, 9), 0).astype(np.uint32).view(np.float32),
        "heads": [
            Quantized.of(codes((24, 16), 4, 4), scale(1, 16), Integers(4), "bfloat16"),
            (None, True, -7, []),
            -0.0,
            0.1,
        ],
        "mixed": mixed(12, 5).astype(np.float64).reshape(3, 4) / 3,
        "rare": Quantized.of(codes((30, 50), 3, 6, 20), scale(), Integers(3), "float16"),
        "steps": np.array(-(2**40)),
        "table": (mixed(60, 7) % np.uint64(5)).astype(np.int32).reshape(4, 15),
        "zeros": (np.zeros((40, 50), np.float16), np.zeros((0, 3), np.uint8), jnp.zeros((), jnp.int4)),
    }


if __name__ == "__main__":
    export.save(pathlib.Path(__file__).with_name("model_v1.jc"), model())
