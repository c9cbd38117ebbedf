"""Adam with moments of one byte: its codes, its memory, and that it trains like Adam."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_compress.optimizers import adam, adam_8bit, eight_bit
from tests.products import normal

apply_updates: Any = optax.apply_updates


@pytest.fixture(autouse=True)
def user_promotion():
    """Run with JAX's own settings: Optax's optimizers mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
@settings(max_examples=30)
@given(st.sampled_from((1, 63, 64, 65, 509, 600)), st.integers(0, 1000), st.floats(1e-20, 1e10))
def test_codes_are_near_and_a_second_moment_stays(size, seed, scale):
    x = scale * normal(3, size, seed=seed) ** 3
    shape = eight_bit._blocks((3, size), 64)
    assert size % shape[1] == 0
    for value, encode, read, dtype in (
        (x, eight_bit._encode_first, eight_bit._first, jnp.int8),
        (x * x, eight_bit._encode_second, eight_bit._second, jnp.uint8),
    ):
        largest = eight_bit._largest(value, jnp.zeros(shape))
        codes = encode(value, largest)
        assert codes.dtype == dtype
        found = np.asarray(read(codes, largest), np.float64)
        whole = np.repeat(np.asarray(largest), size // shape[1], 1)
        np.testing.assert_allclose(found, value, rtol=0.02, atol=float(whole.max()) * 0.008 + 1e-37)
        if dtype == jnp.int8 or scale > 1e-9:  # squares of less are below the numbers of float32
            np.testing.assert_array_equal(encode(jnp.asarray(found, jnp.float32), largest), codes)
            np.testing.assert_array_equal(found != 0, codes != 0)
        if dtype == jnp.uint8 and scale > 1e-9:
            np.testing.assert_array_equal(found > 0, value > 0)


def test_bytes():
    params = {"w": jnp.zeros((512, 1024)), "b": jnp.zeros(1024)}
    state: Any = adam_8bit(1e-3).init(params)
    mine, whole = (sum(leaf.nbytes for leaf in jax.tree.leaves(s)) for s in (state, adam(1e-3).init(params)))
    assert mine < 0.27 * whole
    kinds = [leaf.dtype for leaf in (state[0].mu["w"], state[0].nu["w"], state[0].mu["b"])]
    assert kinds == [jnp.int8, jnp.uint8, jnp.float32]
    with pytest.raises(ValueError, match="`block` is at least 1"):
        adam_8bit(1e-3, block=0)


def trained(tx, steps=200):
    x, w = normal(256, 32, seed=1), {"up": normal(32, 64, seed=2) / 6, "down": normal(64, 8, seed=3) / 8}
    target = jnp.tanh(x @ normal(32, 64, seed=4) / 6) @ normal(64, 8, seed=5)
    loss = lambda w: jnp.mean((jnp.tanh(x @ w["up"]) @ w["down"] - target) ** 2)  # noqa: E731

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return (apply_updates(w, updates), state), None

    (w, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, steps))((w, tx.init(w)))
    return float(loss(w)), float(loss({"up": 0 * w["up"], "down": w["down"]}))


@pytest.mark.slow
def test_it_trains_like_adam():
    wanted, start = trained(adam(1e-2))
    found, _ = trained(adam_8bit(1e-2, min_size=1))
    assert wanted < 0.1 * start
    assert found < 1.1 * wanted + 1e-3 * start


def test_small_leaves_step_like_adam():
    params: Any = {"w": normal(8, 8), "s": jnp.float32(2)}
    mine, whole = adam_8bit(0.1), adam(0.1)
    states: Any = mine.init(params), whole.init(params)
    for seed in range(3):
        g: Any = {"w": normal(8, 8, seed=seed), "s": jnp.float32(seed)}
        (a, b), (c, d) = mine.update(g, states[0], params), whole.update(g, states[1], params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, c)
        states = b, d


@pytest.mark.slow
def test_moments_lie_like_the_weights():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "model")))  # noqa: E731
    w, g = normal(16, 512), normal(16, 512, seed=1)
    tx: Any = adam_8bit(0.1, min_size=1, block=64)
    wanted, state = jax.jit(tx.update)({"w": g}, tx.init({"w": w}))
    found, split = jax.block_until_ready(jax.jit(tx.update)({"w": place(g)}, tx.init({"w": place(w)})))
    np.testing.assert_array_equal(found["w"], wanted["w"])
    jax.tree.map(np.testing.assert_array_equal, split, state)
    assert split[0].mu["w"].sharding.is_equivalent_to(place(w).sharding, 2)
    text = jax.jit(tx.update).lower({"w": place(g)}, split).compile().as_text()
    assert "all-gather" not in str(text)
