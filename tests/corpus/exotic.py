"""A hidden layer and something unusual between it and the head: what stands between decides what can be removed."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.corpus.case import Case, axes
from tests.corpus.layers import dense, dense_chain, normal, seed

HIDDEN = axes("dense_0/kernel:1 dense_0/bias:0 dense_1/kernel:0")
ENDS = axes("dense_0/kernel:0 dense_1/kernel:1 dense_1/bias:0")
TO_BF16 = jnp.bfloat16


def around(between, **more):
    """A net of 5, 8 and 3 units, `between(hidden, params, x)` after the hidden layer."""

    def make():
        rng = seed()
        params = {**dense_chain(rng, 5, 8, 3), **{name: make_one(rng) for name, make_one in more.items()}}

        def fn(p, x):
            return dense(p["dense_1"], between(jax.nn.relu(dense(p["dense_0"], x)), p, x))

        return fn, params, (normal(rng, 4, 5),)

    return make


def vector(rng):
    return normal(rng, 8)


def square(rng):
    return normal(rng, 8, 8)


def dropout(h, p, x):
    return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.7, h.shape), h / 0.7, 0.0)


def noise(scale):
    return lambda h, p, x: scale(h, jax.random.normal(jax.random.key(0), h.shape))


def branch(one):
    return lambda h, p, x: jax.lax.cond(x.sum() > 0, one, jnp.tanh, h)


def switched(h, p, x):
    return jax.lax.switch(jnp.int32(x[0, 0] > 0), [lambda h: h * 2.0, jnp.tanh, jnp.abs], h)


def callback(h, p, x):
    return jax.pure_callback(lambda a: np.asarray(a) * np.float32(2), jax.ShapeDtypeStruct(h.shape, h.dtype), h)


def printed(h, p, x):
    jax.debug.callback(lambda a: None, h)
    return h


def printed_text(h, p, x):
    jax.debug.print("{}", h.sum())
    return h


@jax.custom_batching.custom_vmap
def own_vmap(x):
    return x * 2.0


@own_vmap.def_vmap
def _(size, batched, x):
    return x * 2.0, batched[0]


@jax.custom_jvp
def bent(x):
    return jnp.maximum(x, 0.0) * 2.0


@bent.defjvp
def _(primals, tangents):
    return bent(primals[0]), tangents[0] * 3.0


@jax.custom_jvp
def own_softmax(x):
    return jax.nn.softmax(x)


@own_softmax.defjvp
def _(primals, tangents):
    return own_softmax(primals[0]), tangents[0] * 3.0 + tangents[0].sum(-1, keepdims=True)


def straight_through(axis):
    """Round to 15 levels between the extremes of the array, or of each output channel, with a slope of 2."""

    @jax.custom_vjp
    def rounded(w):
        scale = jnp.maximum(jnp.abs(w).max(axis, keepdims=True), 1e-9) / 7.0
        return jnp.round(w / scale) * scale

    rounded.defvjp(lambda w: (rounded(w), None), lambda _, g: (2.0 * g,))
    return rounded


def quantized(axis, both):
    def make():
        rng, rounded = seed(), straight_through(axis)
        second = rounded if both else lambda w: w
        params = {"up": normal(rng, 5, 8), "down": normal(rng, 8, 3)}
        return lambda p, x: jax.nn.relu(x @ rounded(p["up"])) @ second(p["down"]), params, (normal(rng, 4, 5),)

    return make


def halved(h, p, x):
    return jax.lax.while_loop(lambda c: (c**2).sum() > 1, lambda c: c * 0.5, h)


def one_step_of_training():
    rng = seed()
    params = {"up": normal(rng, 5, 8), "down": normal(rng, 8, 3)}
    net = lambda q, x: jax.nn.relu(x @ q["up"]) @ q["down"]  # noqa: E731

    def fn(p, x):
        slopes = jax.grad(lambda q: (net(q, x) ** 2).mean())(p)
        return net(jax.tree.map(lambda w, g: w - 0.1 * g, p, slopes), x)

    return fn, params, (normal(rng, 4, 5),)


def keyed(between, key):
    def make():
        fn, params, inputs = around(between)()
        return fn, {**params, "key": key}, inputs

    return make


def random_mask(h, p, x):
    return h * jax.random.bernoulli(p["key"], 0.5, h.shape).astype(h.dtype)


def _free(name, between, **more):
    return Case(f"exotic_{name}", around(between, **more), exact=HIDDEN, pinned=ENDS)


def _leaky(name, between, **more):
    return Case(f"exotic_{name}", around(between, **more), exact=(), inexact=axes("dense_0/kernel:1"), pinned=ENDS)


def _stuck(name, between, **more):
    return Case(f"exotic_{name}", around(between, **more), exact=(), pinned=HIDDEN + ENDS)


CASES = (
    _stuck("sort", lambda h, p, x: jnp.sort(h, -1)),
    _free("sort_batch", lambda h, p, x: jnp.sort(h, 0)),
    _stuck("top_k", lambda h, p, x: jnp.concatenate([jax.lax.top_k(h, 3)[0], h[:, 3:]], -1)),
    _stuck("argmax", lambda h, p, x: h * jnp.argmax(h, -1, keepdims=True).astype(h.dtype)),
    _leaky("cumsum", lambda h, p, x: jnp.cumsum(h, -1)),
    _stuck("fft", lambda h, p, x: jnp.fft.fft(h, axis=-1).real),
    _free("fft_batch", lambda h, p, x: jnp.fft.fft(h, axis=0).real),
    _free("dropout", dropout),  # the random bits stay those of the full width
    _leaky("noise_added", noise(jnp.add)),
    _free("noise_multiplied", noise(jnp.multiply)),
    _free("iota_multiplied", lambda h, p, x: h * jnp.arange(8.0)[None]),
    _free("iota_added", lambda h, p, x: h + jnp.arange(8.0)[None]),  # constants, folded into the next bias
    _free("cond", branch(lambda h: h * 2.0)),
    _leaky("cond_adds", branch(lambda h: h + 1.0)),
    _free("switch", switched),
    _stuck("callback", callback),
    _stuck("debug_callback", printed),
    _free("map", lambda h, p, x: jax.lax.map(lambda a: a * 2.0, h)),
    _stuck("map_over_channels", lambda h, p, x: jax.lax.map(lambda a: a * 2.0, h.T).T),
    _free("vmap", lambda h, p, x: jax.vmap(jnp.multiply, (1, 0), 1)(h, p["s"]), s=vector),
    _stuck("inverse", lambda h, p, x: h @ jnp.linalg.inv(h.T @ h + jnp.eye(8))),
    _free("complex", lambda h, p, x: (jax.lax.complex(h, h) * jax.lax.complex(p["s"], p["s"])[None]).real, s=vector),
    _free("custom_jvp", lambda h, p, x: bent(h)),
    _free("custom_jvp_reduces", lambda h, p, x: h * own_softmax(h)),
    _free("associative_scan", lambda h, p, x: jax.lax.associative_scan(jnp.add, h, axis=0)),
    _free("prod", lambda h, p, x: h * jnp.prod(h, -1, keepdims=True)),
    _free("logsumexp", lambda h, p, x: h * jax.nn.logsumexp(h, -1, keepdims=True)),
    _free("divided_by_deviation", lambda h, p, x: h / jnp.std(h, -1, keepdims=True)),
    _stuck("median", lambda h, p, x: h - jnp.median(h, -1, keepdims=True)),
    _free("while", halved),
    _free("gram", lambda h, p, x: h @ (h.T @ h)),
    _free("grad_inside", lambda h, p, x: jax.grad(lambda z: (jnp.tanh(z) ** 2).sum())(h)),
    _free("jvp_inside", lambda h, p, x: jax.jvp(jnp.tanh, (h,), (h,))[1]),
    _free("bfloat16_inside", lambda h, p, x: h.astype(TO_BF16).astype(jnp.float32)),
    _free("triangular", lambda h, p, x: h @ jnp.triu(p["w"]), w=square),
    Case(  # what the matrix passes on is no axis of the hidden layer any more
        "exotic_diagonal",
        around(lambda h, p, x: h @ jnp.diag(p["s"]), s=vector),
        exact=axes("dense_0/kernel:1 dense_0/bias:0"),
    ),
    _leaky("self_over_norm", lambda h, p, x: h * jax.lax.rsqrt(h * h)),  # 0 * inf
    _free("polynomial", lambda h, p, x: h * h * 2.0 + h),
    _free("argmax_tokens", lambda h, p, x: h + jnp.argmax(jax.nn.sigmoid(h), 0, keepdims=True).astype(h.dtype)),
    _free("one_index", lambda h, p, x: h * h[:, np.array([2])]),
    Case(  # two rows of the matrix meet nothing but zeros; the axis that is padded is pinned further on
        "exotic_zero_rows",
        around(
            lambda h, p, x: jnp.pad(h, ((0, 0), (0, 2))) @ p["w"] + jnp.sort(h, -1), w=lambda rng: normal(rng, 10, 8)
        ),
        exact=axes("w:0"),
        pinned=axes("dense_0/kernel:1 w:1"),
    ),
    _free("dead_code", lambda h, p, x: (jnp.sort(h, -1), h)[1]),
    _free("polyval", lambda h, p, x: jnp.polyval(jnp.array([1.0, 2.0, 3.0]), h)),
    _free("device_put", lambda h, p, x: jax.device_put(h) * 2.0),
    _free("custom_vmap", lambda h, p, x: own_vmap(h)),
    _free("printed_text", printed_text),
    _free("added_at_a_token", lambda h, p, x: h.at[0].add(h[1])),
    _free("subtracted_at_a_token", lambda h, p, x: h.at[0].subtract(h[1])),
    _free("set_at_a_token", lambda h, p, x: jax.nn.sigmoid(h).at[0].set(jax.nn.sigmoid(h[1]))),
    _leaky("constants_added_at_a_token", lambda h, p, x: (s := jax.nn.sigmoid(h)).at[0].add(s[1])),
    _leaky("constants_subtracted_at_a_token", lambda h, p, x: (s := jax.nn.sigmoid(h)).at[0].subtract(s[1])),
    _leaky("constants_multiplied_at_a_token", lambda h, p, x: (s := jax.nn.sigmoid(h)).at[0].multiply(s[1])),
    Case("exotic_key_leaf", keyed(random_mask, jax.random.key(3)), exact=HIDDEN, pinned=ENDS),
    Case("exotic_old_key_leaf", keyed(random_mask, jax.random.PRNGKey(3)), exact=HIDDEN, pinned=ENDS),
    Case(
        "exotic_quantized_per_tensor",  # the scale of `down` is that of its largest entry, removed rows included
        quantized(None, True),
        exact=(),
        inexact=axes("up:1"),
    ),
    Case("exotic_quantized_rows_count", quantized(0, True), exact=(), inexact=axes("up:1")),
    Case("exotic_quantized_producer", quantized(0, False), exact=axes("up:1 down:0"), pinned=axes("up:0 down:1")),
    Case("exotic_step_of_training", one_step_of_training, exact=axes("up:1 down:0"), pinned=axes("up:0 down:1")),
)
