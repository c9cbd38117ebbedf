"""The bytes of one array in a file: fixed-width bits, a mask with the non-zero entries, deflate.

An array becomes one or two *sections*, plain byte strings. *Dense* is one section with all entries; *sparse* is a bit
mask and the entries whose bit pattern is not zero (`-0.0` is stored). Every section may be deflated. `docs/
file_format.md` is the same in words that need no Python.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import jax.numpy as jnp
import numpy as np

Section = bytes | memoryview

WIDTHS = {"bool": 1, "bfloat16": 16, "float16": 16, "float32": 32, "float64": 64}  # bits of one entry, by dtype
WIDTHS |= {f"{sign}{width}": width for width in (2, 4, 8, 16, 32, 64) for sign in ("int", "uint")}
WIDTHS |= {f"float8_{kind}": 8 for kind in ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz")}
WIDTHS |= {f"float8_{kind}": 8 for kind in ("e5m2", "e5m2fnuz", "e8m0fnu")}
MOST_EXPANSION = 1032  # deflate spends at least 2 bits on 258 bytes
HEADER_SHARE = 60  # bytes that one more section adds to the header of the file
SMALL = 2**16  # bytes of an array that cost no time worth saving
AT_ONCE = 2**20  # entries whose bits are moved at a time: a multiple of 8


@dataclass(frozen=True)
class Layout:
    """How one array lies in its sections.

    Attributes:
      dtype: the name of the dtype in memory.
      width: bits of one entry in the file; less than the dtype has for the codes of `Quantized`.
      shape: the shape.
      count: how many entries are stored beside a mask, or `None` for a dense array without one.
      deflated: for each section, whether it is.
    """

    dtype: str
    width: int
    shape: tuple[int, ...]
    count: int | None
    deflated: tuple[bool, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The bytes of each section before it was deflated."""
        size = prod(self.shape)
        if self.count is None:
            return (_ceil8(size * self.width),)
        return _ceil8(size), _ceil8(self.count * self.width)

    @property
    def nbytes(self) -> int:
        """The bytes of the array in memory; an axis without entries counts as one, for no shape is free."""
        return prod(max(length, 1) for length in self.shape) * jnp.dtype(self.dtype).itemsize


def pack(array: np.ndarray, width: int) -> tuple[Layout, list[bytes]]:
    """Write an array with `width` bits an entry in the smallest way.

    Of a large array, a form that is hopeless before deflating is not deflated to see: mostly zeros, the dense form
    would take nearly all of the time.
    """
    patterns = _patterns(array, width)
    nonzero = patterns != 0
    dense = raw(array, width)
    sparse = replace(dense, count=int(np.count_nonzero(nonzero)), deflated=(False, False))
    dense_size, sparse_size = sum(dense.lengths), sum(sparse.lengths)
    candidates = []
    if sparse_size < dense_size:
        candidates.append((sparse, [_join(nonzero.view(np.uint8), 1), _join(patterns[nonzero], width)]))
    if dense_size <= max(2 * sparse_size, SMALL):
        candidates.append((dense, [_join(patterns, width)]))
    return min((_deflated(*candidate) for candidate in candidates), key=_cost)


def raw(array: np.ndarray, width: int) -> Layout:
    """Return the plain layout: all entries, nothing deflated."""
    return Layout(array.dtype.name, width, array.shape, None, (False,))


def _deflated(layout: Layout, sections: list[bytes]) -> tuple[Layout, list[bytes]]:
    shortest = [min(section, *_deflations(section), key=len) for section in sections]
    deflated = tuple(len(short) < len(section) for short, section in zip(shortest, sections))
    return replace(layout, deflated=deflated), shortest


def _deflations(section: bytes):
    """Yield two raw deflate streams: random bits, such as those of a mask, shrink most without any matching."""
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        stream = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        yield stream.compress(section) + stream.flush()


def _cost(packed: tuple[Layout, list[bytes]]) -> int:
    return sum(len(section) + HEADER_SHARE for section in packed[1])


def check_lengths(layout: Layout, stored: Sequence[int]) -> None:
    """Refuse sections that cannot hold the array, before anything of its size is allocated."""
    if layout.count is not None and not 0 <= layout.count <= prod(layout.shape):
        raise ValueError(f"has {layout.count} non-zero entries in a shape of {layout.shape}.")
    for length, got, deflated in zip(layout.lengths, stored, layout.deflated, strict=True):
        if not deflated and got != length:
            raise ValueError(f"has a section of {got} bytes where its shape and width ask for {length}.")
        if deflated and length > MOST_EXPANSION * got:
            raise ValueError(f"has a deflated section of {got} bytes, which cannot hold {length}.")


