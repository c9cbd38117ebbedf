"""Training that makes units die: penalties against their formulas, and each method against doing nothing."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxopt_compress import graph, shrinking
from tests.corpus.layers import dense, dense_chain, normal, seed


def forward(p, x):
    return dense(p["dense_1"], jax.nn.relu(dense(p["dense_0"], x)))


@pytest.fixture(scope="module")
def task():
    """A target of three hidden units, for a net of sixteen."""
    rng = seed()
    x, true = normal(rng, 512, 5), dense_chain(rng, 5, 3, 2)
    params = dense_chain(rng, 5, 16, 2)
    return params, x, forward(true, x), graph.trace(forward, params, x[:2])


def loss(params, x, y):
    return jnp.mean(jnp.square(forward(params, x) - y))


def trained(tx, params, x, y, steps=1500, penalty=lambda params: 0.0):
    def step(carry, _):
        params, state = carry
        slopes = jax.grad(lambda p: loss(p, x, y) + penalty(p))(params)
        updates, state = tx.update(slopes, state, params)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # Optax multiplies floats and integers
        return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, steps)[0][0])(params)


def test_norms_and_penalty_are_their_formulas(task):
    params, _, _, traced = task
    kernel, bias = (np.asarray(params["dense_0"][name]) for name in ("kernel", "bias"))
    norms = np.sqrt((kernel**2).sum(0) + bias**2)
    np.testing.assert_allclose(shrinking.unit_norms(traced, params)["dense_0/kernel[1]"], norms, rtol=1e-6)
    np.testing.assert_allclose(shrinking.group_lasso(traced, params), np.sqrt(6) * norms.sum(), rtol=1e-6)


@pytest.mark.slow
def test_the_penalty_has_a_gradient_at_dead_units(task):
    params, _, _, traced = task
    dead = jax.tree.map(jnp.zeros_like, params)
    slopes = jax.grad(partial(shrinking.group_lasso, traced))(dead)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(slopes))


@pytest.mark.slow
@given(st.floats(0.01, 3.0))
def test_the_proximal_step_is_its_formula(push):
    rng = seed()
    params = dense_chain(rng, 5, 16, 2)
    traced = graph.trace(forward, params, jnp.ones((2, 5)))
    tx = shrinking.proximal_group_lasso(traced, push)
    still = jax.tree.map(jnp.zeros_like, params)
    new: Any = optax.apply_updates(params, tx.update(still, tx.init(params), params)[0])
    kernel, bias = (np.asarray(params["dense_0"][name]) for name in ("kernel", "bias"))
    factor = np.maximum(1 - push * np.sqrt(6) / np.sqrt((kernel**2).sum(0) + bias**2), 0)
    np.testing.assert_allclose(new["dense_0"]["kernel"], kernel * factor, atol=1e-6)
    np.testing.assert_array_equal(new["dense_1"]["kernel"], params["dense_1"]["kernel"])


@pytest.mark.slow
def test_proximal_training_kills_units_where_plain_training_kills_none(task):
    params, x, y, traced = task
    plain = trained(optax.adam(3e-3), params, x, y)
    sparse = trained(
        optax.chain(optax.adam(3e-3), shrinking.proximal_group_lasso(traced, optax.constant_schedule(8e-4))),
        params,
        x,
        y,
    )
    assert not shrinking.dead(traced, plain).units
    cut = shrinking.dead(traced, sparse)
    gone = len(cut.units["dense_0/kernel[1]"])
    small = shrinking.remove(traced, sparse, cut, x[:2])
    np.testing.assert_allclose(small.fn(small.params, x), forward(sparse, x), rtol=1e-4, atol=1e-5)
    scores = jax.tree.map(jnp.square, plain)
    lowest = shrinking.choose(traced, scores, keep={"dense_0/kernel[1]": 16 - gone})
    late = shrinking.remove(traced, plain, lowest, x[:2])
    assert gone >= 6 and loss(sparse, x, y) < 0.5 * float(jnp.mean(jnp.square(late.fn(late.params, x) - y)))


def test_a_penalty_alone_makes_small_but_not_zero(task):
    params, x, y, traced = task
    found = trained(optax.adam(3e-3), params, x, y, penalty=lambda p: 3e-3 * shrinking.group_lasso(traced, p))
    norms = np.asarray(shrinking.unit_norms(traced, found)["dense_0/kernel[1]"])
    assert (norms < 0.05 * norms.max()).sum() >= 4 and (norms > 0).all()


@pytest.mark.slow
def test_gates_close_on_units_that_are_not_needed(task):
    params, x, y, traced = task
    start = {"net": params, "gates": shrinking.gates(traced)}
    tx = optax.adam(1e-2)

    def step(carry, key):
        both, state = carry

        def total(both):
            return loss(
                shrinking.gated(traced, both["net"], both["gates"], key), x, y
            ) + 0.01 * shrinking.expected_units(both["gates"])

        updates, state = tx.update(jax.grad(total)(both), state, both)
        return (optax.apply_updates(both, updates), state), None

    keys = jax.random.split(jax.random.key(0), 3000)
    with jax.numpy_dtype_promotion("standard"):
        both = jax.jit(lambda b: jax.lax.scan(step, (b, tx.init(b)), keys)[0][0])(start)
    net = shrinking.gated(traced, both["net"], both["gates"])
    cut = shrinking.dead(traced, net)
    small = shrinking.remove(traced, net, cut, x[:2])
    assert len(cut.units["dense_0/kernel[1]"]) >= 6
    assert float(jnp.mean(jnp.square(small.fn(small.params, x) - y))) < 0.2 * float(jnp.var(y))


@pytest.mark.slow
def test_expected_units_is_the_frequency_of_open_gates(task):
    *_, traced = task
    gates = {name: jnp.linspace(-4, 4, len(odds)) for name, odds in shrinking.gates(traced).items()}
    ones = jax.tree.map(jnp.ones_like, task[0])
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(lambda key: shrinking.gated(traced, ones, gates, key)["dense_0"]["bias"])(keys)
    np.testing.assert_allclose((drawn > 0).mean(0).sum(), shrinking.expected_units(gates), rtol=0.02)


def test_dead_groups_keep_one_unit(task):
    params, x, _, traced = task
    cut = shrinking.dead(traced, jax.tree.map(jnp.zeros_like, params))
    assert len(cut.units["dense_0/kernel[1]"]) == 15


def test_what_makes_no_sense_is_refused(task):
    params, _, _, traced = task
    with pytest.raises(ValueError, match="`where` chooses a group"):
        shrinking.proximal_group_lasso(traced, 0.1, where=lambda group: False)
    tx = shrinking.proximal_group_lasso(traced, 0.1)
    with pytest.raises(ValueError, match="is given the parameters"):
        tx.update(params, tx.init(params))
