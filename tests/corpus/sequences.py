"""Sequence models of late: state spaces, latent and windowed attention, a decoder that makes its own cache."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.case import Case, axes
from tests.corpus.layers import conv, conv_init, dense, dense_init, heads, merged, normal, seed


def selective_state_space():
    """Mamba: a gate, a causal depthwise convolution, a scan whose decay depends on the token."""
    rng = seed()
    params = {"in": normal(rng, 5, 16), "mix": conv_init(rng, (3,), 1, 8), "step": dense_init(rng, 8, 8)}
    params |= {"write": normal(rng, 8, 4), "read": normal(rng, 8, 4), "decay": normal(rng, 8, 4)}
    params |= {"past": normal(rng, 8), "out": normal(rng, 8, 5)}

    def fn(p, x):
        u, gate = jnp.split(x @ p["in"], 2, -1)
        u = jax.nn.silu(conv(p["mix"], jnp.pad(u, ((0, 0), (2, 0), (0, 0))), padding="VALID", groups=8))
        step = jax.nn.softplus(dense(p["step"], u))[..., None]
        kept = jnp.exp(-step * jnp.exp(p["decay"])[None, None])
        new = step * jnp.einsum("btn,btd->btdn", u @ p["write"], u)

        def one(state, now):
            state = now[0] * state + now[1]
            return state, jnp.einsum("bdn,bn->bd", state, now[2])

        over = jax.tree.map(lambda a: a.swapaxes(0, 1), (kept, new, u @ p["read"]))
        y = lax.scan(one, jnp.zeros((x.shape[0], 8, 4)), over)[1].swapaxes(0, 1)
        return (y + u * p["past"][None, None]) * jax.nn.silu(gate) @ p["out"]

    return fn, params, (normal(rng, 2, 6, 5),)


def latent_attention():
    """Keys and values come from a narrow, normalized latent (DeepSeek)."""
    rng = seed()
    params = {"latent": normal(rng, 6, 4), "key": normal(rng, 4, 2, 3), "value": normal(rng, 4, 2, 5)}
    params |= {"query": normal(rng, 6, 2, 3), "out": normal(rng, 2, 5, 6)}

    def fn(p, x):
        c = x @ p["latent"]
        c = c * lax.rsqrt(jnp.square(c).mean(-1, keepdims=True) + 1e-6)
        key, value = (jnp.einsum("btc,chd->bthd", c, p[name]) for name in ("key", "value"))
        weights = jax.nn.softmax(jnp.einsum("bqm,mhd,bkhd->bhqk", x, p["query"], key))
        return jnp.einsum("bhqk,bkhd,hdo->bqo", weights, value, p["out"])

    return fn, params, (normal(rng, 2, 5, 6),)


def shifted_windows():
    """Swin: attention inside windows of 2 x 2 after a roll, a table of biases by relative place."""
    rng = seed()
    params = {"qkv": dense_init(rng, 6, 24), "table": normal(rng, 9, 2), "out": dense_init(rng, 8, 6)}
    place = np.stack(np.divmod(np.arange(4), 2), -1)
    relative = (place[:, None] - place[None] + 1) @ [3, 1]

    def fn(p, x):
        y = jnp.roll(x, (-1, -1), (1, 2)).reshape(2, 2, 2, 2, 2, 6).swapaxes(2, 3).reshape(8, 4, 6)
        q, k, v = (heads(part, 2) for part in jnp.split(dense(p["qkv"], y), 3, -1))
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k) + p["table"][relative].transpose(2, 0, 1)[None]
        y = dense(p["out"], merged(jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(logits), v)))
        return x + jnp.roll(y.reshape(2, 2, 2, 2, 2, 6).swapaxes(2, 3).reshape(2, 4, 4, 6), (1, 1), (1, 2))

    return fn, params, (normal(rng, 2, 4, 4, 6),)


def generation():
    """Greedy decoding inside the function, with a cache that it makes itself."""
    rng = seed()
    params = {"table": normal(rng, 6, 8), "out": normal(rng, 8, 6)} | {n: normal(rng, 8, 8) for n in ("q", "k", "v")}

    def fn(p, token):
        def one(carry, i):
            keys, values, token = carry
            x = p["table"][token]
            keys, values = keys.at[:, i].set(x @ p["k"]), values.at[:, i].set(x @ p["v"])
            logits = jnp.einsum("bd,btd->bt", x @ p["q"], keys) * 8**-0.5
            weights = jax.nn.softmax(jnp.where(jnp.arange(4)[None] <= i, logits, -jnp.inf))
            logits = (x + jnp.einsum("bt,btd->bd", weights, values)) @ p["out"]
            return (keys, values, logits.argmax(-1).astype(jnp.int32)), logits

        empty = jnp.zeros((2, 4, 8))
        return lax.scan(one, (empty, empty, token), jnp.arange(4))[1]

    return fn, params, (jnp.array([0, 3], jnp.int32),)


CASES = (
    Case(
        "sequence_selective_state_space",
        selective_state_space,
        exact=axes("in:1 mix/kernel:2 mix/bias:0 step/kernel:0,1 {write,read,decay}:0,1 past:0 out:0"),
        pinned=axes("in:0 mix/kernel:0,1 out:1"),
    ),
    Case(
        "sequence_latent_attention",
        latent_attention,
        exact=axes("latent:1 {key,value}:0,1,2 query:1,2 out:0,1"),
        pinned=axes("latent:0 query:0 out:2"),
    ),
    Case(
        "sequence_shifted_windows",
        shifted_windows,
        exact=axes("qkv/kernel:1 qkv/bias:0 table:1 out/kernel:0"),
        pinned=axes("qkv/kernel:0 table:0 out/kernel:1"),
    ),
    Case(
        "sequence_generation",
        generation,
        exact=axes("table:1 {q,k,v}:0,1 out:0"),
        pinned=axes("table:0 out:1"),
    ),
)
