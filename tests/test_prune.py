"""Pruning: exact counts, naive references, and what must not leak."""

from decimal import ROUND_HALF_EVEN, Decimal

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

import jaxopt_compress as jc
from jaxopt_compress.pruning import elementwise, magnitude, prune

ZERO_ONE = pytest.mark.parametrize("sparsity", [0, 0.0, 1, 1.0])


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


PARAMS = {
    "dense": {"kernel": normal(8, 6), "bias": normal(6, seed=1) / 4},
    "conv": {"kernel": normal(3, 3, 2, 5, seed=2) * 3},
    "count": jnp.arange(4),
    "empty": jnp.zeros((0, 3)),
}


def pruned(params, criterion=magnitude, sparsity=0.5, scope="layer", step=0, **extra):
    t = prune(criterion, sparsity, scope=scope)
    return t.apply(params, t.update(params, t.init(params), step=step, **extra))


def zeros(x) -> int:
    return int(np.sum(np.asarray(x) == 0))


def naive(arrays: list[np.ndarray], number: int) -> list[np.ndarray]:
    """Zero the `number` smallest magnitudes, of equal ones those with the higher index."""
    flat = np.concatenate([a.ravel() for a in arrays])
    gone = np.argsort(-np.abs(flat), kind="stable")[flat.size - number :]
    flat[gone] = 0
    parts = np.split(flat, np.cumsum([a.size for a in arrays])[:-1])
    return [part.reshape(a.shape) for part, a in zip(parts, arrays, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_against_a_naive_reference(sparsity, scope):
    after = pruned(PARAMS, sparsity=sparsity, scope=scope)
    weights = {k: np.asarray(x) for k, x in jc.tree.weights(PARAMS).items()}
    if scope == "global":
        total = sum(w.size for w in weights.values())
        want = dict(zip(weights, naive(list(weights.values()), round(sparsity * total)), strict=True))
    else:
        want = {k: naive([w], round(sparsity * w.size))[0] for k, w in weights.items()}
    for path, w in jc.tree.weights(after).items():
        np.testing.assert_array_equal(w, want[path], err_msg=path)
    assert after["count"] is PARAMS["count"]


@pytest.mark.slow
@settings(max_examples=60)
@given(st.sampled_from([1, 2, 5, 8, 30]), st.integers(0, 1000))
def test_exact_number_of_zeros(size, thousandths):
    sparsity = thousandths / 1000
    want = int(Decimal(size * sparsity).quantize(Decimal(1), ROUND_HALF_EVEN))
    assert zeros(pruned({"w": normal(size)}, sparsity=sparsity)["w"]) == want


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "sparsity", "number"), [(2, 0.25, 0), (2, 0.75, 2), (10, 0.25, 2), (10, 0.35, 4), (3, 0.5, 2), (5, 0.5, 2)]
)
def test_halves_go_to_the_even_number(size, sparsity, number):
    w = {"w": normal(size)}
    assert zeros(pruned(w, sparsity=sparsity)["w"]) == number
    assert zeros(pruned(w, sparsity=lambda step: jnp.float32(sparsity))["w"]) == number
    assert zeros(pruned(w, sparsity=jnp.float32(sparsity))["w"]) == number


def test_ties_are_counted_exactly():
    for number in range(13):
        after = np.asarray(pruned({"w": -jnp.ones((3, 4))}, sparsity=number / 12)["w"]).ravel()
        np.testing.assert_array_equal(after != 0, np.arange(12) < 12 - number)


@pytest.mark.slow
@ZERO_ONE
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_all_or_nothing(sparsity, scope):
    after = jc.tree.weights(pruned(PARAMS, sparsity=sparsity, scope=scope))
    for path, w in jc.tree.weights(PARAMS).items():
        np.testing.assert_array_equal(after[path], w * (1 - sparsity))


