"""The leaves of a model as arrays for a file, and stored forms as nodes of its manifest."""

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_compress.encoded import Quantized, is_encoded
from jaxopt_compress.export.packing import WIDTHS, Layout, pack, raw
from jaxopt_compress.grids import Floats, Grid, Integers, Levels

CODES = {f"{sign}{width}": width for sign in ("int", "uint") for width in range(1, 9)}  # bits of a code, by dtype


@dataclass(frozen=True)
class Form:
    """What the manifest says of a `Quantized`, beside its arrays.

    Attributes:
      dtype: of the decoded array.
      grid: what its codes stand for.
    """

    dtype: str
    grid: Grid

    def make(self, arrays: Sequence[Any]) -> Quantized:
        """Put the arrays together: codes, one a byte, the scale, and the zero point if there is one."""
        codes, scale, *zero = arrays
        return Quantized.of(codes, scale, self.grid, self.dtype, zero[0] if zero else None)


def packed_bytes(leaf) -> int:
    """Count the bytes that a leaf takes in a file, beside its lines in the header.

    Args:
      leaf: an array, a stored form, a Python scalar or `None`; the last two stand in the header and take 0.

    Raises:
      ValueError: a leaf that a file cannot hold.

    Example:
      >>> packed_bytes(Quantized.of(jnp.ones((2, 3), jnp.int8), jnp.ones((1, 1)), Integers(4)))
      7
    """
    if leaf is None or type(leaf) in (bool, int, float):
        return 0
    try:
        return sum(len(section) for _, sections in pack_leaf(leaf) for section in sections)
    except ValueError as error:
        raise ValueError(f"`packed_bytes`: the leaf {error}") from error


def pack_leaf(leaf) -> list[tuple[Layout, list[bytes]]]:
    """Pack an array, or the codes, the scale and the zero point of a `Quantized`.

    Raises:
      ValueError: a leaf that a file cannot hold; the message goes on where the name of the leaf ends.
    """
    if not is_encoded(leaf):
        array = _as_array(leaf)
        return [pack(array, WIDTHS[array.dtype.name])]
    if not isinstance(leaf, Quantized):
        raise ValueError(f"is a stored form that this format has no place for: {type(leaf).__name__}.")
    zero = [] if leaf.zero_point is None else [leaf.zero_point]
    arrays = [_as_array(array) for array in (leaf.data, leaf.scale, *zero)]  # before anything is computed of them
    arrays[0] = np.asarray(leaf.codes)
    widths = [leaf.bits, *(WIDTHS[array.dtype.name] for array in arrays[1:])]
    form = Form(leaf.dtype, leaf.grid)
    check(form, [raw(array, width) for array, width in zip(arrays, widths)])
    check_codes(form, arrays[0])
    return [pack(array, width) for array, width in zip(arrays, widths)]


def check(form: Form, layouts: Sequence[Layout]) -> None:
    """Refuse what `Quantized` does not allow and layouts show, in the words of `pack_leaf`."""
    codes, scale, *zero = layouts
    signed = isinstance(form.grid, Integers)
    if (codes.dtype, codes.width) != ("int8" if signed else "uint8", form.grid.bits):
        raise ValueError(f"has codes of {codes.width} bits in {codes.dtype} for {form.grid}.")
    for name in (scale.dtype, form.dtype):
        if name not in WIDTHS or not jnp.issubdtype(jnp.dtype(name), jnp.floating):
            raise ValueError(f"has a scale in {scale.dtype} and decodes to {form.dtype}; both are floating-point.")
    if zero and not (signed and zero[0].dtype == "int8" and zero[0].shape == scale.shape):
        raise ValueError(f"has a zero point in {zero[0].dtype} of shape {zero[0].shape}; int8 in that of the scale.")
    axes = zip(reversed(scale.shape), reversed(codes.shape))
    if len(scale.shape) > len(codes.shape) or any(not _divides(length, whole) for length, whole in axes):
        raise ValueError(f"has a scale of shape {scale.shape} that does not broadcast to codes of {codes.shape}.")


