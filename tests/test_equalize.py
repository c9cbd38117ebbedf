"""Equalization: the same bits from channels of like size, in every function of the corpus."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxopt_compress.quantization import fake_quantize, post_training
from tests.corpus import CASES
from tests.products import normal

equalize = post_training.equalize
SPREAD = 2.0 ** np.random.default_rng(5).integers(-6, 7, 16)
X = normal(32, 8, seed=3)


def mlp(p, x, between=jax.nn.relu):
    return between(x @ p["up"] + p["bias"][None]) @ p["down"]


def spread(dtype=jnp.float32):
    """A net whose channels are of very different sizes, for no reason."""
    up, down = normal(8, 16) * SPREAD[None], normal(16, 4, seed=1) / SPREAD[:, None]
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), {"up": up, "bias": normal(16, seed=2) * SPREAD, "down": down})


def assert_same_bits(fn, one, other, *inputs):
    for a, b in zip(*(jax.tree.leaves(jax.jit(fn)(p, *inputs)) for p in (one, other)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_against_a_naive_loop():
    up, bias, down = (np.asarray(spread()[name], np.float64) for name in ("up", "bias", "down"))
    for _ in range(10):
        made, read = np.abs(up).max(0) / np.abs(up).max(), np.abs(down).max(1) / np.abs(down).max()
        for i in range(16):
            factor = 2.0 ** np.rint(np.log2(made[i] / read[i]) / 2)
            up[:, i], bias[i], down[i] = up[:, i] / factor, bias[i] / factor, down[i] * factor
    found = equalize(mlp, spread(), X)
    for name, wanted in (("up", up), ("bias", bias), ("down", down)):
        np.testing.assert_array_equal(found.params[name], wanted.astype(np.float32))
    assert (found.octaves["up[1]"] or 0) > 8
    assert "up[1]" in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_rounding_whole_tensors_loses_less(dtype):
    params, x = spread(dtype), X.astype(dtype)
    after = equalize(mlp, params, x).params
    assert_same_bits(mlp, params, after, x)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, params)
    rounding, wanted = fake_quantize(8, channel_axes=()), np.asarray(mlp(params, x), np.float32)
    lost = []
    for p in (params, after):
        kernels = {name: p[name] for name in ("up", "down")}
        rounded = rounding.apply(kernels, rounding.update(kernels, rounding.init(kernels), step=0))
        lost.append(np.square(np.asarray(mlp({**p, **rounded}, x), np.float32) - wanted).mean())
    assert lost[1] < lost[0] / 4


@pytest.mark.slow
@pytest.mark.sampled(32)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_function_keeps_its_bits(case):
    fn, params, inputs = case.make()
    try:
        found = equalize(fn, params, *inputs)
    except ValueError as error:
        assert "are empty" in str(error)  # noqa: PT017
        return
    numbers = lambda p: [x for x in jax.tree.leaves(fn(p, *inputs)) if not jnp.issubdtype(x.dtype, jax.dtypes.extended)]  # noqa: E731
    loose = any(getattr(leaf, "dtype", None) == jnp.float16 for leaf in jax.tree.leaves(params))
    for a, b in zip(*(jax.jit(numbers)(p) for p in (params, found.params)), strict=True):
        a, b = (np.asarray(x) for x in (a, b))
        if loose:
            np.testing.assert_allclose(a, b, rtol=0, atol=4 * np.finfo(np.float16).eps * np.abs(a).max())
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("between", "passes"),
    [
        (jax.nn.relu, True),
        (lambda h: jnp.maximum(h, 0.1 * h), True),
        (lambda h: jnp.abs(h), True),
        (jax.nn.gelu, False),
        (jnp.tanh, False),
        (lambda h: jnp.minimum(jax.nn.relu(h), 1e4), False),  # a bound that the example does not reach
    ],
    ids=["relu", "leaky", "abs", "gelu", "tanh", "bounded"],
)
def test_only_what_lets_a_factor_through(between, passes):
    fn = lambda p, x: mlp(p, x, between)  # noqa: E731
    found = equalize(fn, spread(), X)
    assert (found.octaves["up[1]"] is not None) == passes
    assert_same_bits(fn, spread(), found.params, X)


def normalized(p, x):
    h = (x @ p["up"] - p["mean"][None]) * jax.lax.rsqrt(p["var"] + 1e-5)[None] * p["scale"][None] + p["bias"][None]
    return jax.nn.relu(h) @ p["down"]


def test_a_normalization_takes_up_the_factor():
    sizes = {name: spread()[name] for name in ("up", "bias", "down")}
    params = {
        **sizes,
        "mean": normal(16, seed=4),
        "var": jnp.abs(normal(16, seed=5)),
        "scale": jnp.asarray(SPREAD, "f4"),
    }
    found = equalize(normalized, params, X)
    (octaves,) = [o for o in found.octaves.values() if o is not None]
    assert octaves > 8
    for name in ("up", "mean", "var"):
        np.testing.assert_array_equal(found.params[name], params[name])
    assert_same_bits(normalized, params, found.params, X)


def gated(p, x):
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def test_one_side_of_a_gate_takes_up_the_factor():
    params = {"gate": normal(8, 16, seed=6), "up": spread()["up"], "down": spread()["down"]}
    found = equalize(gated, params, X)
    np.testing.assert_array_equal(found.params["gate"], params["gate"])
    assert max(o for o in found.octaves.values() if o is not None) > 8
    assert_same_bits(gated, params, found.params, X)


def test_zero_channels_and_broken_numbers_stay():
    params = spread()
    params["up"] = params["up"].at[:, 3].set(0).at[0, 5].set(jnp.inf)
    params["down"] = params["down"].at[7].set(0)
    found = equalize(mlp, params, X).params
    for name in ("up", "bias"):
        np.testing.assert_array_equal(found[name][..., jnp.array([3, 5, 7])], params[name][..., jnp.array([3, 5, 7])])


def test_parameters_stay_where_they_lie():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), "model")))  # noqa: E731
    params = jax.tree.map(place, spread())
    found = equalize(mlp, params, X).params
    for name, wanted in equalize(mlp, spread(), X).params.items():
        np.testing.assert_array_equal(found[name], wanted)
        assert found[name].sharding.is_equivalent_to(params[name].sharding, wanted.ndim)


def test_a_change_would_be_found(monkeypatch):
    """The function is run once more with what is returned."""
    monkeypatch.setattr(importlib.import_module(equalize.__module__), "_exponents", lambda *_: np.full(16, 126))
    with pytest.raises(ValueError, match="must stay the same, and does not"):
        equalize(mlp, spread(), X, rounds=1)


def test_refusals():
    with pytest.raises(ValueError, match="`rounds` is at least 1; got 0"):
        equalize(mlp, spread(), X, rounds=0)
    with pytest.raises(ValueError, match="all outputs of this one are empty"):
        equalize(mlp, spread(), X[:0])
