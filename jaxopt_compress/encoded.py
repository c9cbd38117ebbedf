"""The stored forms of a leaf, and `decode`.

A stored form is a frozen dataclass and a pytree: its arrays are children, its static facts are metadata. It stands
in a tree where the leaf stood, and `decode` turns it back into exactly the array that `apply` gave in training.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from jaxopt_compress import layout, subbyte
from jaxopt_compress.grids import Grid, Integers

INT8 = Integers(8)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("data", "scale", "zero_point"),
    meta_fields=("grid", "dtype", "packed"),
)
@dataclass(frozen=True)
class Quantized:
    """Codes of few bits: `value = (grid.values(codes) - zero_point) * scale`, in the dtype of the original leaf.

    Make one with `Quantized.of(codes, scale)`.

    Attributes:
      data: the codes, of 1, 2 or 4 bits (3 are stored as 4) several in a byte along one axis; or, for a TPU, one by one
        in XLA's own type of 4 bits.
      scale: positive; each of its axes divides that of the codes, and one scale serves a run of codes. Of the shape
        (1, out) for a matrix (in, out) it is one a channel, of (in / 128, out) one for 128 inputs of a channel.
      zero_point: the code of 0, an integer array of the shape of `scale`; None where it is 0.
      grid: the numbers that codes stand for.
      dtype: the name of the dtype of the decoded array.
      packed: the axis along which codes share bytes, from the end, and its length; None for a code in each byte.
    """

    data: jax.Array
    scale: jax.Array
    zero_point: jax.Array | None = None
    grid: Grid = field(default=INT8)
    dtype: str = field(default="float32")
    packed: tuple[int, int] | None = field(default=None)

    @classmethod
    def of(
        cls,
        codes: jax.Array,
        scale: jax.Array,
        grid: Grid = INT8,
        dtype: str = "float32",
        zero_point: jax.Array | None = None,
    ) -> "Quantized":
        """Store codes, one a byte in the shape of the leaf, in as few bytes as they need."""
        width = _stored_bits(grid)
        if width == 8 or not codes.ndim:
            return cls(codes, scale, zero_point, grid, dtype)
        axis = subbyte.packed_axis(codes.shape, 8 // width)
        data = subbyte.pack(codes, width, axis)
        return cls(data, scale, zero_point, grid, dtype, (axis - codes.ndim, codes.shape[axis]))

    @property
    def bits(self) -> int:
        """How many bits a code needs in a file."""
        return self.grid.bits

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the codes and of the decoded array."""
        shape = list(self.data.shape)
        if self.packed:
            shape[self.packed[0]] = self.packed[1]
        return tuple(shape)

    @property
    def codes(self) -> jax.Array:
        """One code a byte, in the shape of the leaf: int8 for integers, uint8 for other grids."""
        if self.packed is None:
            name = self.data.dtype.name  # any dtype but XLA's own of 4 bits stays, for a file to refuse
            return self.data.astype({"int4": "int8", "uint4": "uint8"}.get(name, name))
        fields = subbyte.unpack(self.data, _stored_bits(self.grid), *self.packed)
        return subbyte.signed(fields, _stored_bits(self.grid)) if isinstance(self.grid, Integers) else fields

    def decode(self) -> jax.Array:
        """Return the values, computed in float32 (float64 for scales of float64) and cast to `dtype`."""
        wide = jnp.float64 if self.scale.dtype == jnp.float64 else jnp.float32
        values = self.grid.values(self.codes).astype(wide)
        if self.zero_point is not None:
            values = values - layout.spread(self.zero_point, values.shape).astype(wide)
        return (values * layout.spread(self.scale, values.shape).astype(wide)).astype(jnp.dtype(self.dtype))


def _stored_bits(grid: Grid) -> int:
    """Return how many bits a code takes in memory: a power of two."""
    return 1 << (grid.bits - 1).bit_length()


Encoded = Quantized


def is_encoded(leaf) -> bool:
    """Tell whether a node of a tree is a stored form."""
    return isinstance(leaf, Encoded)


def decode(tree):
    """Turn every stored form in a tree back into an array; other leaves pass through.

    Example:
      >>> codes = jnp.array([[3, -2]], jnp.int8)
      >>> stored = {"kernel": Quantized.of(codes, jnp.array([[0.5, 0.25]]), Integers(4)), "bias": 1.0}
      >>> decode(stored)["kernel"].tolist()
      [[1.5, -0.5]]
    """
    return jax.tree.map(lambda leaf: leaf.decode() if is_encoded(leaf) else leaf, tree, is_leaf=is_encoded)
