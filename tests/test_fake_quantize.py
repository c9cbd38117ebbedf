"""Rounding of weights: a naive reference, its bounds, its gradient, and the right axis for real Flax layers."""

from functools import cache
from typing import Any, cast

import flax.linen as nn
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import jaxopt_compress as jc
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Affine, fake_quantize, numerics

BITS = pytest.mark.parametrize("bits", range(2, 9))
DTYPES = {"f32": np.float32, "bf16": jnp.bfloat16, "f16": np.float16}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def naive(w: np.ndarray, bits: int, channel_axes: tuple[int, ...]):
    """Round one channel after another, in float32 as the library promises, half to even."""
    top, wide = 2 ** (bits - 1) - 1, np.asarray(w, np.float32)
    kept = [axis % w.ndim for axis in channel_axes]
    codes, scales = (
        np.zeros(w.shape, np.int8),
        np.ones([n if i in kept else 1 for i, n in enumerate(w.shape)], np.float32),
    )
    for at in np.ndindex(scales.shape):
        channel = tuple(slice(i, i + 1) if axis in kept else slice(None) for axis, i in enumerate(at))
        scale = np.abs(wide[channel]).max(initial=0) * np.float32(1 / top)
        scales[at] = scale if scale >= np.finfo(np.float32).tiny else 1
        codes[channel] = np.clip(np.rint(wide[channel] * (np.float32(1) / scales[at])), -top, top)
    return codes, scales, (codes.astype(np.float32) * scales).astype(w.dtype)


def quantized(w, bits=8, axes: Any = -1) -> jc.Quantized:
    t = fake_quantize(bits, channel_axes=axes)
    return cast(Any, t.encode({"w": w}, t.init({"w": w})))["w"]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((9, 5), (-1,)), ((9, 5), (0,)), ((9, 5), ()), ((3, 2, 4, 5), (-1,)), ((4, 3, 5), (-2, -1))],
    ids=str,
)
def test_against_a_naive_loop(shape, axes, dtype, bits):
    w = np.asarray(normal(*shape)).astype(dtype)
    codes, scales, values = naive(w, bits, axes)
    stored = quantized(jnp.asarray(w), bits, axes)
    np.testing.assert_array_equal(stored.codes, codes)
    np.testing.assert_array_equal(stored.scale, scales)
    np.testing.assert_array_equal(stored.decode(), values)
    assert (stored.bits, stored.dtype, stored.scale.dtype) == (bits, np.dtype(dtype).name, np.float32)


@pytest.mark.slow
@BITS
def test_halves_go_to_the_even_code(bits):
    top = 2 ** (bits - 1) - 1
    halves = np.arange(-top, top + 0.5, 0.5).astype(np.float32)
    np.testing.assert_array_equal(quantized(jnp.asarray(halves), bits, ()).codes, np.rint(halves))


ANY = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@given(hnp.arrays(np.float32, (6, 3), elements=ANY), st.integers(2, 8))
def test_no_weight_moves_by_more_than_half_a_step(w, bits):
    stored = quantized(jnp.asarray(w), bits)
    half = np.asarray(stored.scale, np.float64) / 2
    error = np.abs(w.astype(np.float64) - np.asarray(stored.decode(), np.float64))
    assert np.all(error <= half * (1 + 2 ** (bits - 22)) + 2**-126)  # a code is at most 2^(bits-1) products wide
    assert np.abs(stored.codes).max() <= 2 ** (bits - 1) - 1
    assert not np.asarray(stored.codes)[w == 0].any()


@given(hnp.arrays(np.float32, (6, 3), elements=ANY), st.integers(2, 8))
def test_rounding_again_changes_nothing_and_signs_are_symmetric(w, bits):
    stored = quantized(jnp.asarray(w), bits)
    again = np.asarray(numerics.codes(stored.decode(), Affine(stored.scale), Integers(bits)))
    np.testing.assert_array_equal(again, stored.codes)
    np.testing.assert_array_equal(quantized(jnp.asarray(-w), bits).codes, -np.asarray(stored.codes))


def test_odd_channels():
    rows = [[0.0, 0.0, -0.0], [1e-45, -1e-40, 0.0], [1e-37, 0.0, 0.0], [3.4e38, -1.7e38, 1.0]]
    stored = quantized(jnp.array(rows, jnp.float32), 8, 0)
    scale, codes = np.asarray(stored.scale)[:, 0], np.asarray(stored.codes)
    assert scale[:3].tolist() == [1, 1, 1]  # nothing to scale by
    assert not codes[:3].any()
    assert codes[3].tolist() == [127, -64, 0]  # -63.5 and a bit
    assert np.isfinite(stored.decode()).all()


