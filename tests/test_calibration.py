"""Statistics of what weights are multiplied with, against sums in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_compress import graph
from jaxopt_compress.calibration import calibrate, gram, moments
from jaxopt_compress.products import product
from tests.products import EVERY_PRODUCT, PRODUCTS, normal


def seen_by(fn, params, x, site):
    """Return the operands of a site."""
    held = []

    def look(site, args, state):
        held.extend(args[:2])
        return graph.bind(site.op, args), state

    graph.rewrite(fn, [site.name], look)(params, {}, x)
    return held


@pytest.mark.sampled(2)
@EVERY_PRODUCT
def test_rows_times_outputs_are_the_product(fn, params, x):
    """Whatever the order of axes: the sums of all products of rows and outputs are the numbers that come out."""
    (site,) = graph.sites(fn, params, x)
    if site.weight is None:
        pytest.skip("has no weight")
    how, side, args = product(site), site.weight, seen_by(fn, params, x, site)
    rows, matrix = how.rows(1 - side, args[1 - side], site.shapes[side]), how.matrix(side, args[side])
    found = np.einsum("gri,goi->gro", rows, matrix)
    np.testing.assert_allclose(np.sort(found.ravel()), np.sort(np.ravel(fn(params, x))), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(how.operand(side, matrix, site.shapes[side]), args[side])
    # A number for each output lies where that output does.
    bias = normal(*matrix.shape[:2], seed=5)
    out = graph.bind(site.op, args)[0] * 0 + how.added(side, bias, site.shapes[side])
    pushed = jax.grad(
        lambda w: jnp.sum(graph.bind(site.op, [w if s == side else a for s, a in enumerate(args)])[0] * out)
    )
    wanted = np.einsum("go,gi->goi", bias, rows.sum(1))
    np.testing.assert_allclose(how.matrix(side, pushed(args[side])), wanted, rtol=1e-3, atol=1e-3)


def dense(p, x):
    return jnp.tanh(x @ p["up"]) @ p["down"]


PARAMS = {"up": normal(6, 8) / 3, "down": normal(8, 3, seed=1)}


def test_sums_are_those_of_numpy():
    batches = [normal(5, 6, seed=i) for i in range(3)]
    whole = np.concatenate([np.asarray(b, np.float64) for b in batches])
    hidden = np.tanh(whole @ np.asarray(PARAMS["up"], np.float64))
    grams = calibrate(dense, PARAMS, batches, gram())
    plain = calibrate(dense, PARAMS, batches, moments())
    for name, rows in (("up", whole), ("down", hidden)):
        assert grams[name].rows[0, 0] == plain[name].rows[0, 0] == 15
        np.testing.assert_allclose(grams[name].second[0], rows.T @ rows / 15, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(plain[name].absolute[0], np.abs(rows).sum(0), rtol=1e-5)
        np.testing.assert_allclose(plain[name].largest[0], np.abs(rows).max(0), rtol=1e-5)
        for state in (grams[name], plain[name]):
            np.testing.assert_allclose(state.mean[0], rows.mean(0), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(state.norm[0], np.sqrt((rows**2).mean(0)), rtol=1e-5)


def test_a_calibration_can_be_gone_on_with():
    batches = [normal(5, 6, seed=i) for i in range(4)]
    half = calibrate(dense, PARAMS, batches[:2], moments())
    kept = jax.tree.map(np.asarray, half)
    found = calibrate(dense, PARAMS, batches[2:], moments(), states=half)
    jax.tree.map(np.testing.assert_array_equal, half, kept)  # and is not donated
    jax.tree.map(np.testing.assert_array_equal, found, calibrate(dense, PARAMS, batches, moments()))


def test_some_sites_and_batches_of_several_arguments():
    fn = lambda p, x, scale: dense(p, x * scale)  # noqa: E731
    found = calibrate(fn, PARAMS, [(normal(5, 6), 2.0)] * 2, moments(), where="do*", progress=True)
    assert list(found) == ["down"]
    once = calibrate(dense, PARAMS, [2 * normal(5, 6)], moments())["down"]
    np.testing.assert_allclose(found["down"].squares, 2 * once.squares, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "conv", "conv_grouped"])
def test_an_empty_batch_changes_nothing(name):
    fn, params, x = PRODUCTS[name]
    found = calibrate(fn, params, [x, x[:0]], gram())
    jax.tree.map(np.testing.assert_array_equal, found, calibrate(fn, params, [x], gram()))


def test_what_is_refused():
    with pytest.raises(ValueError, match="there are no batches"):
        calibrate(dense, PARAMS, [], gram())
    with pytest.raises(ValueError, match=r"'left' is none of \['up', 'down'\]"):
        calibrate(dense, PARAMS, [normal(5, 6)], gram(), where="left")


def layers(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0]


@pytest.mark.slow
def test_layers_of_a_scan_have_their_own():
    w = normal(3, 6, 6)
    found = calibrate(layers, w, [normal(4, 6)], gram())[""]
    assert found.products.shape == (3, 1, 6, 6)
    h = normal(4, 6)
    for layer in range(3):
        np.testing.assert_allclose(found.second[layer, 0], h.T @ h / 4, rtol=1e-4, atol=1e-5)
        h = jnp.tanh(h @ w[layer])


@pytest.mark.slow
def test_batches_on_eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = [jax.device_put(normal(16, 6, seed=i), NamedSharding(mesh, PartitionSpec("data"))) for i in range(2)]
    whole = calibrate(dense, PARAMS, [normal(16, 6, seed=i) for i in range(2)], gram())
    for found, wanted in zip(jax.tree.leaves(calibrate(dense, PARAMS, split, gram())), jax.tree.leaves(whole)):
        np.testing.assert_allclose(jax.block_until_ready(found), wanted, rtol=1e-5, atol=1e-5)
