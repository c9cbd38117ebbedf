"""Whole transformers and their relatives: 7 features, 5 tokens, width 10, 3 heads of 4, hidden 14, 6 outputs."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.corpus.blocks import (
    block,
    block_axes,
    block_init,
    gmlp,
    gmlp_init,
    llama,
    llama_init,
    mixer,
    mixer_init,
    qkv_init,
    self_attention,
    t5,
    t5_init,
)
from tests.corpus.case import Case, axes
from tests.corpus.layers import (
    attention,
    dense,
    dense_init,
    heads,
    ids,
    layer_norm,
    merged,
    nonzero,
    norm_init,
    normal,
    seed,
    standardize,
)

ENDS = axes("in/kernel:0 out/kernel:1 out/bias:0")
STREAM = axes("in/kernel:1 in/bias:0 out/kernel:0")


def between(init, body):
    """`body(p, x)` on the stream between a dense layer in and one out; `init(rng)` makes its leaves."""

    def make():
        rng = seed()
        params = {"in": dense_init(rng, 7, 10), **init(rng), "out": dense_init(rng, 10, 6)}
        return lambda p, x: dense(p["out"], body(p, dense(p["in"], x))), params, (normal(rng, 2, 5, 7),)

    return make


def two_blocks(rng):
    return {"blocks": [block_init(rng, 10, 12, 14) for _ in range(2)]}


def in_turn(p, x, apply=block):
    for one in p["blocks"]:
        x = apply(one, x, 3)
    return x


def by_scan(checkpointed):
    def body(p, x):
        step = lambda x, one: (block(one, x, 3, causal=True), None)  # noqa: E731
        return lax.scan(jax.checkpoint(step) if checkpointed else step, x, p["layers"])[0]

    return body


def stacked(rng):
    return {"layers": jax.tree.map(lambda *a: jnp.stack(a), *(block_init(rng, 10, 12, 14) for _ in range(3)))}


def vit():
    rng = seed()
    params = {"patch": dense_init(rng, 9, 10), "cls": normal(rng, 10), "pos": normal(rng, 5, 10), **two_blocks(rng)}
    params |= {"ln": norm_init(rng, 10), "out": dense_init(rng, 10, 6)}

    def fn(p, image):
        x = image.reshape(2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4).reshape(2, 4, 9)
        x = jnp.concatenate([jnp.broadcast_to(p["cls"][None, None], (2, 1, 10)), dense(p["patch"], x)], 1)
        x = in_turn(p, x + p["pos"][None])
        return dense(p["out"], layer_norm(p["ln"], x)[:, 0])

    return fn, params, (normal(rng, 2, 6, 6),)


def gpt():
    rng = seed()
    params = {"emb": normal(rng, 11, 10), "pos": normal(rng, 5, 10), **two_blocks(rng), "ln": norm_init(rng, 10)}

    def fn(p, tokens):
        x = p["emb"][tokens] + p["pos"][None]
        x = in_turn(p, x, lambda one, x, number: block(one, x, number, causal=True))
        return layer_norm(p["ln"], x) @ p["emb"].T

    return fn, params, (ids(rng, 11, 2, 5),)


def bert():
    rng = seed()
    params = {"emb": normal(rng, 11, 10), "pos": normal(rng, 5, 10), "kind": normal(rng, 2, 10), **two_blocks(rng)}
    params |= {"ln": norm_init(rng, 10), "out": dense_init(rng, 10, 6)}

    def fn(p, tokens, kinds):
        x = layer_norm(p["ln"], p["emb"][tokens] + p["pos"][None] + p["kind"][kinds])
        for one in p["blocks"]:
            x = layer_norm(one["ln_0"], x + self_attention(one["att"], x, 3))
            x = layer_norm(one["ln_1"], x + dense(one["down"], jax.nn.gelu(dense(one["up"], x))))
        return dense(p["out"], jnp.tanh(x[:, 0]))

    return fn, params, (ids(rng, 11, 2, 5), ids(rng, 2, 2, 5))


def parallel(p, x):
    h = layer_norm(p["ln_0"], x)
    return x + self_attention(p["att"], h, 3) + dense(p["down"], jax.nn.gelu(dense(p["up"], h)))


def parallel_init(rng):
    params = block_init(rng, 10, 12, 14)
    del params["ln_1"]
    return params


def layer_scale(p, x):
    x = x + p["gamma_0"][None, None] * self_attention(p["att"], layer_norm(p["ln_0"], x), 3)
    h = dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["ln_1"], x))))
    return x + p["gamma_1"][None, None] * h


def perceiver(p, x):
    """Learned latents look at the tokens."""
    q = heads(dense(p["att"]["q"], p["latents"])[None], 3)
    k, v = heads(dense(p["att"]["k"], x), 3), heads(dense(p["att"]["v"], x), 3)
    y = dense(p["att"]["o"], merged(attention(jnp.broadcast_to(q, (2, 8, 3, 4)), k, v)))
    return (y + p["latents"][None]).mean(1)


def adaptive(norm):
    """Shift, scale and gate of a norm without leaves come from the mean of the tokens."""

    def body(p, x):
        shift, scale, gate = jnp.split(dense(p["mod"], x.mean(1, keepdims=True)), 3, -1)
        h = norm(x) * (1 + scale) + shift
        return x + gate * dense(p["down"], jax.nn.gelu(dense(p["up"], h)))

    return body


def adaptive_init(rng):
    return {"mod": dense_init(rng, 10, 30), "up": dense_init(rng, 10, 14), "down": dense_init(rng, 14, 10)}


def bare_rms(x):
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)


def decode(cached):
    """One token against a cache of 9, which is an input or belongs to the parameters."""

    def make():
        rng = seed()
        params = {"in": dense_init(rng, 7, 10), "out": dense_init(rng, 10, 6)}
        params |= {name: dense_init(rng, 10, 3, 4) for name in "qkv"} | {"o": {"kernel": normal(rng, 3, 4, 10)}}
        cache = {"k": normal(rng, 2, 9, 3, 4), "v": normal(rng, 2, 9, 3, 4)}
        params |= {"cache": cache} if cached else {}

        def fn(p, x, place, cache=None):
            cache, h = cache or p["cache"], dense(p["in"], x)
            new = {n: lax.dynamic_update_slice(cache[n], dense(p[n], h), (0, place, 0, 0)) for n in "kv"}
            y = jnp.einsum("bthd,hdo->bto", attention(dense(p["q"], h), new["k"], new["v"]), p["o"]["kernel"])
            return dense(p["out"], h + y) if cached else (dense(p["out"], h + y), new)

        place = jnp.asarray(3, jnp.int32)
        return fn, params, (normal(rng, 2, 1, 7), place) if cached else (normal(rng, 2, 1, 7), place, cache)

    return make


HEADS = axes("{q,k,v}/kernel:1,2 {q,k,v}/bias:0,1 o/kernel:0,1")
INSIDE = STREAM + axes("{q,k,v}/kernel:0 o/kernel:2")


def full(name, make, more):
    """Everything between the ends is removable."""
    return Case(name, make, exact=STREAM + axes(more), pinned=ENDS)


BLOCKS = block_axes("blocks/{0,1}/")
STACKED = {
    "exact": STREAM + axes(block_axes("layers/", 1)),
    "pinned": ENDS
    + axes("layers/att/{q,k,v,o}/{kernel,bias}:0 layers/{up,down}/{kernel,bias}:0 layers/{ln_0,ln_1}/{scale,bias}:0"),
}
MIXED = axes("token_up/kernel:1 token_down/kernel:0 up/kernel:1 up/bias:0 down/kernel:0")
MIXED_STREAM = axes("{ln_0,ln_1}/{scale,bias}:0 up/kernel:0 down/kernel:1 down/bias:0")

CASES = (
    full("transformer", between(two_blocks, in_turn), BLOCKS),
    full(
        "transformer_remat",
        between(two_blocks, lambda p, x: in_turn(p, x, jax.checkpoint(block, static_argnums=2))),
        BLOCKS,
    ),
    Case("transformer_scan", between(stacked, by_scan(False)), **STACKED),
    Case("transformer_scan_remat", between(stacked, by_scan(True)), **STACKED),
    Case(
        "transformer_vit",
        vit,
        exact=axes(f"patch/kernel:1 patch/bias:0 cls:0 pos:1 ln/{{scale,bias}}:0 out/kernel:0 {BLOCKS}"),
        pinned=axes("patch/kernel:0 pos:0 out/kernel:1 out/bias:0"),
    ),
    Case("transformer_gpt", gpt, exact=axes(f"emb:1 pos:1 ln/{{scale,bias}}:0 {BLOCKS}"), pinned=axes("emb:0 pos:0")),
    Case(
        "transformer_bert",
        bert,
        exact=axes(f"{{emb,pos,kind}}:1 ln/{{scale,bias}}:0 out/kernel:0 {BLOCKS}"),
        pinned=axes("{emb,pos,kind}:0 out/kernel:1 out/bias:0"),
    ),
    full(
        "transformer_llama",
        between(llama_init, llama),
        "{norm_0,norm_1}/scale:0 att/{q,k,v,o}/kernel:0,1 {gate_up,down}/kernel:0,1",
    ),
    Case(
        "transformer_t5",
        between(t5_init, t5),
        exact=STREAM + axes("norm/scale:0 att/{q,k,v,o}/kernel:0,1 table:1"),
        pinned=ENDS + axes("table:0"),
    ),
    full(
        "transformer_parallel",
        between(parallel_init, parallel),
        "ln_0/{scale,bias}:0 att/{q,k,v,o}/kernel:0,1 att/{q,k,v,o}/bias:0 {up,down}/kernel:0,1 {up,down}/bias:0",
    ),
    full(
        "transformer_layer_scale",
        between(
            lambda rng: {**block_init(rng, 10, 12, 14), "gamma_0": nonzero(rng, 10), "gamma_1": nonzero(rng, 10)},
            layer_scale,
        ),
        "gamma_0:0 gamma_1:0 " + block_axes(""),
    ),
    full(
        "transformer_perceiver",  # the number of latents is not vouched for
        between(lambda rng: {"latents": normal(rng, 8, 10), "att": qkv_init(rng, 10, 12, 10)}, perceiver),
        "latents:1 att/{q,k,v,o}/kernel:0,1 att/{q,k,v,o}/bias:0",
    ),
    Case(
        "transformer_adaptive_layer_norm",  # a masked channel comes out of the norm as minus the mean
        between(adaptive_init, adaptive(lambda x: standardize(x, -1))),
        exact=axes("up/kernel:1 up/bias:0 down/kernel:0"),
        inexact=STREAM + axes("mod/kernel:0,1 mod/bias:0 up/kernel:0 down/kernel:1 down/bias:0"),
        pinned=ENDS,
    ),
    full(
        "transformer_adaptive_rms_norm",
        between(adaptive_init, adaptive(bare_rms)),
        "{mod,up,down}/kernel:0,1 {mod,up,down}/bias:0",
    ),
    Case(
        "mlp_mixer",  # the biases over tokens put another number into each token of a masked channel
        between(mixer_init(True), mixer),
        exact=MIXED + axes("token_up/bias:0"),
        inexact=STREAM + MIXED_STREAM,
        pinned=ENDS + axes("token_up/kernel:0 token_down/kernel:1 token_down/bias:0"),
    ),
    Case(
        "mlp_mixer_no_token_bias",
        between(mixer_init(False), mixer),
        exact=STREAM + MIXED_STREAM + MIXED,
        pinned=ENDS + axes("token_up/kernel:0 token_down/kernel:1"),
    ),
    Case(
        "gmlp",
        between(gmlp_init, gmlp),
        exact=STREAM + axes("{ln_0,ln_1}/{scale,bias}:0 {up,down}/kernel:0,1 {up,down}/bias:0"),
        pinned=ENDS + axes("space/kernel:0,1 space/bias:0"),
    ),
    Case("decode_cache_is_input", decode(False), exact=INSIDE, pinned=ENDS + HEADS),
    Case(
        "decode_cache_is_parameter",
        decode(True),
        exact=INSIDE + HEADS + axes("cache/{k,v}:2,3"),
        pinned=ENDS + axes("cache/{k,v}:0,1"),
    ),
)
