"""Sums of terms, gradients term by term, and the two momenta."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_compress import distillation as d
from tests.products import normal

PARAMS = {"up": normal(6, 8, seed=1), "down": normal(8, 4, seed=2)}
X, TEACHER, LABELS = normal(5, 6, seed=3), normal(5, 4, seed=4), jnp.array([0, 3, 1, 2, 2])


def forward(p, x, label):
    hidden = jnp.tanh(x @ p["up"])
    return {"hidden": hidden, "logits": hidden @ p["down"]}


TERMS = {
    "task": lambda o, x, label: d.cross_entropy(o["logits"], label),
    "teacher": lambda o, x, label: d.soft_targets(o["logits"], TEACHER, temperature=2.0),
    "hidden": lambda o, x, label: d.hint(o["hidden"], jnp.ones_like(o["hidden"])),
}


@pytest.mark.slow
def test_weights_and_schedules():
    outputs = forward(PARAMS, X, LABELS)
    weights = {"task": 1.0, "teacher": 0.5, "hidden": optax.linear_schedule(0.0, 2.0, 10)}
    loss_fn: Any = jax.jit(d.weighted(TERMS, weights))
    for step in (0, 3, 50):
        losses, parts = loss_fn(outputs, X, LABELS, step=step)
        each = {name: term(outputs, X, LABELS) for name, term in TERMS.items()}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts, each)
        wanted = each["task"] + 0.5 * each["teacher"] + min(step / 5, 2.0) * each["hidden"]
        np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    assert loss_fn._cache_size() == 1


@pytest.mark.slow
def test_gradients_term_by_term():
    means, gradients = jax.jit(d.term_gradients(forward, TERMS))(PARAMS, X, LABELS)
    for name, term in TERMS.items():
        whole = lambda p, term=term: jnp.mean(term(forward(p, X, LABELS), X, LABELS))  # noqa: E731
        value, wanted = jax.value_and_grad(whole)(PARAMS)
        np.testing.assert_allclose(means[name], value, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), gradients[name], wanted)


def length(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree)))


@pytest.mark.slow
def test_balanced_gradients():
    """Whatever a term is multiplied by, its gradient has the same share."""
    _, gradients = d.term_gradients(forward, TERMS)(PARAMS, X, LABELS)
    shares = {"teacher": 0.5, "hidden": 2.0}
    found = d.balanced(gradients, shares, to="task")
    for key, leaf in found.items():
        wanted = np.asarray(gradients["task"][key], np.float64)
        for name, share in shares.items():
            wanted = wanted + share * length(gradients["task"]) / length(gradients[name]) * gradients[name][key]
        np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-6)
    louder = {**gradients, "hidden": jax.tree.map(lambda g: 1e4 * g, gradients["hidden"])}
    again = d.balanced(louder, shares, to="task")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), again, found)
    nothing = {**gradients, "hidden": jax.tree.map(jnp.zeros_like, gradients["hidden"])}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(d.balanced(nothing, shares, to="task")))


def test_two_momenta_against_a_loop():
    tx: Any = optax.chain(d.dot(0.8, 0.1), optax.scale(-0.5))
    state, velocity = tx.init(PARAMS), {"task": 0.0, "kd": 0.0}
    run = jax.jit(lambda g, s, k: tx.update(g, s, distilled=k))
    for seed in range(3):
        task, kd = ({"up": normal(6, 8, seed=n + seed), "down": normal(8, 4, seed=n + seed)} for n in (10, 20))
        updates, state = run(task, state, kd)
        velocity["task"] = 0.7 * velocity["task"] + np.asarray(task["up"], np.float64)
        velocity["kd"] = 0.9 * velocity["kd"] + np.asarray(kd["up"], np.float64)
        np.testing.assert_allclose(updates["up"], -0.5 * (velocity["task"] + velocity["kd"]), rtol=1e-5, atol=1e-6)


def test_one_momentum_is_that_of_the_sum():
    same, plain = d.dot(0.9, 0.0), optax.trace(0.9)
    mine, theirs = same.init(PARAMS), plain.init(PARAMS)
    for seed in range(3):
        task, kd = ({"up": normal(6, 8, seed=n + seed), "down": normal(8, 4, seed=n + seed)} for n in (10, 20))
        found, mine = same.update(task, mine, distilled=kd)
        wanted, theirs = plain.update(jax.tree.map(jnp.add, task, kd), theirs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


def test_what_is_refused():
    with pytest.raises(ValueError, match="`weighted`: terms and weights have the same names"):
        d.weighted(TERMS, {"task": 1.0})
    with pytest.raises(ValueError, match="`weighted`: terms return losses of one shape"):
        d.weighted({"a": lambda x: x, "b": lambda x: x.sum()}, {"a": 1.0, "b": 1.0})(jnp.ones(3), step=0)
    with pytest.raises(ValueError, match="`balanced`: `to` is one of the gradients"):
        d.balanced({"a": PARAMS, "b": PARAMS}, {"a": 1.0}, to="a")
    with pytest.raises(ValueError, match="`dot`: both momenta are in"):
        d.dot(0.99, 0.05)
    with pytest.raises(ValueError, match="`dot`: `update` needs `distilled`"):
        d.dot().update(PARAMS, d.dot().init(PARAMS))
