"""Removal on a mesh of eight devices: the numbers of one device, shards that stay shards, explicit meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxopt_compress import graph, shrinking, tree
from tests.corpus import CASES
from tests.test_corpus import cuts

SPECS = {"up": {"kernel": P("data", "model"), "bias": P("model")}, "down": {"kernel": P("model"), "bias": P()}}
FLAT = {"up": {"kernel": P(None, "model"), "bias": P("model")}, "down": {"kernel": P("model"), "bias": P()}}
PLACES = {  # kind of mesh axes, how parameters are split, how the hidden layer and the output are
    "auto": (AxisType.Auto, SPECS, None, None),
    "explicit": (AxisType.Explicit, FLAT, P("data", "model"), P("data", None)),
}


def net(hidden=None, out=None):
    def forward(params, x):
        h = jnp.matmul(x, params["up"]["kernel"], out_sharding=hidden) + params["up"]["bias"][None]
        h = jax.nn.sigmoid(h)  # of zero it is not zero: the constant goes into the next bias
        return jnp.matmul(h, params["down"]["kernel"], out_sharding=out) + params["down"]["bias"][None]

    return forward


def start():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {"up": {"kernel": draw(8, 32), "bias": draw(32)}, "down": {"kernel": draw(32, 4), "bias": draw(4)}}
    return params, draw(16, 8)


def trained(forward, params, x, ratio):
    """Train, shrink with the moments, and train on; each step is awaited."""
    tx = optax.sgd(0.01, momentum=0.9)

    def step(fn):
        @jax.jit
        def run(params, state):
            updates, state = tx.update(jax.grad(lambda p: jnp.mean(fn(p, x) ** 2))(params), state, params)
            return optax.apply_updates(params, updates), state

        return run

    state = jax.jit(tx.init)(params)
    first = step(forward)
    for _ in range(2):
        params, state = jax.block_until_ready(first(params, state))
    small = shrinking.shrink(forward, params, x, ratio=ratio)
    params, state = small.params, small.narrow_state(tx, state)
    second = step(small.fn)
    for _ in range(2):
        params, state = jax.block_until_ready(second(params, state))
    assert second._cache_size() <= 2  # shardings settle in the first step
    return small, params, state


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_the_numbers_of_one_device(place):
    kind, specs, hidden, out = PLACES[place]
    params, x = start()
    alone, *wanted = trained(net(), params, x, 0.5)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    put = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))  # noqa: E731
    with jax.set_mesh(mesh):
        small, *found = trained(net(hidden, out), jax.tree.map(put, params, specs), put(x, P("data")), 0.5)
    assert small.difference < 1e-5
    for path, dims in alone.kept.items():
        jax.tree.map(np.testing.assert_array_equal, small.kept[path], dims)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), found, wanted)
    for path, leaf in tree.leaves(small.params).items():
        spec = tree.leaves(specs)[path]
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim), path


@pytest.mark.slow
def test_an_axis_that_its_devices_no_longer_divide_is_on_each_of_them():
    params, x = start()
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    params = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), params, SPECS)
    small = shrinking.shrink(net(), params, jax.device_put(x, NamedSharding(mesh, P("data"))), ratio=0.3)
    assert small.params["up"]["kernel"].shape == (8, 22)
    assert small.params["up"]["kernel"].sharding.spec[0] == "data"
    assert small.params["up"]["bias"].sharding.is_fully_replicated


EXPLICIT = (
    "attention_dot_product",
    "attention_masked_by_input",
    "resnet_projection",
    "recurrent_associative_scan",
    "transformer_llama",
    "unet_repeat",
)


@pytest.mark.sampled(3)
@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.name in EXPLICIT], ids=lambda case: case.name)
def test_data_parallel_on_an_explicit_mesh(case):
    fn, params, inputs = case.make()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    put = lambda spec: lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec))  # noqa: E731
    with jax.set_mesh(mesh):
        params, inputs = jax.tree.map(put(P()), params), jax.tree.map(put(P("data")), inputs)
        traced = graph.trace(fn, params, *inputs)
        small = shrinking.remove(traced, params, shrinking.Cut(cuts(traced.groups)[2]), *inputs)
        assert small.exact and small.kept
        jax.block_until_ready(jax.jit(small.fn)(small.params, *inputs))


@pytest.mark.slow
def test_under_pmap():
    params, x = start()
    small = shrinking.shrink(net(), params, x, ratio=0.5)
    found = jax.pmap(small.fn, in_axes=(None, 0))(small.params, x.reshape(8, 2, 8))
    np.testing.assert_allclose(found.reshape(16, 4), small.fn(small.params, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_under_shard_map(kind):
    params, x = start()
    small = shrinking.shrink(net(), params, x, ratio=0.5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))

    def total(params, x):
        out = small.fn(params, x)
        return jax.lax.psum(out.sum(), "data"), jax.grad(lambda p: small.fn(p, x).sum())(params)["down"]["bias"]

    run = jax.jit(jax.shard_map(total, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), P())))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, P("data")))
        found, slope = run(jax.device_put(small.params, NamedSharding(mesh, P())), x)
    np.testing.assert_allclose(found, small.fn(small.params, x).sum(), rtol=1e-5)
    np.testing.assert_allclose(slope, np.full(4, 16.0), rtol=1e-6)
