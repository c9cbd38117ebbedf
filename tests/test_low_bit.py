"""Transforms of one and two bits against NumPy, their gradients, and what training with them is worth."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_compress as jc
from jaxopt_compress.encoded import decode
from jaxopt_compress.quantization import binary, dorefa, fake_quantize, stochastic, ternary, trained_ternary
from tests.products import normal

apply_updates: Any = optax.apply_updates
W = normal(16, 6)
NP = np.asarray(W, np.float64)
KEY = jax.random.key(1)


def seen(t, w=W):
    return np.asarray(t.apply(w, t.init(w)))


def slope(t, w=W):
    state = t.init(w)
    return np.asarray(jax.grad(lambda w: jnp.sum(t.apply(w, state) * jnp.cos(w * 0 + normal(*w.shape, seed=2))))(w))


@pytest.mark.slow
def test_binary():
    size = np.abs(NP).mean(0)
    np.testing.assert_allclose(seen(binary()), np.where(NP >= 0, size, -size), rtol=1e-6)
    np.testing.assert_array_equal(seen(binary(scaled=False)), np.where(NP >= 0, 1, -1))
    np.testing.assert_array_equal(seen(binary(scaled=False), jnp.zeros((3, 2))), 1)  # no third level
    np.testing.assert_allclose(seen(binary(())), np.where(NP >= 0, 1, -1) * np.abs(NP).mean(), rtol=1e-6)
    np.testing.assert_allclose(slope(binary()), np.cos(normal(16, 6, seed=2)), rtol=1e-6)  # also beyond the levels


@pytest.mark.slow
def test_binary_drawn():
    """Right on average between the levels; and drawn anew at every update."""
    w = jnp.broadcast_to(jnp.linspace(-1.5, 1.5, 7)[None], (20_000, 7))
    t = binary(scaled=False, key=KEY)
    np.testing.assert_allclose(seen(t, w).mean(0), np.clip(np.linspace(-1.5, 1.5, 7), -1, 1), atol=0.03)
    state = t.init(w)
    after = t.update(w, state, step=1)
    assert np.mean(np.asarray(t.apply(w, state)) != np.asarray(t.apply(w, after))) > 0.1
    np.testing.assert_array_equal(t.apply(w, after), t.apply(w, t.update(w, state, step=1)))


@pytest.mark.slow
def test_stochastic():
    w = jnp.broadcast_to(jnp.linspace(-1, 1, 11)[None], (20_000, 11))
    t = stochastic(3, KEY, channel_axes=())
    found = seen(t, w)
    np.testing.assert_allclose(np.unique(found), np.arange(-3, 4) / 3, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.mean(0), np.linspace(-1, 1, 11), atol=0.01)
    assert np.abs(found - np.asarray(w)).max() < 1 / 3 + 1e-6
    np.testing.assert_array_equal(found[:, 0], -1)  # what is on the grid stays there


@pytest.mark.slow
@pytest.mark.parametrize("axes", [-1, ()])
def test_ternary(axes):
    over = (0,) if axes == -1 else (0, 1)
    limit = 0.7 * np.abs(NP).mean(over, keepdims=True)
    stays = np.abs(NP) > limit
    size = np.sum(np.abs(NP) * stays, over, keepdims=True) / stays.sum(over, keepdims=True)
    np.testing.assert_allclose(seen(ternary(axes)), np.sign(NP) * stays * size, rtol=1e-6)
    np.testing.assert_array_equal(seen(ternary(axes), jnp.zeros((3, 2))), 0)
    np.testing.assert_allclose(slope(ternary(axes)), np.cos(normal(16, 6, seed=2)), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [-1, ()])
def test_trained_ternary(axes):
    over = (0,) if axes == -1 else (0, 1)
    limit = 0.2 * np.abs(NP).max(over, keepdims=True)
    above, below = limit < NP, -limit > NP
    up, down = (
        np.sum(np.abs(NP) * side, over, keepdims=True) / side.sum(over, keepdims=True) for side in (above, below)
    )

    def levels(up, down):
        step = np.maximum(up, down) / 127
        return np.where(above, np.round(up / step) * step, np.where(below, -np.round(down / step) * step, 0))

    t = trained_ternary(optax.sgd(0.01), axes, threshold=0.2)
    np.testing.assert_allclose(seen(t), levels(up, down), rtol=1e-5)
    outer = np.cos(normal(16, 6, seed=2)).astype(np.float64)
    np.testing.assert_allclose(slope(t), outer * np.where(above, up, np.where(below, down, 1)), rtol=1e-5)
    after = t.update(W, t.init(W), step=0, grads=jnp.asarray(slope(t)))
    up = up - 0.01 * np.sum(outer * above, over, keepdims=True)
    down = down + 0.01 * np.sum(outer * below, over, keepdims=True)
    np.testing.assert_allclose(t.apply(W, after), levels(up, down), rtol=1e-4)


def test_trained_ternary_of_zeros_and_without_gradients():
    t = trained_ternary(optax.sgd(1.0))
    zeros: Any = {"w": jnp.zeros((3, 2))}
    after = t.update(zeros, t.init(zeros), step=0, grads={"w": jnp.ones((3, 2))})
    np.testing.assert_array_equal(t.apply(zeros, after)["w"], 0)
    with pytest.raises(ValueError, match=r"`trained_ternary`: `threshold` is in \[0, 1\); got 1."):
        trained_ternary(optax.sgd(1.0), threshold=1)
    with pytest.raises(ValueError, match="`trained_ternary`: `update` needs `grads`"):
        t.update(zeros, t.init(zeros), step=0)


@pytest.mark.slow
def test_trained_levels_come_back_from_zero():
    t, w = trained_ternary(optax.sgd(1.0)), jnp.array([1.0, -1.0])
    gone = t.update(w, t.init(w), step=0, grads=jnp.array([9.0, 0.0]))
    assert t.apply(w, gone).tolist() == [0, -1]
    found = jax.grad(lambda w: -t.apply(w, gone)[0])(w)
    assert t.apply(w, t.update(w, gone, step=1, grads=found)).tolist() == [1, -1]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_dorefa(bits):
    squeezed, n = np.tanh(NP) / np.abs(np.tanh(NP)).max(), 2**bits - 1
    wanted = 2 * np.round((squeezed / 2 + 0.5) * n) / n - 1
    np.testing.assert_allclose(seen(dorefa(bits)), wanted, atol=1e-6)
    slopes = (1 - np.tanh(NP) ** 2) / np.abs(np.tanh(NP)).max() * np.cos(normal(16, 6, seed=2))
    np.testing.assert_allclose(slope(dorefa(bits)), slopes, rtol=1e-4)
    np.testing.assert_array_equal(np.abs(seen(dorefa(bits), jnp.zeros((3, 2)))) <= 1 / n + 1e-6, True)


@pytest.mark.slow
def test_what_is_stored_takes_one_and_two_bits():
    each: Any = ((binary(), 1), (ternary(), 2), (dorefa(2), 2), (binary(key=KEY), 1), (stochastic(4, KEY), 4))
    for t, bits in each:
        stored: Any = t.encode(W, t.init(W))
        assert stored.data.nbytes == W.size * bits // 8
        np.testing.assert_array_equal(decode(stored), t.apply(W, t.init(W)))


def test_what_is_refused():
    with pytest.raises(ValueError, match="`binary`: axis 3 of 'w' does not exist"):
        binary(3).init({"w": W})
    with pytest.raises(ValueError, match="`ternary`: 'b' of shape"):
        ternary().init({"b": jnp.ones(3)})
    with pytest.raises(ValueError, match="`dorefa`: `bits` is 2 to 8"):
        dorefa(1)


DATA = normal(512, 12, seed=7)
TEACHER = {"up": normal(12, 24, seed=8) / 3, "down": normal(24, 3, seed=9) / 5}


def forward(p, x):
    h = jax.nn.standardize(x @ p["up"], axis=0)
    return jax.nn.standardize(jax.nn.relu(h) @ p["down"], axis=0)


def trained(t, steps=300) -> float:
    """Return the loss of a small net after training with a transform, and of one that is rounded after training."""
    target = forward(TEACHER, DATA)
    start = {"up": normal(12, 24, seed=1) / 3, "down": normal(24, 3, seed=2) / 5}
    tx: Any = jc.attach(optax.chain(optax.trace(0.9), optax.scale(-0.02), jc.optimizers.keep_within()), t)
    loss: Any = lambda p: jnp.mean((forward(p, DATA) - target) ** 2)  # noqa: E731

    def step(carry, _):
        params, state = carry
        slopes = jax.grad(lambda p: loss(tx.apply(p, state)))(params)
        updates, state = tx.update(slopes, state, params)
        return (apply_updates(params, updates), state), None

    (params, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, steps))((start, tx.init(start)))
    return float(loss(tx.apply(params, state)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "t",
    [
        *(binary(), binary(scaled=False), ternary(), trained_ternary(optax.sgd(1e-3, momentum=0.9)), dorefa(2)),
        *(stochastic(2, KEY), fake_quantize(2)),
    ],
    ids=["xnor", "binary_connect", "ternary", "trained_ternary", "dorefa", "stochastic", "int2"],
)
def test_training_beats_rounding_afterwards(t):
    target, start = forward(TEACHER, DATA), TEACHER
    plain = float(jnp.mean((forward(t.apply(start, t.init(start)), DATA) - target) ** 2))
    assert trained(t) < 0.8 * plain


def test_keep_within():
    tx = optax.chain(optax.sgd(1.0), jc.optimizers.keep_within(-0.5, 0.5))
    params: Any = {"w": normal(50) / 4}
    for seed in range(3):
        updates, _ = tx.update({"w": normal(50, seed=seed)}, tx.init(params), params)
        params = apply_updates(params, updates)
        assert float(jnp.abs(params["w"]).max()) <= 0.5 + 1e-6
    with pytest.raises(ValueError, match="`low` is below `high`"):
        jc.optimizers.keep_within(1, 1)
    with pytest.raises(ValueError, match="needs the parameters"):
        jc.optimizers.keep_within().update({}, optax.EmptyState())
