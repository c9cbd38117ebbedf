"""`attach` under every Optax optimizer and wrapper: exact zeros, moments that start afresh, nothing else touched."""

import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from orbax import checkpoint

import jaxopt_compress as jc
from jaxopt_compress import tree
from jaxopt_compress.optimizers.attach import AttachState
from jaxopt_compress.pruning import magnitude, prune

attach: Any = jc.attach  # Optax types parameters and states as unions of all trees, which say nothing here
apply_updates: Any = optax.apply_updates

ALIASES = (
    *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad"),
    *("fromage", "lamb", "lars", "lbfgs", "lion", "nadam", "nadamw", "noisy_sgd", "novograd", "optimistic_adam_v2"),
    *("optimistic_gradient_descent", "polyak_sgd", "radam", "rmsprop", "rprop", "sgd", "sign_sgd", "sm3", "yogi"),
)
ADAM: Any = optax.adam(0.1)
MOMENTUM: Any = optax.sgd(0.1, momentum=0.9)
KERNELS = {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
WRAPPERS: dict[str, Any] = {
    "chain": optax.chain(optax.clip_by_global_norm(1.0), ADAM, optax.add_decayed_weights(0.1)),
    "named_chain": optax.named_chain(("adam", ADAM)),
    "multi_steps": optax.MultiSteps(ADAM, every_k_schedule=2),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps", "eps_root"))(0.1),
    "masked": optax.masked(ADAM, KERNELS),
    "masked_prefix": optax.masked(ADAM, {"a": True, "b": False}),
    "partition": optax.partition({"x": ADAM, "y": MOMENTUM}, {"a": {"kernel": "x", "bias": "y"}, "b": {"kernel": "x"}}),
    "partition_prefix": optax.partition({"x": ADAM, "y": MOMENTUM}, {"a": "x", "b": "y"}),
    "frozen": optax.transforms.selective_transform(ADAM, freeze_mask={"a": True, "b": False}),
    "flatten": optax.flatten(ADAM),
    "apply_if_finite": optax.apply_if_finite(ADAM, max_consecutive_errors=3),
    "noise": optax.chain(optax.add_noise(0.0, 0.5, key=0), ADAM),
    "factored": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "schedule_free": optax.contrib.schedule_free(ADAM, 0.1, b1=0.9),
    "muon": optax.contrib.muon(0.1),
    "prodigy": optax.contrib.prodigy(),
    "low_precision_moments": optax.adam(0.1, mu_dtype=jnp.bfloat16),
    "ours": jc.optimizers.adamw(0.1, weight_decay=0.1),
    "eight_bit": jc.optimizers.adam_8bit(0.1, min_size=1),
    "alternate": jc.optimizers.alternate(ADAM, MOMENTUM, every=1),
}


@pytest.fixture(autouse=True)
def user_promotion():
    """Run with JAX's own settings: Optax's optimizers mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def alias(name: str) -> Any:
    """Build an Optax optimizer by its name."""
    build = getattr(optax, name)
    options = {"learning_rate": 0.1, "key": jax.random.key(0), "linesearch": None}
    if name == "lbfgs":
        options["memory_size"] = 3
    known = inspect.signature(build).parameters
    if name == "polyak_sgd":
        options.pop("learning_rate")
    options |= {"eta": 0.01, "gamma": 0.55} if name == "noisy_sgd" else {}
    options |= {"momentum": 0.9} if name == "sgd" else {}
    return build(**{key: value for key, value in options.items() if key in known})


def everyone() -> dict[str, Any]:
    return {name: partial(alias, name) for name in ALIASES} | {
        name: partial(lambda tx: tx, tx) for name, tx in WRAPPERS.items()
    }


FAST = ("adam",)  # in `make quick`; all of them are in `make test`
OPTIMIZERS = pytest.mark.parametrize(
    "build",
    [pytest.param(b, id=name, marks=[] if name in FAST else pytest.mark.slow) for name, b in everyone().items()],
)


def start(dtype=jnp.float32) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "a": {"kernel": jax.random.normal(keys[0], (6, 5), dtype), "bias": jax.random.normal(keys[1], (5,), dtype)},
        "b": {"kernel": jax.random.normal(keys[2], (5, 4), dtype)},
    }


def moving(every: int = 2) -> jc.ParamTransform:
    """A mask that moves: a criterion without order removes and revives weights at each refresh."""

    def shuffled(params, *, step, **extra):
        turn = (step + 1).astype(jnp.float32)
        return jax.tree.map(lambda w: jnp.sin(jnp.arange(1.0, 1.0 + w.size) ** 2 * turn).reshape(w.shape), params)

    sparsity = optax.linear_schedule(0.2, 0.8, 6)
    return jc.select("**/kernel", jc.periodic(prune(shuffled, sparsity), every))


def scripted() -> jc.ParamTransform:
    """Masks drawn beforehand that move every other step like those of `moving`, with no search to compile."""
    rng = np.random.default_rng(0)

    def drawn(*shape):
        ranks = (rng.permutation(np.prod(shape)).reshape(shape) for _ in range(4))
        return jnp.stack([jnp.asarray(rank < share * rank.size) for rank, share in zip(ranks, (0.2, 0.4, 0.6, 0.8))])

    script = {"a/kernel": drawn(6, 5), "b/kernel": drawn(5, 4)}

    def apply(params, state):
        leaves = tree.leaves(params)
        return tree.replace(params, {path: jnp.where(mask, 0, leaves[path]) for path, mask in state.items()})

    return jc.ParamTransform(
        init=lambda params: {path: jnp.zeros(masks.shape[1:], bool) for path, masks in script.items()},
        apply=apply,
        update=lambda params, state, *, step, **extra: {path: masks[step // 2] for path, masks in script.items()},
        encode=lambda params, state: params,
        removed=lambda params, state: state,
    )


def train(tx, params, steps: int):
    """Scan over a least-squares problem; return parameters, states and masks after every step."""
    target = jax.tree.map(lambda w: jnp.ones_like(w) / 2, params)

    def loss_fn(p):
        return sum(
            jnp.sum((x - y).astype(jnp.float32) ** 2) for x, y in zip(jax.tree.leaves(p), jax.tree.leaves(target))
        )

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: loss_fn(tx.apply(p, state)))(params)
        updates, state = tx.update(grads, state, params, value=value)
        params = apply_updates(params, updates)
        removed = tx.transform.removed(params, jc.optimizers.compress_state(state))
        return (params, state), (params, dict(removed))

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=steps))(params)


DTYPES = pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)], ids=["f32", "bf16"]
)


@pytest.mark.slow
@pytest.mark.sampled(20)
@OPTIMIZERS
@DTYPES
def test_removed_weights_are_exact_zeros_after_every_step(build, dtype):
    assert_exact_zeros(attach(build(), scripted()), start(dtype))


@pytest.mark.slow
@DTYPES
def test_weights_that_a_search_removes_are_exact_zeros_after_every_step(dtype):
    assert_exact_zeros(attach(ADAM, moving()), start(dtype))


def assert_exact_zeros(tx, initial):
    (params, state), (path, removed) = train(tx, initial, steps=8)
    assert jax.tree.map(lambda x: x.dtype, params) == jax.tree.map(lambda x: x.dtype, initial)
    assert jax.tree.all(jax.tree.map(lambda x: jnp.isfinite(x).all(), params))
    for name in ("a", "b"):
        gone, weights = removed[f"{name}/kernel"], path[name]["kernel"]
        share = gone.mean(axis=(1, 2))
        assert share[0] == pytest.approx(0.2)
        assert share[-1] >= 0.75
        assert not jnp.any(jnp.where(gone, weights, 0)), "a removed weight is not zero"
        assert jnp.any(gone[1] & ~gone[2]), "no weight has come back: this test shows nothing"
    assert jnp.any(params["a"]["kernel"] != 0) or jnp.any(params["b"]["kernel"] != 0)
    forward = tx.apply(params, state)
    assert jax.tree.all(jax.tree.map(lambda x, y: jnp.array_equal(x, y), forward, params)), "a masked copy was needed"


def same(left, right):
    """Compare bit for bit, random keys too."""
    assert jax.tree.all(jax.tree.map(lambda x, y: jnp.all(jnp.asarray(x == y)), left, right))


def mirrored(state, mask_shape):
    """Return the arrays of an optimizer state that have the shape of a weight."""
    return [x for x in jax.tree.leaves(state) if jnp.shape(x) == mask_shape]


@pytest.mark.slow
@pytest.mark.sampled(20)
@OPTIMIZERS
def test_moments_of_removed_weights_start_afresh_and_others_stay(build):
    """The step after half of the weights were removed equals, on those, a step from a fresh state."""
    inner = build()
    wrapped = inner.gradient_transformation() if isinstance(inner, optax.MultiSteps) else inner
    wrapped = optax.with_extra_args_support(wrapped)
    params = start()
    tx = attach(inner, removing(lambda step: step >= 2))
    state, free, updates = tx.init(params), wrapped.init(params), None
    for i in range(3):  # nothing is removed before: three ordinary steps, and the last removes
        grads = jax.tree.map(lambda w, i=i: jnp.cos(w + i), params)
        updates, state = tx.update(grads, state, params, value=1.0)
        alone, free = wrapped.update(grads, free, params, value=1.0)
        same(state.inner, free)
        if i < 2:
            same(updates, alone)
            params = apply_updates(params, updates)
    params = apply_updates(params, updates)
    assert not params["a"]["kernel"][GONE].any()
    assert (params["a"]["kernel"][~GONE] != 0).all()
    seen = mirrored(free, (6, 5))
    leak = jnp.where(GONE, 1e3, 0.0)  # the gradient of a removed weight counts nowhere, in no norm either
    grads = jax.tree.map(jnp.zeros_like, params) | {"a": {"kernel": leak, "bias": jnp.zeros(5)}}
    updates, state = tx.update(grads, state, params, value=1.0)
    assert not updates["a"]["kernel"][GONE].any()
    _, fresh = wrapped.update(jax.tree.map(jnp.zeros_like, params), wrapped.init(params), params, value=1.0)
    pairs = list(zip(mirrored(state.inner, (6, 5)), mirrored(fresh, (6, 5))))
    assert len(pairs) == len(seen)
    for now, new in pairs:
        np.testing.assert_allclose(now[GONE], new[GONE], rtol=1e-5, atol=1e-6)


GONE = jnp.arange(30).reshape(6, 5) % 2 == 0


def removing(when):
    """Return a transform that removes half of a kernel at the steps that `when` tells."""
    return jc.ParamTransform(
        init=lambda p: {"mask": jnp.zeros((6, 5), bool)},
        apply=lambda p, s: p | {"a": p["a"] | {"kernel": jnp.where(s["mask"], 0, p["a"]["kernel"])}},
        update=lambda p, s, *, step, **extra: {"mask": GONE & when(step)},
        encode=lambda p, s: p,
        removed=lambda p, s: {"a/kernel": s["mask"]},
    )


@pytest.mark.slow
def test_a_weight_that_comes_back_at_once_starts_afresh():
    params = start()
    tx = attach(ADAM, removing(lambda step: step == 1))
    state = tx.init(params)
    for _ in range(2):  # an ordinary step, then one that removes
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = apply_updates(params, updates)
    assert not params["a"]["kernel"][GONE].any()
    for moved in (False, True):  # back, but removed when the gradient was taken; then an ordinary weight
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        assert (updates["a"]["kernel"][GONE] != 0).all() == moved
    fresh = ADAM.update(jax.tree.map(jnp.ones_like, params), ADAM.init(params), params)[1]
    for now, new in zip(mirrored(state.inner, (6, 5)), mirrored(fresh, (6, 5)), strict=True):
        np.testing.assert_array_equal(now[GONE], new[GONE])


@pytest.mark.slow
def test_moments_of_survivors_are_those_of_an_undisturbed_optimizer():
    params = start()
    tx = attach(ADAM, jc.select("**/kernel", prune(magnitude, 0.5)))
    state, free = tx.init(params), ADAM.init(params)
    grads = jax.tree.map(jnp.cos, params)
    _, state = tx.update(grads, state, params)
    _, free = ADAM.update(grads, free, params)
    kept = np.asarray(params["b"]["kernel"] != 0) & ~np.asarray(
        tx.transform.removed(params, state.compress)["b/kernel"]
    )
    assert 0 < kept.sum() < kept.size
    for now, other in zip(mirrored(state.inner, (5, 4)), mirrored(free, (5, 4))):
        np.testing.assert_array_equal(now[kept], other[kept])


def test_extra_arguments_reach_the_optimizer_and_the_transform():
    seen = {}

    def update(updates, state, params=None, **extra):
        seen["optimizer"] = extra
        return updates, state

    def observe(params, state, *, step, **extra):
        seen["transform"] = extra
        return state

    tx = attach(
        optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update),
        jc.chain()._replace(update=observe),
    )
    params = start()
    tx.update(params, tx.init(params), params, value=3.0, stats={"x": 1})
    assert seen["optimizer"] == {"value": 3.0, "stats": {"x": 1}}
    assert seen["transform"].keys() == {"grads", "value", "stats"}


@pytest.mark.slow
def test_line_search_of_lbfgs_runs_on_the_surviving_weights():
    tx = attach(optax.lbfgs(memory_size=3), jc.select("**/kernel", prune(magnitude, 0.5)))
    params = start()

    def loss_fn(p):
        return sum(jnp.sum((w - 0.5) ** 2) for w in jax.tree.leaves(p))

    state = tx.init(params)
    for _ in range(4):
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss_fn)
        params = apply_updates(params, updates)
    assert (params["a"]["kernel"] == 0).mean() == 0.5
    np.testing.assert_allclose(params["a"]["bias"], 0.5, atol=1e-3)


INSIDE: dict[str, Any] = {
    "chain": lambda tx: optax.chain(optax.clip(1.0), tx),
    "multi_steps": lambda tx: optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation(),
    "partition": lambda tx: optax.partition({"x": tx, "y": MOMENTUM}, KERNELS_OR_BIAS),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(optax.scale(learning_rate), tx)
    )(learning_rate=0.5),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}
KERNELS_OR_BIAS = {"a": {"kernel": "x", "bias": "y"}, "b": {"kernel": "x"}}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", INSIDE.values(), ids=INSIDE)
def test_attach_may_stand_inside(wrap):
    tx = attach(ADAM, jc.select("**/kernel", prune(magnitude, 0.5)))
    whole = wrap(tx)
    params = start()
    state = whole.init(params)
    for _ in range(4):
        updates, state = whole.update(jax.tree.map(jnp.sin, params), state, params)
        params = apply_updates(params, updates)
    assert (params["a"]["kernel"] == 0).mean() == 0.5
    assert (params["a"]["bias"] != 0).all()
    chosen = {"a": {"kernel": params["a"]["kernel"]}, "b": {"kernel": params["b"]["kernel"]}}
    forward = tx.apply(chosen, state)
    np.testing.assert_array_equal(forward["a"]["kernel"], params["a"]["kernel"])


@pytest.mark.slow
def test_straight_through_keeps_the_dense_weights_learning():
    params = start()
    tx = attach(optax.sgd(0.1), jc.straight_through(jc.select("**/kernel", prune(magnitude, 0.5))))
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1)
    assert (tx.apply(params, state)["a"]["kernel"] == 0).mean() == 0.5


@pytest.mark.slow
def test_train_state_and_encode_work_unchanged():
    tx = attach(ADAM, jc.select("**/kernel", jc.chain(prune(magnitude, 0.5), jc.quantization.fake_quantize(8))))
    state = TrainState.create(apply_fn=None, params=start(), tx=tx)
    for _ in range(3):
        state = state.apply_gradients(grads=jax.tree.map(jnp.sin, state.params))
    model = jc.decode(tx.encode(state.params, state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, model, tx.apply(state.params, state.opt_state))
    assert int(state.opt_state.step) == 3


def test_refusals_name_the_call():
    tx = attach(ADAM, jc.chain())
    params = start()
    with pytest.raises(ValueError, match=r"`attach`: `update\(grads, state, params\)` needs the parameters"):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="must hold one state of `attach`; got 0"):
        tx.apply(params, ADAM.init(params))
    with pytest.raises(ValueError, match="must hold one state of `attach`; got 2"):
        tx.encode(params, (tx.init(params), tx.init(params)))


@pytest.mark.slow
def test_integer_and_missing_leaves_pass_through():
    params = {"kernel": jnp.ones((4, 4)), "none": None, "table": jnp.arange(3)}
    tx = attach(optax.masked(ADAM, {"kernel": True, "none": None, "table": False}), prune(magnitude, 0.5))
    grads = {"kernel": jnp.ones((4, 4)), "none": None, "table": jnp.zeros(3, int)}
    updates, state = tx.update(grads, tx.init(params), params)
    after = apply_updates(params, updates)
    np.testing.assert_array_equal(after["table"], params["table"])
    assert (after["kernel"] == 0).sum() == 8
    assert isinstance(state, AttachState)


@pytest.mark.slow
def test_checkpoint_through_orbax_resumes_bit_for_bit(tmp_path):
    tx = attach(ADAM, moving())
    first, _ = train(tx, start(), steps=3)
    with checkpoint.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "state", first)
        keeper.wait_until_finished()
        again = keeper.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, first))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return apply_updates(params, updates), state

    jax.tree.map(np.testing.assert_array_equal, step(*first), step(*again))
