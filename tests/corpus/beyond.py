"""Nets beyond classifiers: flows, autoencoders, fields, equations, graphs, recommenders."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.case import Case, axes
from tests.corpus.layers import dense, dense_chain, dense_init, ids, merged, normal, seed

relu = jax.nn.relu


def two(p, x, act=jnp.tanh):
    return dense(p["dense_1"], act(dense(p["dense_0"], x)))


def coupling_flow():
    """Affine coupling layers: halves of the input take turns; the log-determinant is an output too."""
    rng = seed()
    params = [dense_chain(rng, 3, 8, 6) for _ in range(2)]

    def fn(p, x):
        a, b = jnp.split(x, 2, -1)
        volume = jnp.zeros(x.shape[0])
        for layer in p:
            scale, shift = jnp.split(two(layer, a), 2, -1)
            a, b = b * jnp.exp(jnp.tanh(scale)) + shift, a
            volume = volume + jnp.tanh(scale).sum(-1)
        return jnp.concatenate([a, b], -1), volume

    return fn, params, (normal(rng, 4, 6),)


def vae():
    rng = seed()
    params = {"enc": dense_init(rng, 7, 8), "mean": dense_init(rng, 8, 4), "log": dense_init(rng, 8, 4)}
    params |= {"dec": dense_chain(rng, 4, 8, 7)}

    def fn(p, x, key):
        h = relu(dense(p["enc"], x))
        mean, log = dense(p["mean"], h), dense(p["log"], h)
        z = mean + jnp.exp(0.5 * log) * jax.random.normal(key, mean.shape)
        return two(p["dec"], z, relu), -0.5 * (1 + log - mean**2 - jnp.exp(log)).sum(-1)

    return fn, params, (normal(rng, 3, 7), jax.random.key(0))


def vector_quantized():
    """The nearest entry of a codebook, straight through."""
    rng = seed()
    params = {"enc": dense_chain(rng, 5, 8, 4), "book": normal(rng, 6, 4), "dec": dense_chain(rng, 4, 8, 5)}

    def fn(p, x):
        z = two(p["enc"], x, relu)
        chosen = jnp.square(z[:, None] - p["book"][None]).sum(-1).argmin(-1)
        return two(p["dec"], z + lax.stop_gradient(p["book"][chosen] - z), relu), chosen

    return fn, params, (normal(rng, 4, 5),)


def towers():
    """Two encoders and the cosine between their outputs."""
    rng = seed()
    params = {"a": dense_chain(rng, 5, 8, 6), "b": dense_chain(rng, 7, 8, 6)}

    def fn(p, x, y):
        a, b = two(p["a"], x), two(p["b"], y)
        return (a / jnp.linalg.norm(a, axis=-1, keepdims=True)) @ (b / jnp.linalg.norm(b, axis=-1, keepdims=True)).T

    return fn, params, (normal(rng, 4, 5), normal(rng, 4, 7))


def radiance_field():
    rng = seed()
    params = {"in": dense_init(rng, 12, 8), "skip": dense_init(rng, 20, 8), "out": dense_init(rng, 8, 4)}

    def fn(p, x):
        e = jnp.concatenate([f(x * 2.0**k) for k in range(2) for f in (jnp.sin, jnp.cos)], -1)
        h = relu(dense(p["skip"], jnp.concatenate([relu(dense(p["in"], e)), e], -1)))
        color, density = jnp.split(dense(p["out"], h), [3], -1)
        return jax.nn.sigmoid(color), relu(density)

    return fn, params, (normal(rng, 4, 3),)


def laplacian():
    """A physics-informed net: second derivatives by its input are part of the output."""
    rng = seed()
    params = dense_chain(rng, 2, 8, 6, 1)

    def value(x, p):
        return dense(p["dense_2"], jnp.tanh(two(p, x)))[0]

    return (
        lambda p, x: jax.vmap(lambda x: jnp.trace(jax.hessian(value)(x, p)) + value(x, p))(x),
        params,
        (normal(rng, 4, 2),),
    )


def fixed_point():
    rng = seed()
    params = {"in": dense_init(rng, 5, 8), "kernel": normal(rng, 8, 8, scale=0.1), "out": dense_init(rng, 8, 2)}

    def fn(p, x):
        u = dense(p["in"], x)
        return dense(p["out"], lax.fori_loop(0, 5, lambda i, z: jnp.tanh(z @ p["kernel"] + u), jnp.zeros_like(u)))

    return fn, params, (normal(rng, 4, 5),)


def fourier_operator():
    rng = seed()
    params = {"in": dense_init(rng, 2, 6), "real": normal(rng, 6, 5, 3), "imaginary": normal(rng, 6, 5, 3)}
    params |= {"past": dense_init(rng, 6, 5), "out": dense_init(rng, 5, 1)}

    def fn(p, x):
        h = dense(p["in"], x)
        low = jnp.fft.rfft(h, axis=1)[:, :3]
        low = jnp.einsum("bmi,iom->bmo", low, lax.complex(p["real"], p["imaginary"]))
        wide = jnp.fft.irfft(jnp.pad(low, ((0, 0), (0, 2), (0, 0))), 8, axis=1)
        return dense(p["out"], jax.nn.gelu(wide + dense(p["past"], h)))

    return fn, params, (normal(rng, 2, 8, 2),)


def graph_attention():
    """Two heads over the edges of a graph, a softmax for each target."""
    rng = seed()
    params = {"kernel": normal(rng, 5, 2, 4), "from": normal(rng, 2, 4), "to": normal(rng, 2, 4)}
    params |= {"out": dense_init(rng, 8, 3)}

    def fn(p, x, source, target):
        h = jnp.einsum("ni,ihd->nhd", x, p["kernel"])
        logits = jnp.einsum("nhd,hd->nh", h, p["from"])[source] + jnp.einsum("nhd,hd->nh", h, p["to"])[target]
        weights = jnp.exp(jax.nn.leaky_relu(logits))
        weights = weights / jax.ops.segment_sum(weights, target, 6)[target]
        return dense(p["out"], merged(jax.ops.segment_sum(h[source] * weights[..., None], target, 6)))

    return fn, params, (normal(rng, 6, 5), ids(rng, 6, 12), jnp.arange(12, dtype=jnp.int32) % 6)


def recommender():
    """Embeddings and features, their products in pairs, a net on top (DLRM)."""
    rng = seed()
    params = {"tables": [normal(rng, 7, 6), normal(rng, 9, 6)], "below": dense_init(rng, 4, 6)}
    params |= {"above": dense_chain(rng, 9, 8, 1)}
    rows, columns = np.tril_indices(3, -1)

    def fn(p, x, index):
        found = [table[index[:, i]] for i, table in enumerate(p["tables"])]
        z = jnp.stack([relu(dense(p["below"], x)), *found], 1)
        pairs = jnp.einsum("bif,bjf->bij", z, z)[:, rows, columns]
        return two(p["above"], jnp.concatenate([z[:, 0], pairs], -1), relu)

    return fn, params, (normal(rng, 4, 4), ids(rng, 7, 4, 2))


CASES = (
    Case(
        "beyond_coupling_flow",
        coupling_flow,
        exact=axes("{0,1}/dense_0/kernel:1 {0,1}/dense_0/bias:0 {0,1}/dense_1/kernel:0"),
        pinned=axes("{0,1}/dense_0/kernel:0 {0,1}/dense_1/kernel:1"),
    ),
    Case(  # a latent that is masked is noise
        "beyond_vae",
        vae,
        exact=axes("enc/kernel:1 enc/bias:0 dec/dense_0/kernel:1 dec/dense_0/bias:0 dec/dense_1/kernel:0"),
        inexact=axes("{mean,log}/kernel:1 {mean,log}/bias:0"),
    ),
    Case(
        "beyond_vector_quantized",
        vector_quantized,
        exact=axes("enc/dense_0/kernel:1 enc/dense_1/kernel:1 book:1 dec/dense_0/kernel:0,1 dec/dense_1/kernel:0"),
        pinned=axes("book:0 enc/dense_0/kernel:0 dec/dense_1/kernel:1"),
    ),
    Case(
        "beyond_towers",
        towers,
        exact=axes("{a,b}/dense_0/kernel:1 {a,b}/dense_1/kernel:0,1 {a,b}/dense_1/bias:0"),
        pinned=axes("{a,b}/dense_0/kernel:0"),
    ),
    Case(
        "beyond_radiance_field",
        radiance_field,
        exact=axes("in/kernel:1 in/bias:0 skip/kernel:0,1 skip/bias:0 out/kernel:0"),
        pinned=axes("in/kernel:0 out/kernel:1 out/bias:0"),
    ),
    Case(
        "beyond_laplacian",
        laplacian,
        exact=axes("dense_{0,1}/kernel:1 dense_{0,1}/bias:0 dense_{1,2}/kernel:0"),
        pinned=axes("dense_0/kernel:0 dense_2/kernel:1"),
    ),
    Case(
        "beyond_fixed_point",
        fixed_point,
        exact=axes("in/kernel:1 in/bias:0 kernel:0,1 out/kernel:0"),
        pinned=axes("in/kernel:0 out/kernel:1"),
    ),
    Case(
        "beyond_fourier_operator",
        fourier_operator,
        exact=axes("in/kernel:1 in/bias:0 {real,imaginary}:0,1 past/kernel:0,1 past/bias:0 out/kernel:0"),
        pinned=axes("{real,imaginary}:2 in/kernel:0 out/kernel:1"),
    ),
    Case(
        "beyond_graph_attention",
        graph_attention,
        exact=axes("kernel:1,2 {from,to}:0,1 out/kernel:0"),
        pinned=axes("kernel:0 out/kernel:1"),
    ),
    Case(
        "beyond_recommender",
        recommender,
        exact=axes("tables/{0,1}:1 below/kernel:1 below/bias:0 above/dense_0/kernel:0,1 above/dense_1/kernel:0"),
        pinned=axes("tables/{0,1}:0 below/kernel:0"),
    ),
)
