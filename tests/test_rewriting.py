"""Rewriting: names of sites, replacements that change nothing, states that go around loops, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress import graph
from tests.compiling import unoptimized
from tests.corpus import CASES
from tests.test_corpus import CORE

EVERY_CASE = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case.name.startswith(CORE[:2]) else pytest.mark.slow) for case in CASES[1::16]],
    ids=lambda case: case.name,
)


def numbers(tree):
    return [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.extended)]


def as_it_was(site, args, state):
    return graph.bind(site.op, args), state


@pytest.mark.sampled(4)
@EVERY_CASE
def test_replacing_each_site_by_itself_changes_nothing(case):
    fn, params, inputs = case.make()
    names = [site.name for site in graph.sites(fn, params, *inputs) if not site.closed_in]
    rewritten = graph.rewrite(fn, names, as_it_was)
    (found, states), wanted = unoptimized(lambda p, *x: (rewritten(p, {}, *x), fn(p, *x)))(params, *inputs)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert states == {}
    for mine, theirs in zip(numbers(found), numbers(wanted), strict=True):
        mine, theirs = (np.asarray(x).astype(np.complex128) for x in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.sampled(2)
@EVERY_CASE
def test_every_site_has_a_name_of_its_own_that_stays(case):
    fn, params, inputs = case.make()
    names = [site.name for site in graph.sites(fn, params, *inputs)]
    assert len(set(names)) == len(names)
    assert names == [site.name for site in graph.sites(jax.jit(fn), params, *inputs)]


def double(site, args, state):
    """Take twice the result, and count the calls."""
    return [2 * x for x in graph.bind(site.op, args)], state + 1


LAYERS = {"w": jnp.eye(3)[None] * jnp.arange(1.0, 5.0).reshape(4, 1, 1)}


def stacked(params, x):
    return jax.lax.scan(lambda h, w: (h @ w, None), x, params["w"])[0]


def recurrent(params, x):
    return jax.lax.scan(lambda h, row: (h @ params["w"] + row, None), jnp.zeros(3), x)[0]


def test_layers_of_a_scan_have_states_of_their_own():
    (site,) = graph.sites(stacked, LAYERS, jnp.ones((2, 3)))
    assert (site.name, site.path, site.stacked, site.weight) == ("w", "w", (4,), 1)
    run = graph.rewrite(stacked, ["w"], double, learns=True)
    found, states = jax.jit(run)(LAYERS, {"w": jnp.arange(4)}, jnp.ones((2, 3)))
    np.testing.assert_array_equal(found, np.full((2, 3), 24.0 * 16))
    np.testing.assert_array_equal(states["w"], [1, 2, 3, 4])


def test_steps_of_a_recurrence_share_one_state():
    params = {"w": jnp.eye(3)}
    (site,) = graph.sites(recurrent, params, jnp.ones((5, 3)))
    assert site.stacked == ()
    found, states = graph.rewrite(recurrent, ["w"], double, learns=True)(params, {"w": jnp.int32(0)}, jnp.ones((5, 3)))
    np.testing.assert_array_equal(found, np.full(3, 31.0))
    assert states["w"] == 5
    assert (
        graph.rewrite(recurrent, ["w"], double, learns=True)(params, {"w": jnp.int32(0)}, jnp.ones((7, 3)))[1]["w"] == 7
    )


def chosen(params, x):
    return jax.lax.cond(x[0, 0] > 0, lambda h: h @ params["a"], lambda h: (h @ params["b"]) @ params["b"], x)


def repeated(params, x):
    return jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0] @ params["a"], c[1] + 1), (x, 0))[0]


def test_a_branch_that_is_not_taken_learns_nothing():
    params = {"a": jnp.eye(3), "b": jnp.eye(3)}
    run = jax.jit(graph.rewrite(chosen, ["a", "b", "b#2"], double, learns=True))
    zero = dict.fromkeys(("a", "b", "b#2"), jnp.int32(0))
    found, states = run(params, zero, jnp.ones((1, 3)))
    assert {name: int(n) for name, n in states.items()} == {"a": 1, "b": 0, "b#2": 0}
    np.testing.assert_array_equal(found, 2 * np.ones((1, 3)))
    found, states = run(params, zero, -jnp.ones((1, 3)))
    assert {name: int(n) for name, n in states.items()} == {"a": 0, "b": 1, "b#2": 1}
    np.testing.assert_array_equal(found, -4 * np.ones((1, 3)))


def test_a_loop_without_a_known_end_carries_the_state():
    found, states = graph.rewrite(repeated, ["a"], double, learns=True)(
        {"a": jnp.eye(3)}, {"a": jnp.int32(0)}, jnp.ones((1, 3))
    )
    np.testing.assert_array_equal(found, 8 * np.ones((1, 3)))
    assert states["a"] == 3


def test_rematerialized_blocks_and_gradients():
    fn = lambda p, x: jnp.sum(jnp.tanh(jax.checkpoint(lambda h: h @ p["w"][0])(x)))  # noqa: E731
    run = graph.rewrite(fn, ["w"], lambda site, args, state: (graph.bind(site.op, args), state))
    x = jnp.arange(6.0).reshape(2, 3) / 6
    slopes = jax.grad(lambda p: run(p, {}, x)[0])(LAYERS)
    np.testing.assert_allclose(slopes["w"], jax.grad(fn)(LAYERS, x)["w"], rtol=1e-6)
    assert "remat" in str(jax.make_jaxpr(lambda p: run(p, {}, x))(LAYERS))


def test_uses_of_one_parameter_are_numbered_and_computed_weights_have_the_largest_name():
    def fn(p, x):
        kernel = p["v"] * p["g"] / jnp.linalg.norm(p["v"])
        return ((x @ kernel) @ p["t"]) @ p["t"].T, p["t"][jnp.argmax(x, -1)]

    shapes = {"g": jnp.ones(()), "v": jnp.ones((3, 4)), "t": jnp.ones((4, 5))}
    found = graph.sites(fn, shapes, jnp.ones((2, 3)))
    assert [(site.name, site.kind, site.weight) for site in found] == [
        ("v", "dot_general", 1),
        ("t", "dot_general", 1),
        ("t#2", "dot_general", 1),
        ("t#3", "gather", 0),
    ]


@partial(jax.custom_vjp)
def own(w, x):
    return x @ w


own.defvjp(lambda w, x: (own(w, x), (w, x)), lambda kept, g: (kept[1].T @ g, g @ kept[0].T))


def test_refusals_name_the_place():
    fn = lambda p, x: own(p["w"], x)  # noqa: E731
    params, x = {"w": jnp.eye(3)}, jnp.ones((2, 3))
    (site,) = graph.sites(fn, params, x)
    assert "test_rewriting.py" in site.closed_in
    with pytest.raises(ValueError, match="'w' stands in `custom_vjp_call.*whose inside cannot be rewritten"):
        graph.rewrite(fn, ["w"], as_it_was)(params, {}, x)
    with pytest.raises(ValueError, match=r"'v' is no site of this function; it has \['w'\]"):
        graph.rewrite(fn, ["v"], as_it_was)(params, {}, x)
