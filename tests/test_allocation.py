"""Allocation of sparsity over layers: exact totals, the published densities, minima, and refusals."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

import jaxopt_compress as jc
from jaxopt_compress import pruning
from jaxopt_compress.pruning import er, erk, magnitude, prune, uniform
from jaxopt_compress.pruning.allocation import share

RNG = np.random.default_rng(0)
LENET = {"fc1": (784, 300), "fc2": (300, 100), "fc3": (100, 10)}
RESNET = {f"conv_{i}": shape for i, shape in enumerate([(3, 3, 3, 16), (3, 3, 16, 16), (1, 1, 16, 32), (3, 3, 32, 64)])}


def weights(shapes):
    return {name: jnp.asarray(RNG.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}


def kept(t, params, step=0, **extra) -> dict[str, int]:
    state = jax.jit(lambda p, step: t.update(p, t.init(p), step=step, **extra))(params, step)
    return {path: int(np.sum(~np.asarray(gone))) for path, gone in t.removed(params, state).items()}


def by_rounds(relative, sizes, total) -> list[float]:
    """Share by the loop of the papers: fill what is over dense, then share the rest anew."""
    full: set[int] = set()
    while True:
        rest = [i for i in range(len(sizes)) if i not in full]
        weight = sum(relative[i] * sizes[i] for i in rest)
        factor = (total - sum(sizes[i] for i in full)) / weight if weight else 0
        over = {i for i in rest if factor * relative[i] > 1}
        if not over:
            return [sizes[i] if i in full else factor * relative[i] * sizes[i] for i in range(len(sizes))]
        full |= over


@given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 3000)), min_size=1, max_size=7), st.floats(0, 1))
def test_shares_are_those_of_the_papers_loop_and_the_total_is_exact(leaves, part):
    relative, sizes = [list(column) for column in zip(*leaves, strict=True)]
    total = round(part * sum(sizes))
    counts = share(relative, sizes, total)
    assert sum(counts) == total
    for got, size, want in zip(counts, sizes, by_rounds(relative, sizes, total), strict=True):
        assert 0 <= got <= size
        assert abs(got - want) < 1 + 1e-6


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 2**28)), min_size=4, max_size=4), st.floats(0, 1))
def test_a_traced_total_is_exact_too(leaves, part):
    relative, sizes = [list(column) for column in zip(*leaves, strict=True)]
    total = round(part * sum(sizes))
    traced = [int(n) for n in share(relative, sizes, jnp.int32(total))]
    assert sum(traced) == total
    for got, size, want in zip(traced, sizes, share(relative, sizes, total), strict=True):
        assert 0 <= got <= size
        assert abs(got - want) <= 2 + 1e-5 * sum(sizes)


@pytest.mark.sampled(8)
@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.0, 0.9, 0.98, 1.0])
@pytest.mark.parametrize("shapes", [LENET, RESNET], ids=["lenet", "convolutions"])
def test_erk_meets_the_budget_exactly(sparsity, shapes):
    params = weights(shapes)
    total = sum(w.size for w in params.values())
    counts = kept(prune(magnitude, sparsity, allocation=erk), params)
    assert sum(counts.values()) == total - round(sparsity * total)
    scheduled = kept(prune(magnitude, lambda step: jnp.float32(sparsity), allocation=erk), params)
    assert sum(scheduled.values()) == sum(counts.values())
    assert max(abs(scheduled[name] - counts[name]) for name in counts) <= 1


@pytest.mark.slow
def test_erk_densities_of_lenet():
    counts = kept(prune(magnitude, 0.95, allocation=erk), weights(LENET))
    density = {name: counts[name] / np.prod(LENET[name]) for name in LENET}
    assert density["fc1"] / density["fc2"] == pytest.approx((1084 / 235_200) / (400 / 30_000), rel=1e-3)
    assert density["fc3"] == pytest.approx(0.919, abs=1e-3)
    full = kept(prune(magnitude, 0.9, allocation=erk), weights(LENET))
    assert full["fc3"] == 1000  # over dense, so that the others share the rest


@pytest.mark.slow
def test_what_the_allocations_are():
    assert uniform("w", (3, 3, 8, 4)) == 1
    assert er("w", (3, 3, 8, 4)) == 12 / 32
    assert erk("w", (3, 3, 8, 4)) == 18 / 288
    assert er("w", (8, 4)) == erk("w", (8, 4)) == 12 / 32
    params = weights(LENET)
    total = sum(w.size for w in params.values())
    assert sum(kept(prune(magnitude, 0.333, allocation=uniform), params).values()) == total - round(0.333 * total)


def test_an_allocation_of_ones_own_and_ties():
    params = {"a": jnp.ones((10, 10)), "b": jnp.ones((10, 10))}
    t = prune(magnitude, 0.7, allocation=lambda path, shape: 3.0 if path == "a" else 1.0)
    assert kept(t, params) == {"a": 45, "b": 15}
    t = prune(magnitude, 0.5, allocation=lambda path, shape: 1e6 if path == "a" else 1.0)
    assert kept(t, params) == {"a": 100, "b": 0}


@pytest.mark.slow
def test_units_of_a_pattern_are_shared():
    params = weights({"a": (8, 16), "b": (64, 32)})
    counts = kept(prune(magnitude, 0.5, allocation=erk, pattern=pruning.channels()), params)
    assert counts["a"] / 8 + counts["b"] / 64 == 24
    counts = kept(prune(magnitude, 0.5, allocation=erk, pattern=pruning.within(4)), params)
    assert counts["a"] == 128
    assert counts["b"] == 1024 - 0  # round(4 * 0.53) = 2 of each four


@pytest.mark.slow
def test_a_sparsity_for_each_leaf():
    params = weights(LENET)
    schedule = optax.linear_schedule(0.0, 0.5, 10)
    t = prune(magnitude, {"fc3": 0.5, "fc2": schedule, "*": 0.9})
    assert kept(t, params, step=10) == {"fc1": 23520, "fc2": 15000, "fc3": 500}
    assert kept(t, params, step=0)["fc2"] == 30000


@pytest.mark.slow
def test_a_global_ranking_keeps_a_minimum_of_every_leaf():
    params = weights({"large": (40, 10), "small": (20, 10)})
    params["small"] = params["small"] * 1e-6
    without = kept(prune(magnitude, 0.5, scope="global"), params)
    assert without == {"large": 300, "small": 0}
    t = prune(magnitude, 0.5, scope="global", minimum=0.1)
    assert kept(t, params) == {"large": 280, "small": 20}
    for path, mask in t.removed(params, t.update(params, t.init(params), step=0)).items():
        size = np.abs(np.asarray(params[path]))
        assert size[~mask].min() > size[mask].max()  # the largest of each leaf
    assert kept(prune(magnitude, 0.0, scope="global", minimum=1.0), params) == {"large": 400, "small": 200}
    # A schedule that asks for more than the minima leave is held there.
    t = prune(magnitude, lambda step: jnp.float32(0.99), scope="global", minimum=0.1)
    assert kept(t, params) == {"large": 40, "small": 20}


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_minima_are_exact_among_scores_that_say_nothing(value):
    params = {"a": jnp.full((5, 4), value), "b": jnp.full((5, 4), value)}
    counts = kept(prune(magnitude, 0.5, scope="global", minimum=0.3), params)
    assert sum(counts.values()) == 20
    assert min(counts.values()) >= 6


BAD = [
    (lambda: prune(magnitude, 0.5, minimum=0.1), r"`minimum` is a fraction in \[0, 1\], for scope=\"global\""),
    (lambda: prune(magnitude, 0.5, scope="global", minimum=2), r"`minimum` is a fraction in \[0, 1\]"),
    (lambda: prune(magnitude, 0.5, scope="global", allocation=erk), "it takes no allocation"),
    (lambda: prune(magnitude, {"*": 0.5}, scope="global"), "no sparsity by glob"),
    (lambda: prune(magnitude, {"*": 0.5}, allocation=erk), "shares one sparsity among leaves"),
    (lambda: prune(magnitude, {"*": 1.5}), r"`sparsity` is the fraction of zeros, in \[0, 1\]; got 1.5"),
]
BAD_LEAVES = [
    (prune(magnitude, {"fc1": 0.5}), "`prune`: `sparsity` says nothing of 'fc2'; got it for fc1"),
    (prune(magnitude, {"fc9": 0.5, "*": 0.1}), "'fc9'.* matches no leaf"),
    (prune(magnitude, 0.95, scope="global", minimum=0.5), "`minimum=0.5` keeps 133100 in all"),
    (prune(magnitude, 0.5, allocation=lambda path, shape: 0), "positive, finite number; got 0.0 for 'fc1'"),
    (prune(magnitude, 0.5, allocation=lambda path, shape: float("inf")), "positive, finite number; got inf"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("t", "message"), BAD_LEAVES)
def test_bad_leaves(t, message):
    with pytest.raises(ValueError, match=message):
        jc.check(t, {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in LENET.items()})
