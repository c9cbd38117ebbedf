"""Grids: every code and back, the nearest number, ties, saturation, and the standards that they are."""

from functools import cache

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from jaxopt_compress import grids
from jaxopt_compress.grids import Floats, Integers, Levels

STANDARD = {
    "e4m3": (grids.E4M3, ml_dtypes.float8_e4m3fn),
    "e5m2": (grids.E5M2, ml_dtypes.float8_e5m2),
    "e3m2": (grids.E3M2, ml_dtypes.float6_e3m2fn),
    "e2m3": (grids.E2M3, ml_dtypes.float6_e2m3fn),
    "e2m1": (grids.E2M1, ml_dtypes.float4_e2m1fn),
}
GRIDS = {
    **{f"int{bits}": Integers(bits) for bits in range(2, 9)},
    **{f"int{bits}_whole": Integers(bits, restricted=False) for bits in (2, 4, 8)},
    **{name: grid for name, (grid, _) in STANDARD.items()},
    "binary": grids.BINARY,
    "nf4": grids.NF4,
    "odd": Levels((-3.0, -0.5, 0.0, 0.25, 7.0)),
}
EVERY_GRID = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
EVERY_STANDARD = pytest.mark.parametrize(("grid", "dtype"), STANDARD.values(), ids=STANDARD)


@cache
def compiled(grid):
    return jax.jit(grid.round), jax.jit(grid.values)


def rounded(grid, x) -> np.ndarray:
    return np.asarray(compiled(grid)[0](jnp.asarray(x)))


def values(grid, codes) -> np.ndarray:
    return np.asarray(compiled(grid)[1](jnp.asarray(codes)))


def codes_of(grid) -> np.ndarray:
    """Return all codes of a grid that stand for a number."""
    if isinstance(grid, Integers):
        return np.arange(grid.lowest, grid.highest + 1).astype(np.int8)
    count = len(grid.levels) if isinstance(grid, Levels) else 2**grid.bits
    codes = np.arange(count).astype(np.uint8)
    return codes[np.isfinite(values(grid, codes))]


@pytest.mark.sampled(3)
@pytest.mark.slow
@EVERY_GRID
def test_every_code_comes_back(grid):
    codes = codes_of(grid)
    numbers = values(grid, codes)
    assert numbers.dtype == np.float32
    again = rounded(grid, numbers)
    assert again.dtype == codes.dtype
    np.testing.assert_array_equal(again, codes)
    assert np.asarray(jax.jit(grid.inside)(numbers)).all()
    assert codes.max() < 2**grid.bits


@pytest.mark.slow
@EVERY_GRID
def test_the_nearest_number_is_taken(grid):
    numbers = values(grid, codes_of(grid)).astype(np.float64)
    rng = np.random.default_rng(0)
    x = (rng.uniform(-1.3, 1.3, 4000) * grid.largest).astype(np.float32)
    x = np.concatenate([x, (rng.normal(size=2000) * 10.0 ** rng.integers(-9, 3, 2000)).astype(np.float32)])
    found = values(grid, rounded(grid, x)).astype(np.float64)
    least = np.abs(x[:, None].astype(np.float64) - numbers[None]).min(axis=1)
    np.testing.assert_array_equal(np.abs(x - found), least)


@pytest.mark.slow
@EVERY_GRID
def test_eager_and_compiled_agree_bit_for_bit(grid):
    x = jnp.asarray(np.random.default_rng(1).normal(size=999).astype(np.float32) * grid.largest / 2)
    codes = grid.round(x)
    np.testing.assert_array_equal(codes, jax.jit(grid.round)(x))
    assert np.asarray(grid.values(codes)).tobytes() == np.asarray(jax.jit(grid.values)(codes)).tobytes()


@EVERY_STANDARD
def test_small_floats_are_those_of_the_standard(grid, dtype):
    codes = np.arange(2**grid.bits).astype(np.uint8)
    wanted = codes.view(dtype).astype(np.float32)
    found = values(grid, codes)
    numbers = np.isfinite(wanted)
    assert found[numbers].tobytes() == wanted[numbers].tobytes()
    assert np.isnan(found[~numbers]).all()
    assert grid.largest == float(ml_dtypes.finfo(dtype).max)


@EVERY_STANDARD
def test_small_floats_round_like_ml_dtypes_and_saturate(grid, dtype):
    rng = np.random.default_rng(2)
    numbers = values(grid, codes_of(grid))
    ties = (np.sort(numbers)[1:] + np.sort(numbers)[:-1]) / 2
    x = np.concatenate([rng.normal(size=5000) * 10.0 ** rng.integers(-9, 9, 5000), numbers, ties, [0, -0.0, 3e38]])
    x = np.concatenate([x, [np.inf, -np.inf, 1e-45, -1e-39]]).astype(np.float32)
    wanted = np.clip(x, -grid.largest, grid.largest).astype(dtype).view(np.uint8)
    np.testing.assert_array_equal(rounded(grid, x), wanted)


@pytest.mark.slow
def test_nan_stays_visible_where_there_is_a_code_for_it():
    for grid in (grids.E4M3, grids.E5M2):
        assert np.isnan(grid.values(grid.round(jnp.array([jnp.nan])))).all()


@pytest.mark.slow
@given(st.floats(-500, 500, width=32), st.sampled_from(list(GRIDS.values())))
def test_rounding_keeps_the_order(x, grid):
    above = np.nextafter(np.float32(x), np.float32(np.inf))
    low, high = values(grid, rounded(grid, np.array([x, above], np.float32)))
    assert low <= high


def test_what_lies_in_the_middle_goes_up_in_a_table_and_to_even_among_integers():
    np.testing.assert_array_equal(grids.BINARY.round(jnp.array([0.0, -0.0, -1e-30])), [1, 1, 0])
    np.testing.assert_array_equal(Integers(8).round(jnp.array([0.5, 1.5, -0.5, -2.5])), [0, 2, 0, -2])


def test_ranges():
    assert (Integers(8).lowest, Integers(8).highest, Integers(8).largest) == (-127, 127, 127)
    whole = Integers(8, restricted=False)
    assert (whole.lowest, whole.highest, whole.largest) == (-128, 127, 127.5)
    assert (grids.NF4.bits, grids.BINARY.bits, grids.TERNARY.bits, Levels((0, 1, 2)).bits) == (4, 1, 2, 2)
    np.testing.assert_array_equal(
        Integers(8).inside(jnp.array([127.49, 127.5, -127.49, -127.5])), [True, False, True, False]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Integers(1), "`Integers`: `bits` is 2 to 8; got 1"),
        (lambda: Integers(4.0), "`Integers`: `bits` is 2 to 8; got 4.0"),
        (lambda: Floats(1, 2), "`Floats`: an exponent of 2 to 5 bits"),
        (lambda: Floats(5, 3), "`Floats`"),
        (lambda: Floats(4, 3, reserved=9), "`Floats`"),
        (lambda: Levels((1.0,)), "`Levels`: 2 to 256 ascending"),
        (lambda: Levels((1.0, 1.0)), "`Levels`"),
        (lambda: Levels((0.0, float("nan"))), "`Levels`"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
