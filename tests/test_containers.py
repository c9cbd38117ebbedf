"""Transforms on every container that a model's parameters come in, up to the forward pass of the model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxopt_compress as jc
from jaxopt_compress import tree
from jaxopt_compress.pruning import magnitude, prune
from jaxopt_compress.quantization import fake_quantize
from tests.containers import CONTAINERS, EquinoxNet, LinenNet, NnxNet

BY_CONTAINER = pytest.mark.parametrize("container", CONTAINERS, ids=lambda c: c.name)


def same_bits(left, right) -> bool:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.sampled(3)
@pytest.mark.slow
@BY_CONTAINER
def test_every_container(container):
    params = container.make()
    links = (prune(magnitude, 0.5), fake_quantize(4, channel_axes=()))
    t = jc.chain(*(jc.select(container.where, link) for link in links))
    jc.check(t, params)
    grads = jax.tree.map(jnp.ones_like, params)
    state = jax.jit(lambda p: t.update(p, t.init(p), step=0, grads=grads))(params)
    after, stored = t.apply(params, state), t.encode(params, state)
    assert same_bits(jc.decode(stored), after)
    before, changed = tree.leaves(params), tree.leaves(after)
    forms = tree.leaves(stored, is_leaf=jc.is_encoded)
    for path, leaf in before.items():
        if path in container.kernels and tree.is_weight(leaf):
            assert isinstance(forms[path], jc.Quantized)
            assert np.mean(np.asarray(changed[path]) == 0) >= 0.5
        else:
            assert changed[path] is leaf is forms[path]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linen", "frozen_dict", "nnx_state", "equinox"])
def test_a_model_runs_on_what_apply_and_decode_give(kind):
    x = jax.random.normal(jax.random.key(7), (5, 6))
    container = next(c for c in CONTAINERS if c.name == kind)
    params = container.make()
    t = jc.select(container.where, fake_quantize(3, channel_axes=()))
    state = t.init(params)

    def forward(params):
        if isinstance(params, EquinoxNet):
            return eqx.filter_vmap(params)(x)
        if isinstance(params, nnx.State):
            model = NnxNet(nnx.Rngs(0))
            nnx.update(model, params)
            return model.second(jax.nn.relu(model.first(x)))
        return LinenNet().apply({"params": params}, x)

    rounded = forward(t.apply(params, state))
    assert same_bits(rounded, forward(jc.decode(t.encode(params, state))))
    assert not np.allclose(rounded, forward(params), rtol=1e-3)
