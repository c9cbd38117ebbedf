"""Values inside functions: where they are found, that they are the right ones, and what becomes of their gradients."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_compress.distillation import tap, taps

X = jax.random.normal(jax.random.key(0), (8, 6))


class Block(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        y = nn.BatchNorm(use_running_average=not self.train)(nn.Dense(6)(x))
        self.sow("intermediates", "block", out := nn.relu(x + y))
        return out


class Net(nn.Module):
    train: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.remat else Block
        for i in range(2):
            x = block(self.train, name=f"block_{i}")(x)
        return nn.Dense(3, name="head")(x)


def linen(**fields):
    net = Net(**fields)
    return net, net.init(jax.random.key(1), X)


def bare(params, x):
    x = jnp.tanh(x @ params["a"]["w"] + params["a"]["b"][None])
    return x @ params["c"]["w"]


BARE = {
    "a": {"w": jax.random.normal(jax.random.key(2), (6, 4)), "b": jnp.ones(4)},
    "c": {"w": jax.random.normal(jax.random.key(3), (4, 2))},
}


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_a_module_gives_what_it_sows(remat):
    net, variables = linen(remat=remat)
    outputs, features = jax.jit(tap(net.apply, ["block_0", "Net/block_1", "head"], variables, X))(variables, X)
    want: Any
    sown: Any
    want, sown = net.apply(variables, X, mutable=["intermediates"])
    np.testing.assert_array_equal(features["head"], outputs)
    np.testing.assert_allclose(outputs, want, rtol=1e-6)
    for name, key in (("block_0", "block_0"), ("block_1", "Net/block_1")):
        np.testing.assert_allclose(features[key], sown["intermediates"][name]["block"][0], rtol=1e-6)


@pytest.mark.parametrize("remat", [False, True])
def test_statistics_of_a_batch_are_no_output_of_a_module_in_training(remat):
    net, variables = linen(train=True, remat=remat)
    found = taps(lambda v, x: net.apply(v, x, mutable=["batch_stats"]), variables, X)
    assert [shape.shape for shape in found["Net/block_0"]] == [(8, 6)]


def test_a_module_with_several_outputs_has_several_taps():
    def fn(params, x):
        with jax.named_scope("two"):
            y, z = jnp.tanh(x @ params["w"]), jnp.sin(x)
        return y + z

    params = {"w": jnp.ones((6, 6))}
    with pytest.raises(ValueError, match=r"'two' stands for several values of this function; there are\n  two float32"):
        tap(fn, ["two"], params, X)
    _, features = tap(fn, ["two[0]", "two[1]"], params, X)(params, X)
    np.testing.assert_allclose(features["two[1]"], jnp.sin(X), rtol=1e-6)


def test_a_module_that_is_called_again():
    def fn(params, x):
        def layer(x):
            with jax.named_scope("layer"):
                return jnp.tanh(x @ params["w"])

        return jnp.sum(layer(2 * layer(x)))

    params = {"w": jnp.eye(6)}
    _, features = tap(fn, ["layer", "layer#2", "out:w#2"], params, X)(params, X)
    np.testing.assert_allclose(features["layer"], jnp.tanh(X), rtol=1e-6)
    np.testing.assert_allclose(features["out:w#2"], 2 * jnp.tanh(X), rtol=1e-6)
    np.testing.assert_allclose(features["layer#2"], jnp.tanh(2 * jnp.tanh(X)), rtol=1e-6)


def test_without_modules_parameters_name_the_values():
    _, features = tap(bare, ["a", "out:a/w", "in:c/w"], BARE, X)(BARE, X)
    product = X @ BARE["a"]["w"]
    np.testing.assert_allclose(features["out:a/w"], product, rtol=1e-5)
    np.testing.assert_allclose(features["a"], product + 1, rtol=1e-5)
    np.testing.assert_allclose(features["in:c/w"], jnp.tanh(product + 1), rtol=1e-5)


def test_nnx():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    graph, state = nnx.split(model := Two(nnx.Rngs(0)))
    _, features = tap(lambda state, x: nnx.merge(graph, state)(x), ["first"], state, X)(state, X)
    np.testing.assert_allclose(features["first"], model.first(X), rtol=1e-6)


def test_attention_has_both_operands():
    def attend(params, x):
        q, k = x @ params["q"], x @ params["k"]
        return jax.nn.softmax(q @ k.T) @ x

    params = {"q": jnp.eye(6), "k": jnp.eye(6)}
    _, features = tap(attend, ["out:dot_general[0]", "left:dot_general[1]", "right:dot_general[1]"], params, X)(
        params, X
    )
    scores, shares, values = features.values()
    np.testing.assert_allclose(shares, jax.nn.softmax(scores), rtol=1e-6)
    np.testing.assert_array_equal(values, X)


def stacked(params, x):
    def layer(x, w):
        with jax.named_scope("layer"):
            return jnp.tanh(x @ w), jnp.sum(x)

    return jax.lax.scan(layer, x, params["w"])[0] @ params["head"]


STACKED = {"w": jax.random.normal(jax.random.key(4), (3, 6, 6)), "head": jnp.ones((6, 2))}


def test_layers_of_a_scan_are_stacked():
    net = tap(stacked, ["layer", "in:w"], STACKED, X)
    assert net.shapes["layer"].shape == (3, 8, 6)
    _, features = jax.jit(net)(STACKED, X)
    x = X
    for i, w in enumerate(STACKED["w"]):
        np.testing.assert_allclose(features["in:w"][i], x, rtol=1e-5, atol=1e-6)
        x = jnp.tanh(x @ w)
        np.testing.assert_allclose(features["layer"][i], x, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("fn", "params", "name"), [(bare, BARE, "in:c/w"), (stacked, STACKED, "layer")])
def test_gradients_flow_through_a_tap(fn, params, name):
    tapped = tap(fn, [name], params, X)

    def by_hand(params):
        if fn is bare:
            return jnp.sum(jnp.tanh(X @ params["a"]["w"] + params["a"]["b"][None]) ** 2)
        x, total = X, 0.0
        for i in range(3):
            x = jnp.tanh(x @ params["w"][i])
            total += jnp.sum(x**2)
        return total

    found = jax.grad(lambda params: jnp.sum(tapped(params, X)[1][name] ** 2))(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(jax.grad(by_hand)(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_another_batch_size_and_shards():
    tapped = tap(bare, ["a"], BARE, jax.ShapeDtypeStruct((1, 6), jnp.float32))
    mesh = jax.make_mesh((8,), ("data",))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
        params = jax.device_put(BARE, NamedSharding(mesh, PartitionSpec()))
        _, features = jax.block_until_ready(jax.jit(tapped)(params, x))
    np.testing.assert_allclose(features["a"], tapped(BARE, X)[1]["a"], rtol=1e-5)


def test_what_turns_in_a_loop_is_no_tap():
    def fn(params, x):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ params["w"]), x) @ params["head"]

    assert "out:w" not in taps(fn, {"w": STACKED["w"][0], "head": STACKED["head"]}, X)


def test_names_that_are_refused():
    with pytest.raises(
        ValueError, match=r"'b' is no tap of this function; there are\n  a float32\[8, 4\]\n  c float32"
    ):
        tap(bare, ["b"], BARE, X)
    with pytest.raises(ValueError, match="a name stands there once"):
        tap(bare, ["a", "a"], BARE, X)
