"""Every kind of product: the function, its parameters, its input."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def conv(p, x, strides=(1, 1), padding="SAME", **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, p["w"], strides, padding, dimension_numbers=numbers, **options)


PRODUCTS: dict[str, tuple[Any, Any, Any]] = {
    "dense": (lambda p, x: x @ p["w"], {"w": normal(6, 5)}, normal(4, 6)),
    "dense_3d": (lambda p, x: x @ p["w"], {"w": normal(6, 5)}, normal(2, 3, 6)),
    "transposed": (lambda p, x: x @ p["w"].T, {"w": normal(5, 6)}, normal(4, 6)),
    "reshaped": (lambda p, x: x @ p["w"].reshape(6, -1), {"w": normal(6, 2, 3)}, normal(4, 6)),
    "weight_first": (lambda p, x: jnp.einsum("oi,bi->bo", p["w"], x), {"w": normal(5, 6)}, normal(4, 6)),
    "same_sizes": (lambda p, x: x @ p["w"], {"w": normal(6, 6)}, normal(6, 6)),
    "heads_in": (lambda p, x: jnp.einsum("btd,dhk->bthk", x, p["w"]), {"w": normal(6, 2, 3)}, normal(2, 3, 6)),
    "heads_out": (lambda p, x: jnp.einsum("bthk,hkd->btd", x, p["w"]), {"w": normal(2, 3, 6)}, normal(2, 4, 2, 3)),
    "experts": (lambda p, x: jnp.einsum("ebi,eio->ebo", x, p["w"]), {"w": normal(3, 6, 5)}, normal(3, 4, 6)),
    "two_axes": (lambda p, x: jnp.einsum("bij,jio->bo", x, p["w"]), {"w": normal(3, 6, 5)}, normal(4, 6, 3)),
    "vector": (lambda p, x: x @ p["w"], {"w": normal(6)}, normal(4, 6)),
    "conv": (conv, {"w": normal(3, 3, 4, 5)}, normal(2, 6, 6, 4)),
    "conv_strided": (
        partial(conv, strides=(2, 2), padding=((1, 0), (0, 2))),
        {"w": normal(3, 3, 4, 5)},
        normal(2, 6, 6, 4),
    ),
    "conv_dilated": (partial(conv, rhs_dilation=(2, 2)), {"w": normal(3, 3, 4, 5)}, normal(2, 6, 6, 4)),
    "conv_grouped": (partial(conv, feature_group_count=2), {"w": normal(3, 3, 2, 6)}, normal(2, 6, 6, 4)),
    "conv_depthwise": (partial(conv, feature_group_count=4), {"w": normal(3, 3, 1, 8)}, normal(2, 6, 6, 4)),
    "conv_transposed": (
        partial(conv, padding=((2, 2), (2, 2)), lhs_dilation=(2, 2)),
        {"w": normal(3, 3, 4, 5)},
        normal(2, 4, 4, 4),
    ),
    "attention": (
        lambda p, x: jnp.einsum("btd,bsd->bts", x * p["g"][None, None], x),
        {"g": normal(6)},
        normal(2, 4, 6),
    ),
}
FAST = ("dense",)  # in `make quick`
EVERY_PRODUCT = pytest.mark.parametrize(
    ("fn", "params", "x"),
    [pytest.param(*case, id=name, marks=[] if name in FAST else pytest.mark.slow) for name, case in PRODUCTS.items()],
)
