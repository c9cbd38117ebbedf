"""Kernels that are computed from parameters: products, norms, signs, nets. 5 inputs, 8 hidden units, 3 outputs."""

import jax
import jax.numpy as jnp

from tests.corpus.case import Case, axes
from tests.corpus.layers import add_bias, dense, dense_init, nonzero, normal, seed

ENDS = axes("out/kernel:1 out/bias:0")


def with_kernel(computed, **leaves):
    """A hidden layer whose kernel is `computed(p)`; `leaves` are the shapes of what it is made of."""

    def make():
        rng = seed()
        params = {name: normal(rng, *shape) for name, shape in leaves.items()}
        params |= {"bias": nonzero(rng, 8), "out": dense_init(rng, 8, 3)}
        return lambda p, x: dense(p["out"], jax.nn.relu(add_bias(p, x @ computed(p)))), params, (normal(rng, 4, 5),)

    return make


def low_rank(p):
    return p["u"] @ p["v"]


def adapted(p):
    """LoRA: a kernel and a product of two narrow ones."""
    return p["kernel"] + 0.5 * p["a"] @ p["b"]


def weight_norm(p):
    return p["scale"][None] * p["kernel"] * jax.lax.rsqrt((p["kernel"] ** 2).sum(0, keepdims=True) + 1e-12)


def standardized(p):
    return (p["kernel"] - p["kernel"].mean(0, keepdims=True)) / (p["kernel"].std(0, keepdims=True) + 1e-5)


def from_a_net(p):
    """A hypernetwork that reads an embedding of the layer."""
    return jnp.tanh(p["embedding"] @ p["make"]).reshape(5, 8)


def from_the_input():
    """A hypernetwork: each example has a kernel of its own."""
    rng = seed()
    params = {"make_0": dense_init(rng, 4, 6), "make_1": dense_init(rng, 6, 40), "out": dense_init(rng, 8, 3)}

    def fn(p, x, z):
        kernel = dense(p["make_1"], jax.nn.relu(dense(p["make_0"], z))).reshape(-1, 5, 8)
        return dense(p["out"], jax.nn.relu(jnp.einsum("bi,bio->bo", x, kernel)))

    return fn, params, (normal(rng, 4, 5), normal(rng, 4, 4))


def reader(kernel):
    """The kernel that reads the hidden layer is computed."""

    def make():
        rng = seed()
        params = {"in": dense_init(rng, 5, 8), "kernel": normal(rng, 8, 3)}
        return lambda p, x: jax.nn.relu(dense(p["in"], x)) @ kernel(p["kernel"]), params, (normal(rng, 4, 5),)

    return make


def signs(w):
    """Binary weights with one scale a column, straight through."""
    return w + jax.lax.stop_gradient(jnp.sign(w) * jnp.abs(w).mean(0, keepdims=True) - w)


def ensemble():
    rng = seed()
    params = {"up": normal(rng, 3, 5, 8), "down": normal(rng, 3, 8, 2)}
    return (
        lambda p, x: jax.vmap(lambda q: jax.nn.relu(x @ q["up"]) @ q["down"])(p).mean(0),
        params,
        (normal(rng, 4, 5),),
    )


HIDDEN = axes("bias:0 out/kernel:0")
READ = axes("in/kernel:1 in/bias:0 kernel:0")

CASES = (
    Case("weights_low_rank", with_kernel(low_rank, u=(5, 3), v=(3, 8)), exact=HIDDEN + axes("u:1 v:0,1"), pinned=ENDS),
    Case(
        "weights_adapted",
        with_kernel(adapted, kernel=(5, 8), a=(5, 2), b=(2, 8)),
        exact=HIDDEN + axes("kernel:1 a:1 b:0,1"),
        pinned=ENDS + axes("kernel:0 a:0"),
    ),
    Case(
        "weights_kronecker",
        with_kernel(lambda p: jnp.kron(p["a"], p["b"]), a=(1, 4), b=(5, 2)),
        exact=HIDDEN + axes("a:1 b:1"),
        pinned=ENDS + axes("b:0"),
    ),
    Case("weights_norm", with_kernel(weight_norm, kernel=(5, 8), scale=(8,)), exact=HIDDEN + axes("kernel:1 scale:0")),
    Case("weights_standardized", with_kernel(standardized, kernel=(5, 8)), exact=HIDDEN + axes("kernel:1")),
    Case(  # softplus(0) is not 0
        "weights_positive", with_kernel(lambda p: jax.nn.softplus(p["kernel"]), kernel=(5, 8)), (), axes("kernel:1")
    ),
    Case(
        "weights_from_a_net",
        with_kernel(from_a_net, embedding=(4,), make=(4, 40)),
        exact=HIDDEN + axes("embedding:0 make:0,1"),
        pinned=ENDS,
    ),
    Case(
        "weights_from_the_input",
        from_the_input,
        exact=axes("make_0/kernel:1 make_0/bias:0 make_1/kernel:0,1 make_1/bias:0 out/kernel:0"),
        pinned=ENDS + axes("make_0/kernel:0"),
    ),
    Case("weights_positive_reader", reader(jnp.exp), exact=READ, pinned=axes("in/kernel:0 kernel:1")),
    Case("weights_signs_reader", reader(signs), (), axes("in/kernel:1"), axes("kernel:1")),  # the scale counts all rows
    Case("weights_ensemble", ensemble, exact=axes("up:0,2 down:0,1"), pinned=axes("up:1 down:2")),
)
