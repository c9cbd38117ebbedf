"""How `model_v2.jc` was made: `python -m tests.golden.make_model_v2`, once, with version 2 of the format.

The file is never made again: what it was made of is computed here from a formula, and a test compares.
"""

import pathlib

import jax.numpy as jnp
import numpy as np

from jaxopt_compress import export, grids
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.grids import Grid, Integers


def codes(shape: tuple[int, ...], count: int, start: int, dtype: str) -> jnp.ndarray:
    """Return codes from `start` that go through all values."""
    return jnp.asarray((np.arange(np.prod(shape)) * 7 % count + start).reshape(shape).astype(dtype))


def scale(*shape: int) -> jnp.ndarray:
    """Return the scales 1/64, 2/64, ..."""
    return jnp.asarray((np.arange(1, np.prod(shape) + 1, dtype=np.float32) / 64).reshape(shape))


def unsigned(grid: Grid, count: int, *shape: int) -> Quantized:
    """Return a matrix of 24 x 5 with scales of the given shape."""
    return Quantized.of(codes((24, 5), count, 0, "uint8"), scale(*shape), grid)


def model() -> dict:
    """Return the tree in the file: every grid, runs, zero points."""
    zero = codes((4, 5), 16, -8, "int8")
    return {
        "affine": Quantized.of(codes((24, 5), 16, -8, "int8"), scale(4, 5), Integers(4, False), "float32", zero),
        "binary": unsigned(grids.BINARY, 2, 1, 5),
        "e2m1": unsigned(grids.E2M1, 16, 3, 1),
        "e3m2": unsigned(grids.E3M2, 64, 24, 1),
        "e4m3": unsigned(grids.E4M3, 127, 1, 1),
        "nf4": unsigned(grids.NF4, 16, 6, 5),
        "whole": Quantized.of(codes((24, 5), 256, -128, "int8"), scale(1, 5), Integers(8, False), "bfloat16"),
    }


if __name__ == "__main__":
    export.save(pathlib.Path(__file__).with_name("model_v2.jc"), model())
