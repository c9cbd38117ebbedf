"""Plain convolutional networks: layouts, paddings, poolings, kinds of convolution, batch normalization."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.case import Case, axes
from tests.corpus.layers import (
    add_bias,
    affine,
    batch_norm,
    conv,
    conv_init,
    dense,
    dense_init,
    flatten,
    nonzero,
    norm_init,
    normal,
    pool,
    positive,
    seed,
)

WINDOW = (3, 3)
STATS = np.linspace(0.4, 1.3, 7, dtype=np.float32)


def image(rng):
    return (normal(rng, 2, 8, 6, 3),)


def flat_head(middle, padding="SAME", features=12 * 7, bias=True):
    """Convolution, `middle`, then dense on all positions."""

    def make():
        rng = seed()
        params = {"conv": conv_init(rng, WINDOW, 3, 7), "head": dense_init(rng, features, 5, bias=bias)}
        return (
            lambda p, x: dense(p["head"], flatten(middle(conv(p["conv"], x, padding=padding)))),
            params,
            image(rng),
        )

    return make


def two_convs(middle, padding="SAME", end=lambda y: jax.nn.relu(y).mean((1, 2)), second_bias=True):
    """Convolution, `middle`, convolution, global average, dense."""

    def make():
        rng = seed()
        params = {"conv_0": conv_init(rng, WINDOW, 3, 7), "conv_1": conv_init(rng, WINDOW, 7, 9, bias=second_bias)}
        params["head"] = dense_init(rng, 9, 5)

        def fn(p, x):
            y = conv(p["conv_1"], middle(conv(p["conv_0"], x, padding=padding)), padding=padding)
            return dense(p["head"], end(y))

        return fn, params, image(rng)

    return make


def nchw():
    rng = seed()
    params = {"conv": {"kernel": normal(rng, 7, 3, 3, 3, scale=0.2), "bias": nonzero(rng, 7)}}
    params["head"] = dense_init(rng, 7 * 48, 5)

    def fn(p, x):
        y = lax.conv(x, p["conv"]["kernel"], (1, 1), "SAME") + p["conv"]["bias"][None, :, None, None]
        return dense(p["head"], flatten(jax.nn.relu(y)))

    return fn, params, (normal(rng, 2, 3, 8, 6),)


def middle_conv(shape, **kwargs):
    """A convolution with a kernel of `shape` between two pointwise ones: 3 -> 8, 8 -> shape[-1], -> 5."""

    def make():
        rng = seed()
        params = {"first": conv_init(rng, (1, 1), 3, 8), "middle": conv_init(rng, shape[:2], *shape[2:])}
        params["last"] = conv_init(rng, (1, 1), shape[3], 5)

        def fn(p, x):
            return conv(p["last"], jax.nn.relu(conv(p["middle"], jax.nn.relu(conv(p["first"], x)), **kwargs)))

        return fn, params, image(rng)

    return make


def transposed():
    rng = seed()
    params = {
        "down": conv_init(rng, WINDOW, 3, 7),
        "up": conv_init(rng, WINDOW, 7, 9),
        "last": conv_init(rng, WINDOW, 9, 5),
    }

    def fn(p, x):
        h = jax.nn.relu(conv(p["down"], x, stride=2))
        h = add_bias(p["up"], lax.conv_transpose(h, p["up"]["kernel"], (2, 2), "SAME"))
        return conv(p["last"], jax.nn.relu(h))

    return fn, params, image(rng)


def any_rank(window, *size):
    def make():
        rng = seed()
        params = {"conv_0": conv_init(rng, window, 3, 7), "conv_1": conv_init(rng, window, 7, 9)}
        params["head"] = dense_init(rng, 9, 5)

        def fn(p, x):
            y = jax.nn.relu(conv(p["conv_1"], jax.nn.relu(conv(p["conv_0"], x, stride=2))))
            return dense(p["head"], y.max(tuple(range(1, y.ndim - 1))))

        return fn, params, (normal(rng, 2, *size, 3),)

    return make


def with_norm(norm, init, inputs=lambda rng: ()):
    """Convolution, `norm(p["bn"], y, *inputs)`, relu, convolution."""

    def make():
        rng = seed()
        params = {"conv_0": conv_init(rng, WINDOW, 3, 7, bias=False), "bn": init(rng)}
        params["conv_1"] = conv_init(rng, WINDOW, 7, 5)

        def fn(p, x, *more):
            y = norm(p["bn"], conv(p["conv_0"], x), *more)
            y, shown = y if isinstance(y, tuple) else (y, ())
            return conv(p["conv_1"], jax.nn.relu(y)), shown

        return fn, params, (*image(rng), *inputs(rng))

    return make


def bn_init(rng):
    return norm_init(rng, 7)


def bn_init_with_statistics(rng):
    return {**norm_init(rng, 7), "mean": nonzero(rng, 7), "var": positive(rng, 7)}


def inference(layer, y, mean=None, var=None):
    mean, var = (layer["mean"], layer["var"]) if mean is None or var is None else (mean, var)
    y = (y - mean[None, None, None]) * lax.rsqrt(var + 1e-5)[None, None, None]
    return affine(layer, y) if "scale" in layer else y


def captured(layer, y):
    return inference(layer, y, jnp.asarray(STATS), jnp.asarray(STATS + 1))


def with_statistics(layer, y):
    """Training mode, and the statistics for the caller's running average."""
    return batch_norm(layer, y), (y.mean((0, 1, 2)), y.var((0, 1, 2)))


