"""Served functions: the numbers of the quantized function from stored codes, and no float copy of these anywhere."""

import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_compress as jc
from jaxopt_compress import grids
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Scheme, Served, convert, fits, learned, observers, quantize, schemes
from jaxopt_compress.quantization.serving import kernels
from tests.products import EVERY_PRODUCT, normal

WHOLE = Integers(8, restricted=False)
AFFINE = schemes.static(observers.minmax(), zero_point=True)
PLUS = Scheme(Integers(8), WHOLE, learned.lsq_plus(), learned=learned.lsq())
INTEGERS = {
    "dynamic": Scheme(),
    "static": schemes.static(observers.minmax()),
    "affine": AFFINE,
    "w4a8": Scheme(Integers(4)),
    "lsq": schemes.lsq(4),
    "lsq_plus": PLUS,
}
FLOATS = {
    "int8": schemes.weight_only(8),
    "int4": schemes.weight_only(4),
    "affine": schemes.weight_only(4),
    "nf4": schemes.weight_only(grids.NF4),
    "bfloat16": schemes.weight_only(8, compute=jnp.bfloat16),
    "groups": schemes.weight_only(4, group_size=3),
    "groups, bfloat16": schemes.weight_only(4, group_size=3, compute=jnp.bfloat16),
    "small floats": Scheme(grids.E4M3, grids.E4M3, compute=jnp.bfloat16),
    "zero points": Scheme(WHOLE, None, fit=fits.minmax),
}


def served(fn, params, *inputs, scheme, rules=None):
    q = quantize(fn, params, *inputs, rules=rules or {"**": scheme})
    ranges = q.observe(params, q.init(), *inputs)
    return jax.jit(q)(params, ranges, *inputs), *convert(q, params, ranges)


@pytest.mark.sampled(10)
@EVERY_PRODUCT
@pytest.mark.parametrize("scheme", INTEGERS.values(), ids=INTEGERS)
def test_integers_are_those_of_training_bit_for_bit(fn, params, x, scheme):
    wanted, int_fn, int_params = served(fn, params, x + 0.7, scheme=scheme)
    np.testing.assert_array_equal(int_fn(int_params, x + 0.7), wanted)
    assert int_fn(int_params, x).dtype == wanted.dtype
    assert "w" not in int_params.floats


@pytest.mark.sampled(14)
@pytest.mark.slow
@EVERY_PRODUCT
@pytest.mark.parametrize("scheme", FLOATS.values(), ids=FLOATS)
def test_other_weights_give_the_same_to_the_rounding_of_sums(fn, params, x, scheme):
    if "g" in params or (scheme.group_size and params["w"].ndim == 4 and x.ndim == 4 and x.shape[-1] == 4):
        pytest.skip("has no weight, or no such groups")
    wanted, int_fn, int_params = served(fn, params, x, scheme=scheme)
    np.testing.assert_allclose(int_fn(int_params, x), wanted, atol=1e-6 * float(jnp.abs(wanted).max()))
    assert int_params.floats == {}


def mlp(p, x):
    return jax.nn.relu(x @ p["up"]) @ p["down"] + p["bias"][None]


PARAMS = {"up": normal(6, 8), "down": normal(8, 3, seed=1), "bias": normal(3, seed=2)}


@pytest.mark.slow
@pytest.mark.parametrize("formula", ["bji,jio->bo", "bij,ijo->bo", "bij,jio->bo"])
def test_groups_of_sums_over_several_axes(formula):
    w = normal(3, 6, 5) if formula != "bij,ijo->bo" else normal(6, 6, 5)
    x = (
        normal(4, 3, 6)
        if formula == "bji,jio->bo"
        else normal(4, 6, 6)
        if formula == "bij,ijo->bo"
        else normal(4, 6, 3)
    )
    fn = lambda p, x: jnp.einsum(formula, x, p)  # noqa: E731
    wanted, int_fn, int_params = served(fn, w, x, scheme=schemes.weight_only(4, group_size=3))
    np.testing.assert_allclose(int_fn(int_params, x), wanted, atol=1e-5)


