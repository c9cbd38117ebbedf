"""The stored forms of a leaf, and `decode`.

A stored form is a frozen dataclass and a pytree: its arrays are children, its static facts are metadata. It stands
in a tree where the leaf stood, and `decode` turns it back into exactly the array that `apply` gave in training.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.tree_util.register_dataclass, data_fields=("codes", "scale"), meta_fields=("bits", "dtype"))
@dataclass(frozen=True)
class Quantized:
    """Symmetric integers: `value = codes * scale`, in the dtype of the original leaf.

    Attributes:
      codes: int8, the shape of the leaf, in [-(2^(bits-1) - 1), 2^(bits-1) - 1].
      scale: float32 (float64 for a float64 leaf), positive, broadcastable to `codes`.
      bits: how many bits one code needs in a file.
      dtype: the name of the dtype of the decoded array.
    """

    codes: jax.Array
    scale: jax.Array
    bits: int = field(default=8)
    dtype: str = field(default="float32")

    def decode(self) -> jax.Array:
        """Return `codes * scale`, computed in the dtype of `scale` and cast to `dtype`."""
        return (self.codes.astype(self.scale.dtype) * self.scale).astype(jnp.dtype(self.dtype))


Encoded = Quantized


def is_encoded(leaf) -> bool:
    """Tell whether a node of a tree is a stored form."""
    return isinstance(leaf, Encoded)


def decode(tree):
    """Turn every stored form in a tree back into an array; other leaves pass through.

    Example:
      >>> stored = {"kernel": Quantized(jnp.array([[3, -2]], jnp.int8), jnp.array([[0.5, 0.25]])), "bias": 1.0}
      >>> decode(stored)["kernel"].tolist()
      [[1.5, -0.5]]
    """
    return jax.tree.map(lambda leaf: leaf.decode() if is_encoded(leaf) else leaf, tree, is_leaf=is_encoded)
