"""SparseGPT against a reference in NumPy, and against magnitude and Wanda."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress import graph, pruning
from jaxopt_compress.calibration import put_back, weighted, weights_seen
from tests.products import EVERY_PRODUCT, normal

RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(np.maximum(RNG.normal(size=(256, 24)) @ RNG.normal(size=(24, 24)), -0.5), jnp.float32)
WEIGHT = jnp.asarray(RNG.normal(size=(24, 16)) / 5, jnp.float32)


def dense(p, x):
    return x @ p


def loss(w):
    return float(jnp.mean((INPUTS @ w - INPUTS @ WEIGHT) ** 2) / jnp.mean((INPUTS @ WEIGHT) ** 2))


def in_numpy(w, x, sparsity, damping):
    """Remove weights by optimal brain surgery, all of one block; float64."""
    w, h = np.array(w, np.float64), np.asarray(x, np.float64).T @ np.asarray(x, np.float64) / len(x)
    h += damping * np.mean(np.diag(h)) * np.eye(len(h))
    inverse = np.linalg.inv(h)
    left, pivots = inverse.copy(), []
    for j in range(len(h)):
        pivots.append(left[j, j])
        left = left - np.outer(left[:, j], left[j]) / left[j, j]
    scores = (w**2 / np.array(pivots)).ravel()
    gone = np.zeros(w.size, bool)
    gone[np.argsort(scores)[: round(sparsity * w.size)]] = True
    gone = gone.reshape(w.shape)
    for j in range(len(h)):
        off = np.where(gone[:, j], w[:, j], 0) / inverse[j, j]
        kept = w[:, j] - off * inverse[j, j]
        w = w - off[:, None] * inverse[j]
        w[:, j] = kept
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return w


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_it_is_optimal_brain_surgery(sparsity):
    found = pruning.sparsegpt(dense, WEIGHT, [INPUTS], sparsity)
    wanted = in_numpy(np.asarray(WEIGHT).T, INPUTS, sparsity, 0.01).T
    np.testing.assert_array_equal(np.asarray(found) == 0, np.abs(wanted) < 1e-12)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert int(jnp.sum(found == 0)) == round(sparsity * WEIGHT.size)


@pytest.mark.slow
@pytest.mark.parametrize("block", [5, 24])
def test_it_beats_magnitude_and_wanda(block):
    norms = jnp.sqrt(jnp.mean(INPUTS**2, 0))
    others = []
    for scores in (jnp.abs(WEIGHT), jnp.abs(WEIGHT) * norms[:, None]):
        gone = jnp.argsort(jnp.argsort(scores, axis=0), axis=0) < 12
        others.append(loss(jnp.where(gone, 0, WEIGHT)))
    assert loss(pruning.sparsegpt(dense, WEIGHT, [INPUTS], 0.5, block=block)) < 0.85 * min(others)


@pytest.mark.slow
def test_layers_of_one_shape_are_compiled_once():
    fn = lambda p, x: [x @ w for w in p]  # noqa: E731
    solved: Any = sys.modules[pruning.sparsegpt.__module__]._solved
    solved.clear_cache()
    pruning.sparsegpt(fn, [WEIGHT, 2 * WEIGHT, 3 * WEIGHT], [INPUTS], 0.5)
    assert solved._cache_size() == 1


@pytest.mark.slow
def test_n_of_m():
    found = pruning.sparsegpt(dense, WEIGHT, [INPUTS], kept_of=(2, 4))
    kept = np.asarray(found != 0).reshape(6, 4, 16).sum(1)
    np.testing.assert_array_equal(kept, 2)
    scores = jnp.abs(WEIGHT).reshape(6, 4, 16)
    gone = jnp.argsort(jnp.argsort(scores, axis=1), axis=1) < 2
    assert loss(found) < loss(jnp.where(gone.reshape(24, 16), 0, WEIGHT))


@pytest.mark.sampled(6)
@pytest.mark.slow
@EVERY_PRODUCT
def test_every_kind_of_product(fn, params, x):
    if "g" in params:
        pytest.skip("has no weight")
    found = pruning.sparsegpt(fn, params, [x], 0.5)
    half = params["w"].size / 2
    assert abs(float(jnp.sum(found["w"] == 0)) - half) <= 4
    off = lambda w: float(jnp.mean((fn({"w": w}, x) - fn(params, x)) ** 2))  # noqa: E731
    assert off(found["w"]) < 0.35 * off(0 * params["w"])


def deep(p, x):
    h = jax.nn.relu(x @ p["first"])
    return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), h, p["layers"])[0] @ p["last"]


DEEP = {"first": normal(24, 24) / 4, "layers": normal(2, 24, 24, seed=1) / 4, "last": normal(24, 5, seed=2) / 4}


@pytest.mark.slow
def test_layers_one_after_the_other():
    off = lambda p: float(jnp.mean((deep(p, INPUTS) - deep(DEEP, INPUTS)) ** 2))  # noqa: E731
    once = pruning.sparsegpt(deep, DEEP, [INPUTS], 0.5)
    each = pruning.sparsegpt(deep, DEEP, [INPUTS], 0.5, sequential=True)
    assert off(each) < off(once)
    assert float(jnp.mean(once["layers"] == 0)) == 0.5
    only = pruning.sparsegpt(deep, DEEP, [INPUTS], 0.5, where="last")
    np.testing.assert_array_equal(only["first"], DEEP["first"])


def test_weights_go_and_come_back():
    (site,) = weighted(graph.sites(lambda p, x: x @ p["w"].reshape(6, -1), {"w": normal(6, 2, 3)}, normal(4, 6)))
    fn, params = lambda p, x: x @ p["w"].reshape(6, -1), {"w": normal(6, 2, 3), "b": jnp.arange(3)}  # noqa: E731
    seen = weights_seen(fn, [site], params, [normal(4, 6)])
    assert seen["w"].shape == (6, 6)
    back = put_back(fn, [site], params, [normal(4, 6)], {"w": 2 * seen["w"]})
    np.testing.assert_array_equal(back["w"], 2 * params["w"])
    np.testing.assert_array_equal(back["b"], params["b"])


@pytest.mark.slow
def test_what_is_refused():
    x = INPUTS
    for options, message in (
        ({}, "either `sparsity` or `kept_of`"),
        ({"sparsity": 0.5, "kept_of": (2, 4)}, "either `sparsity` or `kept_of`"),
        ({"sparsity": 1.5}, "`sparsity` is from 0 to 1"),
        ({"kept_of": (5, 4)}, "n of at most m"),
        ({"sparsity": 0.5, "damping": 0}, "`damping` is above 0"),
        ({"sparsity": 0.5, "where": "other"}, "'other' is none of"),
    ):
        given: Any = options
        with pytest.raises(ValueError, match=message):
            pruning.sparsegpt(dense, WEIGHT, [x], **given)
    with pytest.raises(ValueError, match="there are no batches"):
        pruning.sparsegpt(dense, WEIGHT, [], 0.5)
    with pytest.raises(ValueError, match="computed with before its product"):
        pruning.sparsegpt(lambda p, x: x @ (2 * p), WEIGHT, [x], 0.5)
    with pytest.raises(ValueError, match="seen by several products"):
        pruning.sparsegpt(lambda p, x: (x @ p) @ p, normal(24, 24), [x], 0.5)


@pytest.mark.slow
def test_nan_and_zeros():
    for x in (INPUTS.at[0, 0].set(jnp.nan), 0 * INPUTS):
        found = pruning.sparsegpt(dense, WEIGHT, [x], 0.5)
        assert int(jnp.sum(found == 0)) == WEIGHT.size // 2
        assert np.isfinite(found).all()