def test_one_bad_channel_does_not_spoil_the_others():
    w = normal(8, 4)
    clean = quantized(w)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        stored = quantized(w.at[3, 1].set(bad))
        for channel in (0, 2, 3):
            np.testing.assert_array_equal(stored.codes[:, channel], clean.codes[:, channel])
            np.testing.assert_array_equal(stored.decode()[:, channel], clean.decode()[:, channel])


@pytest.mark.slow
def test_pruned_nan_never_reaches_the_scale():
    w = normal(8, 4).at[3, 1].set(jnp.nan)
    t = jc.chain(jc.pruning.prune(jc.pruning.magnitude, 0.25), fake_quantize(8))
    state = t.update({"w": w}, t.init({"w": w}), step=0)
    assert np.isfinite(t.apply({"w": w}, state)["w"]).all()
    assert np.isfinite(state[1]["w"].scale).all()


@pytest.mark.slow
@BITS
def test_the_gradient_is_one_in_range_and_zero_where_clipped(bits):
    t = fake_quantize(bits)
    params = {"w": normal(16, 4)}
    fresh = t.init(params)
    stale = {
        "w": fresh["w"]._replace(scale=fresh["w"].scale / 2)
    }  # the weights have grown since the scales were fitted

    def slope(state):
        return jax.jit(jax.grad(lambda p: jnp.sum(t.apply(p, state)["w"])))(params)["w"]

    assert (slope(fresh) == 1).all()
    top = 2 ** (bits - 1) - 1
    clipped = np.abs(np.rint(np.asarray(params["w"]) * (1 / np.asarray(stale["w"].scale)))) > top
    assert clipped.any()
    np.testing.assert_array_equal(slope(stale), ~clipped)
    at_edge = np.asarray(t.apply(params, stale)["w"])[clipped]
    np.testing.assert_array_equal(np.abs(at_edge), np.broadcast_to(stale["w"].scale * top, (16, 4))[clipped])


def test_update_fits_the_scales_anew():
    t = fake_quantize(8)
    params = {"w": normal(8, 4)}
    doubled = {"w": params["w"] * 2}
    state = t.update(doubled, t.init(params), step=0)
    np.testing.assert_array_equal(state["w"].scale, t.init(params)["w"].scale * 2)


# The right axis for the layers of Flax: (module, shape of its input, path, channel axes, a wrong choice).


def attention():
    return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8, out_features=6)


CHANNELS = {
    "dense": (nn.Dense(5), (4, 6), "kernel", (-1,), (0,)),
    "conv": (nn.Conv(5, (3, 3)), (2, 6, 6, 4), "kernel", (-1,), (-2,)),
    "conv_grouped": (nn.Conv(6, (3,), feature_group_count=2), (2, 7, 4), "kernel", (-1,), (-2,)),
    "conv_depthwise": (nn.Conv(8, (3,), feature_group_count=4), (2, 7, 4), "kernel", (-1,), (-2,)),
    "conv_transpose": (nn.ConvTranspose(5, (3, 3)), (2, 4, 4, 3), "kernel", (-1,), (-2,)),
    "conv_transpose_kernel": (nn.ConvTranspose(5, (3, 3), transpose_kernel=True), (2, 4, 4, 3), "kernel", (-2,), (-1,)),
    "dense_general": (nn.DenseGeneral((2, 5)), (4, 6), "kernel", (-2, -1), (0,)),
    "dense_general_in": (nn.DenseGeneral(5, axis=(-2, -1)), (4, 2, 3), "kernel", (-1,), (0,)),
    "query": (attention(), (3, 4, 6), "query/kernel", (-2, -1), (0,)),
    "value": (attention(), (3, 4, 6), "value/kernel", (-2, -1), (0,)),
    "out": (attention(), (3, 4, 6), "out/kernel", (-1,), (0, 1)),
    "embed": (nn.Embed(7, 4), None, "embedding", (0,), (-1,)),
}
OUTPUT_CHANNELS = {"embed": {0}, "dense_general": {1, 2}, "query": set(), "value": set()}  # the last axis of the others


