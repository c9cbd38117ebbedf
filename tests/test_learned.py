"""Learned ranges: the derivatives of the papers, integers like floats, and better than ranges that are fitted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_compress.grids import NF4, Integers
from jaxopt_compress.quantization import Scheme, fits, learned, observers, quantize, schemes
from jaxopt_compress.quantization.learned import Offset
from jaxopt_compress.quantization.rounded import Rounding
from tests.products import EVERY_PRODUCT, normal

SIGNED, WHOLE = Integers(3), Integers(3, restricted=False)


def dense(p, x):
    return x @ p


def slopes_of(range_, state, x, grid, g, sharing=1.0):
    """Return the derivatives of sum(g * x_q) by the operand and the state."""
    loss = lambda x, state: jnp.sum(g * range_.smooth(x, state, grid, sharing))  # noqa: E731
    return jax.jit(jax.grad(loss, (0, 1)))(x, state)


def test_lsq_against_the_formula_of_the_paper():
    x, g, s, sharing = np.asarray(normal(40)), np.asarray(normal(40, seed=1)), np.float32(0.4), 40
    mine, scale = slopes_of(learned.lsq(), jnp.array([s]), x, SIGNED, g, sharing)
    steps = x / s
    inside = np.abs(np.rint(steps)) <= 3
    assert 5 < inside.sum() < 40
    by_scale = np.where(inside, np.rint(steps) - steps, np.sign(steps) * 3)
    np.testing.assert_array_equal(mine, np.where(inside, g, 0))
    np.testing.assert_allclose(scale, [(g * by_scale).sum() / np.sqrt(sharing * 3)], rtol=1e-5)


def test_lsq_of_what_is_positive_uses_all_codes():
    x, g, s = np.asarray(normal(40)), np.asarray(normal(40, seed=1)), np.float32(0.3)
    range_ = learned.lsq(positive=True)
    affine = range_.affine(jnp.array([s]), WHOLE)
    np.testing.assert_array_equal(affine.zero_point, [-4])
    mine, scale = slopes_of(range_, jnp.array([s]), x, WHOLE, g)
    steps = x / s
    inside = (np.rint(steps) >= 0) & (np.rint(steps) <= 7)
    by_scale = np.where(inside, np.rint(steps) - steps, np.clip(np.rint(steps), 0, 7))
    np.testing.assert_array_equal(mine, np.where(inside, g, 0))
    np.testing.assert_allclose(scale, [(g * by_scale).sum() / np.sqrt(7)], rtol=1e-5)


def test_lsq_plus_learns_an_offset_from_what_is_clipped():
    x, g = np.asarray(normal(40)), np.asarray(normal(40, seed=1))
    state = Offset(jnp.array([0.25]), jnp.array([-0.5]))
    mine, (scale, offset) = slopes_of(learned.lsq_plus(), state, x, WHOLE, g)
    zero = -4 + 2  # the lowest code, less the offset in steps
    codes = np.rint(x * 4) + zero
    inside = (codes >= -4) & (codes <= 3)
    by_scale = np.where(inside, codes - zero - 4 * x, np.clip(codes, -4, 3) - zero)
    np.testing.assert_array_equal(mine, np.where(inside, g, 0))
    np.testing.assert_allclose(scale, [(g * by_scale).sum() / np.sqrt(7)], rtol=1e-5)
    np.testing.assert_allclose(offset, [g[~inside].sum() / np.sqrt(7)], rtol=1e-5)


def test_pact_learns_from_what_is_above():
    x, g = np.asarray(normal(40)), np.asarray(normal(40, seed=1))
    mine, alpha = slopes_of(learned.pact(), jnp.array([0.7]), x, WHOLE, g)
    above, below = np.rint(x / 0.1) > 7, np.rint(x / 0.1) < 0
    assert above.any()
    np.testing.assert_array_equal(mine, np.where(above | below, 0, g))
    np.testing.assert_allclose(alpha, [g[above].sum()], rtol=1e-5)


LSQ = schemes.lsq(4)
BOTH = Scheme(Integers(4), Integers(4, False), learned.lsq_plus(), learned=learned.lsq())
CLIPPED = Scheme(Integers(4), Integers(4, False), learned.pact(0.3))


def held_by_bfloat16(leaf):
    """Make ranges smaller, so that something is clipped, with steps whose multiples bfloat16 holds: 15 * 2**k."""
    return jnp.sign(leaf) * 15 * jnp.exp2(jnp.floor(jnp.log2(jnp.abs(leaf) / 15)))


def whole(shape):
    """Return a cotangent that bfloat16 holds."""
    return jnp.asarray(np.arange(np.prod(shape)).reshape(shape) % 7 - 2.5, jnp.float32)


@pytest.mark.sampled(20)
@pytest.mark.slow
@EVERY_PRODUCT
@pytest.mark.parametrize("scheme", [LSQ, BOTH, CLIPPED], ids=["lsq", "lsq_plus", "pact"])
def test_integers_and_floats_have_the_same_values_and_slopes(fn, params, x, scheme):
    found = []
    for integers in (True, False):
        q = quantize(fn, params, x, rules={"**": scheme}, integers=integers)
        ranges = jax.tree.map(held_by_bfloat16, q.observe(params, q.init(), x))
        loss = lambda p, r, q=q: jnp.sum(whole(q(p, r, x).shape) * q(p, r, x))  # noqa: E731
        found.append((jax.jit(q)(params, ranges, x), jax.jit(jax.grad(loss, (0, 1)))(params, ranges)))
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(found[0][1][1]))
    (value, slopes), (wanted_value, wanted_slopes) = found
    np.testing.assert_allclose(value, wanted_value, atol=1e-5 * float(jnp.abs(wanted_value).max()))
    for mine, wanted in zip(jax.tree.leaves(slopes), jax.tree.leaves(wanted_slopes), strict=True):
        # Backward products take bfloat16, which does not hold the weights of PACT: their steps are not learned.
        np.testing.assert_allclose(mine, wanted, atol=5e-3 * float(jnp.abs(wanted).max()) + 1e-6)


@pytest.mark.slow
def test_ranges_are_set_once_and_a_forgotten_start_shows():
    w, x = normal(6, 5), normal(4, 6)
    q = quantize(dense, w, x, rules={"**": LSQ})
    ranges = q.init()
    (name,) = ranges
    assert {side: leaf.shape for side, leaf in ranges[name].items()} == {"0": (), "1": (1, 5)}
    assert np.isnan(q(w, ranges, x)).all()
    once = q.observe(w, ranges, x)
    twice = jax.jit(q.observe)(w, once, 9 * x)
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    np.testing.assert_allclose(once[name]["0"], 2 * np.abs(x).mean() / 7**0.5, rtol=1e-6)
    np.testing.assert_allclose(once[name]["1"], 2 * np.abs(w).mean(0, keepdims=True) / 7**0.5, rtol=1e-6)


@pytest.mark.slow
def test_zeros_and_narrow_dtypes():
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        w, x = jnp.zeros((6, 5), dtype), jnp.zeros((4, 6), dtype)
        q = quantize(dense, w, x, rules={"**": LSQ})
        ranges = q.observe(w, q.init(), x)
        value, slopes = jax.value_and_grad(lambda w, q=q, r=ranges, x=x: jnp.sum(q(w, r, x)))(w)
        assert (float(value), slopes.dtype) == (0, dtype)
        assert np.isfinite(np.asarray(slopes, np.float32)).all()


@pytest.mark.slow
def test_layers_of_a_scan_learn_ranges_of_their_own():
    fn = lambda p, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0]  # noqa: E731
    w, x = normal(3, 6, 6) * jnp.array([1.0, 2.0, 3.0])[:, None, None], normal(4, 6)
    q = quantize(fn, w, x, rules={"**": LSQ})
    ranges = q.observe(w, q.init(), x)
    (state,) = ranges.values()
    assert (state["0"].shape, state["1"].shape) == ((3,), (3, 1, 6))
    assert (np.diff(np.asarray(state["1"]).mean((1, 2))) > 0).all()
    slopes = jax.grad(lambda r: jnp.sum(q(w, r, x) ** 2))(ranges)
    assert all(np.asarray(leaf).any(axis=-1).all() for leaf in jax.tree.leaves(slopes) if leaf.ndim > 1)


def train(scheme, seed, steps=150):
    """Fit a noisy teacher with few bits; return the loss on new data."""
    rng = np.random.default_rng(seed)
    teacher = [jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32) for s in ((16, 32), (32, 4))]
    net = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]  # noqa: E731
    x, new = (jnp.asarray(rng.normal(size=(256, 16)), jnp.float32) for _ in range(2))
    params = [w + 0.1 * jnp.asarray(rng.normal(size=w.shape), jnp.float32) for w in teacher]
    q = quantize(net, params, x, rules={"**": scheme})
    state = (params, q.observe(params, q.init(), x))
    tx = optax.chain(optax.trace(0.9), optax.scale(-1e-2))

    @jax.jit
    def step(carry, _):
        state, opt_state = carry
        slopes = jax.grad(lambda s: jnp.mean((q(*s, x) - net(teacher, x)) ** 2))(state)
        updates, opt_state = tx.update(slopes, opt_state)
        return (optax.apply_updates(state, updates), opt_state), None

    (state, _), _ = jax.lax.scan(step, (state, tx.init(state)), None, steps)
    return float(jnp.mean((q(*state, new) - net(teacher, new)) ** 2))


@pytest.mark.sampled(2)
@pytest.mark.slow
@pytest.mark.parametrize(("bits", "gain"), [(2, 0.5), (3, 0.97)])
def test_learned_steps_beat_those_that_are_fitted(bits, gain):
    grid = Integers(bits)
    fitted = Scheme(grid, grid, observers.minmax())
    for seed in range(3):
        assert train(schemes.lsq(bits), seed) < gain * train(fitted, seed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Scheme, NF4, learned=learned.lsq()), "only the ranges of integers are learned"),
        (partial(Scheme, activation=NF4, static=learned.lsq()), "only the ranges of integers are learned"),
        (partial(Scheme, fit=fits.mse(), learned=learned.lsq()), "either fitted or learned"),
        (partial(Scheme, static=learned.lsq(), zero_point=True), "needs an observed range"),
    ],
    ids=["weights", "activations", "fit", "zero point"],
)
def test_what_contradicts_itself(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("positive", [False, True])
def test_lsq_starts_where_a_fit_says(positive):
    x, grid = jnp.abs(normal(6, 5)), Integers(4, restricted=not positive)
    range_ = learned.lsq(positive, fits.absmax)
    state = range_.init(x, (1, 5), grid)
    np.testing.assert_allclose(state[0], np.abs(x).max(0) / (15 if positive else 7), rtol=1e-6)
    rounded = Rounding(grid, range_.affine(state, grid), clips=True).rounded(x)
    assert float(jnp.abs(rounded - x).max()) <= 0.501 * float(state.max())
