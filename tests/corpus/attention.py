"""Attention: 7 features, 5 tokens, 3 heads of 4, 6 outputs, unless said otherwise."""

import jax
import jax.numpy as jnp

from tests.corpus.blocks import (
    QKV,
    alibi,
    grouped,
    linear,
    normed,
    null_token,
    one_for_all,
    qkv_init,
    repeated,
    rope,
    rope_interleaved,
    self_attention,
    split_heads,
    weighed,
    with_transposes,
)
from tests.corpus.case import Case, axes
from tests.corpus.layers import (
    attention,
    dense,
    dense_init,
    heads,
    merged,
    nonzero,
    norm_init,
    normal,
    positive,
    scores,
    seed,
)

ENDS = "{q,k,v}/kernel:0 o/kernel:1 o/bias:0"
FUSED = {"exact": axes("qkv/kernel:1 qkv/bias:0 o/kernel:0"), "pinned": axes("qkv/kernel:0 o/kernel:1 o/bias:0")}


def tokens(rng):
    return (normal(rng, 2, 5, 7),)


def plain(attend, bias=True, number=3, kv=None, **extra):
    """`attend(p, q, k, v)` between q, k, v and o; `extra` makes more leaves from the generator."""

    def make():
        rng = seed()
        params = qkv_init(rng, 7, 4 * number, 6, bias, kv and 4 * kv)
        params |= {name: init(rng) for name, init in extra.items()}

        def fn(p, x):
            return dense(p["o"], merged(attend(p, *split_heads(p, x, number, kv))))

        return fn, params, tokens(rng)

    return make


def fused(cut):
    """`cut` makes q, k, v out of (2, 5, 36)."""

    def make():
        rng = seed()
        params = {"qkv": dense_init(rng, 7, 36), "o": dense_init(rng, 12, 6)}
        return lambda p, x: dense(p["o"], merged(attention(*cut(dense(p["qkv"], x))))), params, tokens(rng)

    return make


def by_split(x):
    return (heads(part, 3) for part in jnp.split(x, 3, -1))


def by_moveaxis(x):
    q, k, v = jnp.moveaxis(x.reshape(2, 5, 3, 3, 4), 2, 0)
    return q, k, v


def by_head(x):
    return jnp.split(x.reshape(2, 5, 3, 12), 3, -1)


def single_head():
    rng = seed()
    params = qkv_init(rng, 7, 4, 6)

    def fn(p, x):
        q, k, v = (dense(p[name], x) for name in "qkv")
        return dense(p["o"], jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k) * 0.5) @ v)

    return fn, params, tokens(rng)


def head_axes(show):
    """Kernels of (features, heads, width); returns the weights of each head too if `show`."""

    def make():
        rng = seed()
        params = {name: dense_init(rng, 7, 3, 4) for name in "qkv"} | {"o": {"kernel": normal(rng, 3, 4, 6)}}

        def fn(p, x):
            q, k, v = (dense(p[name], x) for name in "qkv")
            weights = jax.nn.softmax(scores(q, k))
            y = jnp.einsum("bthd,hdo->bto", weighed(weights, v), p["o"]["kernel"])
            return (y, weights) if show else y

        return fn, params, tokens(rng)

    return make


def linear_single(feature):
    def make():
        rng = seed()

        def fn(p, x):
            q, k, v = feature(dense(p["q"], x)), feature(dense(p["k"], x)), dense(p["v"], x)
            total = jnp.einsum("btd,bd->bt", q, k.sum(1)) + 1.0
            return dense(p["o"], jnp.einsum("btd,bde->bte", q, jnp.einsum("bsd,bse->bde", k, v)) / total[..., None])

        return fn, qkv_init(rng, 7, 4, 6), tokens(rng)

    return make


def talking_heads():
    """3 heads of 4 make the logits, 8 mixtures are normalized, 10 heads of 2 hold the values."""
    rng = seed()
    params = {"q": dense_init(rng, 7, 12), "k": dense_init(rng, 7, 12), "v": dense_init(rng, 7, 20)}
    params |= {"o": dense_init(rng, 20, 6), "before": normal(rng, 3, 8), "after": normal(rng, 8, 10)}

    def fn(p, x):
        q, k, v = heads(dense(p["q"], x), 3), heads(dense(p["k"], x), 3), heads(dense(p["v"], x), 10)
        weights = jax.nn.softmax(jnp.einsum("bhts,hm->bmts", scores(q, k), p["before"]))
        return dense(p["o"], merged(weighed(jnp.einsum("bmts,mn->bnts", weights, p["after"]), v)))

    return fn, params, tokens(rng)