@pytest.mark.slow
def test_what_is_kept_is_what_is_read():
    q = quantize(mlp, PARAMS, normal(4, 6), rules={"**": Scheme(Integers(4))})
    int_fn, int_params = convert(q, PARAMS, q.init())
    assert set(int_params.floats) == {"bias"}
    up = int_params.weights["up"]["weight"]
    assert (up.data.dtype, up.data.shape, up.scale.shape) == (jnp.uint8, (1, 4, 6), (1, 8, 1))
    x = normal(9, 6, seed=4)  # any batch size
    np.testing.assert_array_equal(int_fn(int_params, x), jax.jit(q)(PARAMS, q.init(), x))


@pytest.mark.slow
def test_only_some_products():
    wanted, int_fn, int_params = served(mlp, PARAMS, normal(4, 6), scheme=None, rules={"up": Scheme()})
    assert set(int_params.floats) == {"bias", "down"}
    np.testing.assert_allclose(int_fn(int_params, normal(4, 6)), wanted, rtol=1e-6)


# Where weights are found


def layers(p, x):
    """Stacked layers, a branch, a loop that may not turn, a lookup, and a table used twice."""
    h = p["table"][x]
    h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["layers"])[0]
    h = jax.lax.cond(h.sum() > 1e9, lambda h: h @ p["rare"], lambda h: h @ p["often"], h)
    h = jax.lax.while_loop(lambda h: jnp.max(jnp.abs(h)) > 2, lambda h: 0.5 * jnp.tanh(h @ p["loop"]), h)
    return jax.checkpoint(lambda h: h @ p["table"].T)(h)


LAYERS = {
    "table": normal(11, 6),
    "layers": normal(3, 6, 6, seed=1),
    "rare": normal(6, 6, seed=2),
    "often": normal(6, 6, seed=3),
    "loop": normal(6, 6, seed=4),
}


@pytest.mark.slow
def test_scans_branches_loops_and_tables():
    wanted, int_fn, int_params = served(layers, LAYERS, jnp.arange(5), scheme=Scheme())
    np.testing.assert_allclose(int_fn(int_params, jnp.arange(5)), wanted, rtol=1e-6, atol=1e-6)
    assert int_params.floats == {}
    assert int_params.weights["layers"]["weight"].data.shape == (3, 1, 6, 6)
    for name in ("rare", "often", "loop"):  # whether or not an example came by
        decoded = np.asarray(int_params.weights[name]["weight"].decode())[0].T
        np.testing.assert_allclose(decoded, LAYERS[name], atol=0.02)


@pytest.mark.slow
def test_rows_out_of_range_are_filled_as_before():
    fn = lambda p, i: jnp.take(p, i, axis=0)  # noqa: E731
    wanted, int_fn, int_params = served(fn, normal(5, 4), jnp.array([1, 7, -1]), scheme=Scheme())
    np.testing.assert_array_equal(int_fn(int_params, jnp.array([1, 7, -1])), wanted)
    assert np.isnan(wanted[1]).all()


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3), use_bias=False)(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(5)(nn.relu(nn.Dense(16)(x.reshape(len(x), -1))))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [Scheme(), AFFINE], ids=["dynamic", "affine"])
def test_a_module_with_batch_norm(scheme, tmp_path):
    x = normal(32, 6, 6, 2)
    variables: Any = Net().init(jax.random.key(0), x)
    wanted, int_fn, int_params = served(Net().apply, variables, x, scheme=scheme)
    np.testing.assert_allclose(int_fn(int_params, x), wanted, atol=1e-5)
    assert not [path for path in int_params.floats if path.endswith("kernel")]
    jc.export.save(tmp_path / "served.jc", int_params._asdict())
    loaded = jc.export.load(tmp_path / "served.jc")
    again = Served(**loaded)
    np.testing.assert_array_equal(int_fn(again, x), int_fn(int_params, x))


@pytest.mark.slow
def test_query_key_and_value_are_rounded_once():
    fn = lambda p, x: x @ p["q"] + x @ p["k"] + x @ p["v"]  # noqa: E731
    params = {name: normal(6, 6, seed=i) for i, name in enumerate("qkv")}
    wanted, int_fn, int_params = served(fn, params, normal(4, 6), scheme=AFFINE)
    assert len(int_params.ranges) == 1
    np.testing.assert_array_equal(int_fn(int_params, normal(4, 6)), wanted)


