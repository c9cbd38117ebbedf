"""Observers against naive references, whatever the batches are."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import observers

INT8 = Integers(8)
EVERY = {
    "minmax": observers.minmax(),
    "moving": observers.moving(0.9),
    "percentile": observers.percentile(99.0),
    "mse": observers.mse(),
    "entropy": observers.entropy(),
}
EVERY_OBSERVER = pytest.mark.parametrize("observer", EVERY.values(), ids=EVERY)


def seen(observer, *batches):
    state = observer.init()
    for batch in batches:
        state = observer.update(state, jnp.asarray(batch))
    return tuple(float(edge) for edge in observer.range(state, INT8))


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5), min_size=1, max_size=4))
@settings(max_examples=15)
def test_minmax_is_that_of_all(batches):
    found = seen(EVERY["minmax"], *[np.array(batch, np.float32) for batch in batches])
    whole = np.concatenate([np.array(batch, np.float32) for batch in batches])
    assert found == (whole.min(), whole.max())


def test_moving_is_the_recursion():
    batches = [normal(7, seed=seed, scale=1 + seed) for seed in range(4)]
    low, high = batches[0].min(), batches[0].max()
    for batch in batches[1:]:
        low, high = low + np.float32(0.1) * (batch.min() - low), high + np.float32(0.1) * (batch.max() - high)
    np.testing.assert_allclose(seen(EVERY["moving"], *batches), (low, high), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 0.3, 1.0, 777.0, 1e9])
def test_percentile_is_that_of_numpy_to_a_bin(scale):
    x = np.abs(normal(20_000, scale=scale)) ** 1.3 * np.where(np.arange(20_000) % 4, 1, -0.5)
    low, high = seen(EVERY["percentile"], x.astype(np.float32))
    wanted = np.percentile(x, [1, 99])
    bin_ = 2.0 ** np.ceil(np.log2(np.abs(x).max())) / observers.HALF
    np.testing.assert_allclose((low, high), wanted, atol=1.5 * bin_)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minmax", "percentile", "mse", "entropy"])
def test_the_order_and_the_size_of_batches_do_not_matter(name):
    parts = [normal(500, seed=1), normal(300, seed=2, scale=40.0), normal(900, seed=3, scale=0.01), normal(1, seed=4)]
    found = {seen(EVERY[name], *order) for order in (parts, parts[::-1], [np.concatenate(parts)])}
    if name == "minmax":
        assert len(found) == 1
    for one in found:
        np.testing.assert_allclose(one, next(iter(found)), rtol=0.02)


@pytest.mark.slow
def test_a_full_bin_goes_on_counting():
    observer = EVERY["percentile"]
    state = observer.update(observer.init(), jnp.full((8,), 0.5))
    full = state._replace(counts=state.counts * 2**21)
    more = observer.update(full, jnp.full((64,), 0.5))
    assert float(more.counts.max()) == 2**24 + 64


@pytest.mark.slow
@pytest.mark.parametrize(("name", "first", "part"), [("mse", 0, 0.85), ("entropy", 1, 0.1)])
def test_ranges_of_least_loss_beat_the_whole_range(name, first, part):
    x = normal(50_000, seed=5)
    x[0] = 60.0  # an outlier that would cost most codes; the entropy is that of the others
    errors = []
    for observer in (EVERY["minmax"], EVERY[name]):
        scale = max(map(abs, seen(observer, x))) / 127
        errors.append(np.mean((np.clip(np.rint(x / scale), -127, 127) * scale - x)[first:] ** 2))
    assert errors[1] < part * errors[0]


def divergence(counts, width, top, grid):
    """Information lost, bin by bin and code by code."""
    inside = [i for i in range(len(counts)) if (i + 0.5) * width < top]
    scale = np.float32(top) * np.float32(1 / grid.largest)
    codes = {i: np.rint(np.float32((i + 0.5) * width) * (np.float32(1) / scale)) for i in inside}
    p = np.array([counts[i] for i in inside], float)
    q = np.zeros(len(inside))
    for code in set(codes.values()):
        full = [i for i in inside if codes[i] == code and counts[i]]
        q[full] = sum(counts[i] for i in full) / max(len(full), 1)
    p[-1] += sum(counts[len(inside) :])
    q = 1e-4 / len(inside) + (1 - 1e-4) * q / q.sum()
    p /= p.sum()
    return np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))


@pytest.mark.slow
@pytest.mark.parametrize("grid", [INT8, Integers(4)], ids=["8", "4"])
def test_the_range_of_least_divergence_is_that_of_a_loop(grid):
    x = np.random.default_rng(6).standard_t(3, 20_000).astype(np.float32)
    observer = EVERY["entropy"]
    state = observer.update(observer.init(), jnp.asarray(x))
    width = float(state.width)
    counts = np.histogram(np.abs(x), observers.HALF, (0, observers.HALF * width))[0].astype(float)
    counts[0] = counts[1]
    largest = (np.flatnonzero(counts)[-1] + 1) * width
    tops = np.linspace(grid.largest * width, largest, 129)[1:]
    losses = [divergence(counts, width, top, grid) for top in tops]
    low, high = map(float, observer.range(state, grid))
    high = max(high, -low)
    assert high < largest / 2  # the tails are heavy
    place = int(np.argmin(np.abs(tops - high)))
    np.testing.assert_allclose(high, tops[place], rtol=1e-5)
    assert losses[place] < 1.0001 * min(losses)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mse", "entropy"])
def test_an_end_that_nothing_is_near_stays_out(name):
    low, high = seen(EVERY[name], np.maximum(normal(10_000, seed=7), 0))
    assert low == 0
    assert 2 < high < 5


@pytest.mark.slow
def test_the_zeros_of_a_relu_lose_no_information():
    x = np.abs(normal(10_000, seed=8))
    found = [seen(EVERY["entropy"], each) for each in (x, np.concatenate([x, np.zeros(90_000, np.float32)]))]
    assert found[0] == found[1]


@pytest.mark.slow
@EVERY_OBSERVER
def test_states_fold_under_jit_scan_and_vmap(observer):
    batches = jnp.asarray(normal(3, 40))
    looped = observer.init()
    for batch in batches:
        looped = observer.update(looped, batch)
    scanned = jax.jit(lambda x: jax.lax.scan(lambda s, b: (observer.update(s, b), None), observer.init(), x)[0])(
        batches
    )
    jax.tree.map(np.testing.assert_array_equal, scanned, looped)
    many = jax.vmap(lambda x: observer.update(observer.init(), x))(batches)
    one = observer.update(observer.init(), batches[1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), many, one)


@pytest.mark.slow
@EVERY_OBSERVER
def test_nothing_seen_and_nan_are_visible(observer):
    assert np.isnan(seen(observer)).all()
    assert np.isnan(seen(observer, np.zeros((0, 3), np.float32))).all()
    assert np.isnan(seen(observer, np.array([1.0, np.nan], np.float32))).any()


@pytest.mark.slow
@EVERY_OBSERVER
def test_constants_and_narrow_floats(observer):
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        low, high = seen(observer, jnp.full((64,), 0.5, dtype))
        assert high == pytest.approx(0.5, rel=0.02)
        assert low <= high
    assert np.isfinite(seen(observer, np.zeros(9, np.float32))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: observers.moving(1.0), "`moving`: `decay`"), (lambda: observers.percentile(50), "`percentile`: `q`")],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