def _divides(length: int, whole: int) -> bool:
    return length in (1, whole) or (length > 0 and whole % length == 0)


def check_codes(form: Form, codes: np.ndarray) -> None:
    """Refuse codes that the grid does not have, in the words of `pack_leaf`."""
    grid, low, high = form.grid, 0, 2**form.grid.bits - 1
    if isinstance(grid, Integers):
        low, high = grid.lowest, grid.highest
    elif isinstance(grid, Levels):
        high = len(grid.levels) - 1
    if codes.size and not (low <= codes.min() and codes.max() <= high):
        raise ValueError(f"has codes outside [{low}, {high}], the range of {grid.bits} bits.")


def _as_array(leaf: Any) -> np.ndarray:
    if isinstance(leaf, Tracer):
        raise ValueError("is traced: a file is written outside of `jax.jit`.")
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        raise ValueError(
            f"is an array of {leaf.dtype}; store `jax.random.key_data(keys)` and its implementation, and make "
            "the keys again with `jax.random.wrap_key_data`."
        )
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError("lies partly on other hosts; gather it first.")
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        raise ValueError(f"is a {type(leaf).__name__}; a file holds arrays, int, float, bool and None.")
    array = np.asarray(leaf)
    if array.dtype.name not in WIDTHS:
        raise ValueError(f"has the dtype {array.dtype.name}; a file holds {', '.join(WIDTHS)}.")
    return array if array.dtype.isnative else array.byteswap().view(array.dtype.newbyteorder("="))


# --- nodes of the manifest ---


def version(leaf: Any) -> int:
    """Return the first version of the format that can hold a leaf."""
    plain = not is_encoded(leaf) or (leaf.zero_point is None and leaf.grid in map(Integers, range(2, 9)))
    runs = is_encoded(leaf) and any(a not in (1, b) for a, b in zip(reversed(leaf.scale.shape), reversed(leaf.shape)))
    return 1 if plain and not runs else 2


def node(leaf: Quantized, layouts: Sequence[Layout], entry: Callable[[Layout, str], list]) -> list:
    """Write a stored form as a node; `entry` writes one array."""
    codes, *rest = layouts
    sign = "int" if isinstance(leaf.grid, Integers) else "uint"
    nodes = [entry(codes, f"{sign}{codes.width}"), *(entry(layout, layout.dtype) for layout in rest)]
    grid = [] if version(leaf) == 1 else [_grid_node(leaf.grid)]
    return ["quantized", leaf.dtype, *grid, *nodes]


def _grid_node(grid: Grid) -> list:
    match grid:
        case Integers(_, restricted):
            return ["integers", restricted]
        case Floats(exponent, mantissa, reserved):
            return ["floats", exponent, mantissa, reserved]
        case Levels(levels):
            return ["levels", *(struct.pack(">d", level).hex() for level in levels)]
    raise ValueError(f"has a grid that this format has no place for: {grid}.")


def form(dtype: str, found: Any, width: int) -> Form:
    """Read the node of a grid whose codes have so many bits; `None` in version 1.

    Raises:
      ValueError: it is no grid, or one of another width.
    """
    match found:
        case None:
            grid = Integers(width)
        case ["integers", bool(restricted)]:
            grid = Integers(width, restricted)
        case ["floats", int(exponent), int(mantissa), int(reserved)] if bool not in map(type, found):
            grid = Floats(exponent, mantissa, reserved)
        case ["levels", *digits] if all(type(d) is str and re.fullmatch("[0-9a-f]{16}", d) for d in digits):
            grid = Levels(tuple(struct.unpack(">d", bytes.fromhex(level))[0] for level in digits))
        case _:
            raise ValueError(f"has a grid that is nothing this library knows: {str(found)[:80]}.")
    return Form(dtype, grid)