@pytest.mark.slow
def test_a_schedule_is_followed_and_clipped():
    schedule = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=10, transition_begin=2)
    t = prune(magnitude, schedule)
    params = {"w": normal(200)}
    update = jax.jit(lambda p, s, step: t.update(p, s, step=step))
    for step in range(16):
        found = zeros(t.apply(params, update(params, t.init(params), jnp.asarray(step)))["w"])
        done = min(max((step - 2) / 10, 0), 1)
        assert found == round(200 * (0.9 - 0.9 * (1 - done) ** 3)), step
    assert update._cache_size() == 1
    for outside, number in ((-0.5, 0), (1.5, 200)):
        assert zeros(pruned(params, sparsity=lambda step, f=outside: jnp.float32(f))["w"]) == number


def test_nothing_is_pruned_before_the_first_update():
    t = prune(magnitude, 0.9)
    odd = {"w": jnp.array([jnp.nan, jnp.inf, 0.0, -0.0, 1.0])}
    assert np.asarray(t.apply(odd, t.init(odd))["w"]).tobytes() == np.asarray(odd["w"]).tobytes()


def test_no_weights_at_all():
    for params in ({}, {"n": 3}, {"w": jnp.zeros((0, 4))}, None):
        for scope in ("layer", "global"):
            after = pruned(params, sparsity=0.5, scope=scope)
            assert jax.tree.structure(after) == jax.tree.structure(params)


def test_zero_channels_are_pruned_first_and_stay_zero():
    w = normal(8, 6).at[:, 2].set(0)
    after = pruned({"w": w}, sparsity=0.25)["w"]
    assert zeros(after) == 12
    assert not np.asarray(after)[:, 2].any()
    assert zeros(pruned({"w": w}, sparsity=0.0)["w"]) == 8


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("bad", [jnp.nan, -jnp.nan])
def test_nan_is_pruned_first_and_does_not_leak(bad, scope):
    w = normal(4, 4).at[1, 2].set(bad).at[3, 0].set(bad)
    params = {"a": w, "b": normal(4, 4, seed=1)}
    t = prune(magnitude, 0.25, scope=scope)
    state = t.update(params, t.init(params), step=0)
    after = t.apply(params, state)
    assert np.isfinite(after["a"]).all()
    slope = jax.grad(lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(t.apply(p, state))))(params)
    assert np.isfinite(slope["a"]).all()
    assert slope["a"][1, 2] == slope["a"][3, 0] == 0
    below = jax.jvp(lambda p: t.apply(p, state), (params,), (jax.tree.map(lambda x: x * jnp.nan, params),))[1]
    np.testing.assert_array_equal(np.isnan(below["a"]), after["a"] != 0)


