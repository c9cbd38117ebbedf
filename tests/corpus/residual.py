"""Channels that meet again in a sum, and gates over channels."""

import jax
import jax.numpy as jnp

from tests.corpus.case import Case, axes
from tests.corpus.layers import (
    batch_norm,
    conv,
    conv_init,
    dense,
    dense_init,
    layer_norm,
    nonzero,
    norm_init,
    normal,
    pool,
    seed,
)

WINDOW, POINT = (3, 3), (1, 1)
relu = jax.nn.relu


def image(rng):
    return (normal(rng, 2, 8, 8, 3),)


def convs(rng, **shapes):
    """Convolutions by name from (window, inputs, outputs), with biases."""
    return {name: conv_init(rng, *shape) for name, shape in shapes.items()}


def head(p, y):
    return dense(p["head"], y.mean((1, 2)))


def resnet_option_a():
    """The second stage halves the image; its skip is strided and padded with zero channels."""
    rng = seed()
    params = convs(rng, stem=(WINDOW, 3, 5), a=(WINDOW, 5, 7), b=(WINDOW, 7, 5), c=(WINDOW, 5, 9), d=(WINDOW, 9, 11))
    params = {**params, "bn": norm_init(rng, 5), "head": dense_init(rng, 11, 4)}

    def fn(p, x):
        y = relu(batch_norm(p["bn"], conv(p["stem"], x)))
        y = relu(y + conv(p["b"], relu(conv(p["a"], y))))
        skip = jnp.pad(y[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (3, 3)))
        return head(p, relu(skip + conv(p["d"], relu(conv(p["c"], y, stride=2)))))

    return fn, params, image(rng)


def resnet_projection():
    rng = seed()
    params = convs(rng, stem=(WINDOW, 3, 5), a=(WINDOW, 5, 7), b=(WINDOW, 7, 9), skip=(POINT, 5, 9))
    params = {**params, "bn_b": norm_init(rng, 9), "bn_skip": norm_init(rng, 9), "head": dense_init(rng, 9, 4)}

    def fn(p, x):
        y = relu(conv(p["stem"], x))
        skip = batch_norm(p["bn_skip"], conv(p["skip"], y, stride=2))
        y = batch_norm(p["bn_b"], conv(p["b"], relu(conv(p["a"], y, stride=2))))
        return head(p, relu(skip + y))

    return fn, params, image(rng)


def preactivation():
    rng = seed()
    params = convs(rng, stem=(WINDOW, 3, 5), a=(WINDOW, 5, 7), b=(WINDOW, 7, 5))
    params = {**params, "bn_a": norm_init(rng, 5), "bn_b": norm_init(rng, 7), "head": dense_init(rng, 5, 4)}

    def fn(p, x):
        y = conv(p["stem"], x)
        h = conv(p["a"], relu(batch_norm(p["bn_a"], y)))
        return head(p, y + conv(p["b"], relu(batch_norm(p["bn_b"], h))))

    return fn, params, image(rng)


def bottleneck():
    rng = seed()
    params = convs(rng, stem=(WINDOW, 3, 11), a=(POINT, 11, 5), b=(WINDOW, 5, 7), c=(POINT, 7, 11))
    params["head"] = dense_init(rng, 11, 4)

    def fn(p, x):
        y = relu(conv(p["stem"], x))
        return head(p, relu(y + conv(p["c"], relu(conv(p["b"], relu(conv(p["a"], y)))))))

    return fn, params, image(rng)


def densenet():
    rng = seed()
    params = convs(rng, stem=(WINDOW, 3, 5), a=(WINDOW, 5, 4), b=(WINDOW, 9, 6), transition=(POINT, 15, 7))
    params = {**params, "bn_a": norm_init(rng, 5), "bn_b": norm_init(rng, 9), "head": dense_init(rng, 7, 2)}

    def fn(p, x):
        y = conv(p["stem"], x)
        y = jnp.concatenate([y, conv(p["a"], relu(batch_norm(p["bn_a"], y)))], -1)
        y = jnp.concatenate([y, conv(p["b"], relu(batch_norm(p["bn_b"], y)))], -1)
        return head(p, relu(pool(conv(p["transition"], y), "mean")))

    return fn, params, image(rng)


def squeezed(p, y):
    gate = jax.nn.sigmoid(dense(p["excite"], relu(dense(p["squeeze"], y.mean((1, 2))))))
    return y * gate[:, None, None]


def se_block():
    rng = seed()
    params = {**convs(rng, conv=(WINDOW, 3, 9)), "squeeze": dense_init(rng, 9, 5), "excite": dense_init(rng, 5, 9)}
    params["head"] = dense_init(rng, 9, 4)
    return lambda p, x: head(p, squeezed(p, relu(conv(p["conv"], x)))), params, image(rng)