def cross():
    rng = seed()
    params = {"q": dense_init(rng, 7, 12), "k": dense_init(rng, 8, 12), "v": dense_init(rng, 8, 12)}

    def fn(p, x, context):
        q, k, v = (heads(dense(p[n], a), 3) for n, a in (("q", x), ("k", context), ("v", context)))
        return dense(p["o"], merged(attention(q, k, v)))

    return fn, params | {"o": dense_init(rng, 12, 6)}, (*tokens(rng), normal(rng, 2, 9, 8))


def masked_by_input():
    rng = seed()

    def fn(p, x, allowed):
        q, k, v = split_heads(p, x, 3)
        logits = scores(q, k)
        logits = jnp.where(jnp.broadcast_to(allowed[:, None], logits.shape), logits, -1e9)
        return dense(p["o"], merged(weighed(jax.nn.softmax(logits), v)))

    return fn, qkv_init(rng, 7, 12, 6), (*tokens(rng), jnp.asarray(rng.random((2, 5, 5)) < 0.7))


def pooled():
    """One learned query for each head."""
    rng = seed()
    params = {"k": dense_init(rng, 7, 12), "v": dense_init(rng, 7, 12), "o": dense_init(rng, 12, 6)}

    def fn(p, x):
        k, v = heads(dense(p["k"], x), 3), heads(dense(p["v"], x), 3)
        weights = jax.nn.softmax(jnp.einsum("hd,bshd->bhs", p["query"], k))
        return dense(p["o"], jnp.einsum("bhs,bshd->bhd", weights, v).reshape(2, 12))

    return fn, params | {"query": normal(rng, 3, 4)}, tokens(rng)


def graph_attention():
    rng = seed()
    params = {"w": dense_init(rng, 7, 12), "src": nonzero(rng, 3, 4), "dst": nonzero(rng, 3, 4)}

    def fn(p, x, edges):
        h = dense(p["w"], x).reshape(9, 3, 4)
        src, dst = ((h * p[name][None]).sum(-1) for name in ("src", "dst"))
        logits = jax.nn.leaky_relu(dst[:, None] + src[None])
        weights = jax.nn.softmax(jnp.where(jnp.broadcast_to(edges[..., None], logits.shape), logits, -1e9), axis=1)
        return dense(p["o"], jax.nn.elu(jnp.einsum("nmh,mhd->nhd", weights, h)).reshape(9, 12))

    return fn, params | {"o": dense_init(rng, 12, 6)}, (normal(rng, 9, 7), jnp.asarray(rng.random((9, 9)) < 0.5))


def residual():
    rng = seed()
    params = {"in": dense_init(rng, 7, 10), **qkv_init(rng, 10, 12, 10), "out": dense_init(rng, 10, 6)}

    def fn(p, x):
        h = dense(p["in"], x)
        return dense(p["out"], h + self_attention(p, h, 3, causal=True))

    return fn, params, tokens(rng)


def usual(name, make, more="", without_bias=False):
    """All heads are removable, and what is in them."""
    if without_bias:
        return Case(name, make, exact=axes("{q,k,v}/kernel:1 o/kernel:0"), pinned=axes("{q,k,v}/kernel:0 o/kernel:1"))
    return Case(name, make, exact=axes(f"{QKV} {more}"), pinned=axes(ENDS))