# Leaves that are codes already


@pytest.mark.slow
def test_codes_are_kept():
    x = normal(4, 6)
    q = quantize(mlp, PARAMS, x, rules={"**": Scheme(Integers(4))})
    state = q.weights.init(PARAMS)
    stored: Any = q.weights.encode(PARAMS, state)
    int_fn, int_params = convert(q, stored, q.init())
    np.testing.assert_array_equal(int_fn(int_params, x), jax.jit(q)(PARAMS, q.init(), x))
    # Codes that no rounding would give, as GPTQ makes them.
    moved = jnp.clip(stored["up"].codes + 1, -7, 7).astype(jnp.int8)
    other = {**stored, "up": Quantized.of(moved, stored["up"].scale, stored["up"].grid)}
    int_params = convert(q, other, q.init())[1]
    np.testing.assert_array_equal(int_params.weights["up"]["weight"].codes[0].T, moved)


@pytest.mark.sampled(6)
@pytest.mark.slow
@EVERY_PRODUCT
def test_codes_are_kept_wherever_they_move(fn, params, x):
    if "g" in params:
        pytest.skip("has no weight")
    q = quantize(fn, params, x, rules={"**": AFFINE})
    ranges = q.observe(params, q.init(), x)
    stored = q.weights.encode(params, q.weights.init(params))
    int_fn, int_params = convert(q, stored, ranges)
    np.testing.assert_array_equal(int_fn(int_params, x), jax.jit(q)(params, ranges, x))


@pytest.mark.slow
def test_codes_that_a_product_cannot_take():
    x, scheme = normal(4, 6), Scheme(Integers(4))
    codes = jnp.ones((6, 8), jnp.int8)
    for fn, leaf, message in (
        (lambda p, x: x @ (2 * p), Quantized.of(codes, jnp.ones((1, 8)), Integers(4)), "computed with before"),
        (lambda p, x: x @ p, Quantized.of(codes, jnp.ones((1, 8))), "is stored on Integers.*the scheme of.*says"),
        (lambda p, x: x @ p, Quantized.of(codes, jnp.ones((2, 8)).at[0].set(2), Integers(4)), "scales of.*vary"),
    ):
        q = quantize(fn, normal(6, 8), x, rules={"**": scheme})
        with pytest.raises(ValueError, match=message):
            convert(q, leaf, q.init())


def test_a_forgotten_calibration_is_refused():
    q = quantize(mlp, PARAMS, normal(4, 6), rules={"**": AFFINE})
    with pytest.raises(ValueError, match="range of operand 0 of 'up' was never observed"):
        convert(q, PARAMS, q.init())


# What is compiled


@pytest.mark.sampled(3)
@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize(
    "scheme",
    [Scheme(), schemes.static(observers.minmax()), Scheme(Integers(4)), FLOATS["int8"], FLOATS["bfloat16"]],
    ids=["w8a8", "static", "w4a8", "w8", "w8 bfloat16"],
)
def test_no_whole_weight_is_unpacked(scheme, rows):
    """The weight has 2^22 entries, four blocks; nothing that is computed may have as many."""
    n = 2048
    w, x = normal(n, n) / 45, normal(rows, n)
    _, int_fn, int_params = served(lambda p, x: x @ p, w, x, scheme=scheme)
    compiled = jax.jit(int_fn).lower(int_params, x).compile()
    sizes = re.findall(r"= (\w+)\[([\d,]+)\]\S* (\S+?)\(", str(compiled.as_text()))
    large = {(dtype, op) for dtype, shape, op in sizes if np.prod([int(k) for k in shape.split(",")]) > n * n // 2}
    assert large <= {(dtype, op) for dtype in ("s8", "u8") for op in ("parameter", "bitcast", "get-tuple-element")}
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 3 * n * n


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(Integers(4)), FLOATS["bfloat16"]], ids=["w8a8", "w4a8", "w8"])
def test_a_weight_without_a_batch_is_multiplied_without_one(scheme):
    """XLA:CPU multiplies a batch of one in the way of batches, which takes 1.2 times as long."""
    _, int_fn, int_params = served(mlp, PARAMS, normal(16, 6), scheme=scheme)
    products = re.findall(r"dimension_numbers=(.*)", str(jax.make_jaxpr(int_fn)(int_params, normal(16, 6))))
    assert products and set(products) == {"(([1], [1]), ([], []))"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme",
    [Scheme(Integers(4)), FLOATS["int4"], FLOATS["groups"], schemes.weight_only(grids.NF4), Scheme(Integers(2), None)],
    ids=["w4a8", "int4", "groups", "nf4", "int2"],
)
def test_what_is_laid_out_for_a_tpu_runs_here_too(scheme, tmp_path):
    params, x = {"w": normal(6, 5)}, normal(4, 6)
    q = quantize(lambda p, x: x @ p["w"], params, x, rules={"**": scheme})
    int_fn, int_params = convert(q, params, q.init(), platform="tpu")
    assert int_params.weights["w"]["weight"].data.dtype in (jnp.int4, jnp.uint4)
    other_fn, other = convert(q, params, q.init(), platform="cpu")
    np.testing.assert_allclose(int_fn(int_params, x), other_fn(other, x), atol=1e-6)
    jc.export.save(tmp_path / "served.jc", int_params._asdict())
    again = Served(**jc.export.load(tmp_path / "served.jc"))
    np.testing.assert_allclose(int_fn(again, x), other_fn(other, x), atol=1e-6)
    for platform in ("cuda", "tpu"):
        assert jax.export.export(jax.jit(int_fn), platforms=[platform])(int_params, x).mlir_module_serialized


