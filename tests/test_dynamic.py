"""Dynamic sparse training against a naive NumPy reference, with exact counts, under any optimizer and on a mesh."""

import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_compress as jc
from jaxopt_compress import pruning
from jaxopt_compress.pruning import rigl, set_, static
from jaxopt_compress.pruning.search import drawing

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def user_promotion():
    """Run with JAX's own settings, as a user would."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


PARAMS: dict[str, Any] = {
    "a": {"kernel": jnp.asarray(normal(20, 12)), "bias": jnp.ones(12)},
    "b": {"kernel": jnp.asarray(normal(12, 5)), "bias": None},
}
TOTAL = 20 * 12 + 12 * 5
KERNELS = "**/kernel"


def masks_of(t, params, state) -> dict[str, np.ndarray]:
    return {path: ~np.asarray(gone) for path, gone in t.removed(params, state).items()}


def best(scores: np.ndarray, among: np.ndarray, number: int) -> np.ndarray:
    order = [i for i in np.argsort(-scores.ravel(), kind="stable") if among.ravel()[i]][:number]
    mask = np.zeros(scores.size, bool)
    mask[order] = True
    return mask.reshape(scores.shape)


def naive_rigl(w, g, mask, fraction) -> np.ndarray:
    """Drop by magnitude among what is there, then grow by gradient among all that is then absent."""
    number = mask.sum()
    moving = round(fraction * number)
    stay = best(np.abs(w), mask, number - moving)
    return stay | best(np.abs(g), ~stay, moving)


@pytest.mark.sampled(3)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sparsity", "fraction"), [(0.0, 0.3), (0.5, 0.3), (0.5, 1.0), (0.9, 0.0), (0.9, 0.3), (0.9, 1.0), (1.0, 0.3)]
)
def test_rigl_is_the_naive_one(sparsity, fraction):
    t = jc.select(KERNELS, rigl(KEY, sparsity, fraction))
    state = t.init(PARAMS)
    grads = jax.tree.map(lambda x: jnp.asarray(np.round(2 * normal(*x.shape))), PARAMS)  # with ties
    before = masks_of(t, PARAMS, state)
    params = t.apply(PARAMS, state)
    after = masks_of(t, params, jax.jit(lambda p, s: t.update(p, s, step=0, grads=grads))(params, state))
    assert sum(mask.sum() for mask in before.values()) == TOTAL - round(sparsity * TOTAL)
    for path, mask in before.items():
        w, g = (np.asarray(jc.tree.leaves(x)[path]) for x in (params, grads))
        np.testing.assert_array_equal(after[path], naive_rigl(w, g, mask, fraction))


@pytest.mark.slow
def test_set_drops_the_smallest_and_grows_anywhere():
    t = jc.select(KERNELS, set_(KEY, 0.8, 0.5))
    params = t.apply(PARAMS, t.init(PARAMS))
    state = t.init(PARAMS)
    before = masks_of(t, params, state)
    grown = []
    for step in range(4):
        after = masks_of(t, params, t.update(params, state, step=step))
        for path, mask in before.items():
            w = np.abs(np.asarray(jc.tree.leaves(params)[path]))
            stay = best(w, mask, mask.sum() - round(0.5 * mask.sum()))
            assert np.all(after[path][stay])
            assert after[path].sum() == mask.sum()
        grown.append(after["a/kernel"].tobytes())
    assert len(set(grown)) == 4  # other weights in every update


@pytest.mark.slow
def test_exact_counts_and_one_compilation_over_a_schedule():
    sparsity, fraction = optax.linear_schedule(0.5, 0.9, 6), optax.cosine_decay_schedule(0.3, 8)
    t = jc.select(KERNELS, rigl(KEY, sparsity, fraction))
    update = jax.jit(lambda p, s, step: t.update(p, s, step=step, grads=p))
    state, params = t.init(PARAMS), jax.tree.map(lambda x: jnp.asarray(normal(*x.shape)), PARAMS)
    for step in [*range(9), 2]:  # and back to less sparsity
        state = update(params, state, jnp.asarray(step))
        number = sum(mask.sum() for mask in masks_of(t, params, state).values())
        assert number == TOTAL - round(float(np.float32(sparsity(step))) * TOTAL)
    assert update._cache_size() == 1


@pytest.mark.slow
def test_static_masks_stay():
    t = jc.select(KERNELS, static(KEY, 0.75))
    state = t.init(PARAMS)
    assert t.update(PARAMS, state, step=5, grads=PARAMS) is state
    assert sum(mask.sum() for mask in masks_of(t, PARAMS, state).values()) == TOTAL // 4


@pytest.mark.slow
@pytest.mark.parametrize("method", [rigl, set_, static])
def test_keys_make_masks_and_the_same_key_the_same(method):
    drawn = [masks_of(t := method(key, 0.5), PARAMS, t.init(PARAMS)) for key in (KEY, KEY, jax.random.key(8))]
    np.testing.assert_equal(drawn[0], drawn[1])
    assert any((drawn[0][path] != drawn[2][path]).any() for path in drawn[0])
    assert (drawn[0]["a/kernel"].ravel()[:60] != drawn[0]["b/kernel"].ravel()).any()


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_any_kind_of_key_and_a_donated_state(impl):
    key = jax.random.key(0, impl=impl)
    t = set_(key, 0.5)
    step = jax.jit(lambda p, s: t.update(p, s, step=1), donate_argnums=1)
    state = t.init(PARAMS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some donated buffers were not usable
        jax.block_until_ready(step(PARAMS, state))
    t.init(PARAMS)  # the key is still there


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "rmsprop": optax.rmsprop(0.01, momentum=0.9),
    "adagrad": optax.adagrad(0.1),
    "lion": optax.lion(0.01),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
}


def train(tx: Any, params: Any, steps: int) -> list[tuple[Any, Any]]:
    """Train a regression with biases; return the history of parameters and masks."""
    x, y = jnp.asarray(normal(64, 20)), jnp.asarray(normal(64, 5))

    def loss(p, state):
        p = tx.apply(p, state)
        hidden = jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"][None])
        return jnp.mean((hidden @ p["b"]["kernel"] - y) ** 2)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params, state)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, history = tx.init(params), []
    for _ in range(steps):
        history.append((params, state))
        params, state = jax.block_until_ready(step(params, state))
    assert step._cache_size() == 1
    return [*history, (params, state)]


@pytest.mark.sampled(8)
@SLOW
@pytest.mark.parametrize(
    ("method", "name"),
    [(method, name) for method in ("rigl", "movement") for name in OPTIMIZERS]
    + [(method, name) for method in ("set", "top_kast") for name in ("momentum", "adamw")],
)
def test_under_any_optimizer(method, name):
    def schedule(step):
        return jnp.where(jnp.asarray(step) < 3, 0.4, 0.8)

    t = {
        "rigl": rigl(KEY, 0.7, 0.4),
        "set": set_(KEY, 0.7, 0.4),
        "movement": pruning.movement_pruning(schedule, every=1),
        "top_kast": pruning.top_kast(0.8, 0.5),
    }[method]
    every = 1 if method == "movement" else 3
    t = jc.select(KERNELS, jc.periodic(t, every))
    params = t.apply(PARAMS, t.init(PARAMS)) if method in ("rigl", "set") else PARAMS
    history = train(jc.attach(OPTIMIZERS[name], t), params, 7)
    moved = 0
    for (before, old), (after, new) in zip(history[:-1], history[1:], strict=True):
        was, now = (jc.optimizers.compress_state(s) for s in (old, new))
        idle_then, idle = (t.removed(before, s) | t.frozen(before, s) for s in (was, now))
        for path, mask in idle.items():
            w, last = jc.tree.leaves(after)[path], jc.tree.leaves(before)[path]
            assert np.isfinite(w).all()
            if method in ("rigl", "set"):
                np.testing.assert_array_equal(np.asarray(w)[mask], 0)
                grown = np.asarray(idle_then[path] & ~mask)
                np.testing.assert_array_equal(np.asarray(w)[grown], 0)  # what is new starts at zero
                moved += grown.sum()
            else:
                np.testing.assert_array_equal(np.asarray(w)[mask], np.asarray(last)[mask])  # frozen as it was
                moved += int(np.sum(mask))
    assert moved > 0
    assert (np.asarray(history[-1][0]["a"]["bias"]) != 1).any()  # unpruned leaves learn


@pytest.mark.slow
def test_moments_of_weights_that_return_are_fresh():
    t = jc.select(KERNELS, jc.periodic(set_(KEY, 0.7, 0.5), 3))
    params = t.apply(PARAMS, t.init(PARAMS))
    history = train(jc.attach(optax.adam(0.01), t), params, 8)
    for before, (_, state) in zip(history[:-1], history[1:], strict=True):
        absent = t.removed(before[0], jc.optimizers.compress_state(before[1]))
        for path, mask in absent.items():
            for moment in (state.inner[0].mu, state.inner[0].nu):
                assert not np.asarray(jc.tree.leaves(moment)[path])[np.asarray(mask)].any()
    assert np.asarray(jc.tree.leaves(history[-1][1].inner[0].nu)["a/kernel"]).any()


@pytest.mark.slow
def test_rigl_sees_the_gradient_of_absent_weights_and_the_optimizer_does_not():
    w = {"w": jnp.asarray(normal(8, 8))}
    t = rigl(KEY, 0.5)
    state = t.init(w)
    slope = jax.grad(lambda p: jnp.sum(jnp.sin(t.apply(p, state)["w"])))(w)["w"]
    seen = t.apply(w, state)["w"]
    np.testing.assert_array_equal(slope, jnp.cos(seen))
    held = t.apply(w, state)
    assert t.apply_held is not None
    np.testing.assert_array_equal(t.apply_held(held, state)["w"], seen)
    tx = jc.attach(optax.sgd(1.0), jc.periodic(t, 100, start=50))
    updates: Any = tx.update({"w": slope}, tx.init(held), held)[0]
    np.testing.assert_array_equal(updates["w"], jnp.where(seen == 0, 0, -slope))


@pytest.mark.slow
def test_nan_gradients_and_weights_change_no_count():
    t = rigl(KEY, 0.5, 0.5)
    w = {"w": jnp.asarray(normal(10, 10))}
    state = t.init(w)
    for value in (jnp.nan, jnp.inf, 0.0):
        bad = {"w": jnp.where(jnp.asarray(RNG.random((10, 10)) < 0.7), value, w["w"])}
        for params, grads in ((w, bad), (bad, w), (bad, bad)):
            after = masks_of(t, params, t.update(params, state, step=0, grads=grads))
            assert after["w"].sum() == 50


@pytest.mark.parametrize("make", [rigl, set_, static])
def test_nothing_to_prune(make):
    for params in ({}, {"n": 3}, {"w": jnp.zeros((0, 4))}, None):
        t = make(KEY, 0.5)
        state = t.update(params, t.init(params), step=0, grads=params)
        assert jax.tree.structure(t.apply(params, state)) == jax.tree.structure(params)


@pytest.mark.slow
def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`regrow`: `sparsity` is a fraction, in \[0, 1\]; got 1.5."):
        rigl(KEY, 1.5)
    with pytest.raises(ValueError, match=r"`regrow`: `fraction` is a fraction, in \[0, 1\]; got -0.3."):
        set_(KEY, 0.5, -0.3)
    t = rigl(KEY, 0.5)
    with pytest.raises(ValueError, match="`gradient`: the criterion needs `grads=`"):
        t.update(PARAMS, t.init(PARAMS), step=0)


@pytest.mark.slow
def test_draws_are_exact_uniform_and_independent_of_what_is_taken():
    taken = jnp.asarray(RNG.random((40, 25)) < 0.3)
    free = 1000 - int(taken.sum())
    draw = jax.jit(drawing.draw)
    for k in (0, 1, free // 2, free):
        (mask,) = draw([taken], k, KEY)
        assert int(mask.sum()) == k
        assert not (np.asarray(mask) & np.asarray(taken)).any()
    drawn = np.stack([draw([taken], 70, jax.random.key(i))[0] for i in range(400)])
    counts = drawn.sum(0)[~np.asarray(taken)]
    share = 70 / free
    spread = np.sqrt(400 * share * (1 - share))
    assert abs(counts - 400 * share).max() < 5 * spread
    assert 0.85 < counts.std() / spread < 1.15
    first, second = (np.asarray(m) for m in draw([jnp.zeros(500, bool), jnp.zeros(500, bool)], 200, KEY))
    assert first.sum() + second.sum() == 200
    assert (first != second).any()


@pytest.mark.slow
def test_a_flax_module_with_biases_left_alone():
    """A peer raised here: masks with `None` in the place of unpruned leaves."""
    params: Any = nn.Dense(4).init(jax.random.key(0), jnp.ones((1, 6)))
    tx = jc.attach(optax.adam(1e-2), jc.select(KERNELS, jc.periodic(rigl(KEY, 0.5), 2)))
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert int((np.asarray(params["params"]["kernel"]) == 0).sum()) >= 12
