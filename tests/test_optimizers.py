"""Optimizers against naive NumPy loops, Optax's aliases, and what Keras and PyTorch did."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_compress.optimizers import first_order
from jaxopt_compress.optimizers.alternate import alternate as typed_alternate

fo: Any = first_order  # Optax types updates and states as unions of all trees, which say nothing here
alternate: Any = typed_alternate

ROOT = Path(__file__).parents[1]
GOLDEN = json.loads((ROOT / "tests/golden/optimizers.json").read_text())
FALLING = np.array(GOLDEN["learning_rates"])
START = {name: np.array(value) for name, value in GOLDEN["start"].items()}
GRADS = [{name: np.array(value) for name, value in grad.items()} for grad in GOLDEN["grads"]]


def falling(step):
    """The falling learning rate, as a schedule."""
    return jnp.asarray(FALLING)[step]


def run(tx, dtype="float64", promotion="standard"):
    """Return the parameters after each step on the golden gradients; Optax's Adam needs standard promotion."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion(promotion):
        params, *grads = (jax.tree.map(lambda x: jnp.asarray(x, dtype), leaves) for leaves in (START, *GRADS))
        state, path = tx.init(params), []
        for grad in grads:
            updates, state = tx.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            path.append(params)
        return jax.tree.map(lambda *steps: np.stack(steps), *path)


# Naive loops over one leaf: (p, gradients, learning rates) -> the parameters after each step.


def naive_velocity(p, grads, rates, decay=0.0, nesterov=False, lr_in_velocity=False):
    v = np.zeros_like(p)
    for g, lr in zip(grads, rates):
        if lr_in_velocity:
            v = decay * v - lr * g
            p = p + (decay * v - lr * g if nesterov else v)
        else:
            v = decay * v + g
            p = p - lr * (g + decay * v if nesterov else v)
        yield p


def naive_adam(p, grads, rates, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, eps_hat=False, weight_decay=0.0):
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (g, lr) in enumerate(zip(grads, rates), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        if eps_hat:
            u = np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v + eps_root) + eps)
        else:
            u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)
        p = p - lr * (u + weight_decay * p)
        yield p


def naive_rmsprop(
    p, grads, rates, decay=0.9, eps=1e-8, eps_in_sqrt=True, centered=False, momentum=0.0, lr_in_velocity=True
):
    m, v, velocity = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for g, lr in zip(grads, rates):
        v = decay * v + (1 - decay) * g**2
        m = decay * m + (1 - decay) * g if centered else m
        u = g / np.sqrt(v - m**2 + eps) if eps_in_sqrt else g / (np.sqrt(v - m**2) + eps)
        velocity = momentum * velocity + (lr * u if lr_in_velocity else u)
        p = p - (velocity if lr_in_velocity else lr * velocity)
        yield p


def naive_adagrad(p, grads, rates, start=0.1, eps=1e-7, eps_in_sqrt=True):
    s = np.full_like(p, start)
    for g, lr in zip(grads, rates):
        s = s + g**2
        p = p - lr * (g / np.sqrt(s + eps) if eps_in_sqrt else g / (np.sqrt(s) + eps))
        yield p


