"""Comparisons are made at full precision, whatever the device rounds factors to, and functions keep the user's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core as jex

from jaxopt_compress import graph, shrinking
from jaxopt_compress.graph.cost import CONTRACTIONS
from jaxopt_compress.graph.precision import precisely


def precisions(fn, *args):
    """List the precision of every contraction in a jaxpr, at any depth."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in CONTRACTIONS:
                yield eqn.params["precision"]
            for inner in jex.jaxprs_in_params(eqn.params):
                yield from walk(inner)

    return list(walk(jax.make_jaxpr(fn)(*args).jaxpr))


@jax.custom_jvp
def squared(x):
    return x @ x


squared.defjvp(lambda primals, tangents: (squared(*primals), squared(*tangents)))


@jax.custom_vjp
def cubed(x):
    return x @ x @ x


cubed.defvjp(lambda x: (cubed(x), x), lambda x, g: (g @ x,))

X = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
FUNCTIONS = {
    "product": lambda x: x @ x,
    "jit": lambda x: jax.jit(jnp.dot)(x, x),
    "scan": lambda x: lax.scan(lambda c, _: (jnp.tanh(c @ x), None), x, None, length=3)[0],
    "while": lambda x: lax.while_loop(lambda c: (c @ c).sum() < -1e9, lambda c: c @ x, x),
    "cond": lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x.T @ x, x),
    "remat": lambda x: jax.checkpoint(lambda x: jnp.sin(x @ x))(x),
    "custom_jvp": squared,
    "custom_vjp": cubed,
    "convolution": lambda x: lax.conv_general_dilated(x[None, None], x[None, None], (1, 1), "SAME"),
    "ragged": lambda x: lax.ragged_dot(x, jnp.stack([x, x]), jnp.array([1, 3], jnp.int32)),
    "vmap": lambda x: jax.vmap(lambda row: x @ row)(x),
    "fixed by the user": lambda x: jnp.dot(x, x, precision="default"),
    "tree": lambda x: {"a": x @ x, "b": (x.sum(), None)},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_contraction_is_at_full_precision(name):
    fn = FUNCTIONS[name]
    found = precisions(precisely(fn), X)
    assert len(found) == len(precisions(fn, X)) > 0
    assert all(one == (lax.Precision.HIGHEST, lax.Precision.HIGHEST) for one in found)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(precisely(fn))(X), jax.jit(fn)(X))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8])
def test_narrow_numbers_are_left_alone(dtype):
    x = jnp.ones((4, 4), dtype)
    assert precisions(precisely(lambda x: x @ x), x) == precisions(lambda x: x @ x, x)


def test_a_smaller_function_has_the_precision_it_is_called_with():
    mlp = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]  # noqa: E731
    params = {"up": jnp.asarray(X), "down": jnp.asarray(X)}
    traced = graph.trace(mlp, params, X)
    small = shrinking.remove(traced, params, shrinking.Cut({traced.groups[0].name: np.array([1])}), X)
    assert set(precisions(small.fn, small.params, X)) == set(precisions(mlp, params, X))
    with jax.default_matmul_precision("highest"):
        assert set(precisions(small.fn, small.params, X)) == {(lax.Precision.HIGHEST, lax.Precision.HIGHEST)}
    assert set(precisions(small.fn, small.params, X)) == set(precisions(mlp, params, X))


def test_constants_are_folded_at_full_precision(monkeypatch):
    """A bias takes up the constants of what is removed; rounded to TF32 it would be off by a thousandth."""
    from jaxopt_compress.shrinking import folds

    seen = []

    def watched(fn):
        seen.append(fn)
        return precisely(fn)

    monkeypatch.setattr(folds, "precisely", watched)
    net = lambda p, x: jax.nn.sigmoid(x @ p["up"]) @ p["down"] + p["bias"][None]  # noqa: E731
    params = {"up": jnp.asarray(X), "down": jnp.asarray(X), "bias": jnp.zeros(4)}
    traced = graph.trace(net, params, X)
    small = shrinking.remove(traced, params, shrinking.Cut({traced.groups[0].name: np.array([1])}), X)
    np.testing.assert_allclose(small.params["bias"], X[1] / 2, rtol=1e-6)
    assert len(seen) == 1
