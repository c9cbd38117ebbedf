"""What the tests of the file share: models, and equality to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import export
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.export import packing
from jaxopt_compress.grids import Integers


def bits(model) -> list:
    """Return the structure of a tree and what its leaves are to the last bit, NumPy or JAX alike."""

    def leaf(x):
        if not hasattr(x, "dtype"):
            return type(x), np.float64(x).tobytes() if isinstance(x, float) else x
        array = np.asarray(x)
        flat = array.astype(np.int8) if packing.WIDTHS[array.dtype.name] < 8 else array
        return array.dtype.name, array.shape, flat.tobytes()

    return [jax.tree.structure(model), *map(leaf, jax.tree.leaves(model))]


def quantized(shape, bits=8, dtype="float32", density=1.0) -> Quantized:
    rng, top = np.random.default_rng(0), 2 ** (bits - 1) - 1
    codes = rng.integers(-top, top + 1, shape) * (rng.random(shape) < density)
    scale = rng.random((*(1 for _ in shape[:-1]), shape[-1]), np.float32)
    return Quantized.of(jnp.asarray(codes.astype(np.int8)), jnp.asarray(scale), Integers(bits), dtype)


def mlp(weight=quantized, sizes=(784, 300, 100, 10)):
    layers = enumerate(zip(sizes, sizes[1:]))
    return {f"dense_{i}": {"kernel": weight(shape), "bias": jnp.ones(shape[1])} for i, shape in layers}


def saved(path, model):
    assert export.save(path, model) == path.stat().st_size
    return export.load(path)