def unpack(
    layout: Layout, sections: Sequence[Section], check: Callable[[np.ndarray], None] = lambda stored: None
) -> np.ndarray:
    """Read an array from its sections, which `check_lengths` has let through.

    Args:
      layout: of the array.
      sections: one or two.
      check: looks at the entries that are stored, before any room is made for the others.

    Raises:
      ValueError: sections that `pack` cannot have written.
    """
    size, width = prod(layout.shape), layout.width
    streams = zip(sections, layout.lengths, layout.deflated, strict=True)
    mask = None if layout.count is None else _mask(_inflate(*next(streams)), size, layout.count)
    values = _split(_inflate(*next(streams)), size if layout.count is None else layout.count, width)
    check(_entries(values, replace(layout, shape=(values.size,))))
    if mask is None:
        return _entries(values, layout)
    patterns = np.zeros(size, values.dtype)
    patterns[_split(mask, size, 1).view(bool)] = values
    return _entries(patterns, layout)


def _mask(bits: np.ndarray, size: int, count: int) -> np.ndarray:
    ones = int(np.bitwise_count(bits).sum(dtype=np.int64))
    if ones != count or (size % 8 and bits[-1] >> size % 8):
        raise ValueError(f"has a mask of {ones} ones, or ones beyond its end, for {count} non-zero entries.")
    return bits


def _inflate(data: Section, length: int, deflated: bool) -> np.ndarray:
    if not deflated:
        return np.frombuffer(data, np.uint8)
    stream = zlib.decompressobj(-15)
    try:
        inflated = stream.decompress(data, length + 1)  # one more: 0 would be no limit, and too much shows
    except zlib.error as error:
        raise ValueError(f"has a section that does not inflate: {error}.") from error
    if len(inflated) != length or not stream.eof or stream.unused_data:
        raise ValueError(f"has a deflated section that does not end after exactly {length} bytes.")
    return np.frombuffer(inflated, np.uint8)


def _patterns(array: np.ndarray, width: int) -> np.ndarray:
    """Return the bit patterns of the entries as a flat array of little-endian unsigned integers."""
    flat = array.reshape(-1)
    if width < 8:
        return flat.astype(np.int8).view(np.uint8) & np.uint8(2**width - 1)
    unsigned = f"u{width // 8}"
    return flat.view(unsigned).astype(f"<{unsigned}", copy=False)


def _entries(patterns: np.ndarray, layout: Layout) -> np.ndarray:
    """Undo `_patterns`."""
    dtype = jnp.dtype(layout.dtype)
    if layout.width >= 8:
        return patterns.astype(f"=u{dtype.itemsize}", copy=False).view(dtype).reshape(layout.shape)
    if layout.dtype.startswith("int"):
        sign = np.uint8(2 ** (layout.width - 1))
        patterns = ((patterns ^ sign) - sign).view(np.int8)  # two's complement; the difference wraps
    return patterns.astype(dtype).reshape(layout.shape)


def _join(patterns: np.ndarray, width: int) -> bytes:
    """Put patterns end to end, the first in the lowest bits of the first byte: eight of them are `width` bytes."""
    if width >= 8:
        return patterns.tobytes()
    return b"".join(_join_some(patterns[start : start + AT_ONCE], width) for start in range(0, patterns.size, AT_ONCE))


def _join_some(patterns: np.ndarray, width: int) -> bytes:
    eights = np.zeros((_ceil8(patterns.size), 8), np.uint8)
    eights.reshape(-1)[: patterns.size] = patterns
    words = np.zeros(len(eights), "<u8")
    for position in range(8):
        words |= eights[:, position].astype("<u8") << np.uint64(position * width)
    return words.view(np.uint8).reshape(-1, 8)[:, :width].tobytes()[: _ceil8(patterns.size * width)]


def _split(data: np.ndarray, size: int, width: int) -> np.ndarray:
    """Undo `_join`."""
    if width >= 8:
        return data.view(f"<u{width // 8}")
    patterns = np.empty(size, np.uint8)
    for start in range(0, size, AT_ONCE):
        some = patterns[start : start + AT_ONCE]
        some[:] = _split_some(data[start // 8 * width :], some.size, width)
    return patterns


def _split_some(data: np.ndarray, size: int, width: int) -> np.ndarray:
    joined = np.zeros(_ceil8(size) * width, np.uint8)
    joined[: data.size] = data[: joined.size]
    words = np.zeros((_ceil8(size), 8), np.uint8)
    words[:, :width] = joined.reshape(-1, width)
    eights = np.empty_like(words)
    for position in range(8):
        eights[:, position] = words.view("<u8")[:, 0] >> np.uint64(position * width) & np.uint64(2**width - 1)
    return eights.reshape(-1)[:size]


def _ceil8(count: int) -> int:
    return -(-count // 8)
