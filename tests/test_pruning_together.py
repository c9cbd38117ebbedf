"""Pruning with the rest: zeros survive quantization, many sparsities in one program, checkpoints of every method."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax import checkpoint

import jaxopt_compress as jc
from jaxopt_compress import pruning
from jaxopt_compress.pruning import magnitude, prune
from jaxopt_compress.quantization import fake_quantize

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
PARAMS: dict[str, Any] = {
    "in": {"kernel": jnp.asarray(RNG.normal(size=(16, 12)).astype(np.float32)), "bias": jnp.zeros(12)},
    "out": {"kernel": jnp.asarray(RNG.normal(size=(12, 8)).astype(np.float32))},
}
METHODS = {
    "blocks": lambda: prune(magnitude, 0.5, pattern=pruning.blocks(4, 4)),
    "channels": lambda: prune(magnitude, 0.5, pattern=pruning.channels()),
    "n_of_m": lambda: prune(magnitude, pattern=pruning.n_of_m(2, 4)),
    "erk": lambda: prune(magnitude, 0.9, allocation=pruning.erk),
    "rigl": lambda: jc.periodic(pruning.rigl(KEY, 0.8, 0.5), 2),
    "set": lambda: jc.periodic(pruning.set_(KEY, 0.8, 0.5), 2),
    "movement": lambda: pruning.movement_pruning(optax.linear_schedule(0.0, 0.8, 6), every=2),
    "accumulate": lambda: pruning.accumulate(pruning.taylor, 0.5, decay=0.9, every=2),
    "top_kast": lambda: jc.periodic(pruning.top_kast(0.8, 0.5), 2),
}
BY_METHOD = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def user_promotion():
    """Run with JAX's own settings, as a user would."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def training(t: jc.ParamTransform):
    """Return an attached optimizer, a jitted step, and a first state."""
    tx = jc.attach(optax.adam(0.05), t)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32))

    def loss(params, state):
        seen = tx.apply(params, state)
        out = jax.nn.relu(x @ seen["in"]["kernel"] + seen["in"]["bias"]) @ seen["out"]["kernel"]
        return jnp.mean((out - x[:, :8]) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params, state), state, params)
        return optax.apply_updates(params, updates), state

    params = t.apply(PARAMS, t.init(PARAMS))
    return tx, step, (params, tx.init(params))


@pytest.mark.sampled(6)
@pytest.mark.slow
@BY_METHOD
def test_zeros_survive_quantization_exactly(name):
    t = jc.select("**/kernel", jc.chain(METHODS[name](), fake_quantize(4)))
    tx, step, state = training(t)
    for _ in range(3):
        state = step(*state)
    params, opt_state = state
    inner = jc.optimizers.compress_state(opt_state)
    decoded = jc.tree.leaves(jc.decode(tx.encode(params, opt_state)))
    seen = jc.tree.leaves(t.apply(params, inner))
    pruned = jc.tree.leaves(METHODS[name]().apply(kernels(params), first_of(inner)))
    for path, w in pruned.items():
        np.testing.assert_array_equal(decoded[path], seen[path])
        assert (np.asarray(w) == 0).any()
        assert not np.asarray(decoded[path])[np.asarray(w) == 0].any()


def kernels(params):
    return jc.tree.Selection((path, w) for path, w in jc.tree.leaves(params).items() if path.endswith("kernel"))


def first_of(chained):
    return chained[0]


@pytest.mark.slow
def test_several_sparsities_in_one_program():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32))

    def train(sparsity):
        t = prune(magnitude, lambda step: sparsity * jnp.minimum(step / 4, 1.0), scope="global")
        tx = jc.attach(optax.sgd(0.1), jc.select("**/kernel", jc.periodic(t, 2)))

        def step(carry, _):
            params, state = carry

            def loss(params):
                seen = tx.apply(params, state)
                return jnp.mean((jax.nn.relu(x @ seen["in"]["kernel"]) @ seen["out"]["kernel"] - x[:, :8]) ** 2)

            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), loss(params)

        (params, _), losses = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=7)
        return params, losses

    sparsities = jnp.array([0.0, 0.5, 0.9, 1.0])
    together = jax.jit(jax.vmap(train))(sparsities)
    one = jax.jit(train)
    for i, sparsity in enumerate(sparsities):
        alone = one(sparsity)
        total = sum(int(np.sum(np.asarray(alone[0][name]["kernel"]) == 0)) for name in PARAMS)
        assert total == round(float(sparsity) * (16 * 12 + 12 * 8))
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=1e-5, atol=1e-6)  # a batched product sums in another order
        for name in PARAMS:
            np.testing.assert_array_equal(alone[0][name]["kernel"] == 0, together[0][name]["kernel"][i] == 0)


@pytest.mark.sampled(6)
@pytest.mark.slow
@BY_METHOD
def test_a_run_resumed_from_orbax_is_the_run_that_was_not_interrupted(name, tmp_path):
    _, step, state = training(jc.select("**/kernel", METHODS[name]()))
    for _ in range(3):
        state = step(*state)
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
    for _ in range(4):
        state = step(*state)
    _, step, fresh = training(jc.select("**/kernel", METHODS[name]()))
    with checkpoint.StandardCheckpointer() as loader:
        resumed = loader.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, fresh))
    for _ in range(4):
        resumed = step(*resumed)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.sampled(3)
@pytest.mark.slow
@BY_METHOD
def test_narrow_floats(name, dtype=jnp.float16):
    """Exact zeros, no NaN, and a product of small numbers that does not vanish in the ranking."""
    t = jc.select("**/kernel", METHODS[name]())
    params = jax.tree.map(lambda w: (w * 1e-3).astype(dtype), PARAMS)
    state, grads = t.init(params), jax.tree.map(lambda w: w * 1e-2, params)
    update = jax.jit(lambda state, number: t.update(params, state, step=number, grads=grads))
    for number in range(3):
        state = update(state, number)
    seen = t.apply(params, state)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(seen), strict=True):
        assert after.dtype == dtype
        kept = np.asarray(after != 0)
        np.testing.assert_array_equal(np.asarray(after)[kept], np.asarray(before)[kept])
