"""A decoder of any depth in plain JAX, its layers one after the other (not scanned)."""

from typing import Any

import jax
import jax.numpy as jnp


def shapes(depth: int, width: int, vocabulary: int = 1000, length: int = 128) -> Any:
    """Return the shapes of the parameters."""
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    dense = lambda n, m: {"kernel": array(n, m), "bias": array(m)}  # noqa: E731
    norm = {"scale": array(width), "shift": array(width)}
    layer = {
        "norm_0": norm,
        "qkv": dense(width, 3 * width),
        "out": dense(width, width),
        "norm_1": norm,
        "up": dense(width, 4 * width),
        "down": dense(4 * width, width),
    }
    layers = {f"layer_{i:03}": layer for i in range(depth)}
    return {"words": array(vocabulary, width), "positions": array(length, width), **layers, "norm": norm}


def forward(params: Any, tokens: jax.Array, heads: int) -> jax.Array:
    """Return logits `(batch, length, vocabulary)`."""
    x = embed(params, tokens)
    for name in sorted(name for name in params if name.startswith("layer_")):
        x = layer(params[name], x, heads)
    return logits(params, x)


def embed(params: Any, tokens: jax.Array) -> jax.Array:
    """Look up tokens and add their positions."""
    return params["words"][tokens] + params["positions"]


def layer(params: Any, x: jax.Array, heads: int) -> jax.Array:
    """Apply one layer."""
    x = x + _attention(params, _norm(params["norm_0"], x), heads)
    return x + _dense(params["down"], jax.nn.gelu(_dense(params["up"], _norm(params["norm_1"], x))))


def logits(params: Any, x: jax.Array) -> jax.Array:
    """Compare with the table of tokens."""
    return _norm(params["norm"], x) @ params["words"].T


def _dense(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


def _norm(p: Any, x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * p["scale"] + p["shift"]


def _attention(layer: Any, x: jax.Array, heads: int) -> jax.Array:
    n, length, width = x.shape
    query, key, value = (part.reshape(n, length, heads, -1) for part in jnp.split(_dense(layer["qkv"], x), 3, -1))
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
    mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
    return _dense(layer["out"], mixed.reshape(n, length, width))
