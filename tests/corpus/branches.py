"""Channels concatenated, split, shuffled and reshaped into space."""

import jax
import jax.numpy as jnp

from tests.corpus.case import Case, axes
from tests.corpus.layers import conv, dense_init, pool, seed
from tests.corpus.residual import HEAD, POINT, WINDOW, convs, ends, head, image, ins, outs, relu


def unet(upsample):
    def make():
        rng = seed()
        params = convs(rng, down=(WINDOW, 3, 5), low=(WINDOW, 5, 7), up=(WINDOW, 12, 9), last=(POINT, 9, 4))

        def fn(p, x):
            wide = relu(conv(p["down"], x))
            low = upsample(relu(conv(p["low"], pool(wide))))
            return conv(p["last"], relu(conv(p["up"], jnp.concatenate([low, wide], -1))))

        return fn, params, image(rng)

    return make


def repeated(y):
    return jnp.repeat(jnp.repeat(y, 2, 1), 2, 2)


def resized(method):
    return lambda y: jax.image.resize(y, (y.shape[0], 2 * y.shape[1], 2 * y.shape[2], y.shape[3]), method)


def inception():
    rng = seed()
    params = convs(rng, stem=(WINDOW, 3, 8), a=(POINT, 8, 5), b_0=(POINT, 8, 4), b_1=(WINDOW, 4, 7), c=(POINT, 8, 6))
    params["head"] = dense_init(rng, 18, 9)

    def fn(p, x):
        y = relu(conv(p["stem"], x))
        smooth = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
        branches = [conv(p["a"], y), conv(p["b_1"], relu(conv(p["b_0"], y))), conv(p["c"], smooth)]
        return head(p, relu(jnp.concatenate(branches, -1)))

    return fn, params, image(rng)


def shuffled(y, groups):
    batch, height, width, channels = y.shape
    return y.reshape(batch, height, width, groups, channels // groups).swapaxes(3, 4).reshape(y.shape)


def shufflenet_v1():
    """Grouped convolutions on both sides of a shuffle."""
    rng = seed()
    params = convs(rng, stem=(WINDOW, 3, 6), a=(POINT, 3, 12), b=(WINDOW, 1, 12), c=(POINT, 6, 10), last=(POINT, 10, 5))

    def fn(p, x):
        h = shuffled(relu(conv(p["a"], relu(conv(p["stem"], x)), groups=2)), 2)
        return conv(p["last"], relu(conv(p["c"], conv(p["b"], h, groups=12), groups=2)))

    return fn, params, image(rng)


def shufflenet_v2():
    """Split, one half through a branch, concatenate, shuffle; twice."""
    rng = seed()
    params = convs(rng, stem=(WINDOW, 3, 8), a=(POINT, 4, 5), b=(WINDOW, 1, 5), c=(POINT, 5, 4), d=(POINT, 4, 4))
    params["head"] = dense_init(rng, 8, 7)

    def fn(p, x):
        kept, y = jnp.split(relu(conv(p["stem"], x)), 2, -1)
        y = relu(conv(p["c"], conv(p["b"], relu(conv(p["a"], y)), groups=5)))
        kept, y = jnp.split(shuffled(jnp.concatenate([kept, y], -1), 2), 2, -1)
        return head(p, shuffled(jnp.concatenate([kept, relu(conv(p["d"], y))], -1), 2))

    return fn, params, image(rng)


def pixel_shuffle():
    """Four channels of the first convolution become one channel of the image of twice the size."""
    rng = seed()
    params = convs(rng, wide=(WINDOW, 3, 20), last=(WINDOW, 5, 7))

    def fn(p, x):
        y = relu(conv(p["wide"], x)).reshape(2, 8, 8, 2, 2, 5)
        return conv(p["last"], y.transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 16, 5))

    return fn, params, image(rng)


def space_to_depth():
    rng = seed()
    params = convs(rng, first=(WINDOW, 3, 5), last=(WINDOW, 20, 7))

    def fn(p, x):
        y = relu(conv(p["first"], x)).reshape(2, 4, 2, 4, 2, 5)
        return conv(p["last"], y.transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 20))

    return fn, params, image(rng)


UNET = {
    "exact": outs("{down,low,up}") + ins("{low,up,last}"),
    "pinned": axes("{down,low,up,last}/kernel:0,1 down/kernel:2") + outs("last"),
}

CASES = (
    Case("unet_repeat", unet(repeated), **UNET),
    Case("unet_nearest", unet(resized("nearest")), **UNET),
    Case("unet_bilinear", unet(resized("bilinear")), **UNET),
    Case(
        "inception",
        inception,
        exact=outs("{stem,a,b_0,b_1,c}") + ins("{a,b_0,b_1,c}") + HEAD,
        pinned=ends("{stem,a,b_0,b_1,c}"),
    ),
    # The input axes of the grouped kernels are left out: they shrink by a position in every group, if at all.
    Case(
        "shufflenet_v1",
        shufflenet_v1,
        exact=outs("{stem,a,b,c}") + ins("last"),
        pinned=axes("{stem,a,b,c,last}/kernel:0,1 stem/kernel:2 b/kernel:2") + outs("last"),
    ),
    Case(
        "shufflenet_v2",
        shufflenet_v2,
        exact=outs("{stem,a,b,c,d}") + ins("{a,c,d}") + HEAD,
        pinned=ends("{stem,a,b,c,d}") + ins("b"),
    ),
    Case(
        "pixel_shuffle",
        pixel_shuffle,
        exact=outs("wide") + ins("last"),
        pinned=axes("{wide,last}/kernel:0,1 wide/kernel:2") + outs("last"),
    ),
    Case(
        "space_to_depth",
        space_to_depth,
        exact=outs("first") + ins("last"),
        pinned=axes("{first,last}/kernel:0,1 first/kernel:2") + outs("last"),
    ),
)
