"""Trees of parameters: containers, leaves that are not float32 arrays, leaves used twice, never, or by halves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tests.corpus.case import Case, axes
from tests.corpus.layers import dense, dense_chain, dense_init, nonzero, normal, positive, seed

HIDDEN = axes("dense_0/kernel:1 dense_0/bias:0 dense_1/kernel:0")
ENDS = axes("dense_0/kernel:0 dense_1/kernel:1 dense_1/bias:0")


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def chain(p, x):
    return dense(p["dense_1"], jax.nn.relu(dense(p["dense_0"], x)))


def changed(change, fn=chain):
    """Two dense layers, 5 to 7 to 4, whose parameters went through `change(rng, params)`."""

    def make():
        rng = seed()
        params = change(rng, dense_chain(rng, 5, 7, 4))
        return fn, params, (normal(rng, 2, 5),)

    return make


def cast(dtype):
    def make():
        rng = seed()
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), dense_chain(rng, 5, 7, 4))
        return chain, params, (normal(rng, 2, 5).astype(dtype),)

    return make


def cast_inside():
    """Float32 parameters, a bfloat16 matrix product, float32 outputs."""
    rng = seed()

    def fn(p, x):
        low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), p)
        return chain(low, x.astype(jnp.bfloat16)).astype(jnp.float32)

    return fn, dense_chain(rng, 5, 7, 4), (normal(rng, 2, 5),)


def named_tuples():
    rng = seed()
    layers = dense_chain(rng, 5, 7, 4)
    params = [Layer(**layers["dense_0"]), Layer(**layers["dense_1"])]

    def fn(p, x):
        return jax.nn.relu(x @ p[0].kernel + p[0].bias[None]) @ p[1].kernel + p[1].bias[None]

    return fn, params, (normal(rng, 2, 5),)


def tuple_of_lists():
    rng = seed()
    params = ([normal(rng, 5, 7), None], [normal(rng, 7, 4)], ())
    return lambda p, x: jnp.tanh(x @ p[0][0]) @ p[1][0], params, (normal(rng, 2, 5),)


def bare_leaf():
    """The tree is one array; what it is multiplied with is visible on both sides."""
    rng = seed()
    return lambda p, x: x @ p, normal(rng, 5, 7), (normal(rng, 2, 5),)


def quantized():
    """Integer codes and a scale for every neuron."""
    rng = seed()
    layers = dense_chain(rng, 5, 7, 4)
    codes = jnp.asarray(rng.integers(1, 9, (5, 7)), jnp.int8)
    params = {**layers, "dense_0": {"codes": codes, "scale": positive(rng, 7), "bias": nonzero(rng, 7)}}

    def fn(p, x):
        first = p["dense_0"]
        kernel = first["codes"].astype(jnp.float32) * first["scale"][None]
        return dense(p["dense_1"], jax.nn.relu(x @ kernel + first["bias"][None]))

    return fn, params, (normal(rng, 2, 5),)


def steps_and_rates(p, x):
    """A Python float that scales, a Python int that shifts."""
    h = jax.nn.relu(dense(p["dense_0"], x) * p["rate"] + p["step"])
    return dense(p["dense_1"], h)


def twice():
    """One square kernel applied twice: its rows and columns are one axis."""
    rng = seed()
    params = {"in": dense_init(rng, 5, 7), "square": dense_init(rng, 7, 7), "out": dense_init(rng, 7, 4)}

    def fn(p, x):
        h = jax.nn.relu(dense(p["in"], x))
        h = jnp.tanh(dense(p["square"], h))
        return dense(p["out"], jnp.tanh(dense(p["square"], h)))

    return fn, params, (normal(rng, 2, 5),)


def tied():
    """The decoder is the encoder transposed."""
    rng = seed()
    params = {"kernel": normal(rng, 5, 7), "bias": nonzero(rng, 7), "out": nonzero(rng, 5)}

    def fn(p, x):
        return jax.nn.relu(x @ p["kernel"] + p["bias"][None]) @ p["kernel"].T + p["out"][None]

    return fn, params, (normal(rng, 2, 5),)


def one_array():
    """Two leaves hold one array object; as leaves they are two."""
    rng = seed()
    kernel = normal(rng, 5, 7)
    params = {"left": {"kernel": kernel}, "right": {"kernel": kernel}, "out": dense_init(rng, 7, 4)}
    params["other"] = dense_init(rng, 7, 3)

    def fn(p, x):
        left, right = dense(p["left"], x), dense(p["right"], x)
        return dense(p["out"], jax.nn.relu(left)), dense(p["other"], jnp.tanh(right))

    return fn, params, (normal(rng, 2, 5),)


def two_leaves_one_kernel():
    """The kernel is a sum of two leaves."""
    rng = seed()
    params = {**dense_chain(rng, 5, 7, 4), "delta": normal(rng, 5, 7)}

    def fn(p, x):
        first = {**p["dense_0"], "kernel": p["dense_0"]["kernel"] + p["delta"]}
        return dense(p["dense_1"], jax.nn.relu(dense(first, x)))

    return fn, params, (normal(rng, 2, 5),)


def flat_vector():
    """All weights in one vector: 35 for the first layer, 28 for the second."""
    rng = seed()

    def fn(p, x):
        return jax.nn.relu(x @ p["all"][:35].reshape(5, 7)) @ p["all"][35:].reshape(7, 4)

    return fn, {"all": normal(rng, 63)}, (normal(rng, 2, 5),)


def integer_power(p, x):
    """A Python int leaf that is data: it gates, and nothing is removed with it."""
    h = jax.nn.relu(dense(p["dense_0"], x))
    return dense(p["dense_1"], jnp.where(jnp.asarray(p["on"]) > 0, h, 2 * h))


def empty_batch():
    rng = seed()
    return chain, dense_chain(rng, 5, 7, 4), (normal(rng, 0, 5),)


def one_example():
    """No batch axis at all."""
    rng = seed()
    return chain, dense_chain(rng, 5, 7, 4), (normal(rng, 5),)


def extra(**more):
    return lambda rng, params: {**params, **{name: make(rng) for name, make in more.items()}}


def plain(name, make):
    return Case(name, make, exact=HIDDEN, pinned=ENDS)


CASES = (
    plain("leaves_bfloat16", cast(jnp.bfloat16)),
    plain("leaves_float16", cast(jnp.float16)),
    plain("leaves_cast_inside", cast_inside),
    plain("leaves_none", changed(extra(nothing=lambda rng: None))),
    plain("leaves_empty_batch", empty_batch),
    plain("leaves_one_example", one_example),
    plain("leaves_python_int_gate", changed(extra(on=lambda rng: 1), integer_power)),
    # relu(0 * rate + step) is not 0 but no neuron's own: it folds into the next bias.
    plain("leaves_python_numbers", changed(extra(rate=lambda rng: 1.5, step=lambda rng: 2), steps_and_rates)),
    Case(
        "leaves_unused",
        changed(extra(unused=lambda rng: normal(rng, 7, 9), count=lambda rng: jnp.asarray(3, jnp.int32))),
        exact=HIDDEN,
        pinned=ENDS,
    ),
    Case(
        "leaves_named_tuples",
        named_tuples,
        exact=axes("0/kernel:1 0/bias:0 1/kernel:0"),
        pinned=axes("0/kernel:0 1/kernel:1 1/bias:0"),
    ),
    Case("leaves_tuple_of_lists", tuple_of_lists, exact=axes("0/0:1 1/0:0"), pinned=axes("0/0:0 1/0:1")),
    Case("leaves_bare", bare_leaf, exact=(), pinned=(("", 0), ("", 1))),
    Case(
        "leaves_integer_codes",
        quantized,
        exact=axes("dense_0/codes:1 dense_0/{scale,bias}:0 dense_1/kernel:0"),
        pinned=axes("dense_0/codes:0 dense_1/kernel:1 dense_1/bias:0"),
    ),
    Case(
        "leaves_kernel_twice",
        twice,
        exact=axes("in/kernel:1 in/bias:0 square/kernel:0,1 square/bias:0 out/kernel:0"),
        pinned=axes("in/kernel:0 out/kernel:1 out/bias:0"),
    ),
    Case("leaves_tied", tied, exact=axes("kernel:1 bias:0"), pinned=axes("kernel:0 out:0")),
    Case(
        "leaves_one_array",
        one_array,
        exact=axes("{left,right}/kernel:1 {out,other}/kernel:0"),
        pinned=axes("{left,right}/kernel:0 {out,other}/kernel:1 {out,other}/bias:0"),
    ),
    Case(
        "leaves_kernel_is_a_sum", two_leaves_one_kernel, exact=HIDDEN + axes("delta:1"), pinned=ENDS + axes("delta:0")
    ),
    # A neuron is a stride of the vector.
    Case("leaves_flat_vector", flat_vector, exact=axes("all:0")),
)
