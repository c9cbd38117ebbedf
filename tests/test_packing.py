"""The bytes of one array: against naive loops, and against what no code can beat."""

import math

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_compress import grids
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.export import packed_bytes, packing, stored
from jaxopt_compress.grids import Integers

INTEGERS = [name for name in packing.WIDTHS if "float" not in name]
FLOATS = [name for name in packing.WIDTHS if "float" in name]


def random_bits(dtype: str, shape: tuple[int, ...], density: float, seed: int) -> np.ndarray:
    """Return an array of any bit patterns, NaN payloads and subnormals included."""
    rng, width = np.random.default_rng(seed), packing.WIDTHS[dtype]
    size = math.prod(shape)
    if width < 8:
        low = -(2 ** (width - 1)) if dtype.startswith("int") else 0
        flat = rng.integers(low, low + 2**width, size).astype(jnp.dtype(dtype))
    else:
        flat = np.frombuffer(rng.bytes(size * width // 8), jnp.dtype(dtype)).copy()
    flat.view(f"u{flat.itemsize}")[rng.random(size) >= density] = 0
    return flat.reshape(shape)


def random_codes(bits: int, shape: tuple[int, ...], density: float, seed: int) -> np.ndarray:
    rng, top = np.random.default_rng(seed), 2 ** (bits - 1) - 1
    return (rng.integers(-top, top + 1, shape) * (rng.random(shape) < density)).astype(np.int8)


def gaussian_codes(bits: int, size: int, density: float) -> np.ndarray:
    """Return what pruning and quantizing Gaussian weights gives."""
    w = np.random.default_rng(0).normal(size=size)
    w[np.abs(w) < np.quantile(np.abs(w), 1 - density)] = 0
    return np.round(w / np.abs(w).max() * (2 ** (bits - 1) - 1)).astype(np.int8)


def entropy_bytes(codes: np.ndarray) -> float:
    """Return the Shannon bound of independent entries with the frequencies that these have."""
    frequencies = np.unique(codes, return_counts=True)[1] / codes.size
    return -float((frequencies * np.log2(frequencies)).sum()) * codes.size / 8


def naive_join(values: list[int], width: int) -> bytes:
    bits = [value >> position & 1 for value in values for position in range(width)]
    return bytes(sum(bit << j for j, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))


def round_trip(array: np.ndarray, width: int) -> np.ndarray:
    layout, sections = packing.pack(array, width)
    packing.check_lengths(layout, [len(section) for section in sections])
    return packing.unpack(layout, sections)


@given(st.integers(1, 8).flatmap(lambda w: st.tuples(st.just(w), st.lists(st.integers(0, 2**w - 1), max_size=40))))
def test_bits_are_those_of_a_naive_loop(case):
    width, values = case
    joined = packing._join(np.array(values, np.uint8), width)
    assert joined == naive_join(values, width)
    assert packing._split(np.frombuffer(joined, np.uint8), len(values), width).tolist() == values


@pytest.mark.parametrize("width", [1, 3, 4, 7])
@pytest.mark.parametrize("extra", [-1, 0, 1, 9])
def test_bits_of_more_than_one_batch(width, extra, monkeypatch):
    monkeypatch.setattr(packing, "AT_ONCE", 64)
    values = np.random.default_rng(width).integers(0, 2**width, 128 + extra).astype(np.uint8)
    joined = packing._join(values, width)
    assert joined == naive_join(values.tolist(), width)
    np.testing.assert_array_equal(packing._split(np.frombuffer(joined, np.uint8), values.size, width), values)


@given(
    dtype=st.sampled_from(list(packing.WIDTHS)),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12),
    density=st.sampled_from([0.0, 0.02, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=300)
def test_any_bits_come_back(dtype, shape, density, seed):
    array = random_bits(dtype, shape, density, seed)
    back = round_trip(array, packing.WIDTHS[dtype])
    assert back.dtype == array.dtype and back.shape == shape
    if packing.WIDTHS[dtype] >= 8:
        assert back.tobytes() == array.tobytes()
    else:
        np.testing.assert_array_equal(back.astype(np.int8), array.astype(np.int8))


@given(
    bits=st.integers(2, 8),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_codes_come_back(bits, shape, density, seed):
    codes = random_codes(bits, shape, density, seed)
    back = round_trip(codes, bits)
    assert back.dtype == np.int8
    np.testing.assert_array_equal(back, codes)


def test_minus_zero_is_an_entry_and_zero_is_none():
    array = random_bits("float32", (5000,), 0.4, 0)
    array[::100] = -0.0
    layout, _ = packing.pack(array, 32)
    assert layout.count == np.count_nonzero(array.view(np.uint32)) > np.count_nonzero(array)
    assert round_trip(array, 32).tobytes() == array.tobytes()


@pytest.mark.parametrize("swap", [np.dtype(">f4"), np.dtype(">i8")])
def test_byte_order_is_native(swap):
    ((layout, sections),) = stored.pack_leaf(np.arange(5).astype(swap))
    np.testing.assert_array_equal(packing.unpack(layout, sections), np.arange(5))


def test_views_are_read_in_the_order_of_their_axes():
    array = np.arange(24, dtype=np.int16).reshape(4, 6)
    for view in (array.T, array[::2, ::-1], np.asfortranarray(array), np.broadcast_to(array[0], (3, 6))):
        np.testing.assert_array_equal(round_trip(view, 16), view)


@pytest.mark.parametrize("bits", range(2, 9))
def test_uniform_codes_take_no_more_than_their_bits(bits):
    """Between the entropy, log2(2^bits - 1) bits a code, and the fixed width."""
    codes = random_codes(bits, (100_000,), 1.0, bits)
    layout, sections = packing.pack(codes, bits)
    assert layout.count is None
    assert 0.999 * codes.size * math.log2(2**bits - 1) / 8 <= len(sections[0]) <= codes.size * bits / 8


@pytest.mark.parametrize("bits", [8, 4])
def test_dense_gaussian_codes_are_near_their_entropy(bits):
    codes = gaussian_codes(bits, 200_000, 1.0)
    assert (
        packed_bytes(Quantized.of(jnp.asarray(codes), jnp.ones(()), Integers(bits)))
        <= 1.03 * entropy_bytes(codes) + 300
    )


@pytest.mark.parametrize("density", [0.2, 0.1, 0.05])
def test_sparse_codes_are_near_their_entropy(density):
    """Deflate spends whole bits on bytes: within a tenth of the Shannon bound, which is 1.06 bits a weight at 90 %."""
    codes = gaussian_codes(8, 784 * 300, density)
    assert packed_bytes(Quantized.of(jnp.asarray(codes), jnp.ones(()))) <= 1.1 * entropy_bytes(codes) + 300


def test_nine_tenths_zeros_take_little_more_than_a_bit():
    codes = gaussian_codes(8, 784 * 300, 0.1)
    uniform = random_codes(8, codes.shape, 0.1, 1)  # the hardest non-zero entries there are: H = 1.27
    assert packed_bytes(Quantized.of(jnp.asarray(codes), jnp.ones(()))) * 8 / codes.size < 1.1
    assert packed_bytes(Quantized.of(jnp.asarray(uniform), jnp.ones(()))) * 8 / codes.size < 1.32


def test_structure_is_found():
    codes = random_codes(8, (512, 512), 1.0, 0) * (np.arange(512) % 8 == 0).astype(np.int8)
    assert packed_bytes(codes) <= codes.size / 8 + 600  # one column in eight, and a mask that repeats


@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (64,), (100, 30)])
@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_never_larger_than_raw(dtype, shape):
    for density in (0.0, 0.1, 0.5, 1.0):
        array = random_bits(dtype, shape, density, 0)
        assert packed_bytes(array) <= math.ceil(array.size * packing.WIDTHS[dtype] / 8)


@pytest.mark.parametrize("leaf, size", [(None, 0), (True, 0), (3, 0), (0.5, 0), (jnp.ones((), jnp.bfloat16), 2)])
def test_packed_bytes_of_small_leaves(leaf, size):
    assert packed_bytes(leaf) == size


CODES = jnp.zeros((2, 3), jnp.int8)


@pytest.mark.parametrize(
    "leaf, message",
    [
        (jax.random.key(0), "PRNG|key<.*key_data"),
        ("text", "is a str"),
        (1j, "is a complex"),
        (jnp.zeros(2, jnp.complex64), "dtype complex64"),
        (np.array(["a"]), "dtype str"),
        (np.array([None]), "dtype object"),
        (np.zeros(2, "datetime64[s]"), "dtype datetime64"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), "is a ShapeDtypeStruct"),
        (jax.nn.relu, "is a "),
        (Quantized(CODES.astype(jnp.int32), jnp.ones(())), "int32"),
        (Quantized(CODES, jnp.ones(()), grid=grids.NF4), "codes of 4 bits in int8 for Levels"),
        (Quantized(CODES - 128, jnp.ones(())), r"outside \[-127, 127\]"),
        (Quantized(CODES + 8, jnp.ones(()), grid=Integers(4)), r"outside \[-7, 7\]"),
        (Quantized.of(CODES - 8, jnp.ones(()), Integers(4)), r"outside \[-7, 7\]"),
        (Quantized.of(jnp.full((4, 2), 3, jnp.uint8), jnp.ones(()), grids.Levels((0, 1, 2))), r"outside \[0, 2\]"),
        (Quantized(CODES, jnp.ones((), jnp.int32)), "scale in int32"),
        (Quantized(CODES, jnp.ones(()), dtype="int8"), "decodes to int8"),
        (Quantized(CODES, jnp.ones(()), dtype="nonsense"), "decodes to nonsense"),
        (Quantized(CODES, jnp.ones((2,))), r"shape \(2,\) that does not broadcast"),
        (Quantized(CODES, jnp.ones((1, 1, 1))), "does not broadcast"),
        (Quantized(CODES, jnp.ones((2, 1)), jnp.zeros((1, 1), jnp.int8)), r"zero point in int8 of shape \(1, 1\)"),
        (Quantized(CODES, jnp.ones((2, 1)), jnp.zeros((2, 1))), "zero point in float32"),
    ],
)
def test_what_a_file_cannot_hold(leaf, message):
    with pytest.raises(ValueError, match=message):
        packed_bytes(leaf)


def test_a_traced_array_is_refused():
    with pytest.raises(ValueError, match="outside of `jax.jit`"):
        jax.jit(packed_bytes)(jnp.ones(3))


def dense(shape, width=8, deflated=False, dtype="uint8"):
    return packing.Layout(dtype, width, shape, None, (deflated,))


def sparse(shape, count, dtype="uint8"):
    return packing.Layout(dtype, 8, shape, count, (False, False))


@pytest.mark.parametrize(
    "layout, lengths",
    [
        (dense((3,)), [2]),
        (dense((3,)), [4]),
        (dense((9,), 3), [3]),
        (dense((10**6,), deflated=True), [900]),
        (dense((2**62, 2**62), deflated=True), [10**6]),
        (sparse((8,), 9), [1, 9]),
        (sparse((8,), -1), [1, 0]),
        (sparse((8,), 3), [2, 3]),
        (sparse((8,), 3), [1, 2]),
    ],
)
def test_lengths_that_do_not_fit_are_refused(layout, lengths):
    with pytest.raises(ValueError, match="has a section of|has a deflated section|non-zero entries"):
        packing.check_lengths(layout, lengths)


@pytest.mark.parametrize(
    "layout, sections, message",
    [
        (sparse((8,), 3), [b"\x03", b"abc"], "mask of 2 ones"),
        (sparse((7,), 3), [b"\x83", b"abc"], "ones beyond its end"),
        (dense((3,), deflated=True), [b"\xff\xff"], "does not inflate"),
        (dense((3,), deflated=True), [b"\x03\x00"], "exactly 3 bytes"),
        (dense((0,), deflated=True), [b"\x4b\x04\x00"], "exactly 0 bytes"),
        (dense((1,), deflated=True), [b"\x4b\x04\x00x"], "exactly 1 bytes"),
        (dense((2,), deflated=True), [b"\x4b"], "exactly 2 bytes"),
        (dense((2,), deflated=True), [b"\x4a\x4c\x02\x00\x00\x00\xff\xff"], "exactly 2 bytes"),  # has no last block
    ],
)
def test_sections_that_do_not_fit_are_refused(layout, sections, message):
    with pytest.raises(ValueError, match=message):
        packing.unpack(layout, sections)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_lowest_code_is_refused(bits):
    lowest = np.array([0, -(2 ** (bits - 1))], np.int8)
    layout, sections = packing.pack(lowest, bits)
    back = packing.unpack(layout, sections)
    np.testing.assert_array_equal(back, lowest)
    stored.check_codes(stored.Form("float32", Integers(bits, restricted=False)), back)
    with pytest.raises(ValueError, match="has codes outside"):
        stored.check_codes(stored.Form("float32", Integers(bits)), back)
