"""Two dense layers and what may stand between them: most of the verdicts are about f(0)."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.corpus.case import Case, axes
from tests.corpus.layers import dense, dense_chain, nonzero, normal, positive, seed

HIDDEN = axes("dense_0/kernel:1 dense_0/bias:0 dense_1/kernel:0")
ENDS = axes("dense_0/kernel:0 dense_1/kernel:1 dense_1/bias:0")
SHIFT = np.linspace(0.3, 1.5, 7, dtype=np.float32)


def between(activation, head_bias=True):
    def make():
        rng = seed()
        params = dense_chain(rng, 5, 7, 4)
        if not head_bias:
            del params["dense_1"]["bias"]
        return lambda p, x: dense(p["dense_1"], activation(dense(p["dense_0"], x))), params, (normal(rng, 2, 5),)

    return make


def no_bias():
    rng = seed()
    params = dense_chain(rng, 5, 7, 4, bias=False)
    return lambda p, x: jax.nn.relu(x @ p["dense_0"]["kernel"]) @ p["dense_1"]["kernel"], params, (normal(rng, 2, 5),)


def deep(activation):
    def make():
        rng = seed()
        params = dense_chain(rng, 5, 7, 9, 6, 4)

        def fn(p, x):
            for i in range(3):
                x = activation(dense(p[f"dense_{i}"], x))
            return dense(p["dense_3"], x)

        return fn, params, (normal(rng, 2, 5),)

    return make


def prelu():
    rng = seed()
    params = {**dense_chain(rng, 5, 7, 4), "alpha": positive(rng, 7)}

    def fn(p, x):
        h = dense(p["dense_0"], x)
        return dense(p["dense_1"], jnp.where(h > 0, h, p["alpha"][None] * h))

    return fn, params, (normal(rng, 2, 5),)


def residual():
    rng = seed()
    params = dense_chain(rng, 5, 7, 9, 7, 4)

    def fn(p, x):
        h = dense(p["dense_0"], x)
        h = h + dense(p["dense_2"], jax.nn.relu(dense(p["dense_1"], h)))
        return dense(p["dense_3"], h)

    return fn, params, (normal(rng, 2, 5),)


def two_heads(second_bias):
    def make():
        rng = seed()
        params = {**dense_chain(rng, 5, 7, 4), "other": dense_chain(rng, 7, 6, bias=second_bias)["dense_0"]}

        def fn(p, x):
            h = jax.nn.sigmoid(dense(p["dense_0"], x))
            return dense(p["dense_1"], h), dense(p["other"], h)

        return fn, params, (normal(rng, 2, 5),)

    return make


def penalty():
    rng = seed()

    def fn(p, x):
        return dense(p["dense_1"], jax.nn.relu(dense(p["dense_0"], x))), jnp.square(p["dense_1"]["kernel"]).sum()

    return fn, dense_chain(rng, 5, 7, 4), (normal(rng, 2, 5),)


def shown():
    rng = seed()

    def fn(p, x):
        h = jax.nn.relu(dense(p["dense_0"], x))
        return dense(p["dense_1"], h), h

    return fn, dense_chain(rng, 5, 7, 4), (normal(rng, 2, 5),)


def reduced(reduce):
    def make():
        rng = seed()
        params = {"dense_0": dense_chain(rng, 5, 7)["dense_0"]}
        return lambda p, x: reduce(dense(p["dense_0"], x)), params, (normal(rng, 2, 5),)

    return make


def input_skip():
    rng = seed()
    params = {**dense_chain(rng, 5, 7, 5), "head": dense_chain(rng, 5, 4)["dense_0"]}

    def fn(p, x):
        return dense(p["head"], x + dense(p["dense_1"], jnp.tanh(dense(p["dense_0"], x))))

    return fn, params, (normal(rng, 2, 5),)


def shift_leaf():
    """The shift is a leaf, so it is masked with its channel."""
    rng = seed()
    params = {**dense_chain(rng, 5, 7, 4), "shift": nonzero(rng, 7)}
    return (
        lambda p, x: dense(p["dense_1"], jax.nn.relu(dense(p["dense_0"], x)) + p["shift"][None]),
        params,
        (normal(rng, 2, 5),),
    )


def plain(name, activation):
    return Case(name, between(activation), exact=HIDDEN, pinned=ENDS)


DEEP = axes("dense_{0,1,2}/kernel:1 dense_{0,1,2}/bias:0 dense_{1,2,3}/kernel:0")
DEEP_ENDS = axes("dense_0/kernel:0 dense_3/kernel:1 dense_3/bias:0")

CASES = (
    plain("mlp_relu", jax.nn.relu),
    plain("mlp_gelu", jax.nn.gelu),
    plain("mlp_silu", jax.nn.silu),
    plain("mlp_tanh", jnp.tanh),
    plain("mlp_sin", jnp.sin),
    plain("mlp_squared_relu", lambda h: jnp.square(jax.nn.relu(h))),
    plain("mlp_hard_swish", jax.nn.hard_swish),
    plain("mlp_softsign", lambda h: h / (1 + jnp.abs(h))),
    # From here f(0) is a constant other than 0; it is folded into the bias of the next layer.
    plain("mlp_sigmoid", jax.nn.sigmoid),
    plain("mlp_softplus", jax.nn.softplus),
    plain("mlp_exp", jnp.exp),
    plain("mlp_cos", jnp.cos),
    plain("mlp_clip_away_from_zero", lambda h: jnp.clip(h, 0.5, 2.0)),
    plain("mlp_gaussian", lambda h: jnp.exp(-jnp.square(h))),
    plain("mlp_scalar_added", lambda h: jax.nn.relu(h) + 0.3),
    plain("mlp_vector_added", lambda h: jax.nn.relu(h) + jnp.asarray(SHIFT)[None]),
    plain("mlp_vector_added_before", lambda h: jnp.tanh(h + jnp.asarray(SHIFT)[None])),
    plain("mlp_vector_multiplied", lambda h: jnp.tanh(h * jnp.asarray(SHIFT)[None])),
    # 0 * log(0) and 0 / 0 are NaN in the masked function and absent from the smaller one.
    Case("mlp_x_log_x2", between(lambda h: h * jnp.log(jnp.square(h))), exact=(), inexact=HIDDEN, pinned=ENDS),
    Case("mlp_x_over_abs_x", between(lambda h: h / jnp.abs(h)), exact=(), inexact=HIDDEN, pinned=ENDS),
    # Nothing to fold the leak into.
    Case(
        "mlp_sigmoid_head_without_bias",
        between(jax.nn.sigmoid, head_bias=False),
        exact=(),
        inexact=HIDDEN,
        pinned=axes("dense_0/kernel:0 dense_1/kernel:1"),
    ),
    Case(
        "mlp_no_bias",
        no_bias,
        exact=axes("dense_0/kernel:1 dense_1/kernel:0"),
        pinned=axes("dense_0/kernel:0 dense_1/kernel:1"),
    ),
    Case("mlp_deep_relu", deep(jax.nn.relu), exact=DEEP, pinned=DEEP_ENDS),
    Case("mlp_deep_sigmoid", deep(jax.nn.sigmoid), exact=DEEP, pinned=DEEP_ENDS),
    Case("mlp_prelu", prelu, exact=HIDDEN + axes("alpha:0"), pinned=ENDS),
    Case("mlp_residual", residual, exact=DEEP, pinned=DEEP_ENDS),
    Case(
        "mlp_sigmoid_two_heads",  # one leak, folded twice
        two_heads(True),
        exact=HIDDEN + axes("other/kernel:0"),
        pinned=ENDS + axes("other/kernel:1 other/bias:0"),
    ),
    Case(
        "mlp_sigmoid_two_heads_one_bias",  # the second head has no bias
        two_heads(False),
        exact=(),
        inexact=HIDDEN + axes("other/kernel:0"),
        pinned=ENDS + axes("other/kernel:1"),
    ),
    # The penalty sees the consumer's rows, which masking leaves in place.
    Case("mlp_penalty_on_consumer", penalty, exact=(), inexact=HIDDEN, pinned=ENDS),
    Case("mlp_hidden_is_output", shown, exact=(), pinned=HIDDEN + ENDS),
    Case(
        "mlp_sum_over_hidden",
        reduced(lambda h: jax.nn.relu(h).sum(-1)),
        exact=axes("dense_0/kernel:1 dense_0/bias:0"),
        pinned=axes("dense_0/kernel:0"),
    ),
    Case(
        "mlp_mean_over_hidden",  # the count stays the literal 7
        reduced(lambda h: jnp.tanh(h).mean(-1)),
        exact=axes("dense_0/kernel:1 dense_0/bias:0"),
        pinned=axes("dense_0/kernel:0"),
    ),
    Case(
        "mlp_product_over_hidden",  # a masked channel makes the whole product 0
        reduced(lambda h: h.prod(-1)),
        exact=(),
        pinned=axes("dense_0/kernel:0"),
    ),
    Case(
        "mlp_input_skip",  # the residual stream is the input
        input_skip,
        exact=HIDDEN,
        pinned=axes("dense_0/kernel:0 dense_1/kernel:1 dense_1/bias:0 head/kernel:0,1 head/bias:0"),
    ),
    Case("mlp_shift_leaf", shift_leaf, exact=HIDDEN + axes("shift:0"), pinned=ENDS),
)
