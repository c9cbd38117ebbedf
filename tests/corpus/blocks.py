"""Attention and transformer blocks: initialization, and positions by rotation."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.corpus.layers import (
    attention,
    dense,
    dense_init,
    heads,
    layer_norm,
    merged,
    norm_init,
    normal,
    rms_norm,
    scores,
)

QKV = "{q,k,v}/kernel:1 {q,k,v}/bias:0 o/kernel:0"


def qkv_init(rng, n, flat, out, bias=True, kv=None):
    """Separate q, k, v to `flat` (k and v to `kv`) features, and o from `flat` to `out`."""
    widths = {"q": flat, "k": kv or flat, "v": kv or flat}
    params = {name: dense_init(rng, n, width, bias=bias) for name, width in widths.items()}
    return {**params, "o": dense_init(rng, flat, out, bias=bias)}


def split_heads(p, x, number, kv=None):
    return heads(dense(p["q"], x), number), heads(dense(p["k"], x), kv or number), heads(dense(p["v"], x), kv or number)


def self_attention(p, x, number, causal=False):
    return dense(p["o"], merged(attention(*split_heads(p, x, number), causal=causal)))


def block_init(rng, width, flat, hidden):
    return {
        "ln_0": norm_init(rng, width),
        "att": qkv_init(rng, width, flat, width),
        "ln_1": norm_init(rng, width),
        "up": dense_init(rng, width, hidden),
        "down": dense_init(rng, hidden, width),
    }


def block(p, x, number, causal=False):
    """A pre-norm block."""
    x = x + self_attention(p["att"], layer_norm(p["ln_0"], x), number, causal)
    return x + dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["ln_1"], x))))


def block_axes(prefix, lead=0):
    """All axes of a block's leaves; each of them is removable. `lead` is the number of stacked axes in front."""
    one, two = lead, f"{lead},{lead + 1}"
    vectors = f"{prefix}{{ln_0,ln_1}}/{{scale,bias}}:{one} {prefix}att/{{q,k,v,o}}/bias:{one} "
    vectors += f"{prefix}{{up,down}}/bias:{one} "
    return vectors + f"{prefix}att/{{q,k,v,o}}/kernel:{two} {prefix}{{up,down}}/kernel:{two}"


def angles(tokens, half):
    """Cosine and sine, `[1, tokens, 1, half]`."""
    rates = 10.0 ** (-np.arange(half) / half)
    table = (np.arange(1, tokens + 1)[:, None] * rates)[None, :, None].astype(np.float32)
    return jnp.cos(jnp.asarray(table)), jnp.sin(jnp.asarray(table))


def rope(x):
    """Rotate the first half of the features against the second."""
    half = x.shape[-1] // 2
    cos, sin = angles(x.shape[1], half)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def rope_interleaved(x):
    """Rotate even features against odd ones."""
    half = x.shape[-1] // 2
    cos, sin = angles(x.shape[1], half)
    pairs = x.reshape(*x.shape[:-1], half, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)


# --- `attend(p, q, k, v)` on (batch, tokens, heads, width) ---


def weighed(weights, v):
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def grouped(p, q, k, v):
    q = q.reshape(2, 5, 2, 3, 4)
    weights = jax.nn.softmax(jnp.einsum("btkgd,bskd->bkgts", q, k) * 0.5)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(2, 5, 6, 4)


def repeated(p, q, k, v):
    return attention(q, jnp.repeat(k, 3, 2), jnp.repeat(v, 3, 2))


def one_for_all(p, q, k, v):
    return jnp.einsum("bhts,bsd->bthd", jax.nn.softmax(jnp.einsum("bthd,bsd->bhts", q, k[:, :, 0]) * 0.5), v[:, :, 0])


def alibi(p, q, k, v):
    steps = np.tril(np.arange(5)[None] - np.arange(5)[:, None]).astype(np.float32)
    bias = 2.0 ** -np.arange(1, 4, dtype=np.float32)[:, None, None] * steps
    logits = scores(q, k) + jnp.asarray(bias)[None]
    allowed = jnp.broadcast_to(jnp.tril(jnp.ones((5, 5), bool))[None, None], logits.shape)
    return weighed(jax.nn.softmax(jnp.where(allowed, logits, -jnp.inf)), v)