def test_infinite_weights_rank_highest():
    w = jnp.array([jnp.inf, 1.0, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(pruned({"w": w}, sparsity=0.5)["w"], [jnp.inf, 0, -jnp.inf, 0])


@pytest.mark.slow
def test_the_gradient_is_masked():
    t = prune(magnitude, 0.5)
    state = t.update(PARAMS, t.init(PARAMS), step=0)
    weights = dict(jc.tree.weights(PARAMS))

    def loss(weights):
        return sum(
            jnp.sum(jnp.sin(w)) for w in jc.tree.weights(t.apply(jc.tree.replace(PARAMS, weights), state)).values()
        )

    kept = jc.tree.weights(t.apply(PARAMS, state))
    for path, slope in jax.jit(jax.grad(loss))(weights).items():
        np.testing.assert_array_equal(slope, jnp.where(kept[path] == 0, 0, jnp.cos(weights[path])), err_msg=path)


@pytest.mark.slow
def test_held_weights_need_no_copy():
    t = prune(magnitude, 0.5)
    params = {"w": normal(8, 6), "v": normal(5)}
    state = t.update(params, t.init(params), step=0)
    gone, held = t.removed(params, state), t.apply(params, state)
    assert t.apply_held is not None
    for name, mask in gone.items():
        np.testing.assert_array_equal(mask, held[name] == 0)
    for way in (t.apply, t.apply_held):
        slope = jax.grad(lambda p, f=way: sum(jnp.sum(jnp.sin(w)) for w in f(p, state).values()))(held)
        for name, mask in gone.items():
            np.testing.assert_array_equal(way(held, state)[name], held[name])
            np.testing.assert_array_equal(slope[name], jnp.where(mask, 0, jnp.cos(held[name])))


@elementwise
def taylor(params, grads, **extra):
    return jax.tree.map(lambda w, g: jnp.abs(w * g), params, grads)


def filters(params, grads, **extra):
    """Score whole output filters by their norm times their gradient's: not elementwise."""
    norm = lambda x: jnp.sqrt(jnp.sum(x**2, tuple(range(x.ndim - 1)), keepdims=True))  # noqa: E731
    return jax.tree.map(lambda w, g: jnp.broadcast_to(norm(w) * norm(g), w.shape), params, grads)


@pytest.mark.slow
def test_a_criterion_of_ones_own():
    grads = {"w": normal(8, 6, seed=3), "v": normal(6, 4, seed=4)}
    params = {"w": normal(8, 6), "v": normal(6, 4, seed=1)}
    after = pruned(params, taylor, 0.5, grads=grads, stats={"w": 1})
    for name in params:
        score = np.abs(params[name] * grads[name])
        np.testing.assert_array_equal(np.asarray(after[name]) == 0, naive([score], score.size // 2)[0] == 0)
    whole = np.asarray(pruned(params, filters, 0.5, grads=grads)["w"]) == 0
    np.testing.assert_array_equal(whole, np.broadcast_to(whole[0], whole.shape))  # filter by filter
    score = np.linalg.norm(params["w"], axis=0) * np.linalg.norm(grads["w"], axis=0)
    assert set(np.flatnonzero(whole[0])) == set(np.argsort(score)[:3])


@pytest.mark.slow
def test_an_elementwise_criterion_scores_the_same_whether_marked_or_not():
    def unmarked(params, grads, **extra):
        return taylor(params, grads)

    params = {"w": normal(8, 6), "v": normal(5)}
    grads = jax.tree.map(jnp.cos, params)
    for scope in ("layer", "global"):
        left, right = (pruned(params, c, 0.6, scope, grads=grads) for c in (taylor, unmarked))
        jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prune(magnitude, -0.1), "`prune`: `sparsity` is the fraction of zeros, in [0, 1]; got -0.1."),
        (lambda: prune(magnitude, 80), "`prune`: `sparsity` is the fraction of zeros, in [0, 1]; got 80."),
        (lambda: prune(magnitude, float("nan")), "`prune`: `sparsity` is the fraction of zeros, in [0, 1]; got nan."),
        (lambda: prune(magnitude, 0.5, scope="model"), '`prune`: `scope` is "layer" or "global"; got \'model\'.'),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match="`prune`") as error:
        make()
    assert str(error.value) == message


def test_too_many_weights_to_rank_together():
    half = jax.ShapeDtypeStruct((2**15, 2**15 + 1), jnp.bfloat16)
    jc.check(prune(magnitude, 0.5), {"a": half, "b": half})
    with pytest.raises(
        ValueError, match=r"at most 2147483647 weights .* got 2147549184 in 'a' and others. Use `stacked`"
    ):
        jc.check(prune(magnitude, 0.5, scope="global"), {"a": half, "b": half})


def test_a_bare_leaf_with_extras_that_look_like_one():
    w = jnp.arange(6.0)
    np.testing.assert_array_equal(pruned(w, step=3, value=1.0, value_fn=abs), [0, 0, 0, 3, 4, 5])
    grads = jnp.array([9.0, 9, 5, 0, 0, 1])
    np.testing.assert_array_equal(pruned(w, jc.pruning.taylor, grads=grads), [0, 1, 2, 0, 0, 5])
