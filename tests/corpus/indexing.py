"""Channels that are moved, picked, copied or looked up: 5 features, 7 hidden, 4 outputs, unless said otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.case import Case, axes
from tests.corpus.layers import dense, dense_init, flatten, ids, nonzero, normal, seed

HIDDEN = "dense_0/kernel:1 dense_0/bias:0 dense_1/kernel:0"
ENDS = "dense_0/kernel:0 dense_1/kernel:1 dense_1/bias:0"
SOME = np.array([True, False, True, True, False, True, False])


def mlp(body, width=7, rows=7, shape=(2, 5), **extra):
    """`body(p, h, x)` between two dense layers; the second has `rows` rows. `extra` makes more leaves."""

    def make():
        rng = seed()
        params = {"dense_0": dense_init(rng, 5, width), "dense_1": dense_init(rng, rows, 4)}
        params |= {name: init(rng) for name, init in extra.items()}
        return lambda p, x: dense(p["dense_1"], body(p, dense(p["dense_0"], x), x)), params, (normal(rng, *shape),)

    return make


def by_data(body, rows, *inputs, shape=(2, 5)):
    """As `mlp`, with more inputs: `body(h, *inputs)`."""

    def make():
        rng = seed()
        params = {"dense_0": dense_init(rng, 5, 7), "dense_1": dense_init(rng, rows, 4)}
        more = tuple(ids(rng, *one) for one in inputs)
        return (
            lambda p, x, *a: dense(p["dense_1"], body(dense(p["dense_0"], x), *a)),
            params,
            (normal(rng, *shape), *more),
        )

    return make


def two_layers(join, rows, other=6, **extra):
    """`join(p, a, b)` of two dense layers on the same input."""

    def make():
        rng = seed()
        params = {"a": dense_init(rng, 5, 7), "b": dense_init(rng, 5, other)}
        params |= {"dense_1": dense_init(rng, rows, 4)} if rows else {}
        params |= {name: init(rng) for name, init in extra.items()}

        def fn(p, x):
            y = join(p, jax.nn.relu(dense(p["a"], x)), jnp.tanh(dense(p["b"], x)))
            return dense(p["dense_1"], y) if rows else y

        return fn, params, (normal(rng, 2, 5),)

    return make


def flat_vector():
    """One leaf holds both layers."""
    rng = seed()
    sizes = ((5, 7), (1, 7), (7, 4), (1, 4))
    ends = np.cumsum([a * b for a, b in sizes])

    def fn(p, x):
        w, b, v, c = (p["v"][end - m * n : end].reshape(m, n) for (m, n), end in zip(sizes, ends.tolist()))
        return jax.nn.relu(x @ w + jnp.broadcast_to(b, (2, 7))) @ v + jnp.broadcast_to(c, (2, 4))

    return fn, {"v": normal(rng, int(ends[-1]))}, (normal(rng, 2, 5),)


def tied_autoencoder():
    rng = seed()
    params = {"kernel": normal(rng, 5, 7), "bias": nonzero(rng, 7), "back": nonzero(rng, 5)}

    def fn(p, x):
        return jax.nn.relu(x @ p["kernel"] + p["bias"][None]) @ p["kernel"].T + p["back"][None]

    return fn, params, (normal(rng, 2, 5),)


def shared_kernel():
    """A square kernel, used twice."""
    rng = seed()
    params = {"in": dense_init(rng, 5, 7), "square": dense_init(rng, 7, 7), "out": dense_init(rng, 7, 4)}

    def fn(p, x):
        h = dense(p["in"], x)
        for _ in range(2):
            h = jnp.tanh(dense(p["square"], h))
        return dense(p["out"], h)

    return fn, params, (normal(rng, 2, 5),)


def embedding(head, lookup=lambda table, tokens: table[tokens], tied=False):
    def make():
        rng = seed()
        params = {"emb": normal(rng, 11, 7)} | ({"scale": nonzero(rng, 7)} if tied else {"head": dense_init(rng, 7, 4)})
        return lambda p, tokens: head(p, lookup(p["emb"], tokens)), params, (ids(rng, 11, 2, 5),)

    return make


def graph(aggregate):
    """`aggregate(messages, receivers)` for 9 nodes and 12 edges."""

    def make():
        rng = seed()
        params = {"dense_0": dense_init(rng, 5, 7), "own": dense_init(rng, 5, 7), "dense_1": dense_init(rng, 7, 4)}

        def fn(p, x, senders, receivers):
            messages = jax.nn.relu(dense(p["dense_0"], x))[senders]
            return dense(p["dense_1"], jax.nn.relu(dense(p["own"], x) + aggregate(messages, receivers)))

        return fn, params, (normal(rng, 9, 5), ids(rng, 9, 12), ids(rng, 9, 12))

    return make


def bilinear():
    rng = seed()
    params = {"a": dense_init(rng, 5, 7), "b": dense_init(rng, 5, 6), "form": normal(rng, 7, 6, 4)}

    def fn(p, x):
        return jnp.einsum("bi,ijo,bj->bo", jnp.tanh(dense(p["a"], x)), p["form"], dense(p["b"], x))

    return fn, params, (normal(rng, 2, 5),)


def windows(h):
    """Two tokens side by side."""
    return jnp.concatenate([h[:, :-1], h[:, 1:]], -1)


def halves(p, h, x):
    a, b = jnp.split(h, [3], -1)
    return jnp.concatenate([jnp.tanh(b), jax.nn.relu(a)], -1)


def gated_by_one(p, h, x):
    return jax.nn.relu(h) * jax.nn.sigmoid(h[:, 3])[:, None]


def pick(h, i):
    return lax.dynamic_slice_in_dim(h, i, 4, 1)


def pick_token(h, i):
    return lax.dynamic_index_in_dim(h, i, 1, keepdims=False)


def along_tokens(h, index):
    return jnp.take_along_axis(h, jnp.broadcast_to(index[:, :, None], (2, 4, 7)), 1)


def one_hot(table, tokens):
    return jax.nn.one_hot(tokens, 11) @ table


def plain(name, make, more=""):
    return Case(name, make, exact=axes(f"{HIDDEN} {more}"), pinned=axes(ENDS))


def stuck(name, make):
    return Case(name, make, exact=(), pinned=axes(f"{HIDDEN} {ENDS}"))


def joined(name, make, more="dense_1/kernel:0", pinned=""):
    ends = "{a,b}/kernel:0" + (" dense_1/kernel:1 dense_1/bias:0" if "dense_1" in more else "")
    return Case(name, make, exact=axes(f"{{a,b}}/kernel:1 {{a,b}}/bias:0 {more}"), pinned=axes(f"{ends} {pinned}"))


CLASSES = {"exact": axes("emb:1 head/kernel:0"), "pinned": axes("head/kernel:1 head/bias:0")}
GRAPH = {
    "exact": axes(f"{HIDDEN} own/kernel:1 own/bias:0"),
    "pinned": axes(f"{ENDS} own/kernel:0"),
}

CASES = (
    plain("indexing_reverse", mlp(lambda p, h, x: jax.nn.relu(h)[:, ::-1])),
    plain("indexing_reverse_and_add", mlp(lambda p, h, x: jax.nn.relu(h) + h[:, ::-1])),  # channels go in pairs
    plain("indexing_roll", mlp(lambda p, h, x: jnp.roll(h, 2, 1))),
    plain("indexing_roll_tokens", mlp(lambda p, h, x: h + jnp.roll(h, 1, 1), shape=(2, 6, 5))),
    stuck("indexing_roll_and_add", mlp(lambda p, h, x: h + jnp.roll(h, 1, 1))),  # one ring of all channels
    plain("indexing_pad", mlp(lambda p, h, x: jnp.pad(h, ((0, 0), (2, 1))), rows=10)),
    plain("indexing_pad_with_one", mlp(lambda p, h, x: jnp.pad(h, ((0, 0), (2, 1)), constant_values=1.0), rows=10)),
    plain("indexing_gather", mlp(lambda p, h, x: h[:, np.array([4, 0, 2, 2, 6, 1])], rows=6)),
    plain("indexing_permute", mlp(lambda p, h, x: jnp.take(h, jnp.array([4, 0, 2, 3, 6, 1, 5]), axis=1))),
    plain("indexing_every_second", mlp(lambda p, h, x: h[:, ::2], width=9, rows=5)),
    plain("indexing_without_first", mlp(lambda p, h, x: h[:, 1:], rows=6)),
    plain("indexing_stack_sum", mlp(lambda p, h, x: jnp.stack([h, jnp.tanh(h), jnp.sin(h)], -1).sum(-1))),
    plain("indexing_flatten_tokens", mlp(lambda p, h, x: flatten(h), rows=42, shape=(2, 6, 5))),
    plain("indexing_flatten_channels_first", mlp(lambda p, h, x: flatten(h.swapaxes(1, 2)), rows=42, shape=(2, 6, 5))),
    plain("indexing_windows", mlp(lambda p, h, x: windows(h), rows=14, shape=(2, 6, 5))),
    plain("indexing_transposes", mlp(lambda p, h, x: jnp.expand_dims(jax.nn.relu(h.T), 1).transpose(1, 2, 0)[0])),
    plain("indexing_maxout", mlp(lambda p, h, x: h.reshape(2, 6, 3).max(-1), width=18, rows=6)),
    plain("indexing_sum_of_groups", mlp(lambda p, h, x: jnp.tanh(h).reshape(2, 3, 6).sum(1), width=18, rows=6)),
    plain("indexing_concat_input", mlp(lambda p, h, x: jnp.concatenate([x, jax.nn.relu(h)], -1), rows=12)),
    plain("indexing_concat_twice", mlp(lambda p, h, x: jnp.concatenate([h, jnp.tanh(h)], -1), rows=14)),
    plain("indexing_split", mlp(halves)),
    plain("indexing_tile", mlp(lambda p, h, x: jnp.tile(h, (1, 2)), rows=14)),
    plain("indexing_repeat", mlp(lambda p, h, x: jnp.repeat(h, 3, 1), rows=21)),
    plain("indexing_where", mlp(lambda p, h, x: jnp.where(jnp.broadcast_to(SOME[None], h.shape), h, jnp.tanh(h)))),
    plain("indexing_where_constant", mlp(lambda p, h, x: jnp.where(jnp.broadcast_to(SOME[None], h.shape), h, 0.3))),
    plain("indexing_single_channel", mlp(gated_by_one)),  # all but that one
    plain("indexing_set_channel", mlp(lambda p, h, x: h.at[:, 2].set(0.0))),
    stuck("indexing_by_data", by_data(pick, 4, (3,))),
    stuck("indexing_take_along_channels", by_data(lambda h, i: jnp.take_along_axis(h, i, 1), 3, (7, 2, 3))),
    plain("indexing_token_by_data", by_data(pick_token, 7, (6,), shape=(2, 6, 5))),
    plain("indexing_take_along_tokens", by_data(along_tokens, 7, (6, 2, 4), shape=(2, 6, 5))),
    joined("indexing_outer_product", two_layers(lambda p, a, b: (a[:, :, None] * b[:, None]).reshape(2, 42), 42)),
    joined("indexing_bilinear", bilinear, "form:0,1", "form:2"),
    joined(
        "indexing_three_operands",
        two_layers(
            lambda p, a, b: jnp.einsum("br,br,rs->bs", a, b, p["core"]), 9, 7, core=lambda rng: normal(rng, 7, 9)
        ),
        "core:0,1 dense_1/kernel:0",
    ),
    Case("indexing_flat_vector", flat_vector, exact=axes("v:0")),
    Case("indexing_tied_autoencoder", tied_autoencoder, exact=axes("kernel:1 bias:0"), pinned=axes("kernel:0 back:0")),
    Case(
        "indexing_shared_kernel",
        shared_kernel,
        exact=axes("in/kernel:1 in/bias:0 square/kernel:0,1 square/bias:0 out/kernel:0"),
        pinned=axes("in/kernel:0 out/kernel:1 out/bias:0"),
    ),
    Case(
        "embedding",
        embedding(lambda p, h: dense(p["head"], h.mean(1))),
        exact=CLASSES["exact"],
        pinned=CLASSES["pinned"] + axes("emb:0"),
    ),
    Case("embedding_one_hot", embedding(lambda p, h: dense(p["head"], jax.nn.relu(h)), one_hot), **CLASSES),
    Case(
        "embedding_tied",
        embedding(lambda p, h: (jnp.tanh(h) * p["scale"][None, None]) @ p["emb"].T, tied=True),
        exact=axes("emb:1 scale:0"),
        pinned=axes("emb:0"),
    ),
    Case("graph_segment_sum", graph(lambda m, to: jax.ops.segment_sum(m, to, 9)), **GRAPH),
    Case(  # a node that no edge reaches holds minus infinity in every channel, masked or not: flagged
        "graph_segment_max",
        graph(lambda m, to: jax.ops.segment_max(m, to, 9)),
        exact=(),
        inexact=GRAPH["exact"],
        pinned=GRAPH["pinned"],
    ),
    Case("graph_scatter_add", graph(lambda m, to: jnp.zeros((9, 7)).at[to].add(m)), **GRAPH),
)