TORCH_RMSPROP = {"decay": 0.99, "eps_in_sqrt": False}
NAIVE = {
    "sgd": (fo.sgd, naive_velocity, {}, {}),
    "momentum": (fo.momentum, naive_velocity, {}, {"decay": 0.9}),
    "momentum keras": (fo.momentum, naive_velocity, {"lr_in_velocity": True}, {"decay": 0.9}),
    "nesterov": (fo.nesterov, naive_velocity, {}, {"decay": 0.9, "nesterov": True}),
    "nesterov keras": (fo.nesterov, naive_velocity, {"lr_in_velocity": True}, {"decay": 0.9, "nesterov": True}),
    "adam": (fo.adam, naive_adam, {}, {}),
    "adam eps_root": (fo.adam, naive_adam, {"b1": 0.8, "b2": 0.9, "eps_root": 1e-6}, {}),
    "adam keras": (fo.adam, naive_adam, {"eps": 1e-7, "eps_hat": True}, {}),
    "adam keras eps_root": (fo.adam, naive_adam, {"b1": 0.8, "b2": 0.9, "eps_hat": True, "eps_root": 1e-6}, {}),
    "adamw": (fo.adamw, naive_adam, {}, {"weight_decay": 1e-4}),
    "adamw torch": (fo.adamw, naive_adam, {"weight_decay": 1e-2}, {}),
    "adamw keras": (fo.adamw, naive_adam, {"eps": 1e-7, "eps_hat": True, "weight_decay": 4e-3}, {}),
    "rmsprop": (fo.rmsprop, naive_rmsprop, {}, {}),
    "rmsprop torch": (fo.rmsprop, naive_rmsprop, TORCH_RMSPROP, {}),
    "rmsprop keras": (fo.rmsprop, naive_rmsprop, {"eps": 1e-7}, {}),
    "rmsprop momentum": (fo.rmsprop, naive_rmsprop, {"momentum": 0.9}, {}),
    "rmsprop momentum torch": (
        fo.rmsprop,
        naive_rmsprop,
        {**TORCH_RMSPROP, "momentum": 0.9, "lr_in_velocity": False},
        {},
    ),
    "rmsprop centered": (fo.rmsprop, naive_rmsprop, {"centered": True}, {}),
    "rmsprop centered torch": (fo.rmsprop, naive_rmsprop, {**TORCH_RMSPROP, "centered": True}, {}),
    "adagrad": (fo.adagrad, naive_adagrad, {}, {}),
    "adagrad torch": (
        lambda lr, start, **kw: fo.adagrad(lr, start, **kw),
        naive_adagrad,
        {"start": 0.0, "eps": 1e-10, "eps_in_sqrt": False},
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("learning_rate", "dtype"), [(0.1, "float64"), (falling, "float32")])
@pytest.mark.parametrize("case", NAIVE)
def test_follows_a_naive_loop(case, learning_rate, dtype):
    build, naive, args, only_naive = NAIVE[case]
    rates = FALLING if learning_rate is falling else np.full_like(FALLING, learning_rate)
    path = run(build(falling if learning_rate is falling else learning_rate, **args), dtype)
    for name, p in START.items():
        expected = np.stack(list(naive(p, [grad[name] for grad in GRADS], rates, **args, **only_naive)))
        # In float32 the bias corrections 1 - b2^t of the first steps keep only three to four digits.
        np.testing.assert_allclose(path[name], expected, rtol=0, atol=1e-13 if dtype == "float64" else 2e-5)


def with_torch_decay(tx):
    """PyTorch's `weight_decay` is added to the gradient."""
    return optax.chain(optax.add_decayed_weights(0.05), tx)


def with_keras_decay(tx):
    """Keras's `weight_decay` shrinks the weights by `lr * weight_decay`, beside any optimizer."""
    return optax.chain(tx, optax.add_decayed_weights(lambda step: -0.05 * falling(step)))


TORCH_RMS = {"decay": 0.99, "eps_in_sqrt": False, "lr_in_velocity": False}
PEERS = {
    "torch": {
        "sgd": fo.sgd(falling),
        "sgd_weight_decay": with_torch_decay(fo.momentum(falling)),
        "momentum": fo.momentum(falling),
        "nesterov": fo.nesterov(falling),
        "adam": fo.adam(falling),
        "adam_weight_decay": with_torch_decay(fo.adam(falling)),
        "adamw": fo.adamw(falling, weight_decay=1e-2),
        "rmsprop": fo.rmsprop(falling, **TORCH_RMS),
        "rmsprop_momentum": fo.rmsprop(falling, **TORCH_RMS, momentum=0.9),
        "rmsprop_centered": fo.rmsprop(falling, **TORCH_RMS, momentum=0.9, centered=True),
        "adagrad": fo.adagrad(falling, 0.0, 1e-10, eps_in_sqrt=False),
        "adagrad_lr_decay": fo.adagrad(lambda t: falling(t) / (1 + t * 0.3), 0.0, 1e-10, eps_in_sqrt=False),
    },
    "keras": {
        "sgd": fo.sgd(falling),
        "sgd_weight_decay": with_keras_decay(fo.momentum(falling, lr_in_velocity=True)),
        "momentum": fo.momentum(falling, lr_in_velocity=True),
        "nesterov": fo.nesterov(falling, lr_in_velocity=True),
        "adam": fo.adam(falling, eps=1e-7, eps_hat=True),
        "adam_weight_decay": fo.adamw(falling, eps=1e-7, eps_hat=True, weight_decay=0.05),
        "adamw": fo.adamw(falling, eps=1e-7, eps_hat=True, weight_decay=4e-3),
        "rmsprop": fo.rmsprop(falling, eps=1e-7),
        "rmsprop_momentum": fo.rmsprop(falling, eps=1e-7, momentum=0.9),
        "rmsprop_centered": fo.rmsprop(falling, eps=1e-7, momentum=0.9, centered=True),
        "adagrad": fo.adagrad(falling),
    },
}


def test_every_golden_trajectory_has_its_arguments():
    assert {peer: set(GOLDEN[peer]) for peer in PEERS} == {peer: set(cases) for peer, cases in PEERS.items()}


@pytest.mark.parametrize(("peer", "case"), [(peer, case) for peer, cases in PEERS.items() for case in cases])
def test_goes_where_the_peer_went(peer, case):
    path = run(PEERS[peer][case])
    for step, golden in zip(GOLDEN["kept_steps"], GOLDEN[peer][case], strict=True):
        for name, expected in golden.items():
            np.testing.assert_allclose(path[name][step - 1], expected, rtol=0, atol=1e-12)


ALIASES = {
    "sgd": (fo.sgd(0.1), optax.sgd(0.1)),
    "momentum": (fo.momentum(0.1, 0.8), optax.sgd(0.1, 0.8)),
    "nesterov": (fo.nesterov(0.1, 0.8), optax.sgd(0.1, 0.8, nesterov=True)),
    "adam": (fo.adam(0.1), optax.adam(0.1)),
    "adam args": (
        fo.adam(falling, 0.8, 0.99, 1e-6, 1e-9, mu_dtype="bfloat16"),
        optax.adam(falling, 0.8, 0.99, 1e-6, 1e-9, mu_dtype="bfloat16"),
    ),
    "adamw": (fo.adamw(0.1), optax.adamw(0.1)),
    "adamw args": (
        fo.adamw(0.1, weight_decay=falling, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.adamw(0.1, weight_decay=falling, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    ),
    "rmsprop": (fo.rmsprop(0.1), optax.rmsprop(0.1)),
    "rmsprop args": (
        fo.rmsprop(
            falling, 0.8, eps_in_sqrt=False, momentum=0.9, nesterov=True, initial_scale=1.0, bias_correction=True
        ),
        optax.rmsprop(falling, 0.8, 1e-8, 1.0, eps_in_sqrt=False, momentum=0.9, nesterov=True, bias_correction=True),
    ),
    "rmsprop centered": (fo.rmsprop(0.1, centered=True), optax.rmsprop(0.1, centered=True)),
    "adagrad": (fo.adagrad(0.1), optax.adagrad(0.1)),
    "adagrad args": (fo.adagrad(falling, 0.0, 1e-3), optax.adagrad(falling, 0.0, 1e-3)),
}


@pytest.mark.parametrize("case", ALIASES)
def test_equals_the_optax_alias_bit_for_bit(case):
    ours, alias = (run(tx, "float32") for tx in ALIASES[case])
    jax.tree.map(np.testing.assert_array_equal, ours, alias)


EPSILONS = {
    "adam": (fo.adam(1.0, eps=1e-7), fo.adam(1.0, eps=1e-7, eps_hat=True)),
    "rmsprop": (fo.rmsprop(1.0, eps_in_sqrt=False), fo.rmsprop(1.0)),
    "adagrad": (fo.adagrad(1.0, 0.0, eps_in_sqrt=False), fo.adagrad(1.0, 0.0)),
}


@pytest.mark.parametrize("case", EPSILONS)
def test_epsilon_conventions_part_on_tiny_gradients_only(case):
    grad = jnp.array([1.0, 1e-8])
    with jax.numpy_dtype_promotion("standard"):
        (a, _), (b, _) = (tx.update(grad, tx.init(grad)) for tx in EPSILONS[case])
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5)
    assert a[1] / b[1] > 20


@pytest.mark.parametrize("build", [fo.momentum, fo.nesterov])
def test_where_the_velocity_has_the_learning_rate_matters_only_when_it_changes(build):
    outside, inside = (run(build(0.1, lr_in_velocity=flag)) for flag in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-14), outside, inside)
    outside, inside = (run(build(falling, lr_in_velocity=flag)) for flag in (False, True))
    assert abs(outside["vector"] - inside["vector"])[-1, 0] > 0.05


STRICT = {
    "sgd": fo.sgd(falling),
    "momentum": fo.momentum(0.1, lr_in_velocity=True),
    "nesterov": fo.nesterov(falling),
    "adam keras": fo.adam(falling, eps_hat=True, eps_root=1e-9),
    "adamw keras": fo.adamw(0.1, eps_hat=True),
    "rmsprop": fo.rmsprop(0.1, momentum=0.9, centered=True),
    "adagrad torch": fo.adagrad(0.1, eps_in_sqrt=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", STRICT)
def test_keeps_dtypes_under_strict_promotion(case, dtype):
    path = run(STRICT[case], dtype, promotion="strict")
    assert all(leaf.dtype == dtype and np.isfinite(leaf.astype("float32")).all() for leaf in path.values())


def test_first_moment_can_have_its_own_dtype():
    tx = fo.adam(0.1, eps_hat=True, mu_dtype="bfloat16")
    with jax.numpy_dtype_promotion("standard"):
        _, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
    assert (state[0].mu.dtype, state[0].nu.dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize("tx", [fo.adam(0.1, eps_hat=True), fo.adagrad(0.1, eps_in_sqrt=False)])
def test_own_scalings_are_found_by_tree_map_params(tx):
    params = {"w": jnp.ones(3), "none": None}
    state = tx.init(params)
    marked = optax.tree_map_params(tx, lambda _: "p", state, transform_non_params=lambda _: "n")
    moments = len(jax.tree.leaves(state)) - ("count" in str(state))
    assert jax.tree.leaves(marked).count("p") == moments > 0
    assert tx.update(params, state, params)[0]["none"] is None
