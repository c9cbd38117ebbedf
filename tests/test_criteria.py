"""Criteria against naive NumPy, at their edges, and through `prune` and `select`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_compress as jc
from jaxopt_compress import pruning

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


PARAMS = {"dense": {"kernel": normal(6, 4), "bias": normal(4)}, "conv": {"kernel": normal(3, 3, 2, 5)}, "count": 3}
GRADS = {"dense": {"kernel": normal(6, 4), "bias": normal(4)}, "conv": {"kernel": normal(3, 3, 2, 5)}, "count": 0}


def scores(criterion, path: str, params=None, **extra) -> np.ndarray:
    return np.asarray(jc.tree.leaves(criterion(jax.tree.map(jnp.asarray, params or PARAMS), **extra))[path])


def kernels(tree):
    return {path: jnp.asarray(w) for path, w in jc.tree.leaves(tree).items() if path.endswith("kernel")}


def test_taylor_is_the_first_order_change():
    got = scores(pruning.taylor, "dense/kernel", kernels(PARAMS), grads=kernels(GRADS))
    np.testing.assert_allclose(got, np.abs(PARAMS["dense"]["kernel"] * GRADS["dense"]["kernel"]), rtol=1e-6)


def test_obd_is_the_second_order_change():
    got = scores(pruning.obd, "dense/kernel", kernels(PARAMS), curvature=kernels(GRADS))
    np.testing.assert_allclose(got, GRADS["dense"]["kernel"] * PARAMS["dense"]["kernel"] ** 2 / 2, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gate_sums_before_the_square(axis):
    products = PARAMS["dense"]["kernel"] * GRADS["dense"]["kernel"]
    want = np.broadcast_to(products.sum(1 - axis % 2, keepdims=True) ** 2, (6, 4))
    got = scores(pruning.gate(axis), "dense/kernel", kernels(PARAMS), grads=kernels(GRADS))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_geometric_median_sums_distances(axis):
    channels = np.moveaxis(PARAMS["conv"]["kernel"].astype(np.float64), axis, 0)
    sums = [sum(np.linalg.norm(a - b) for b in channels) for a in channels]
    got = np.moveaxis(scores(pruning.geometric_median(axis), "conv/kernel", {"conv": PARAMS["conv"]}), axis, 0)
    for channel, want in zip(got, sums, strict=True):
        np.testing.assert_allclose(channel, want, rtol=1e-5)


@pytest.mark.slow
def test_lamp_is_the_share_among_survivors_and_keeps_every_leaf_alive():
    w = PARAMS["dense"]["kernel"].astype(np.float64)
    want = [[x * x / np.sum(w[np.abs(w) >= abs(x)] ** 2) for x in row] for row in w]
    np.testing.assert_allclose(scores(pruning.lamp, "dense/kernel"), want, rtol=1e-5)
    scaled = {"a": jnp.asarray(normal(40, 5)), "b": 1e-6 * jnp.asarray(normal(40, 5))}
    t = pruning.prune(pruning.lamp, 0.95, scope="global")
    after = t.apply(scaled, t.update(scaled, t.init(scaled), step=0))
    assert all(jnp.any(w != 0) for w in after.values())
    t = pruning.prune(pruning.magnitude, 0.5, scope="global")  # which has no such care
    assert not jnp.any(t.apply(scaled, t.update(scaled, t.init(scaled), step=0))["b"])


@pytest.mark.slow
@pytest.mark.parametrize("w", [np.zeros((3, 2)), np.zeros((0, 3)), np.full((2, 2), 2.0), np.full((1, 1), -1e-30)])
def test_lamp_at_its_edges(w):
    got = scores(pruning.lamp, "w", {"w": w.astype(np.float32)})
    assert got.shape == w.shape
    assert np.all((got >= 0) & (got <= 1))


def test_wanda_weighs_inputs():
    norms = {"dense/kernel": jnp.arange(6.0), "conv/kernel": jnp.ones((3, 3, 2))}
    got = scores(pruning.wanda, "dense/kernel", kernels(PARAMS), stats=norms)
    np.testing.assert_allclose(got, np.abs(PARAMS["dense"]["kernel"]) * np.arange(6)[:, None], rtol=1e-6)


@pytest.mark.slow
def test_random_differs_by_step_and_leaf_and_repeats_itself():
    criterion = pruning.random(jax.random.key(0))
    params = {"a": jnp.zeros((30, 10)), "b": jnp.zeros((30, 10))}
    first, again, later = (criterion(params, step=step) for step in (0, 0, 1))
    np.testing.assert_array_equal(first["a"], again["a"])
    assert not np.array_equal(first["a"], first["b"])
    assert not np.array_equal(first["a"], later["a"])
    assert 0 <= first["a"].min() < 0.05
    assert 0.95 < first["a"].max() < 1


@pytest.mark.parametrize(
    ("criterion", "missing"),
    [
        (pruning.taylor, "grads"),
        (pruning.obd, "curvature"),
        (pruning.wanda, "stats"),
        (pruning.gate(), "grads"),
    ],
)
def test_what_is_missing_is_named(criterion, missing):
    with pytest.raises(ValueError, match=f"needs `{missing}=`"):
        criterion({"w": jnp.ones(3)})


@pytest.mark.parametrize("make", [pruning.gate, pruning.geometric_median])
def test_a_channel_axis_that_is_not_there_is_refused(make):
    with pytest.raises(ValueError, match=rf"`{make.__name__}\(2\)`.*'b' is of shape \(4,\)"):
        make(2)({"a": jnp.ones((1, 2, 3)), "b": jnp.ones(4)}, grads={"a": jnp.ones((1, 2, 3)), "b": jnp.ones(4)})


def test_wanda_refuses_norms_of_another_shape():
    with pytest.raises(ValueError, match=r"'dense/kernel'.*\(6,\).*\(4,\)"):
        pruning.wanda({"dense": {"kernel": jnp.ones((6, 4))}}, stats={"dense": {"kernel": jnp.ones(4)}})


# A network small enough to do by hand: two layers with ReLU, and a loss.
NET = {
    "first": {"kernel": normal(3, 4), "bias": normal(4)},
    "last": {"kernel": normal(4, 2), "bias": normal(2)},
    "n": 1,
}
NET = jax.tree.map(jnp.asarray, NET)
X, Y = jnp.asarray(normal(5, 3)), jnp.asarray(normal(5, 2))


def dense(x, layer):
    y = x @ layer["kernel"]
    return y + jnp.broadcast_to(layer["bias"], y.shape)


def forward(params, x):
    return dense(jax.nn.relu(dense(x, params["first"])), params["last"])


def loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(jnp.tanh(forward(params, x)) - y))


def of_path(path, value):
    return jc.tree.replace(NET, {path: value})


PATH = "first/kernel"
W = NET["first"]["kernel"]


@pytest.mark.slow
def test_fisher_takes_the_mean_of_squares():
    grads = [jax.grad(lambda w, i=i: loss(of_path(PATH, w), (X[i], Y[i])))(W) for i in range(5)]
    want = np.mean(np.square(np.stack(grads)), 0) * np.square(W) / 2
    np.testing.assert_allclose(scores(pruning.fisher(loss, NET, (X, Y)), PATH, NET), want, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", [pruning.taylor, pruning.gate()], ids=["taylor", "gate"])
def test_averaged_takes_the_criterion_of_every_batch(criterion):
    batches = (X[:4].reshape(2, 2, 3), Y[:4].reshape(2, 2, 2))
    at = lambda i: jax.grad(lambda w: loss(of_path(PATH, w), (batches[0][i], batches[1][i])))(W)  # noqa: E731
    want = np.mean([np.asarray(criterion({PATH: W}, grads={PATH: at(i)})[PATH]) for i in (0, 1)], 0)
    np.testing.assert_allclose(scores(pruning.averaged(criterion, loss, NET, batches), PATH, NET), want, rtol=1e-4)


@pytest.mark.parametrize("batches", [(), X[:0], (X, Y[:4]), jnp.zeros(())], ids=["none", "empty", "uneven", "scalar"])
def test_averaged_refuses_batches_that_are_none(batches):
    with pytest.raises(ValueError, match="`averaged`: all arrays of `batches` hold one number of batches, at least 1"):
        pruning.averaged(pruning.taylor, loss, NET, batches)


def test_fisher_sums_many_examples_of_narrow_weights_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    w = {"w": jnp.ones(1, jnp.bfloat16)}
    criterion = pruning.fisher(lambda p, x: jnp.sum(p["w"] * x), w, jnp.ones((2048, 1), jnp.bfloat16), chunk=1)
    assert float(criterion(w)["w"][0]) == 0.5


@pytest.mark.slow
def test_grasp_multiplies_by_the_hessian():
    at = lambda flat: loss(of_path(PATH, flat.reshape(W.shape)), (X, Y))  # noqa: E731
    hessian, grad = jax.hessian(at)(W.ravel()), jax.grad(at)(W.ravel())
    criterion = pruning.grasp(loss, NET, (X, Y))
    got = np.asarray(criterion({PATH: W})[PATH])
    np.testing.assert_allclose(got.ravel(), W.ravel() * (hessian @ grad), rtol=1e-3, atol=1e-6)


def test_synflow_is_the_flow_through_magnitudes():
    a, b = np.abs(np.asarray(W, np.float64)), np.abs(np.asarray(NET["last"]["kernel"], np.float64))
    want = a * b.sum(1)[None, :]  # ones in, all positive: every path counts
    np.testing.assert_allclose(scores(pruning.synflow(forward, NET, X[:1]), PATH, NET), want, rtol=1e-5)


def test_fisher_in_chunks_is_the_same():
    whole = scores(pruning.fisher(loss, NET, (X, Y)), PATH, NET)
    np.testing.assert_allclose(scores(pruning.fisher(loss, NET, (X, Y), chunk=1), PATH, NET), whole, rtol=1e-5)
    with pytest.raises(ValueError, match="`fisher`: `chunk` divides the number of examples, 5; got 2."):
        pruning.fisher(loss, NET, (X, Y), chunk=2)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["fisher", "averaged", "grasp", "synflow"])
def test_a_criterion_that_needs_the_model_works_under_select(criterion):
    make = {
        "fisher": lambda: pruning.fisher(loss, NET, (X, Y)),
        "averaged": lambda: pruning.averaged(pruning.taylor, loss, NET, (X[:, None], Y[:, None])),
        "grasp": lambda: pruning.grasp(loss, NET, (X, Y)),
        "synflow": lambda: pruning.synflow(forward, NET, X[:1]),
    }[criterion]
    t = jc.select("**/kernel", pruning.prune(make(), 0.5, scope="global"))
    state = jax.jit(lambda p: t.update(p, t.init(p), step=0))(NET)
    after = t.apply(NET, state)
    kept = sum(int(jnp.count_nonzero(after[name]["kernel"])) for name in ("first", "last"))
    assert kept == 10
    assert after["first"]["bias"] is NET["first"]["bias"]


def deep(widths=(20, *[30] * 6, 5)):
    """Return a deep narrow network in which single-shot criteria collapse a layer."""
    rng = np.random.default_rng(1)
    sizes = list(zip(widths[:-1], widths[1:], strict=True))
    return {
        f"{i}/kernel": jnp.asarray(rng.normal(size=s).astype(np.float32) * (2 / s[0]) ** 0.5)
        for i, s in enumerate(sizes)
    }


def flow(params, x):
    for i in range(len(params)):
        x = x @ params[f"{i}/kernel"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


@pytest.mark.slow
def test_synflow_in_rounds_keeps_every_layer_and_in_one_round_does_not():
    params, rounds, density = deep(), 100, 0.01
    criterion = pruning.synflow(flow, params, jnp.ones((1, 20)))

    def left(schedule, rounds):
        t = pruning.prune(criterion, schedule, scope="global")
        after = t.apply(params, pruning.settle(t, params, rounds))
        assert sum(int(jnp.count_nonzero(w)) for w in after.values()) == round(
            density * sum(w.size for w in params.values())
        )
        return float(jnp.sum(flow(jax.tree.map(jnp.abs, after), jnp.ones((1, 20)))))

    assert left(lambda step: 1 - density ** ((step + 1) / rounds), rounds) > 0
    assert left(1 - density, 1) == 0


def test_settle_refuses_no_rounds():
    with pytest.raises(ValueError, match="`settle`.*at least 1; got 0"):
        pruning.settle(pruning.prune(pruning.magnitude, 0.5), {"w": jnp.ones(3)}, 0)
