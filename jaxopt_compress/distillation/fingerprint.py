"""A short text that stands for numbers: two trees have the same one if they are the same, bit for bit."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import tree


def fingerprint(*trees: Any) -> str:
    """Return the SHA-256 of paths, dtypes, shapes and bytes of all leaves, as 64 hexadecimal digits.

    Args:
      *trees: pytrees of arrays (parameters of a teacher, images, PRNG keys) and of plain Python values.

    Example:
      >>> fingerprint({"w": np.ones(3)}) == fingerprint({"w": np.ones(3)})
      True
      >>> fingerprint({"w": np.ones(3)}) == fingerprint({"v": np.ones(3)})
      False
    """
    digest = hashlib.sha256()
    for number, each in enumerate(trees):
        for path, leaf in tree.leaves(each).items():
            array = jax.random.key_data(leaf) if _is_key(leaf) else leaf
            if not isinstance(array, (jax.Array, np.ndarray, np.generic)):
                digest.update(repr((number, path, array)).encode() + b"\0")
                continue
            array = np.ascontiguousarray(array)
            digest.update(repr((number, path, str(leaf.dtype), array.shape)).encode() + b"\0")
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
