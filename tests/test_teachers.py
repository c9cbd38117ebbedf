"""Teachers of every kind, sequences of the student's own, and a student that starts from its teacher."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_compress as jc
from jaxopt_compress import distillation as d
from tests.naive_distillation import kl, log_softmax
from tests.products import PRODUCTS, normal

LOGITS, LABELS = 3 * normal(3, 4, 5), jnp.array([0, 4, 2, 2])


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_teacher_in_bfloat16(name):
    fn, params, x = PRODUCTS[name]
    teacher, held = d.in_bfloat16(fn, params, x)
    assert all(leaf.dtype == jnp.bfloat16 for path, leaf in jc.tree.leaves(held).items() if path == "w")
    found, want = jax.jit(teacher)(held, x), fn(params, x)
    assert found.dtype == want.dtype
    np.testing.assert_allclose(found, want, rtol=0.03, atol=0.02 * float(jnp.abs(want).max()))
    if [site.weight is None for site in jc.graph.sites(fn, params, x)] == [
        False
    ]:  # nothing is rounded in between: the products are exact, in float32
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), (params, x))
        np.testing.assert_allclose(found, fn(*rounded), rtol=1e-4, atol=1e-4)


def test_what_is_no_factor_stays_float32():
    params = {"w": normal(6, 5), "b": normal(5, seed=1), "scaled": normal(5, 2, seed=2), "scale": normal(2, seed=3)}

    params["both"] = normal(6, 6, seed=4)

    def fn(p, x):
        x = x @ p["both"] @ (0.1 * p["both"])
        return jnp.tanh(x @ p["w"] + p["b"][None]) @ (p["scaled"] * p["scale"][None])

    _, held = d.in_bfloat16(fn, params, normal(4, 6))
    assert [name for name, leaf in held.items() if leaf.dtype == jnp.bfloat16] == ["w"]


def test_layers_of_a_scan_in_bfloat16():
    params = {"w": normal(3, 6, 6) / 3}
    fn = lambda p, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]  # noqa: E731
    teacher, held = d.in_bfloat16(fn, params, normal(4, 6))
    assert held["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(jax.jit(teacher)(held, normal(4, 6)), fn(params, normal(4, 6)), atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [None, jnp.array([1.0, 2.0, 5.0]), jnp.abs(normal(3, 4, seed=1))])
def test_an_ensemble_has_the_mean_of_the_probabilities(weights, temperature):
    found = jax.nn.softmax(d.ensemble(LOGITS, weights, temperature=temperature) / temperature)
    shares = np.ones(3) if weights is None else np.asarray(weights, np.float64)
    for n in range(4):
        own = shares if shares.ndim == 1 else shares[:, n]
        probabilities = [np.exp(log_softmax(np.asarray(LOGITS[k, n]) / temperature)) for k in range(3)]
        want = sum(w * p for w, p in zip(own, probabilities, strict=True)) / own.sum()
        np.testing.assert_allclose(found[n], want, rtol=1e-4)


@pytest.mark.slow
def test_an_ensemble_survives_a_weight_of_zero():
    found = d.ensemble(LOGITS, jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(jax.nn.softmax(found), jax.nn.softmax(LOGITS[0]), rtol=1e-5)


@pytest.mark.slow
def test_confidences():
    sure, of_label = d.confidences(LOGITS), d.confidences(LOGITS, LABELS)
    for n in range(4):
        logs = [log_softmax(LOGITS[k, n]) for k in range(3)]
        entropies = np.array([-np.sum(np.exp(log) * log) for log in logs])
        np.testing.assert_allclose(sure[:, n], np.exp(-entropies) / np.exp(-entropies).sum(), rtol=1e-5)
        losses = np.exp([-log[LABELS[n]] for log in logs])
        np.testing.assert_allclose(of_label[:, n], (1 - losses / losses.sum()) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_peers_teach_each_other():
    found = d.mutual(LOGITS, temperature=2.0)
    for k in range(3):
        for n in range(4):
            rows = [log_softmax(np.asarray(LOGITS[j, n]) / 2) for j in range(3)]
            want = np.mean([4 * kl(rows[j], rows[k]) for j in range(3) if j != k])
            np.testing.assert_allclose(found[k, n], want, rtol=1e-4)
    slopes = jax.grad(lambda z: d.mutual(z)[0].sum())(LOGITS)
    assert jnp.any(slopes[0]) and not jnp.any(slopes[1:])  # peers teach the first and get nothing for it


@pytest.mark.parametrize("call", [d.mutual, d.confidences])
def test_one_peer_is_too_few(call):
    with pytest.raises(ValueError, match="of 2 teachers or more"):
        call(LOGITS[:1])


def test_ensembles_that_are_refused():
    with pytest.raises(ValueError, match="of 1 teachers or more"):
        d.ensemble(LOGITS[:0])
    with pytest.raises(ValueError, match=r"weights are \(3,\) or \(3, 4\)"):
        d.ensemble(LOGITS, jnp.ones(4))
    with pytest.raises(ValueError, match="labels are integers"):
        d.confidences(LOGITS, jnp.ones(4))


def test_generations_are_trained_one_after_the_other():
    seen = []

    def train(seed, teacher):
        seen.append((seed, teacher))
        return seed * 10

    assert list(d.generations(train, [1, 2], 0)) == [10, 20]
    assert seen == [(1, 0), (2, 10)]


def counting(tokens):
    """Predict the successor of every token, modulo 7."""
    return 50 * jax.nn.one_hot((tokens + 1) % 7, 7)


def test_a_student_writes_on():
    tokens = jnp.array([[3, 0, 0, 0, 0], [5, 2, 0, 0, 0]])
    write = jax.jit(partial(d.sample, counting))
    np.testing.assert_array_equal(
        write(tokens, jnp.array([1, 2]), jax.random.key(0)), [[3, 4, 5, 6, 0], [5, 2, 3, 4, 5]]
    )
    np.testing.assert_array_equal(d.sample(counting, tokens, 5, jax.random.key(0)), tokens)


def test_what_is_written_follows_the_probabilities():
    logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    fn = lambda tokens: jnp.broadcast_to(logits, (*tokens.shape, 3))  # noqa: E731
    tokens = d.sample(fn, jnp.zeros((4000, 3), jnp.int32), 1, jax.random.key(1))
    shares = np.bincount(np.asarray(tokens[:, 1:]).ravel(), minlength=3) / 8000
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.02)
    assert np.mean(np.asarray(tokens[:, 1]) == np.asarray(tokens[:, 2])) < 0.6  # drawn anew at every position


@pytest.mark.slow
def test_a_share_of_the_steps_is_on_policy():
    batch = {"tokens": jnp.zeros(3)}
    step = jax.jit(lambda key, share: d.on_policy(key, share, batch, lambda b: jax.tree.map(lambda x: x + 1, b)))
    keys = jax.random.split(jax.random.key(0), 200)
    for share in (0.0, 0.3, 1.0):
        taken = np.mean([float(step(key, share)["tokens"][0]) for key in keys])
        assert abs(taken - share) < 0.1 * (0 < share < 1) + 1e-6


def test_sequences_that_are_refused():
    tokens, key = jnp.zeros((2, 3), jnp.int32), jax.random.key(0)
    for wrong in (tokens[0], tokens.astype(jnp.float32)):
        with pytest.raises(ValueError, match="tokens are integers"):
            d.sample(counting, wrong, 1, key)
    for start in (0, 4):
        with pytest.raises(ValueError, match="`start` is from 1 to 3"):
            d.sample(counting, tokens, start, key)
    with pytest.raises(ValueError, match="`temperature` is positive"):
        d.sample(counting, tokens, 1, key, temperature=0)
    with pytest.raises(ValueError, match=r"`share` is in \[0, 1\]"):
        d.on_policy(key, 1.5, tokens, lambda t: t)


TEACHER = {f"block_{i}": {"w": normal(4, 4, seed=i), "b": normal(4, seed=9 + i)} for i in range(4)} | {
    "head": normal(4)
}
STUDENT = {f"block_{i}": {"w": jnp.zeros((4, 4)), "b": jnp.zeros(4)} for i in range(2)} | {"head": jnp.zeros(4)}


def test_a_student_inherits_layers():
    found = d.inherit(STUDENT, TEACHER, {"block_1": "block_3", "block_0/w": "block_1/w"})
    np.testing.assert_array_equal(found["block_1"]["b"], TEACHER["block_3"]["b"])
    np.testing.assert_array_equal(found["block_0"]["w"], TEACHER["block_1"]["w"])
    assert not jnp.any(found["block_0"]["b"]) and not jnp.any(found["head"])
    whole = d.inherit(jax.tree.map(lambda x: jnp.zeros_like(x, jnp.bfloat16), TEACHER), TEACHER)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(whole)} == {"bfloat16"}


def test_a_student_inherits_channels():
    """Half of the hidden units, chosen by size, everywhere where they occur: the start is better than a random one."""
    mlp = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]  # noqa: E731
    sizes = jnp.where(jnp.arange(8) % 2, 1.0, 0.01)
    teacher = {"up": normal(4, 8) * sizes[None], "down": normal(8, 3, seed=1) * sizes[:, None]}
    small = jc.shrinking.shrink(mlp, teacher, normal(16, 4), ratio=0.5)
    student = d.inherit({"up": jnp.zeros((4, 4)), "down": jnp.zeros((4, 3))}, small.params)
    want = mlp(teacher, normal(16, 4, seed=2))
    gap = jnp.abs(mlp(student, normal(16, 4, seed=2)) - want).mean()
    assert gap < 0.05 * jnp.abs(want).mean()


def test_inheritances_that_are_refused():
    with pytest.raises(ValueError, match="'block_7' is no path of the teacher; it has"):
        d.inherit(STUDENT, TEACHER, {"block_1": "block_7"})
    with pytest.raises(ValueError, match="'block_7' is no path of the student"):
        d.inherit(STUDENT, TEACHER, {"block_7": "block_1"})
    with pytest.raises(ValueError, match="have the same leaves; only one has"):
        d.inherit(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"'head' is \(4,\); 'block_1/w' gives \(4, 4\)"):
        d.inherit(STUDENT, TEACHER, {"head": "block_1/w"})
    with pytest.raises(ValueError, match=r"'head' has 4 layers; got \[4\]"):
        d.inherit({"head": jnp.zeros(1)}, TEACHER, {"head": ("head", [4])})


def test_frozen_layers_move_later():
    params = {"body": {"w": jnp.ones(2)}, "head": jnp.ones(2)}
    updates: Any
    tx = optax.chain(optax.sgd(0.5), optax.add_decayed_weights(0.1), jc.optimizers.freeze("body", until=2))
    state = tx.init(params)
    for step in range(4):
        updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
        assert bool(jnp.any(updates["body"]["w"])) == (step >= 2) and jnp.all(updates["head"])
    still = jc.optimizers.freeze(lambda path, leaf: path == "head")
    updates, _ = still.update(jax.tree.map(lambda x: x * jnp.nan, params), still.init(params))
    assert not jnp.any(updates["head"])
    with pytest.raises(ValueError, match="matches no leaf"):
        jc.optimizers.freeze("tail").init(params)
