"""Fits of scales and zero points: naive references, what each is better at, groups, odd channels."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxopt_compress as jc
from jaxopt_compress import grids
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import fake_quantize, fits, numerics

HALF_QUADRATIC = fits.half_quadratic()
WHOLE = {bits: Integers(bits, restricted=False) for bits in (2, 4, 8)}


@partial(jax.jit, static_argnames=("fit", "shape", "grid"))
def fitted(fit, w, shape, grid):
    return fit(w, shape, grid)


@partial(jax.jit, static_argnames=("fit", "shape", "grid"))
def rounded(fit, w, shape, grid):
    return numerics.rounded(w, fit(w, shape, grid), grid)


def error_of(t, params) -> float:
    """Return the mean square error of the one leaf."""
    off = jax.jit(lambda p: jnp.mean((jax.tree.leaves(t.apply(p, t.init(p)))[0] - jax.tree.leaves(p)[0]) ** 2))
    return float(off(params))


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def channels(w: np.ndarray, shape: tuple[int, ...]):
    """Yield the place of each scale and the weights that share it."""
    for at in np.ndindex(*shape):
        runs = [n // parts for n, parts in zip(w.shape, shape)]
        yield at, w[tuple(slice(i * run, (i + 1) * run) for i, run in zip(at, runs))]


SHAPES = pytest.mark.parametrize("shape", [(1, 6), (8, 1), (1, 1), (4, 6), (2, 3)], ids=str)


@pytest.mark.slow
@SHAPES
@pytest.mark.parametrize("bits", WHOLE)
def test_minmax_against_a_naive_loop(shape, bits):
    w, grid = normal(8, 6) + np.float32(0.7), WHOLE[bits]
    scale, zero = fitted(fits.minmax, w, shape, grid)
    assert zero.dtype == jnp.int8
    stored = numerics.encode(jnp.asarray(w), numerics.Affine(scale, zero), grid)
    scale, zero = np.asarray(scale), np.asarray(zero)
    for at, part in channels(w, shape):
        low, high = min(part.min(), 0), max(part.max(), 0)
        wanted = np.float32(high - low) * np.float32(1 / (2**bits - 1))
        assert scale[at] == wanted
        assert zero[at] == np.clip(grid.lowest - np.rint(low * (np.float32(1) / wanted)), grid.lowest, grid.highest)
    assert np.abs(np.asarray(stored.decode()) - w).max() <= scale.max() * 1.001  # the zero point rounds as well


@pytest.mark.slow
def test_zero_has_a_code_whatever_the_range():
    for low, high in ((0.5, 3.0), (-2.0, -1.0), (-1.0, 5.0), (0.0, 0.0)):
        w = jnp.linspace(low, high, 11).reshape(11, 1).at[3].set(0.0)
        affine = fits.minmax(w, (1, 1), WHOLE[4])
        assert numerics.rounded(w, affine, WHOLE[4])[3] == 0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_one_sided_weights_gain_from_a_zero_point(bits):
    w = {"kernel": jnp.abs(jnp.asarray(normal(64, 16)))}
    symmetric = fake_quantize(bits)
    affine = fake_quantize(Integers(bits, restricted=False), fit=fits.minmax)
    errors = [error_of(t, w) for t in (symmetric, affine)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.slow
@SHAPES
def test_mse_against_a_naive_search(shape):
    w, grid, steps = normal(8, 6, seed=3), Integers(3), 50
    found = np.asarray(fitted(fits.mse(norm=2.4, steps=steps), w, shape, grid).scale)
    for at, part in channels(w, shape):
        start = np.abs(part).max() / grid.highest
        scales = [start * (1 - i / steps) for i in range(int(0.8 * steps))]
        errors = [np.sum(np.abs(np.clip(np.rint(part / s), -3, 3) * s - part) ** 2.4) for s in scales]
        np.testing.assert_allclose(found[at], scales[int(np.argmin(errors))], rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mse_beats_absmax(bits):
    w = jnp.asarray(normal(256, 8, seed=4))
    error = [
        np.sum(np.asarray(rounded(fit, w, (1, 8), Integers(bits)) - w) ** 2, axis=0)
        for fit in (fits.absmax, fits.mse())
    ]
    assert (error[1] <= error[0]).all()
    assert error[1].sum() < (0.8 if bits < 5 else 1.0) * error[0].sum()


def half_quadratic(w, grid, norm=0.7, turns=20):
    """One channel, in float64."""
    low, high = min(w.min(), 0), max(w.max(), 0)
    scale = (high - low) / (grid.highest - grid.lowest)
    zero = float(grid.lowest - np.rint(low / scale))

    def error(scale, zero):
        code = np.clip(np.rint(np.rint(w / scale) + np.rint(zero)), grid.lowest, grid.highest)
        return np.sum(np.abs((code - np.rint(zero)) * scale - w) ** norm)

    found = [(error(scale, zero), scale, zero)]
    for i in range(turns):
        steps = w / scale
        code = np.clip(np.rint(steps + zero), grid.lowest, grid.highest)
        off = steps - (code - zero)
        outlying = np.sign(off) * np.maximum(np.abs(off) - np.abs(off) ** (norm - 1) / (10 * 1.01**i), 0)
        zero = np.clip(np.mean(code - (steps - outlying)), grid.lowest, grid.highest)
        scale *= np.sum((code - zero) * (steps - outlying)) / np.sum((code - zero) ** 2)
        found.append((error(scale, zero), scale, zero))
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4])
def test_half_quadratic_against_a_naive_loop(bits):
    w, grid = np.random.default_rng(10).laplace(size=(64, 6)).astype(np.float32), WHOLE[bits]
    scale, zero = map(np.asarray, fitted(HALF_QUADRATIC, w, (2, 6), grid))
    for at, part in channels(w, (2, 6)):
        error, wanted, _ = half_quadratic(part.astype(np.float64).ravel(), grid)
        code = np.clip(np.rint(part / scale[at]) + zero[at], grid.lowest, grid.highest)
        mine = np.sum(np.abs((code - zero[at]) * scale[at] - part) ** 0.7)
        np.testing.assert_allclose((mine, scale[at]), (error, wanted), rtol=2e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_half_quadratic_beats_the_range_in_every_channel(bits):
    w = jnp.asarray(np.random.default_rng(11).laplace(size=(256, 8)), jnp.float32)
    grid = Integers(bits, restricted=False)
    off = [np.abs(np.asarray(rounded(fit, w, (4, 8), grid) - w)) for fit in (fits.minmax, HALF_QUADRATIC)]
    norms = [np.sum(x.reshape(4, 64, 8) ** 0.7, axis=1) for x in off]
    assert (norms[1] <= norms[0]).all()
    assert np.sum(off[1] ** 2) < {2: 0.8, 3: 0.95, 4: 1.0}[bits] * np.sum(off[0] ** 2)


def test_short_scales_are_those_of_bfloat16():
    w = jnp.asarray(normal(32, 3, seed=12)) * jnp.array([[1.0, 1e-36, 1e38]], jnp.float32)
    for fit, grid in ((fits.absmax, Integers(4)), (fits.minmax, WHOLE[4])):
        long, short = (fitted(each, w, (1, 3), grid).scale for each in (fit, fits.short(fit)))
        assert (short == short.astype(jnp.bfloat16).astype(jnp.float32)).all()
        np.testing.assert_allclose(short, long, rtol=2**-8)


def test_half_quadratic_refuses_what_has_no_zero_point():
    with pytest.raises(ValueError, match="`half_quadratic`: `norm` is above 0"):
        fits.half_quadratic(norm=0)
    with pytest.raises(ValueError, match="only integers have a zero point"):
        fake_quantize(grids.NF4, fit=HALF_QUADRATIC).init({"w": jnp.ones((4, 2))})


def test_mean_absolute_is_the_scale_of_least_squares_for_two_levels():
    w = normal(40, 5, seed=5)
    scale = np.asarray(fits.mean_absolute(jnp.asarray(w), (1, 5), grids.BINARY).scale)
    np.testing.assert_allclose(scale[0], np.abs(w).mean(axis=0), rtol=1e-6)
    errors = [np.sum((np.sign(w) * scale * factor - w) ** 2) for factor in (0.99, 1.0, 1.01)]
    assert min(errors) == errors[1]


MX = {"fp8": (grids.E4M3, 8), "fp8_wide": (grids.E5M2, 15), "fp6": (grids.E3M2, 4), "fp6_fine": (grids.E2M3, 2)}
MX |= {"fp4": (grids.E2M1, 2), "int8": (Integers(8), 6)}


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "top"), MX.values(), ids=MX)
def test_power_of_two_is_the_mx_format(grid, top):
    w = normal(64, 4, seed=6) * np.float32(3.7)
    w[:32, 1] = 0
    w[32:, 2] = 2.0**-20
    t = fake_quantize(grid, group_size=32, fit=fits.power_of_two)
    stored = jax.jit(lambda p: t.encode(p, t.init(p)))({"w": jnp.asarray(w)})["w"]
    largest = np.abs(w.reshape(2, 32, 4)).max(axis=1)
    wanted = np.where(largest > 0, 2.0 ** (np.floor(np.log2(np.where(largest > 0, largest, 1))) - top), 1)
    np.testing.assert_array_equal(stored.scale, wanted)
    exact = np.asarray(stored.scale).astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)  # what MX stores it as
    np.testing.assert_array_equal(stored.scale, exact)
    steps = w / np.repeat(wanted, 32, axis=0)
    values = np.asarray(grid.values(grid.round(jnp.asarray(steps, jnp.float32))))
    np.testing.assert_array_equal(stored.decode(), (values * np.repeat(wanted, 32, axis=0)).astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("grid", [Integers(4), grids.NF4, grids.E2M1], ids=["int4", "nf4", "e2m1"])
def test_groups_lose_less_than_channels(grid):
    w = {"kernel": jnp.asarray(normal(256, 8, seed=7) * np.exp(normal(256, 1, seed=8)))}

    def error(**options):
        t = fake_quantize(grid, **options)
        return error_of(t, w)

    assert error(group_size=32) < 0.8 * error()
    assert error(group_size=256) == error()


def test_nf4_beats_int4_on_normal_weights_in_blocks_of_64():
    w = {"kernel": jnp.asarray(normal(512, 64, seed=9))}
    errors = [error_of(fake_quantize(grid, group_size=64), w) for grid in (grids.NF4, Integers(4))]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.slow
def test_a_channel_of_each_odd_kind_is_right_and_spoils_no_other():
    w = normal(6, 5)
    w[:, 0], w[:, 1], w[:, 2], w[0, 3] = 0.0, 0.25, 1e-42, np.nan
    for fit in (fits.absmax, fits.minmax, fits.mean_absolute, fits.power_of_two, fits.mse(), HALF_QUADRATIC):
        grid = WHOLE[8] if fit in (fits.minmax, HALF_QUADRATIC) else Integers(8)
        back = np.asarray(rounded(fit, w, (1, 5), grid))
        assert not back[:, 0].any()
        np.testing.assert_allclose(back[:, 1], 0.25, rtol=0.02)
        assert not back[:, 2].any()
        assert np.isnan(back[0, 3])
        clean = np.asarray(rounded(fit, w[:, 4:], (1, 1), grid))
        np.testing.assert_allclose(back[:, 4:], clean, rtol=1e-6 if fit is HALF_QUADRATIC else 0)  # it adds


@pytest.mark.parametrize("fit", [fits.absmax, fits.minmax, fits.mse()], ids=["absmax", "minmax", "mse"])
def test_a_factor_of_a_channel_goes_into_its_scale(fit):
    """Folding a normalization into the weights in front of it would change no code."""
    w, factors = jnp.asarray(normal(64, 5)), jnp.array([[0.25, 1.0, 4.0, 0.5, 32.0]])
    plain, folded = (fitted(fit, each, (1, 5), WHOLE[4]) for each in (w, w * factors))
    np.testing.assert_array_equal(folded.scale, plain.scale * factors)
    codes = [numerics.codes(each, affine, WHOLE[4]) for each, affine in ((w, plain), (w * factors, folded))]
    np.testing.assert_array_equal(*codes)


@pytest.mark.slow
def test_an_empty_axis():
    t = fake_quantize(4, fit=fits.minmax)
    w = {"w": jnp.zeros((0, 3))}
    assert jc.decode(t.encode(w, t.init(w)))["w"].shape == (0, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(fake_quantize, 4, group_size=5), "`fake_quantize`: axis 0 of 'w' has 8 entries, not a multiple"),
        (partial(fake_quantize, 4, group_size=0), "not a multiple of group_size=0"),
        (partial(fake_quantize, grids.NF4, fit=fits.minmax), "`minmax`: only integers have a zero point"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make().init({"w": jnp.ones((8, 3))})


# The stored form


@pytest.mark.sampled(6)
@pytest.mark.slow
@pytest.mark.parametrize("grid", [Integers(2), Integers(3), Integers(4), grids.NF4, grids.BINARY, grids.E2M1], ids=str)
@pytest.mark.parametrize("shape", [(8, 6), (5, 3), (7,), (2, 3, 4, 5)], ids=str)
def test_codes_share_bytes(grid, shape):
    w = {"w": jnp.asarray(normal(*shape))}
    t = fake_quantize(grid, channel_axes=())
    state, stored, applied = jax.jit(lambda p: (t.init(p), t.encode(p, t.init(p))["w"], t.apply(p, t.init(p))))(w)
    per_byte = {1: 8, 2: 4, 3: 2, 4: 2}[grid.bits]
    axis = stored.packed[0]
    assert stored.data.dtype == jnp.uint8
    assert stored.data.shape[axis] == -(-shape[axis] // per_byte)
    assert stored.shape == shape
    np.testing.assert_array_equal(stored.codes, numerics.codes(w["w"], state["w"], grid))
    np.testing.assert_array_equal(stored.decode(), applied["w"])