def rms_over_pixels(layer, y):
    return affine(layer, y * lax.rsqrt(jnp.square(y).mean((1, 2), keepdims=True) + 1e-5))


FLAT = axes("conv/kernel:3 conv/bias:0 head/kernel:0")
FLAT_ENDS = axes("conv/kernel:0,1,2 head/kernel:1 head/bias:0")
FIRST = axes("conv_0/kernel:3 conv_0/bias:0 conv_1/kernel:2")
SECOND = axes("conv_1/kernel:3 conv_1/bias:0 head/kernel:0")
TWO_ENDS = axes("conv_{0,1}/kernel:0,1 conv_0/kernel:2 head/kernel:1 head/bias:0")
MIDDLE = axes("first/kernel:3 first/bias:0 middle/kernel:3 middle/bias:0 last/kernel:2")
MIDDLE_ENDS = axes("{first,middle,last}/kernel:0,1 first/kernel:2 last/kernel:3 last/bias:0")
NORMED = axes("conv_0/kernel:3 bn/{scale,bias}:0 conv_1/kernel:2")
NORMED_ENDS = axes("conv_{0,1}/kernel:0,1 conv_0/kernel:2 conv_1/kernel:3 conv_1/bias:0")
STATISTICS = axes("bn/{mean,var}:0")


def relu_pool(y):
    return pool(jax.nn.relu(y))


def same_pool(y):
    return pool(jax.nn.sigmoid(y), "mean", "SAME")


