"""Optimizers that take turns: each keeps its own state and its own step count."""

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

from jaxopt_compress.optimizers import first_order
from jaxopt_compress.optimizers.alternate import AlternateState
from jaxopt_compress.optimizers.alternate import alternate as typed_alternate

fo: Any = first_order  # Optax types updates and states as unions of all trees, which say nothing here
alternate: Any = typed_alternate


def falling(step):
    """Return a learning rate that falls, as a schedule."""
    return 0.1 / (1 + step)


def sums(tx, grads, params):
    """Run a transformation step by step; return its updates and its states."""
    states, updates, step = [tx.init(params)], [], jax.jit(tx.update)
    for grad in grads:
        update, state = step(grad, states[-1], params)
        states.append(state)
        updates.append(update)
    return updates, states


def test_alternate_adam_counts_its_own_steps():
    grads = [jnp.array([1.0, -2.0]) * (step + 1) for step in range(8)]
    with jax.numpy_dtype_promotion("standard"):
        updates, states = sums(alternate(fo.sgd(0.5), fo.adam(falling)), grads, jnp.zeros(2))
        alone, alone_states = sums(fo.adam(falling), grads[1::2], jnp.zeros(2))
    np.testing.assert_allclose(np.stack(updates[1::2]), np.stack(alone), rtol=1e-6)
    np.testing.assert_array_equal(np.stack(updates[::2]), np.stack([-0.5 * g for g in grads[::2]]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), states[-1].inner[1], alone_states[-1])
    assert states[-1].inner[1][0].count == 4


def test_alternate_leaves_states_out_of_turn_alone():
    tx = alternate(fo.momentum(0.1), fo.adagrad(0.1), fo.rmsprop(0.1), every=2)
    grads = [jnp.full(3, jnp.nan if step in (0, 3) else step, jnp.float32) for step in range(12)]
    _, states = sums(tx, grads, jnp.zeros(3))
    for step, (before, after) in enumerate(zip(states, states[1:])):
        for i in {0, 1, 2} - {step // 2 % 3}:
            jax.tree.map(np.testing.assert_array_equal, before.inner[i], after.inner[i])
    assert np.isnan(jax.tree.leaves(states[-1].inner[0])).all()
    assert np.isfinite(jax.tree.leaves(states[-1].inner[2])).all()


@pytest.mark.slow
@given(n=st.integers(2, 4), every=st.integers(1, 5), steps=st.integers(1, 30))
def test_alternate_takes_turns_cyclically(n, every, steps):
    tx = alternate(*(fo.sgd(10.0**i) for i in range(n)), every=every)
    step = lambda state, _: tx.update(jnp.float32(1), state)[::-1]  # noqa: E731
    state, updates = jax.lax.scan(step, tx.init(jnp.float32(0)), length=steps)
    np.testing.assert_allclose(updates, [-(10.0 ** (t // every % n)) for t in range(steps)])
    assert state.position == steps % (n * every)


def test_alternate_compiles_once_and_keeps_the_state_alike():
    traces = []
    tx = alternate(fo.sgd(0.1), fo.adam(0.1), fo.rmsprop(falling, momentum=0.9), every=2)
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(params)
        like = jax.eval_shape(lambda: state)
        for _ in range(9):
            params, state = step(params, state)
    assert len(traces) == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), like)


def scale_by_extra():
    update: Any = lambda g, s, p=None, *, value, **_: (g * value, s)  # noqa: E731
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_alternate_passes_extra_arguments_on():
    tx = alternate(fo.sgd(1.0), scale_by_extra())
    state = tx.init(jnp.zeros(()))
    first, state = tx.update(jnp.float32(3), state, value=jnp.float32(7))
    second, state = tx.update(jnp.float32(3), state, value=jnp.float32(7))
    assert (first, second) == (-3, 21)


def test_alternate_works_with_tree_map_params():
    tx = alternate(fo.momentum(0.1), fo.adam(0.1))
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    names = {"w": "w", "b": "b"}
    found: Any = optax.tree_map_params(tx, lambda _, n: n, tx.init(params), names, transform_non_params=lambda _: None)
    assert isinstance(found, AlternateState)
    assert found.position is None
    assert found.inner[0][0].trace == found.inner[1][0].mu == found.inner[1][0].nu == names


@pytest.mark.slow
def test_alternate_composes_with_optax():
    tx: Any = optax.MultiSteps(optax.chain(optax.clip(1.0), alternate(fo.sgd(0.1), fo.sgd(0.2))), 2)
    state, params, path = tx.init(jnp.float32(0)), jnp.float32(0), []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(8):
            updates, state = tx.update(jnp.float32(5), state, params)
            params = optax.apply_updates(params, updates)
            path.append(params)
    np.testing.assert_allclose(path, [0, -0.1, -0.1, -0.3, -0.3, -0.4, -0.4, -0.6], rtol=1e-6)


def test_alternate_maps_over_positions():
    tx = alternate(fo.sgd(0.1), fo.sgd(1.0))
    state = jax.vmap(lambda p: tx.init(jnp.float32(0))._replace(position=p))(jnp.arange(2))
    updates, state = jax.vmap(lambda s: tx.update(jnp.float32(1), s))(state)
    np.testing.assert_allclose(updates, [-0.1, -1.0])
    assert state.position.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("txs", "every", "message"), [((), 1, "got 0"), ((fo.sgd(0.1),), 1, "got 1"), ((fo.sgd(0.1),) * 2, 0, "got 0")]
)
def test_alternate_refuses(txs, every, message):
    with pytest.raises(ValueError, match=f"`alternate`.*{message}"):
        alternate(*txs, every=every)