def normed(p, q, k, v):
    return attention(rms_norm(p["q_norm"], q), rms_norm(p["k_norm"], k), v)


def null_token(p, q, k, v):
    k, v = (
        jnp.concatenate([jnp.broadcast_to(p[name][None, None], (2, 1, 3, 4)), a], 1)
        for name, a in (("null_k", k), ("null_v", v))
    )
    return attention(q, k, v)


def linear(feature):
    def attend(p, q, k, v):
        q, k = feature(q), feature(k)
        total = jnp.einsum("bthd,bhd->bth", q, k.sum(1))
        return jnp.einsum("bthd,bhde->bthe", q, jnp.einsum("bshd,bshe->bhde", k, v)) / (total + 1.0)[..., None]

    return attend


def with_transposes(p, q, k, v):
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    return (jax.nn.softmax(q @ k.swapaxes(2, 3) / 2) @ v).transpose(0, 2, 1, 3)


# --- `body(p, x)` on a stream of (2, 5, 10) ---


def llama_init(rng):
    params = {"norm_0": norm_init(rng, 10, bias=False), "norm_1": norm_init(rng, 10, bias=False)}
    params |= {"att": qkv_init(rng, 10, 24, 10, bias=False, kv=8), "gate_up": dense_init(rng, 10, 28, bias=False)}
    return params | {"down": dense_init(rng, 14, 10, bias=False)}


def llama(p, x):
    """6 heads of 4 share 2 keys and values."""
    q, k, v = split_heads(p["att"], rms_norm(p["norm_0"], x), 6, 2)
    y = attention(rope(q), jnp.repeat(rope(k), 3, 2), jnp.repeat(v, 3, 2), causal=True)
    x = x + dense(p["att"]["o"], merged(y))
    gate, up = jnp.split(dense(p["gate_up"], rms_norm(p["norm_1"], x)), 2, -1)
    return x + dense(p["down"], jax.nn.silu(gate) * up)


def t5(p, x):
    """A learned bias for each head and distance, clipped at 2."""
    q, k, v = split_heads(p["att"], rms_norm(p["norm"], x), 3)
    distance = np.clip(np.arange(5)[None] - np.arange(5)[:, None], -2, 1) + 2
    logits = scores(q, k) + p["table"][jnp.asarray(distance)].transpose(2, 0, 1)[None]
    y = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v)
    return x + dense(p["att"]["o"], merged(y))


def t5_init(rng):
    return {"norm": norm_init(rng, 10, False), "att": qkv_init(rng, 10, 12, 10, False), "table": normal(rng, 4, 3)}


def gmlp(p, x):
    u, v = jnp.split(jax.nn.gelu(dense(p["up"], layer_norm(p["ln_0"], x))), 2, -1)
    v = jnp.einsum("bsc,st->btc", layer_norm(p["ln_1"], v), p["space"]["kernel"])
    return x + dense(p["down"], u * (v + p["space"]["bias"][None, :, None]))


def gmlp_init(rng):
    params = {"ln_0": norm_init(rng, 10), "up": dense_init(rng, 10, 16), "ln_1": norm_init(rng, 8)}
    return params | {"space": dense_init(rng, 5, 5), "down": dense_init(rng, 8, 10)}


def mixer(p, x):
    h = layer_norm(p["ln_0"], x).swapaxes(1, 2)
    x = x + dense(p["token_down"], jax.nn.gelu(dense(p["token_up"], h))).swapaxes(1, 2)
    return x + dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["ln_1"], x))))


def mixer_init(bias):
    """Whether the layers over tokens have biases."""

    def init(rng):
        params = {"token_up": dense_init(rng, 5, 8, bias=bias), "token_down": dense_init(rng, 8, 5, bias=bias)}
        params |= {"ln_0": norm_init(rng, 10), "ln_1": norm_init(rng, 10)}
        return params | {"up": dense_init(rng, 10, 14), "down": dense_init(rng, 14, 10)}

    return init