@cache
def layer(name):
    """Return the module, its input, its parameters, and where one output channel of the kernel stands."""
    module, shape, path, axes, _ = CHANNELS[name]
    x = jnp.arange(7) if shape is None else normal(*shape, seed=1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: normal(*leaf.shape), shapes)
    loud = np.zeros(jc.tree.leaves(params)[path].shape, bool)
    loud[tuple(1 if i - loud.ndim in axes or i in axes else slice(None) for i in range(loud.ndim))] = True
    return module, x, params, loud


@pytest.mark.sampled(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", CHANNELS)
def test_channels_do_not_disturb_each_other(name):
    _, _, params, loud = layer(name)
    _, _, path, *choices = CHANNELS[name]
    kernel = jc.tree.leaves(params)[path]

    @jax.jit
    def codes_of(kernels):
        return [[quantized(w, 8, axes).codes for w in kernels] for axes in choices]

    right, wrong = codes_of([kernel, jnp.where(loud, kernel * 1000, kernel)])
    np.testing.assert_array_equal(*right)  # 1000 times the scale, the same codes
    assert np.abs(right[0][loud]).max() == 127
    assert np.mean(wrong[0][~loud] != wrong[1][~loud]) > 0.5


@pytest.mark.sampled(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CHANNELS if OUTPUT_CHANNELS.get(name) != set()])
def test_every_output_channel_keeps_its_precision(name):
    module, x, params, loud = layer(name)
    _, _, path, axes, wrong = CHANNELS[name]
    kernel = jc.tree.leaves(params)[path]
    params = jc.tree.replace(params, {path: jnp.where(loud, kernel * 1000, kernel)})
    forward = jax.jit(lambda p: module.apply({"params": p}, x))
    exact = np.asarray(forward(params))
    channels = OUTPUT_CHANNELS.get(name, {exact.ndim - 1})
    others = tuple(axis for axis in range(exact.ndim) if axis not in channels)

    def worst(axes):
        """Return the largest relative error of an output channel."""
        t = jc.select(path, fake_quantize(8, channel_axes=axes))
        error = np.asarray(forward(t.apply(params, t.init(params)))) - exact
        return np.sqrt(np.max((error**2).sum(others) / (exact**2).sum(others)))

    assert worst(axes) < 0.02
    assert worst(wrong) > 5 * worst(axes)
    assert worst(()) > 5 * worst(axes)


# Refusals


@pytest.mark.parametrize(
    ("bits", "axes", "w", "message"),
    [
        (
            8,
            -1,
            normal(5),
            "`fake_quantize`: 'a/bias' of shape (5,) has no axis left to share a scale over when "
            "channel_axes=(-1,); exclude it with `select`, or pass channel_axes=().",
        ),
        (
            8,
            (0, 1),
            normal(3, 5),
            "`fake_quantize`: 'a/bias' of shape (3, 5) has no axis left to share a scale over when "
            "channel_axes=(0, 1); exclude it with `select`, or pass channel_axes=().",
        ),
        (8, 2, normal(3, 5), "`fake_quantize`: axis 2 of 'a/bias' does not exist; its shape is (3, 5)."),
        (8, (-1, -3), normal(3, 5), "`fake_quantize`: axis -3 of 'a/bias' does not exist; its shape is (3, 5)."),
        (1, -1, normal(3, 5), "`fake_quantize`: `bits` is 2 to 8, or a grid; got 1."),
        (9, -1, normal(3, 5), "`fake_quantize`: `bits` is 2 to 8, or a grid; got 9."),
        (0, -1, normal(3, 5), "`fake_quantize`: `bits` is 2 to 8, or a grid; got 0."),
        (2.5, -1, normal(3, 5), "`fake_quantize`: `bits` is 2 to 8, or a grid; got 2.5."),
    ],
)
def test_refusals(bits, axes, w, message):
    with pytest.raises(ValueError, match="`fake_quantize`") as error:
        fake_quantize(bits, channel_axes=axes).init({"a": {"bias": w}})
    assert str(error.value) == message


def test_a_bias_may_have_one_scale():
    t = fake_quantize(8, channel_axes=())
    assert t.init({"bias": normal(5)})["bias"].scale.shape == (1,)


@pytest.mark.slow
def test_axes_may_be_named_from_either_end_and_are_the_same_axis_twice():
    w = normal(3, 4, 5)
    for left, right in ((2, -1), ((0, 1), (-3, -2)), ((1,), (1, -2))):
        np.testing.assert_array_equal(quantized(w, 4, left).scale, quantized(w, 4, right).scale)
