"""The plateau criterion against a naive loop, under `jit`, `vmap` and `while_loop`, and on values that diverge."""

from functools import reduce
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxopt_compress.optimizers import first_order
from jaxopt_compress.optimizers.alternate import alternate as typed_alternate
from jaxopt_compress.optimizers.plateau import plateau

fo: Any = first_order  # Optax types updates and states as unions of all trees, which say nothing here
alternate: Any = typed_alternate


VALUES = st.lists(st.floats(width=32) | st.sampled_from([1.0, 0.999, 0.5, -1.0, float("nan")]), max_size=30)


def naive_plateau(values, patience, rtol, atol):
    best, since, reached = np.float32(np.inf), 0, False
    for value in np.array(values, np.float32):
        margin = np.float32(atol) + np.float32(rtol) * abs(best) if np.isfinite(best) else np.float32(0)
        if value < best - margin:
            best, since = value, 0
        else:
            since += 1
        reached = reached or since >= patience
    return best, since, reached


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered")
@given(values=VALUES, patience=st.integers(1, 5), rtol=st.sampled_from([0.0, 0.25]), atol=st.sampled_from([0.0, 0.5]))
def test_plateau_follows_a_naive_loop(values, patience, rtol, atol):
    criterion = plateau(patience=patience, rtol=rtol, atol=atol)
    state = reduce(criterion.update, values, criterion.init())
    best, since, reached = naive_plateau(values, patience, rtol, atol)
    assert (state.best, state.since, state.reached) == (best, since, reached)


def test_plateau_under_jit_keeps_types_and_compiles_once():
    criterion = plateau(patience=2)
    update: Any = jax.jit(criterion.update)
    state = criterion.init()
    for value in [3.0, 2.0, 2.0, 2.5]:
        state = update(state, jnp.float32(value))
    assert state.reached
    assert update._cache_size() == 1
    assert update(state, jnp.bfloat16(1.0)).best.dtype == "float32"
    assert [(x.shape, x.dtype) for x in state] == [(x.shape, x.dtype) for x in criterion.init()]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_plateau_is_reached_by_a_run_that_diverges(value):
    criterion = plateau(patience=3)
    state = criterion.update(criterion.init(), 1.0)
    for expected in [False, False, True, True]:
        state = criterion.update(state, value)
        assert state.reached == expected
    assert state.best == 1.0


def test_plateau_of_nan_from_the_start():
    criterion = plateau(patience=2)
    state = criterion.update(criterion.update(criterion.init(), np.nan), np.nan)
    assert state.reached and state.best == np.inf


def test_plateau_tolerance_is_relative_to_the_size_of_negative_values_too():
    criterion = plateau(patience=1, rtol=0.1)
    state = criterion.update(criterion.init(), -1.0)
    assert criterion.update(state, -1.05).reached
    assert not criterion.update(state, -1.15).reached


def test_plateau_sums_up_small_steps():
    criterion = plateau(patience=5, rtol=0.0, atol=1.0)
    state = criterion.init()
    for step in range(40):
        state = criterion.update(state, 10.0 - 0.3 * step)
        assert not state.reached


def test_plateau_stops_a_while_loop_alone_and_under_vmap():
    criterion = plateau(patience=2, rtol=0.0, atol=1e-3)

    def descend(rate):
        def step(carry):
            x, state, steps = carry
            return x * (1 - rate), criterion.update(state, x**2), steps + 1

        start = (jnp.float32(1), criterion.init(), jnp.int32(0))
        return jax.lax.while_loop(lambda carry: ~carry[1].reached, step, start)

    rates = jnp.array([0.1, 0.5, 0.9, jnp.nan])
    together = jax.jit(jax.vmap(descend))(rates)
    alone = [jax.jit(descend)(rate) for rate in rates]
    jax.tree.map(np.testing.assert_array_equal, together, jax.tree.map(lambda *xs: np.stack(xs), *alone))
    assert together[2].tolist() == sorted(together[2].tolist(), reverse=True)


@pytest.mark.parametrize(
    "args", [{"patience": 0}, {"patience": 1, "rtol": -1.0}, {"patience": 1, "atol": float("nan")}]
)
def test_plateau_refuses(args):
    with pytest.raises(ValueError, match="`plateau`.*got patience"):
        plateau(**args)
