"""Weights from a seed, none of them zero and no scale one, and layers that broadcast explicitly."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def seed(number=0):
    return np.random.default_rng(number)


def normal(rng, *shape, scale=1.0):
    return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)


def nonzero(rng, *shape):
    """Values of either sign between 0.2 and 1: biases and shifts."""
    return jnp.asarray(rng.uniform(0.2, 1, shape) * rng.choice([-1.0, 1.0], shape), jnp.float32)


def positive(rng, *shape):
    """Values between 1.2 and 1.9: scales and variances."""
    return jnp.asarray(rng.uniform(1.2, 1.9, shape), jnp.float32)


def ids(rng, limit, *shape):
    return jnp.asarray(rng.integers(0, limit, shape), jnp.int32)


def dense_init(rng, n_in, *n_out, bias=True):
    layer = {"kernel": normal(rng, n_in, *n_out, scale=n_in**-0.5)}
    return {**layer, "bias": nonzero(rng, *n_out)} if bias else layer


def dense_chain(rng, *widths, bias=True):
    """`dense_0`, `dense_1`, ... between consecutive widths."""
    return {f"dense_{i}": dense_init(rng, a, b, bias=bias) for i, (a, b) in enumerate(zip(widths, widths[1:]))}


def conv_init(rng, window, n_in, n_out, bias=True):
    layer = {"kernel": normal(rng, *window, n_in, n_out, scale=(np.prod(window) * n_in) ** -0.5)}
    return {**layer, "bias": nonzero(rng, n_out)} if bias else layer


def norm_init(rng, n, bias=True):
    return {"scale": positive(rng, n), "bias": nonzero(rng, n)} if bias else {"scale": positive(rng, n)}


def spread(v, x):
    """`v` with leading axes of size 1, so that it broadcasts against the trailing axes of `x`."""
    return v.reshape((1,) * (x.ndim - v.ndim) + v.shape)


def add_bias(layer, y):
    return y + spread(layer["bias"], y) if "bias" in layer else y


def dense(layer, x):
    """The last axis of `x` against the first of the kernel, which may have several output axes."""
    return add_bias(layer, jnp.tensordot(x, layer["kernel"], 1))


def conv(layer, x, stride=1, padding="SAME", groups=1, dilation=1):
    """A convolution of any rank, channels last."""
    rank = x.ndim - 2
    space = "DHW"[3 - rank :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    kwargs = {"rhs_dilation": (dilation,) * rank, "dimension_numbers": numbers, "feature_group_count": groups}
    return add_bias(layer, lax.conv_general_dilated(x, layer["kernel"], (stride,) * rank, padding, **kwargs))


def pool(x, kind="max", padding="VALID"):
    window = (1, 2, 2, 1)
    if kind == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, padding)
    return lax.reduce_window(x, 0.0, lax.add, window, window, padding) / 4


def flatten(x):
    return x.reshape(x.shape[0], -1)


def affine(layer, x):
    return add_bias(layer, x * spread(layer["scale"], x))


def standardize(x, axis):
    mean = x.mean(axis, keepdims=True)
    return (x - mean) * lax.rsqrt(jnp.square(x - mean).mean(axis, keepdims=True) + 1e-5)


def layer_norm(layer, x):
    return affine(layer, standardize(x, -1))


def batch_norm(layer, x):
    """Training mode: the statistics of this batch."""
    return affine(layer, standardize(x, tuple(range(x.ndim - 1))))


def rms_norm(layer, x):
    return affine(layer, x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5))


def heads(x, number):
    """(batch, tokens, heads * width) to (batch, tokens, heads, width)."""
    return x.reshape(*x.shape[:-1], number, -1)


def scores(q, k):
    return jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5


def attention(q, k, v, causal=False):
    logits = scores(q, k)
    if causal:
        allowed = jnp.tril(jnp.ones(logits.shape[-2:], bool))[None, None]
        logits = jnp.where(jnp.broadcast_to(allowed, logits.shape), logits, -1e9)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v)


def merged(x):
    return x.reshape(*x.shape[:-2], -1)