@pytest.mark.slow
def test_groups_are_multiplied_apart_elsewhere():
    """The way of GPUs and TPUs, run here: the same to the rounding of sums."""
    w = normal(2, 5, 12)
    weight = Quantized.of(jnp.clip(jnp.round(3 * w), -7, 7).astype(jnp.int8), jnp.exp(normal(2, 5, 4)), Integers(4))
    x = normal(2, 3, 12, seed=1)
    steps = lambda part: part.codes.astype(jnp.float32)  # noqa: E731
    wanted = np.einsum("bri,boi->bro", x, weight.decode())
    np.testing.assert_allclose(kernels._by_groups(x, weight, steps, jnp.float32), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_batches_on_eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = normal(16, 6)
    wanted, int_fn, int_params = served(mlp, PARAMS, x, scheme=AFFINE)
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(int_params, NamedSharding(mesh, PartitionSpec()))
    found = jax.block_until_ready(int_fn(whole, split))
    np.testing.assert_allclose(
        found, wanted, rtol=1e-6, atol=1e-6
    )  # the sums are equal; the bias may be fused with them


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("scheme", [Scheme(), AFFINE, FLOATS["int4"]], ids=["dynamic", "affine", "int4"])
def test_narrow_models(dtype, scheme):
    params = jax.tree.map(lambda w: w.astype(dtype), PARAMS)
    x = normal(4, 6, dtype=dtype)
    wanted, int_fn, int_params = served(mlp, params, x, scheme=scheme)
    found = int_fn(int_params, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(wanted, np.float32), atol=0.06)


def test_channels_of_zeros_and_empty_axes():
    for w, x in ((jnp.zeros((6, 5)), normal(4, 6)), (normal(6, 5), normal(0, 6)), (normal(0, 5), normal(4, 0))):
        wanted, int_fn, int_params = served(lambda p, x: x @ p, w, x, scheme=Scheme())
        np.testing.assert_array_equal(int_fn(int_params, x), wanted)


@pytest.mark.slow
def test_batched_over_inputs():
    wanted, int_fn, int_params = served(mlp, PARAMS, normal(4, 6), scheme=Scheme())
    rows = jax.vmap(partial(int_fn, int_params))(normal(4, 1, 6))
    np.testing.assert_array_equal(rows[:, 0], wanted)


def pooled(window, padding, relu_behind):
    """A net with a pool between its layers."""

    def fn(p, x):
        x = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x if relu_behind else nn.relu(x)
        x = nn.max_pool(x + p["b"].reshape(1, 1, 1, -1), window, window, padding)
        x = nn.relu(x) if relu_behind else x
        return x.reshape(x.shape[0], -1) @ p["head"]

    return fn


def pool_dtypes(fn, *args):
    text = str(jax.make_jaxpr(fn)(*args))
    return re.findall(r":(\w+)\[[\d,]*\] = reduce_(?:window_)?max", text)


@pytest.mark.sampled(8)
@pytest.mark.slow
@pytest.mark.parametrize("scheme", [INTEGERS[name] for name in ("static", "affine", "lsq", "lsq_plus")])
@pytest.mark.parametrize("relu_behind", [False, True])
@pytest.mark.parametrize(("window", "padding"), [((2, 2), "VALID"), ((3, 3), ((1, 1), (2, 1)))])
def test_pools_of_codes(scheme, relu_behind, window, padding):
    x = normal(3, 8, 8, 4, seed=1)
    fn = pooled(window, padding, relu_behind)
    rows = jax.eval_shape(lambda x: nn.max_pool(x, window, window, padding), x)
    params = {"w": normal(3, 3, 4, 4), "b": normal(4, seed=2), "head": normal(rows.size // 3, 5, seed=3)}
    q = quantize(fn, params, x, rules={"**": scheme})
    ranges = q.observe(params, q.init(), x)
    int_fn, int_params = convert(q, params, ranges)
    assert pool_dtypes(int_fn, int_params, x) == ["i8"]
    for inputs in (x, -2 * x):
        np.testing.assert_array_equal(int_fn(int_params, inputs), jax.jit(q)(params, ranges, inputs))


@pytest.mark.slow
def test_a_pool_of_padding_alone_is_the_lowest_code():
    fn, x = pooled((2, 2), ((2, 0), (0, 2)), False), normal(3, 4, 4, 4, seed=1)
    params = {"w": normal(3, 3, 4, 4), "b": normal(4, seed=2), "head": normal(36, 5, seed=3)}
    q = quantize(fn, params, x, rules={"**": schemes.static(observers.minmax())})
    ranges = jax.tree.map(lambda r: jnp.clip(r, -2.0, 2.0), q.observe(params, q.init(), x))
    int_fn, int_params = convert(q, params, ranges)
    assert pool_dtypes(int_fn, int_params, x) == ["i8"]
    np.testing.assert_array_equal(int_fn(int_params, x), jax.jit(q)(params, ranges, x))


def global_max(p, x):
    return jnp.max(x @ p["w"], axis=1) @ p["head"]


def two_readers(p, x):
    x = jnp.max(x @ p["w"], axis=1)
    return jnp.concatenate([x @ p["head"], x @ p["other"]], -1)


def also_returned(p, x):
    x = jnp.max(x @ p["w"], axis=1)
    return x @ p["head"], x


def cast(p, x):
    return jnp.max(x @ p["w"], axis=1).astype(jnp.bfloat16) @ p["head"].astype(jnp.bfloat16)


def shifted(p, x):
    return (jnp.max(x @ p["w"], axis=1) + 1) @ p["head"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fn", "rules", "dtype"),
    [
        (global_max, {"**": AFFINE}, "i8"),
        (two_readers, {"**": AFFINE}, "i8"),
        (two_readers, {"head": schemes.static(observers.minmax()), "**": AFFINE}, "f32"),  # two roundings
        (two_readers, {"other": None, "**": AFFINE}, "f32"),
        (also_returned, {"**": AFFINE}, "f32"),
        (shifted, {"**": AFFINE}, "f32"),
        (cast, {"**": AFFINE}, "f32"),  # rounds twice
        (global_max, {"**": Scheme()}, "f32"),  # a range for each row
        (global_max, {"**": Scheme(static=observers.minmax(), group_size=2)}, "f32"),  # multiplied as floats
        (global_max, {"**": Scheme(static=observers.minmax(), basis=jc.quantization.bases.diagonal())}, "f32"),
    ],
)
def test_what_works_on_codes(fn, rules, dtype):
    params = {"w": normal(4, 6), "head": normal(6, 5, seed=1), "other": normal(6, 5, seed=2)}
    x = normal(3, 7, 4, seed=3)
    wanted, int_fn, int_params = served(fn, params, x, scheme=None, rules=rules)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), int_fn(int_params, x), wanted)
    if dtype == "i8":
        np.testing.assert_array_equal(int_fn(int_params, x), wanted)
    found = pool_dtypes(int_fn, int_params, x)
    assert dtype in found and ("i8" in found) == (dtype == "i8")