def mobilenet():
    """An inverted residual with relu6 and a linear bottleneck."""
    rng = seed()
    params = convs(rng, stem=(WINDOW, 3, 5), expand=(POINT, 5, 12), depth=(WINDOW, 1, 12), project=(POINT, 12, 5))
    params["head"] = dense_init(rng, 5, 4)

    def fn(p, x):
        y = conv(p["stem"], x)
        h = jax.nn.relu6(conv(p["depth"], jax.nn.relu6(conv(p["expand"], y)), groups=12))
        return head(p, y + conv(p["project"], h))

    return fn, params, image(rng)


def efficientnet():
    rng = seed()
    params = convs(rng, stem=(WINDOW, 3, 5), expand=(POINT, 5, 12), depth=(WINDOW, 1, 12), project=(POINT, 12, 5))
    params = {**params, "bn": norm_init(rng, 12), "squeeze": dense_init(rng, 12, 7), "excite": dense_init(rng, 7, 12)}
    params["head"] = dense_init(rng, 5, 4)

    def fn(p, x):
        y = jax.nn.silu(conv(p["stem"], x))
        h = jax.nn.silu(batch_norm(p["bn"], conv(p["depth"], jax.nn.silu(conv(p["expand"], y)), groups=12)))
        return head(p, y + conv(p["project"], squeezed(p, h)))

    return fn, params, image(rng)


def convnext():
    rng = seed()
    params = {**convs(rng, stem=((2, 2), 3, 7), depth=(WINDOW, 1, 7)), "norm": norm_init(rng, 7)}
    params = {**params, "wide": dense_init(rng, 7, 10), "narrow": dense_init(rng, 10, 7), "gamma": nonzero(rng, 7)}
    params["head"] = dense_init(rng, 7, 5)

    def fn(p, x):
        y = conv(p["stem"], x, stride=2, padding="VALID")
        h = layer_norm(p["norm"], conv(p["depth"], y, groups=7))
        h = dense(p["narrow"], jax.nn.gelu(dense(p["wide"], h)))
        return head(p, y + p["gamma"][None, None, None] * h)

    return fn, params, image(rng)


def outs(names):
    """The output channels of the convolutions in braces: the kernel's last axis and the bias."""
    return axes(f"{names}/kernel:3 {names}/bias:0")


def ins(names):
    return axes(f"{names}/kernel:2")


HEAD = axes("head/kernel:0")
HEAD_ENDS = axes("head/kernel:1 head/bias:0")


def ends(names, first="stem"):
    return axes(f"{names}/kernel:0,1 {first}/kernel:2") + HEAD_ENDS


SE = axes("{squeeze,excite}/kernel:0,1 {squeeze,excite}/bias:0")

CASES = (
    Case(
        "resnet_option_a",
        resnet_option_a,
        exact=outs("{stem,a,b,c,d}") + ins("{a,b,c,d}") + axes("bn/{scale,bias}:0") + HEAD,
        pinned=ends("{stem,a,b,c,d}"),
    ),
    Case(
        "resnet_projection",
        resnet_projection,
        exact=outs("{stem,a,b,skip}") + ins("{a,b,skip}") + axes("{bn_b,bn_skip}/{scale,bias}:0") + HEAD,
        pinned=ends("{stem,a,b,skip}"),
    ),
    Case(
        "resnet_preactivation",
        preactivation,
        exact=outs("{stem,a,b}") + ins("{a,b}") + axes("{bn_a,bn_b}/{scale,bias}:0") + HEAD,
        pinned=ends("{stem,a,b}"),
    ),
    Case(
        "resnet_bottleneck", bottleneck, exact=outs("{stem,a,b,c}") + ins("{a,b,c}") + HEAD, pinned=ends("{stem,a,b,c}")
    ),
    Case(
        "densenet",
        densenet,
        exact=outs("{stem,a,b,transition}") + ins("{a,b,transition}") + axes("{bn_a,bn_b}/{scale,bias}:0") + HEAD,
        pinned=ends("{stem,a,b,transition}"),
    ),
    # The gate of a masked channel is not 0, and multiplies a 0.
    Case("se_block", se_block, exact=outs("conv") + SE + HEAD, pinned=ends("conv", "conv")),
    Case(
        "mobilenet_v2",
        mobilenet,
        exact=outs("{stem,expand,depth,project}") + ins("{expand,project}") + HEAD,
        pinned=ends("{stem,expand,depth,project}") + ins("depth"),
    ),
    Case(
        "efficientnet",
        efficientnet,
        exact=outs("{stem,expand,depth,project}") + ins("{expand,project}") + axes("bn/{scale,bias}:0") + SE + HEAD,
        pinned=ends("{stem,expand,depth,project}") + ins("depth"),
    ),
    Case(
        "convnext",
        convnext,
        exact=outs("{stem,depth}")
        + axes("norm/{scale,bias}:0 gamma:0 {wide,narrow}/kernel:0,1 {wide,narrow}/bias:0")
        + HEAD,
        pinned=ends("{stem,depth}") + ins("depth"),
    ),
)
