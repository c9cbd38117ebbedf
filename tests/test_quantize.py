"""Quantized functions: exact integers inside, the right gradient, every kind of product, rules and refusals."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxopt_compress as jc
from jaxopt_compress import graph, grids
from jaxopt_compress.grids import Integers
from jaxopt_compress.products import Conv, Dot, product
from jaxopt_compress.quantization import Scheme, fits, observers, quantize, schemes
from jaxopt_compress.quantization.rounded import accumulate
from tests.products import EVERY_PRODUCT, PRODUCTS, normal

WHOLE = Integers(8, restricted=False)
STATIC = schemes.static(observers.minmax())
AFFINE = schemes.static(observers.minmax(), zero_point=True)


def codes(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def site_of(fn, params, x):
    (site,) = graph.sites(fn, params, x)
    return site


@pytest.mark.sampled(4)
@EVERY_PRODUCT
@pytest.mark.parametrize("zero", [False, True])
def test_sums_are_exact_integers(fn, params, x, zero):
    """The reference is the function itself on integers in float64, where they are exact."""
    site = site_of(fn, params, x)
    how = product(site)
    a, b = (codes(*shape, seed=side) for side, shape in enumerate(site.shapes))
    zeros: list[Any] = [np.full((1,) * codes.ndim, number, np.int8) for codes, number in ((a, 17), (b, -3))]
    zeros = zeros if zero else [None, None]
    if zero and isinstance(how, Conv):
        zeros[1] = None
    found = jax.jit(partial(accumulate, how))(a, b, *zeros)
    assert found.dtype == jnp.int32
    shift = [np.float64(0) if z is None else z.astype(np.float64) for z in zeros]
    with jax.enable_x64():
        values = [jnp.asarray(codes.astype(np.float64) - s) for codes, s in zip((a, b), shift)]
        wanted = np.asarray(how(values[0], values[1], jnp.float64))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
@pytest.mark.sampled(16)
@EVERY_PRODUCT
@pytest.mark.parametrize("scheme", [Scheme(), STATIC, AFFINE], ids=["dynamic", "static", "affine"])
def test_integers_and_floats_give_the_same(fn, params, x, scheme):
    """One rounding, two ways to multiply: the same numbers to the rounding of float32, nearly those of the function."""
    x = x + 0.7
    whole = quantize(fn, params, x, rules={"**": scheme})
    floats = quantize(fn, params, x, rules={"**": scheme}, integers=False)
    ranges = whole.observe(params, whole.init(), x)
    one, other = jax.jit(whole)(params, ranges, x), jax.jit(floats)(params, ranges, x)
    exact = fn(params, x)
    assert one.dtype == exact.dtype
    scale = float(jnp.abs(exact).max())
    np.testing.assert_allclose(one, other, atol=3e-6 * scale)
    assert float(jnp.abs(one - exact).max()) < 0.03 * scale
    assert float(jnp.abs(one - exact).max()) > 1e-5 * scale  # something was rounded
    assert np.asarray(whole(params, ranges, x)).tobytes() == np.asarray(one).tobytes()  # eager == jit


@pytest.mark.sampled(8)
@pytest.mark.slow
@EVERY_PRODUCT
@pytest.mark.parametrize("scheme", [Scheme(), AFFINE], ids=["dynamic", "affine"])
def test_the_gradient_of_integers_is_that_of_rounded_floats(fn, params, x, scheme):
    slopes = []
    for integers in (True, False):
        q = quantize(fn, params, x, rules={"**": scheme}, integers=integers)
        ranges = q.observe(params, q.init(), x)
        ranges = jax.tree.map(lambda edge: 0.6 * edge, ranges)  # so that some activations are clipped
        loss = lambda p, x, q=q, ranges=ranges: jnp.sum(jnp.sin(q(p, ranges, x)))  # noqa: E731
        slopes.append(jax.jit(jax.grad(loss, (0, 1)))(params, x))
    for mine, wanted in zip(jax.tree.leaves(slopes[0]), jax.tree.leaves(slopes[1]), strict=True):
        assert mine.dtype == wanted.dtype
        np.testing.assert_allclose(mine, wanted, atol=0.02 * float(jnp.abs(wanted).max()))  # bfloat16 inside
    if scheme is AFFINE:
        at = np.asarray(slopes[0][1])
        assert (at == 0).any()
        assert (at != 0).any()


def naive_int8_dense(x, w):
    """Quantize and multiply in plain NumPy, row by row and channel by channel."""
    out = np.zeros((len(x), w.shape[1]), np.float32)
    column = [np.abs(w[:, j]).max() * np.float32(1 / 127) for j in range(w.shape[1])]
    for i, row in enumerate(x):
        scale = np.abs(row).max() * np.float32(1 / 127)
        left = np.rint(row * (np.float32(1) / scale)).astype(np.int64)
        for j, other in enumerate(column):
            right = np.rint(w[:, j] * (np.float32(1) / other)).astype(np.int64)
            out[i, j] = np.float32(left @ right) * (scale * other)
    return out


@pytest.mark.slow
def test_a_dense_layer_against_plain_numpy_bit_for_bit():
    x, w = np.asarray(normal(5, 33)), np.asarray(normal(33, 7, seed=1))
    q = quantize(lambda p, x: x @ p, w, x, rules={"**": Scheme()})
    np.testing.assert_array_equal(q(w, q.init(), x), naive_int8_dense(x, w))


@pytest.mark.slow
def test_a_static_affine_dense_layer_against_plain_numpy_bit_for_bit():
    x, w = np.abs(np.asarray(normal(5, 33))) - np.float32(0.2), np.asarray(normal(33, 7, seed=1))
    q = quantize(lambda p, x: x @ p, w, x, rules={"**": AFFINE})
    found = q(w, q.observe(w, q.init(), x), x)
    scale = (x.max() - x.min()) * np.float32(1 / 255)
    zero = int(-128 - np.rint(x.min() * (np.float32(1) / scale)))
    left = np.clip(np.rint(x * (np.float32(1) / scale)) + zero, -128, 127).astype(np.int64) - zero
    columns = np.abs(w).max(axis=0) * np.float32(1 / 127)
    right = np.rint(w * (np.float32(1) / columns)).astype(np.int64)
    np.testing.assert_array_equal(found, (left @ right).astype(np.float32) * (scale * columns))


# What is stored

SOME = Scheme(Integers(4), None, fit=fits.mse())


@pytest.mark.sampled(8)
@pytest.mark.slow
@EVERY_PRODUCT
@pytest.mark.parametrize(
    "scheme", [schemes.weight_only(4), SOME, schemes.weight_only(4, group_size=3)], ids=["int4", "mse", "groups"]
)
def test_what_is_stored_is_what_products_see(fn, params, x, scheme):
    if "g" in params or (scheme.group_size and params["w"].shape in ((3, 3, 4, 5), (3, 3, 1, 8), (3, 3, 2, 6))):
        pytest.skip("no weight, or groups that do not divide")
    q = quantize(fn, params, x, rules={"**": scheme})
    state = q.weights.init(params)
    decoded = jc.decode(q.weights.encode(params, state))
    np.testing.assert_array_equal(decoded["w"], q.weights.apply(params, state)["w"])
    assert (np.asarray(decoded["w"]) != np.asarray(params["w"])).any()
    wanted = q(params, q.init(), x)
    if scheme is SOME:  # its sums may run in another order
        np.testing.assert_allclose(fn(decoded, x), wanted, atol=1e-6 * float(jnp.abs(wanted).max()))
    else:
        np.testing.assert_array_equal(fn(decoded, x), wanted)


@pytest.mark.slow
def test_weights_that_outgrow_their_scales_are_clipped_and_do_not_learn():
    fn, params, x = PRODUCTS["dense"]
    t = quantize(fn, params, x, rules={"**": schemes.weight_only(4)}).weights
    state, grown = t.init(params), {"w": 2 * params["w"]}
    slope = np.asarray(jax.grad(lambda p: jnp.sum(t.apply(p, state)["w"]))(grown)["w"])
    clipped = np.abs(np.rint(np.asarray(grown["w"]) / np.asarray(state["w"].scale))) > 7
    assert clipped.any()
    np.testing.assert_array_equal(slope, ~clipped)


@pytest.mark.slow
def test_models_of_float64():
    with jax.enable_x64():
        x, w = (jnp.asarray(np.random.default_rng(i).normal(size=s)) for i, s in enumerate(((4, 6), (6, 5))))
        q = quantize(lambda p, x: x @ p, w, x, rules={"**": Scheme()})
        value, slope = jax.value_and_grad(lambda w: jnp.sum(q(w, q.init(), x) ** 2))(w)
        assert (value.dtype, slope.dtype) == (jnp.float64, jnp.float64)
        assert float(jnp.abs(q(w, q.init(), x) - x @ w).max()) < 0.1


@pytest.mark.slow
def test_weights_of_layers_in_a_scan_tied_tables_and_casts():
    def fn(p, ids):
        layer = lambda h, w: (jnp.tanh(h @ w.astype(h.dtype)), None)  # noqa: E731
        h = jax.lax.scan(layer, p["table"][ids].astype(jnp.bfloat16), p["layers"])[0]
        return h.astype(jnp.float32) @ p["table"].T

    params, ids = {"table": normal(11, 6), "layers": normal(3, 6, 6, seed=1)}, jnp.arange(5)
    q = quantize(fn, params, ids, rules={"**": schemes.weight_only(4)})
    state = q.weights.init(params)
    assert (state["table"].scale.shape, state["layers"].scale.shape) == ((11, 1), (3, 1, 6))
    seen = fn(jc.decode(q.weights.encode(params, state)), ids)
    np.testing.assert_allclose(seen, q(params, q.init(), ids), rtol=1e-5, atol=1e-5)


def test_weights_chain_with_pruning_and_are_saved(tmp_path):
    fn, _, x = PRODUCTS["dense"]
    params = {"w": normal(6, 5, seed=7)}
    q = quantize(fn, params, x, rules={"**": schemes.weight_only(4)})
    t = jc.chain(jc.pruning.prune(jc.pruning.magnitude, 0.5), q.weights)
    state = t.update(params, t.init(params), step=0)
    jc.export.save(tmp_path / "model.jc", t.encode(params, state))
    loaded = jc.decode(jc.export.load(tmp_path / "model.jc"))
    np.testing.assert_array_equal(loaded["w"], t.apply(params, state)["w"])
    assert (np.asarray(loaded["w"]) == 0).sum() >= 15
    np.testing.assert_allclose(fn(loaded, x), q(t.apply(params, state), q.init(), x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fn", "scheme", "message"),
    [
        (lambda p, x: x @ (2 * p["w"]), schemes.weight_only(4), "'w' is computed with before its product"),
        (lambda p, x: (x @ p["w"]) @ p["w"].T, schemes.weight_only(4), "'w' has several products, which round it diff"),
        (lambda p, x: x[:, :3] @ p["w"].reshape(3, 10), schemes.weight_only(4), "axis 0 of 'w' is partly summed over"),
    ],
    ids=["computed", "both ways", "cut"],
)
def test_weights_that_cannot_be_stored(fn, scheme, message):
    q = quantize(fn, {"w": normal(6, 5)}, normal(4, 6), rules={"**": scheme})
    assert np.isfinite(q({"w": normal(6, 5)}, q.init(), normal(4, 6))).all()  # but they can be trained
    with pytest.raises(ValueError, match=message):
        _ = q.weights


# Models


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Dense(16)(x.reshape(len(x), -1)))
        return nn.Dense(5)(x)


@pytest.mark.slow
def test_linen_any_batch_size_and_training():
    net, x = Net(), normal(4, 6, 6, 2)
    params: Any = net.init(jax.random.key(0), x)
    q = quantize(net.apply, params, x, rules={"**/Dense_1/kernel": schemes.dynamic(4), "**": STATIC})
    assert set(q.schemes) == {f"params/{name}/kernel" for name in ("Conv_0", "Dense_0", "Dense_1")}
    ranges = q.init()
    for seed in range(3):
        ranges = jax.jit(q.observe)(params, ranges, normal(7, 6, 6, 2, seed=seed))
    label = jnp.arange(32) % 5
    big = normal(32, 6, 6, 2, seed=9)

    @jax.jit
    def step(params):
        def loss(params):
            logits = q(params, ranges, big)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1))

        value, slopes = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda w, g: w - 0.3 * g, params, slopes)

    losses = []
    for _ in range(60):
        value, params = step(params)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow
def test_nnx():
    model = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    definition, params = nnx.split(model)
    fn = lambda params, x: nnx.merge(definition, params)(x)  # noqa: E731
    q = quantize(fn, params, normal(4, 6), rules={"kernel*": Scheme()})
    x = normal(4, 6, seed=3)
    assert float(jnp.abs(q(params, q.init(), x) - fn(params, x)).max()) < 0.05


def test_tied_tables_have_one_scale_a_row():
    table = normal(11, 6)
    fn = lambda p, ids: p[ids] @ p.T  # noqa: E731
    q = quantize(fn, table, jnp.arange(4), rules={"**": schemes.weight_only(4)})
    rounded = np.asarray(table)
    scale = np.abs(rounded).max(axis=1, keepdims=True) * np.float32(1 / 7)
    rounded = np.rint(rounded * (1 / scale)) * scale
    np.testing.assert_allclose(q(table, q.init(), jnp.arange(4)), rounded[:4] @ rounded.T, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_models_stay_narrow(dtype):
    x, w = normal(4, 64, dtype=dtype), normal(64, 8, seed=1, dtype=dtype)
    q = quantize(lambda p, x: x @ p, w, x, rules={"**": Scheme()})
    value, slope = jax.value_and_grad(lambda w: jnp.sum(q(w, q.init(), x).astype(jnp.float32) ** 2))(w)
    assert (q(w, q.init(), x).dtype, slope.dtype) == (dtype, dtype)
    assert np.isfinite(float(value))
    wide = np.asarray(x, np.float32) @ np.asarray(w, np.float32)
    np.testing.assert_allclose(np.asarray(q(w, q.init(), x), np.float32), wide, atol=0.4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "bound"),
    [(grids.NF4, 0.12), (grids.E4M3, 0.04), (grids.E2M1, 0.2), (grids.BINARY, 0.9), (Integers(2), 0.7)],
    ids=["nf4", "e4m3", "e2m1", "binary", "ternary"],
)
def test_weights_on_any_grid(grid, bound):
    x, w = normal(16, 64), normal(64, 8, seed=1)
    fit = fits.mean_absolute if grid is grids.BINARY else fits.mse() if grid == Integers(2) else fits.absmax
    q = quantize(lambda p, x: x @ p, w, x, rules={"**": Scheme(grid, None, group_size=32, fit=fit)})
    error = jnp.linalg.norm(q(w, q.init(), x) - x @ w) / jnp.linalg.norm(x @ w)
    assert 0 < float(error) < bound


def test_pruned_weights_stay_out():
    w = normal(6, 5).at[:, 2].set(0).at[1].set(0)
    q = quantize(lambda p, x: x @ p, w, normal(4, 6), rules={"**": Scheme()})
    x = normal(4, 6, seed=2).at[:, 1].set(1e3)
    found = np.asarray(q(w, q.init(), x))
    assert not found[:, 2].any()


def test_zero_inputs_nan_and_empty_batches():
    w, x = normal(6, 5), normal(4, 6)
    q = quantize(lambda p, x: x @ p, w, x, rules={"**": Scheme()})
    assert not np.asarray(q(w, q.init(), jnp.zeros((4, 6)))).any()
    assert q(w, q.init(), jnp.zeros((0, 6))).shape == (0, 5)
    spoilt = np.asarray(q(w, q.init(), x.at[1, 2].set(jnp.nan)))
    assert np.isnan(spoilt[1]).all()
    np.testing.assert_array_equal(spoilt[[0, 2, 3]], np.asarray(q(w, q.init(), x))[[0, 2, 3]])
    uncalibrated = quantize(lambda p, x: x @ p, w, x, rules={"**": STATIC})
    assert np.isnan(uncalibrated(w, uncalibrated.init(), x)).all()


# Rules


def two_layers(p, x):
    return jnp.einsum("bo,co->bc", x @ p["a"]["kernel"], x @ p["b"]["kernel"])


TWO = {"a": {"kernel": normal(6, 5)}, "b": {"kernel": normal(6, 5)}}


def schemes_of(**rules):
    return quantize(two_layers, TWO, normal(4, 6), **rules).schemes


def test_the_first_rule_that_matches_counts():
    four, eight = schemes.dynamic(4), schemes.dynamic(8)
    assert schemes_of(rules={"a/*": four, "**": eight}) == {
        "a/kernel": four,
        "b/kernel": eight,
        "dot_general[0]": eight,
    }
    assert schemes_of(rules={"a": None, "**/kernel": eight}) == {"b/kernel": eight}
    of_two = lambda site: site.weight is None  # noqa: E731
    assert schemes_of(rules={of_two: four}) == {"dot_general[0]": four}


def test_the_table_says_what_is_rounded_and_what_is_not():
    text = str(quantize(two_layers, TWO, normal(4, 6), rules={"a/**": schemes.dynamic(4)}))
    (first,) = [line for line in text.splitlines() if "a/kernel" in line]
    (second,) = [line for line in text.splitlines() if "b/kernel" in line]
    assert "int4" in first and "int8" in first and "per token" in first  # noqa: PT018
    assert second.count("float") == 2
    assert "test_quantize.py" in first


@jax.custom_vjp
def own(w, x):
    return x @ w


own.defvjp(lambda w, x: (own(w, x), (w, x)), lambda kept, g: (kept[1].T @ g, g @ kept[0].T))


@pytest.mark.parametrize(
    ("fn", "rules", "message"),
    [
        (two_layers, {"c/**": Scheme()}, r"the rule 'c/\*\*' matches none of the sites \['a/kernel', 'b/kern"),
        (two_layers, {"**": Scheme(group_size=4)}, "'a/kernel' sums over 6 entries, not a multiple of group_size=4"),
        (lambda p, x: own(p["a"]["kernel"], x), {"**": Scheme()}, "'a/kernel' stands in a function with a derivative"),
        (lambda p, x: p["a"]["kernel"][x.astype(int)[:, 0]], {"**": Scheme(None)}, "is a lookup in a table"),
        (lambda p, x: (x * 1j) @ p["a"]["kernel"].astype(complex), {"**": Scheme()}, "does not multiply real"),
    ],
    ids=["no match", "groups", "custom", "lookup", "complex"],
)  # fmt: skip
def test_refusals(fn, rules, message):
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message):
        q = quantize(fn, TWO, normal(4, 6), rules=rules)
        q(TWO, q.init(), normal(4, 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scheme(None, None), "neither weights nor activations"),
        (lambda: Scheme(zero_point=True), "a zero point needs an observed range"),
        (lambda: Scheme(activation=None, static=observers.minmax()), "a static range is one of activations"),
    ],
)
def test_schemes_that_contradict_themselves(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dot_and_conv_are_told_apart():
    assert isinstance(product(site_of(*PRODUCTS["dense"])), Dot)
    assert isinstance(product(site_of(*PRODUCTS["conv"])), Conv)