CASES = (
    Case("cnn_relu_pool_flatten", flat_head(relu_pool), exact=FLAT, pinned=FLAT_ENDS),
    Case("cnn_avg_pool_flatten", flat_head(lambda y: pool(jnp.tanh(y), "mean")), exact=FLAT, pinned=FLAT_ENDS),
    Case("cnn_max_pool_same", flat_head(lambda y: pool(y, "max", "SAME")), exact=FLAT, pinned=FLAT_ENDS),
    # All positions meet one dense layer with a bias, so even a leak that differs by position folds.
    Case("cnn_sigmoid_flatten", flat_head(jax.nn.sigmoid, features=48 * 7), exact=FLAT, pinned=FLAT_ENDS),
    Case(
        "cnn_sigmoid_avg_pool_padded",
        flat_head(same_pool, "VALID", features=6 * 7),
        exact=(),
        inexact=FLAT,  # a constant map, but not one number; a bias per position could take it up
        pinned=FLAT_ENDS,
    ),
    Case(
        "cnn_sigmoid_flatten_no_bias",
        flat_head(jax.nn.sigmoid, features=48 * 7, bias=False),
        exact=(),
        inexact=FLAT,
        pinned=axes("conv/kernel:0,1,2 head/kernel:1"),
    ),
    Case("cnn_two_convs", two_convs(jax.nn.relu), exact=FIRST + SECOND, pinned=TWO_ENDS),
    Case("cnn_global_max", two_convs(jax.nn.relu, end=lambda y: y.max((1, 2))), exact=FIRST + SECOND, pinned=TWO_ENDS),
    # VALID: every position sees the whole window of constants, so the leak is one number per output channel.
    Case("cnn_sigmoid_valid", two_convs(jax.nn.sigmoid, "VALID"), exact=FIRST + SECOND, pinned=TWO_ENDS),
    # SAME: the zero padding breaks the constant at the border, and a relu follows before anything can absorb it.
    Case("cnn_sigmoid_same", two_convs(jax.nn.sigmoid), exact=SECOND, inexact=FIRST, pinned=TWO_ENDS),
    Case(
        "cnn_sigmoid_valid_no_bias",
        two_convs(jax.nn.sigmoid, "VALID", second_bias=False),
        exact=axes("conv_1/kernel:3 head/kernel:0"),
        inexact=FIRST,
        pinned=TWO_ENDS,
    ),
    Case(
        "cnn_nchw",
        nchw,
        exact=axes("conv/kernel:0 conv/bias:0 head/kernel:0"),
        pinned=axes("conv/kernel:1,2,3 head/kernel:1 head/bias:0"),
    ),
    Case(
        "cnn_depthwise", middle_conv((3, 3, 1, 8), groups=8), exact=MIDDLE, pinned=MIDDLE_ENDS + axes("middle/kernel:2")
    ),
    Case(
        "cnn_depthwise_multiplier",  # one input channel feeds two outputs: they leave together
        middle_conv((3, 3, 1, 16), groups=8),
        exact=MIDDLE,
        pinned=MIDDLE_ENDS + axes("middle/kernel:2"),
    ),
    # Whole groups leave; one position in every group would also do, which is why middle/kernel:2 is left out.
    Case("cnn_grouped", middle_conv((3, 3, 2, 12), groups=4), exact=MIDDLE, pinned=MIDDLE_ENDS),
    Case(
        "cnn_dilated",
        middle_conv((3, 3, 8, 9), dilation=2),
        exact=MIDDLE + axes("middle/kernel:2"),
        pinned=MIDDLE_ENDS,
    ),
    Case(
        "cnn_transposed",
        transposed,
        exact=axes("{down,up}/kernel:3 {down,up}/bias:0 {up,last}/kernel:2"),
        pinned=axes("{down,up,last}/kernel:0,1 down/kernel:2 last/kernel:3 last/bias:0"),
    ),
    Case(
        "cnn_1d",
        any_rank((3,), 10),
        exact=axes("conv_{0,1}/kernel:2 conv_{0,1}/bias:0 conv_1/kernel:1 head/kernel:0"),
        pinned=axes("conv_{0,1}/kernel:0 conv_0/kernel:1 head/kernel:1 head/bias:0"),
    ),
    Case(
        "cnn_3d",
        any_rank((3, 2, 3), 6, 4, 5),
        exact=axes("conv_{0,1}/kernel:4 conv_{0,1}/bias:0 conv_1/kernel:3 head/kernel:0"),
        pinned=axes("conv_{0,1}/kernel:0,1,2 conv_0/kernel:3 head/kernel:1 head/bias:0"),
    ),
    Case("bn_training", with_norm(batch_norm, bn_init), exact=NORMED, pinned=NORMED_ENDS),
    Case(
        "bn_statistics_in_params",
        with_norm(inference, bn_init_with_statistics),
        exact=NORMED + STATISTICS,
        pinned=NORMED_ENDS,
    ),
    Case("bn_statistics_captured", with_norm(captured, bn_init), exact=NORMED, pinned=NORMED_ENDS),
    # The statistics of every channel are visible to the caller.
    Case("bn_statistics_returned", with_norm(with_statistics, bn_init), exact=(), pinned=NORMED + NORMED_ENDS),
    Case(
        "bn_statistics_are_inputs",
        with_norm(inference, bn_init, lambda rng: (nonzero(rng, 7), positive(rng, 7))),
        exact=(),
        pinned=NORMED + NORMED_ENDS,
    ),
    Case(
        "bn_captured_no_affine_flatten",  # (0 - mean) / std is a constant for the head to absorb
        flat_head(lambda y: jax.nn.relu(captured({}, y)), features=48 * 7),
        exact=FLAT,
        pinned=FLAT_ENDS,
    ),
    Case(
        "bn_captured_no_affine_same",
        two_convs(lambda y: jnp.tanh(captured({}, y))),
        exact=SECOND,
        inexact=FIRST,
        pinned=TWO_ENDS,
    ),
    Case("bn_rms_over_pixels", with_norm(rms_over_pixels, bn_init), exact=NORMED, pinned=NORMED_ENDS),
)
