"""Movement pruning, Top-KAST, SR-STE, AC/DC and lottery tickets, each against the formula of its paper."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_compress as jc
from jaxopt_compress import pruning
from jaxopt_compress.pruning import (
    accumulate,
    distance,
    find_ticket,
    magnitude,
    movement_pruning,
    prune,
    surgery,
    top_kast,
)

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape).astype(np.float32))


def steps(tx: Any, params: Any, gradients: list[jax.Array]):
    """Feed the gradients of what `apply` gives through `apply` and the optimizer; yield parameters and states."""
    state = tx.init(params)
    for g in gradients:
        slope = jax.grad(lambda p, s=state, g=g: jnp.sum(tx.apply(p, s)["w"] * g))(params)
        updates, state = tx.update(slope, state, params)
        params = optax.apply_updates(params, updates)
        yield params, jc.optimizers.compress_state(state)


def best(scores, number: int) -> np.ndarray:
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-np.asarray(scores).ravel(), kind="stable")[:number]] = True
    return mask.reshape(scores.shape)


@pytest.mark.slow
@pytest.mark.parametrize("scores_rate", [1.0, optax.linear_schedule(1.0, 0.25, 3)], ids=["constant", "schedule"])
def test_movement_is_that_of_the_paper(scores_rate):
    """Scores learn by the dense gradient times the frozen weight; weights by the masked gradient."""
    w, gradients, rate = normal(6, 5), [normal(6, 5) for _ in range(6)], 0.1
    t = movement_pruning(lambda step: jnp.where(jnp.asarray(step) < 2, 0.0, 0.5), rate=scores_rate, every=1)
    scores, mask, expect = np.zeros((6, 5)), np.ones((6, 5), bool), np.asarray(w, np.float64)
    run = steps(jc.attach(optax.sgd(rate), t), {"w": w}, gradients)
    for number, ((params, state), g) in enumerate(zip(run, gradients, strict=True)):
        now = (1.0, 0.75, 0.5, 0.25, 0.25, 0.25)[number] if callable(scores_rate) else 1.0
        scores = scores - now * np.asarray(g) * expect
        new = best(scores, 30 if number < 2 else 15)
        expect = expect - rate * np.where(mask & new, np.asarray(g), 0)
        mask = new
        np.testing.assert_allclose(state.scores["w"], scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(~np.asarray(t.frozen(params, state)["w"]), mask)
        np.testing.assert_allclose(params["w"], expect, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(t.apply(params, state)["w"], np.where(mask, params["w"], 0))
        np.testing.assert_array_equal(t.encode(params, state)["w"], t.apply(params, state)["w"])


def test_accumulate_averages_and_draws_now_and_then():
    w, gradients = {"w": normal(4, 4)}, [normal(4, 4) for _ in range(5)]
    t = accumulate(pruning.taylor, 0.5, decay=0.9, every=2, start=1)
    update = jax.jit(lambda s, step, g: t.update(w, s, step=step, grads={"w": g}))
    state, scores, mask = t.init(w), np.zeros((4, 4)), np.ones((4, 4), bool)
    for step, g in enumerate(gradients):
        state = update(state, step, g)
        scores = 0.9 * scores + np.abs(np.asarray(w["w"] * g))
        mask = best(scores, 8) if step in (1, 3) else mask
        np.testing.assert_allclose(state.scores["w"], scores, rtol=1e-5)
        np.testing.assert_array_equal(t.removed(w, state)["w"], ~mask)
    assert update._cache_size() == 1


@pytest.mark.slow
def test_accumulate_takes_patterns_and_scopes():
    params, grads = {"a": normal(8, 4), "b": normal(4, 4)}, {"a": normal(8, 4), "b": normal(4, 4)}
    blocks = accumulate(pruning.movement, 0.5, pattern=pruning.blocks(2, 2, pool=jnp.sum), scope="global")
    state = blocks.update(params, blocks.init(params), step=0, grads=grads)
    sums = [np.asarray(-params[k] * grads[k]).reshape(-1, 2, 2, 2).sum((1, 3)) for k in "ab"]
    want = best(np.concatenate([s.ravel() for s in sums]), 6)
    gone = np.concatenate([np.asarray(blocks.removed(params, state)[k])[::2, ::2].ravel() for k in "ab"])
    np.testing.assert_array_equal(~gone, want)


@pytest.mark.slow
def test_top_kast_sees_some_trains_more_and_freezes_the_rest():
    w, rate = normal(10, 10), 0.1
    t = top_kast(0.8, 0.5)
    gradients = [normal(10, 10) for _ in range(6)]
    run = list(steps(jc.attach(optax.sgd(rate), t), {"w": w}, gradients))
    seen = learning = np.ones((10, 10), bool)
    expect = np.asarray(w)
    for (params, state), g in zip(run, gradients, strict=True):
        new_seen, new_learning = best(np.abs(expect), 20), best(np.abs(expect), 50)
        expect = expect - np.where(learning & new_learning, rate * np.asarray(g), 0).astype(np.float32)
        seen, learning = new_seen, new_learning
        np.testing.assert_allclose(params["w"], expect, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(t.apply(params, state)["w"] != 0, seen)
        expect = np.asarray(params["w"])
    params, state = run[-1]
    slope = jax.grad(lambda p: jnp.sum(t.apply(p, state)["w"]))(params)["w"]
    np.testing.assert_array_equal(slope, learning.astype(np.float32))


@pytest.mark.slow
def test_sr_ste_pulls_masked_weights_towards_zero():
    t = jc.straight_through(prune(magnitude, pattern=pruning.n_of_m(2, 4)))
    params, g = {"w": normal(8, 6)}, normal(8, 6)
    state = t.update(params, t.init(params), step=0)
    mask = np.asarray(t.apply(params, state)["w"] != 0)

    def loss(p):
        return jnp.sum(t.apply(p, state)["w"] * g) + 2e-4 * distance(t, p, state)

    want = np.asarray(g) + 2e-4 * np.where(mask, 0, params["w"])  # Zhou et al., equation 10
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(params)["w"], want, rtol=1e-6)
    off = np.where(mask, 0, np.asarray(params["w"], np.float64))
    np.testing.assert_allclose(distance(t, params, state), np.sum(off**2) / 2, rtol=1e-6)
    assert distance(t, {"n": 3}, {}) == 0


@pytest.mark.slow
def test_surgery_prunes_below_a_band_and_restores_above_it():
    t, w = surgery(magnitude, 0.5, margin=0.2), RNG.permutation(100).astype(np.float32) + 1
    state, mask = t.init({"w": jnp.asarray(w)}), np.ones(100, bool)
    for _ in range(5):
        state = t.update({"w": jnp.asarray(w)}, state, step=0)
        mask = best(w, 40) | (best(w, 60) & mask)
        np.testing.assert_array_equal(t.apply({"w": jnp.asarray(w)}, state)["w"], np.where(mask, w, 0))
        w = w + 20 * RNG.normal(size=100).astype(np.float32) ** 2
    params, g = {"w": jnp.asarray(w)}, normal(100)
    np.testing.assert_array_equal(jax.grad(lambda p: jnp.sum(t.apply(p, state)["w"] * g))(params)["w"], g)
    assert t.removed(params, state) == {}
    scheduled = surgery(magnitude, lambda step: jnp.float32(0.01), margin=0.5)
    seen = scheduled.apply(params, scheduled.update(params, scheduled.init(params), step=0))["w"]
    assert bool((seen != 0).all())  # at most all stay


@pytest.mark.slow
def test_ac_dc_goes_back_to_dense():
    phases = optax.join_schedules([optax.constant_schedule(s) for s in (0.0, 0.75, 0.0, 0.75)], [2, 4, 6])
    t = prune(magnitude, phases)
    run = steps(jc.attach(optax.sgd(0.1, momentum=0.9), t), {"w": normal(10, 10)}, [normal(10, 10)] * 9)
    zeros = [int(np.sum(np.asarray(params["w"]) == 0)) for params, _ in run]
    assert zeros[:2] == [0, 0]
    assert zeros[2:4] == [75, 75]
    assert zeros[4] == 75  # the first dense step still has the gradient of the sparse ones
    assert zeros[5:6] == [0]
    assert zeros[6:] == [75, 75, 75]


def quadratic(target):
    def train(params, state, t):
        def step(p, _):
            slope = jax.grad(lambda p: jnp.sum((t.apply(p, state)["w"] - target) ** 2))(p)
            return jax.tree.map(lambda w, g: w - 0.2 * g, p, slope), None

        trained = jax.lax.scan(step, params, length=30)[0]
        return trained, jnp.sum(t.apply(trained, state)["w"] != 0)

    return train


def test_a_ticket_is_found_and_rewound_in_one_program():
    target, params = normal(8, 8), {"w": normal(8, 8)}
    t = prune(magnitude, lambda number: 1 - jnp.exp2(-1.0 - jnp.asarray(number, jnp.float32)))
    train = quadratic(target)
    find = jax.jit(lambda p: find_ticket(lambda p, s: train(p, s, t), t, p, 4))
    state, left = find(params)
    np.testing.assert_array_equal(left, [64, 32, 16, 8])
    ticket = np.asarray(~t.removed(params, state)["w"])
    np.testing.assert_array_equal(ticket, best(np.abs(target), 4))
    np.testing.assert_array_equal(t.apply(params, state)["w"], np.where(ticket, params["w"], 0))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`accumulate`: `decay` is in \[0, 1\]; got 1.1."):
        accumulate(magnitude, 0.5, decay=1.1)
    with pytest.raises(ValueError, match="`accumulate`: `rate` is not negative; got -1."):
        movement_pruning(0.5, rate=-1.0)
    with pytest.raises(ValueError, match=r"`surgery`: `margin` is in \[0, 1\); got 1.0."):
        surgery(magnitude, 0.5, margin=1.0)
    with pytest.raises(ValueError, match=r"`prune`: `sparsity` is the fraction of zeros, in \[0, 1\]; got 50"):
        surgery(magnitude, 50)
    with pytest.raises(ValueError, match="`top_kast`: what the forward pass sees learns"):
        top_kast(0.5, 0.8)
    with pytest.raises(ValueError, match="`find_ticket`: `rounds` is at least 1; got 0."):
        find_ticket(lambda p, s: (p, None), prune(magnitude, 0.5), {}, 0)
    t = movement_pruning(0.5)
    with pytest.raises(ValueError, match="`movement`: the criterion needs `grads=`"):
        t.update({"w": jnp.ones(3)}, t.init({"w": jnp.ones(3)}), step=0)