CASES = (
    usual("attention_single_head", single_head),
    usual("attention_multi_head", plain(lambda p, q, k, v: attention(q, k, v))),
    usual("attention_no_bias", plain(lambda p, q, k, v: attention(q, k, v), bias=False), without_bias=True),
    usual("attention_causal", plain(lambda p, q, k, v: attention(q, k, v, causal=True))),
    usual("attention_transposed", plain(with_transposes)),
    usual("attention_dot_product", plain(lambda p, q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))),
    usual("attention_softcap", plain(lambda p, q, k, v: weighed(jax.nn.softmax(3 * jnp.tanh(scores(q, k) / 3)), v))),
    usual("attention_sigmoid", plain(lambda p, q, k, v: weighed(jax.nn.sigmoid(scores(q, k) - 1.5), v))),
    usual("attention_rope_halves", plain(lambda p, q, k, v: attention(rope(q), rope(k), v))),
    usual(
        "attention_rope_interleaved", plain(lambda p, q, k, v: attention(rope_interleaved(q), rope_interleaved(k), v))
    ),
    usual("attention_alibi", plain(alibi)),
    usual("attention_masked_by_input", masked_by_input),
    usual("attention_gqa_repeat", plain(repeated, number=6, kv=2)),
    usual("attention_gqa_einsum", plain(grouped, number=6, kv=2)),
    usual("attention_gqa_dot_product", plain(lambda p, *a: jax.nn.dot_product_attention(*a), number=6, kv=2)),
    usual("attention_mqa", plain(one_for_all, kv=1)),
    usual(
        "attention_qk_norm",
        plain(normed, q_norm=lambda rng: norm_init(rng, 4, False), k_norm=lambda rng: norm_init(rng, 4, False)),
        "{q_norm,k_norm}/scale:0",
    ),
    usual(
        "attention_temperature",  # one for each head
        plain(lambda p, q, k, v: attention(q * p["tau"][None, None, :, None], k, v), tau=lambda rng: positive(rng, 3)),
        "tau:0",
    ),
    usual(
        "attention_null_token",
        plain(null_token, null_k=lambda rng: normal(rng, 3, 4), null_v=lambda rng: normal(rng, 3, 4)),
        "{null_k,null_v}:0,1",
    ),
    usual("attention_linear_relu", plain(linear(jax.nn.relu))),
    usual("attention_linear_relu_single", linear_single(jax.nn.relu)),
    usual("attention_linear_elu", plain(linear(lambda x: jax.nn.elu(x) + 1))),  # heads; what is in q and k is not exact
    Case(
        "attention_linear_elu_single",  # the feature of a masked channel is 1, and is summed over
        linear_single(lambda x: jax.nn.elu(x) + 1),
        exact=axes("v/kernel:1 v/bias:0 o/kernel:0"),
        inexact=axes("{q,k}/kernel:1 {q,k}/bias:0"),
        pinned=axes(ENDS),
    ),
    Case("attention_fused_split", fused(by_split), **FUSED),
    Case("attention_fused_moveaxis", fused(by_moveaxis), **FUSED),
    Case("attention_fused_by_head", fused(by_head), **FUSED),
    Case(
        "attention_head_axes",
        head_axes(False),
        exact=axes("{q,k,v}/kernel:1,2 {q,k,v}/bias:0,1 o/kernel:0,1"),
        pinned=axes("{q,k,v}/kernel:0 o/kernel:2"),
    ),
    Case(
        "attention_weights_shown",
        head_axes(True),
        exact=axes("{q,k,v}/kernel:2 {q,k,v}/bias:1 o/kernel:1"),
        pinned=axes("{q,k,v}/kernel:0,1 {q,k,v}/bias:0 o/kernel:0,2"),
    ),
    usual("attention_cross", cross),
    Case(
        "attention_pooled",
        pooled,
        exact=axes("{k,v}/kernel:1 {k,v}/bias:0 query:0,1 o/kernel:0"),
        pinned=axes("{k,v}/kernel:0 o/kernel:1 o/bias:0"),
    ),
    Case(
        "attention_talking_heads",  # the softmax of masked logits is not zero, and is mixed
        talking_heads,
        exact=axes(f"{QKV} before:0 after:1"),
        inexact=axes("before:1 after:0"),
        pinned=axes(ENDS),
    ),
    Case(
        "attention_graph",
        graph_attention,
        exact=axes("w/kernel:1 w/bias:0 {src,dst}:0,1 o/kernel:0"),
        pinned=axes("w/kernel:0 o/kernel:1 o/bias:0"),
    ),
    Case(
        "attention_residual",
        residual,
        exact=axes(f"{QKV} {{q,k,v}}/kernel:0 o/kernel:1 o/bias:0 in/kernel:1 in/bias:0 out/kernel:0"),
        pinned=axes("in/kernel:0 out/kernel:1 out/bias:0"),
    ),
)
