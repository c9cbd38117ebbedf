"""A vision transformer with 5M parameters in plain JAX: small images, no class token, pre-norm."""

from typing import Any

import jax
import jax.numpy as jnp

LAYERS, WIDTH, HEADS, HIDDEN, CLASSES = 6, 256, 8, 1024, 10
IMAGE, PATCH = 32, 4
TOKENS = (IMAGE // PATCH) ** 2


def init(key: jax.Array) -> dict[str, Any]:
    """Make the parameters."""
    kernel = lambda name, *shape: {  # noqa: E731
        "kernel": jax.random.normal(jax.random.fold_in(key, sum(map(ord, name))), shape) * shape[0] ** -0.5,
        "bias": jnp.zeros(shape[-1]),
    }

    def block(name):
        return {
            "norm_0": {"scale": jnp.ones(WIDTH)},
            "qkv": kernel(f"{name} qkv", WIDTH, 3 * WIDTH),
            "out": kernel(f"{name} out", WIDTH, WIDTH),
            "norm_1": {"scale": jnp.ones(WIDTH)},
            "up": kernel(f"{name} up", WIDTH, HIDDEN),
            "down": kernel(f"{name} down", HIDDEN, WIDTH),
        }

    return {
        "patches": kernel("patches", PATCH * PATCH * 3, WIDTH),
        "positions": jnp.zeros((TOKENS, WIDTH)),
        "blocks": {str(i): block(str(i)) for i in range(LAYERS)},
        "norm": {"scale": jnp.ones(WIDTH)},
        "head": kernel("head", WIDTH, CLASSES),
    }


def forward(params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Return logits `(batch, classes)` of images `(batch, 32, 32, 3)`."""
    n, side = images.shape[0], IMAGE // PATCH
    patches = images.reshape(n, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, TOKENS, -1)
    x = _dense(params["patches"], patches) + params["positions"]
    for block in params["blocks"].values():
        x = x + _attention(block, _norm(block["norm_0"], x))
        x = x + _dense(block["down"], jax.nn.gelu(_dense(block["up"], _norm(block["norm_1"], x))))
    return _dense(params["head"], _norm(params["norm"], x).mean(axis=1))


def _dense(layer, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]


def _norm(layer, x: jax.Array) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6) * layer["scale"]


def _attention(block, x: jax.Array) -> jax.Array:
    n = x.shape[0]
    query, key, value = jnp.moveaxis(_dense(block["qkv"], x).reshape(n, TOKENS, 3, HEADS, -1), 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
    return _dense(block["out"], mixed.reshape(n, TOKENS, WIDTH))
