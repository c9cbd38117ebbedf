"""Bases: the same function in other coordinates, and what SmoothQuant, AWQ and rotations gain in them."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Scheme, bases, convert, observers, quantize, schemes
from jaxopt_compress.quantization import post_training as pt
from tests.products import PRODUCTS, normal

KEY = jax.random.key(3)
TURNABLE = {
    name: case for name, case in PRODUCTS.items() if "g" not in case[1] and name[5:] not in ("grouped", "depthwise")
}
RNG = np.random.default_rng(0)
OUTLIERS = jnp.asarray(RNG.normal(size=(256, 48)) * np.where(np.arange(48) == 7, 60, 1), jnp.float32)
WEIGHT = jnp.asarray(RNG.normal(size=(48, 16)) / 7, jnp.float32)


def dense(p, x):
    return x @ p


def loss(found, wanted):
    return float(jnp.mean((found - wanted) ** 2) / jnp.mean(wanted**2))


@pytest.mark.sampled(8)
@pytest.mark.slow
@pytest.mark.parametrize("case", TURNABLE.values(), ids=TURNABLE)
@pytest.mark.parametrize("basis", [bases.diagonal(), bases.hadamard(KEY)], ids=["diagonal", "hadamard"])
def test_it_is_the_same_function(case, basis):
    """Weights of 8 bits alone: what is left is their rounding, whatever the basis; and it runs on stored codes."""
    fn, params, x = case
    q = quantize(fn, params, x, rules={"**": schemes.weight_only(8, basis=basis)})
    ranges = q.init()
    shape = jnp.shape(ranges["w"]["basis"])
    if basis.init((2,)).min() == 1:
        ranges["w"]["basis"] = jnp.exp(0.5 * normal(*shape, seed=4))
    wanted = fn(params, x)
    assert loss(q(params, ranges, x), wanted) < 5e-4
    int_fn, int_params = convert(q, params, ranges)
    np.testing.assert_allclose(int_fn(int_params, x), q(params, ranges, x), atol=1e-4 * float(jnp.abs(wanted).max()))
    assert int_params.floats == {}


@pytest.mark.sampled(2)
@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 6, 48, 64, 2048])
def test_rotations_are_orthogonal(size):
    basis = bases.hadamard(KEY)
    signs = basis.init((size,))
    matrix = basis.activation(jnp.eye(size), signs, (1,))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)
    np.testing.assert_allclose(basis.weight(matrix.T, signs, (0,)), basis.activation(matrix.T, signs, (0,)))
    power = size & -size
    np.testing.assert_allclose(np.abs(matrix[0, :power]), 1 / np.sqrt(power), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [Scheme(), schemes.static(observers.minmax())], ids=["dynamic", "static"])
def test_smoothquant_beats_rounding_with_an_outlier(scheme):
    """One input is 60 times as large as the others, as in large transformers: it takes all levels of the activation."""
    q = quantize(dense, WEIGHT, OUTLIERS, rules={"**": scheme})
    plain = q(WEIGHT, q.observe(WEIGHT, q.init(), OUTLIERS), OUTLIERS)
    q = quantize(dense, WEIGHT, OUTLIERS, rules={"**": replace(scheme, basis=bases.diagonal())})
    ranges = pt.smoothquant(q, WEIGHT, q.init(), [OUTLIERS])
    ranges = q.observe(WEIGHT, ranges, OUTLIERS)
    s = np.sqrt(np.abs(OUTLIERS).max(0)) / np.sqrt(np.abs(WEIGHT).max(1))
    np.testing.assert_allclose(ranges[""]["basis"], s, rtol=1e-4)
    found, wanted = jax.jit(q)(WEIGHT, ranges, OUTLIERS), dense(WEIGHT, OUTLIERS)
    # The outlier itself is exact either way; what is left is the error of all the others.
    others = wanted - OUTLIERS[:, 7:8] * WEIGHT[7:8]
    assert loss(found - wanted + others, others) < 0.2 * loss(plain - wanted + others, others)
    int_fn, int_params = convert(q, WEIGHT, ranges)
    np.testing.assert_array_equal(int_fn(int_params, OUTLIERS), found)


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [None, 16])
def test_awq_beats_rounding_and_goes_with_gptq(group_size):
    x = OUTLIERS
    plain = schemes.weight_only(3, group_size)
    scheme = replace(plain, basis=bases.diagonal())
    wanted, errors = dense(WEIGHT, x), {}
    for name, one, method in (
        ("nearest", plain, pt.nearest()),
        ("awq", scheme, pt.nearest()),
        ("awq + gptq", scheme, pt.gptq()),
    ):
        q = quantize(dense, WEIGHT, x, rules={"**": one})
        ranges = q.init() if one is plain else pt.awq(q, WEIGHT, q.init(), [x])
        found = pt.round_weights(q, WEIGHT, [x], method, ranges=ranges)
        int_fn, int_params = convert(q, WEIGHT, ranges, found.weights)
        errors[name] = loss(int_fn(int_params, x), wanted)
    assert errors["awq"] < 0.5 * errors["nearest"]
    assert errors["awq + gptq"] < errors["awq"]


@pytest.mark.slow
def test_codes_of_another_basis_are_refused():
    q = quantize(dense, WEIGHT, OUTLIERS, rules={"**": schemes.weight_only(4, basis=bases.diagonal())})
    found = pt.round_weights(q, WEIGHT, [OUTLIERS], pt.gptq())  # of ranges that were forgotten
    ranges = pt.awq(q, WEIGHT, q.init(), [OUTLIERS])
    with pytest.raises(ValueError, match="were chosen in another basis"):
        convert(q, WEIGHT, ranges, found.weights)
    convert(q, WEIGHT, q.init(), found.weights)


@pytest.mark.slow
def test_a_rotation_beats_rounding_to_four_bits():
    errors = []
    for basis in (None, bases.hadamard(KEY)):
        q = quantize(dense, WEIGHT, OUTLIERS, rules={"**": Scheme(Integers(4), Integers(4), basis=basis)})
        wanted = dense(WEIGHT, OUTLIERS)
        others = wanted - OUTLIERS[:, 7:8] * WEIGHT[7:8]
        errors.append(loss(q(WEIGHT, q.init(), OUTLIERS) - wanted + others, others))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.slow
def test_products_of_one_activation_are_divided_once():
    fn = lambda p, x: jnp.sum(x @ p["q"]) * (x @ p["k"])  # noqa: E731
    params: Any = {"q": normal(48, 8), "k": normal(48, 4, seed=1)}
    scheme = Scheme(static=observers.minmax(), basis=bases.diagonal())
    q = quantize(fn, params, OUTLIERS, rules={"**": scheme})
    ranges = q.observe(params, pt.smoothquant(q, params, q.init(), [OUTLIERS]), OUTLIERS)
    np.testing.assert_array_equal(ranges["q"]["basis"], ranges["k"]["basis"])
    assert len(convert(q, params, ranges)[1].ranges) == 1


@pytest.mark.slow
def test_convolutions_of_one_activation_with_different_windows():
    """As in a residual block: a shortcut with a window of 1 beside a convolution with one of 3."""
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = lambda w, x: jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=numbers)  # noqa: E731
    fn = lambda p, x: conv(p["main"], x) + conv(p["short"], x)  # noqa: E731
    params = {"main": normal(3, 3, 4, 5), "short": normal(1, 1, 4, 5, seed=1)}
    x = normal(8, 6, 6, 4) * jnp.array([1.0, 30, 1, 1]).reshape(1, 1, 1, 4)
    for scheme, method in ((Scheme(), pt.smoothquant), (schemes.weight_only(3), pt.awq)):
        plain = quantize(fn, params, x, rules={"**": scheme})
        q = quantize(fn, params, x, rules={"**": replace(scheme, basis=bases.diagonal())})
        ranges = method(q, params, q.init(), [x])
        np.testing.assert_array_equal(ranges["main"]["basis"], ranges["short"]["basis"])
        assert loss(q(params, ranges, x), fn(params, x)) < loss(plain(params, plain.init(), x), fn(params, x))


@pytest.mark.slow
def test_layers_of_a_scan_have_their_own():
    fn = lambda p, x: jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, p)[0]  # noqa: E731
    params = normal(3, 48, 48) / 5
    for scheme, method in ((Scheme(), pt.smoothquant), (schemes.weight_only(4, 16), pt.awq)):
        q = quantize(fn, params, OUTLIERS, rules={"**": replace(scheme, basis=bases.diagonal())})
        ranges = method(q, params, q.init(), [OUTLIERS])
        assert ranges[""]["basis"].shape == (3, 48)
        assert not np.allclose(ranges[""]["basis"][0], ranges[""]["basis"][1])
        assert loss(q(params, ranges, OUTLIERS), fn(params, OUTLIERS)) < 0.05


@pytest.mark.slow
def test_what_was_never_seen_keeps_its_scale():
    x = OUTLIERS.at[:, 3].set(0)
    w = WEIGHT.at[5].set(0)
    for scheme, method in ((Scheme(), pt.smoothquant), (schemes.weight_only(4), pt.awq)):
        q = quantize(dense, w, x, rules={"**": replace(scheme, basis=bases.diagonal())})
        ranges = method(q, w, q.init(), [x])
        assert np.isfinite(ranges[""]["basis"]).all()
        assert (np.asarray(ranges[""]["basis"]) > 0).all()


def test_what_is_refused():
    x = OUTLIERS
    q = quantize(dense, WEIGHT, x, rules={"**": Scheme()})
    for method in (pt.smoothquant, pt.awq):
        with pytest.raises(ValueError, match="no scheme has `basis=bases.diagonal"):
            method(q, WEIGHT, q.init(), [x])
    q = quantize(dense, WEIGHT, x, rules={"**": schemes.weight_only(4, basis=bases.hadamard(KEY))})
    for method in (pt.smoothquant, pt.awq):  # whose numbers would break a rotation
        with pytest.raises(ValueError, match="no scheme has `basis=bases.diagonal"):
            method(q, WEIGHT, q.init(), [x])
    scheme = Scheme(basis=bases.diagonal())
    fn, params, image = PRODUCTS["conv_grouped"]
    with pytest.raises(ValueError, match="a convolution in groups"):
        quantize(fn, params, image, rules={"**": scheme})
    q = quantize(dense, WEIGHT, x, rules={"**": scheme})
    with pytest.raises(ValueError, match="in another basis"):
        q.weights  # noqa: B018
    with pytest.raises(ValueError, match="`strength` is from 0 to 1"):
        pt.smoothquant(q, WEIGHT, q.init(), [x], 2)
    with pytest.raises(ValueError, match="`steps` is at least 1"):
        pt.awq(q, WEIGHT, q.init(), [x], 0)
    with pytest.raises(ValueError, match="there are no batches"):
        pt.awq(q, WEIGHT, q.init(), [])
    with pytest.raises(ValueError, match="in which `states` were not gathered"):
        pt.round_weights(q, WEIGHT, [], pt.gptq(), states={})
