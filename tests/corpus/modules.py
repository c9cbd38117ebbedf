"""Models written with Flax Linen, Flax NNX and Equinox, as pure functions of their parameters."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.compiling import unoptimized
from tests.corpus.case import Case, axes
from tests.corpus.layers import normal


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Conv(12, (3, 3))(nn.max_pool(x, (2, 2), (2, 2)))
        x = nn.gelu(nn.GroupNorm(4)(x)).mean((1, 2))
        x = nn.Dense(7)(x)
        return nn.Dense(3)(nn.LayerNorm()(x))


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 12)(tokens)
        x = x + nn.MultiHeadDotProductAttention(4, qkv_features=20)(nn.LayerNorm()(x))
        h = nn.gelu(nn.Dense(30)(nn.LayerNorm()(x)))
        x = nn.RMSNorm()(x + nn.Dense(12)(h))
        return nn.Dense(5)(x)


class LinenRecurrent(nn.Module):
    cell: nn.Module

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(self.cell)(x)
        return nn.Dense(3)(x)


class NnxCNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.up = nnx.Linear(6, 9, rngs=rngs)
        self.down = nnx.Linear(9, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.down(self.drop(nnx.relu(self.up(x))))


class NnxAttention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(4, 5, 12, decode=False, rngs=rngs)
        self.out = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(x + self.attention(x))


def linen(module, *shape, integers=False):
    def make():
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.integers(0, 11, shape)) if integers else normal(rng, *shape)
        variables = unoptimized(module.init)(jax.random.key(0), x)
        # biases are zero at first: errors in them would not show
        moved = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.uniform(0, 0.1, leaf.shape), leaf.dtype), variables)
        return lambda v, x: module.apply(v, x), moved, (x,)

    return make


def nnx_model(kind, *shape):
    def make():
        graphdef, state = nnx.split(kind(nnx.Rngs(0)))
        return lambda s, x: nnx.merge(graphdef, s)(x), state, (normal(np.random.default_rng(1), *shape),)

    return make


def equinox_mlp():
    params, static = eqx.partition(eqx.nn.MLP(5, 3, 8, 2, key=jax.random.key(0)), eqx.is_array)
    return lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, (normal(np.random.default_rng(1), 4, 5),)


def equinox_gru():
    cell, static = eqx.partition(eqx.nn.GRUCell(5, 8, key=jax.random.key(0)), eqx.is_array)
    params = {"cell": cell, "out": normal(np.random.default_rng(2), 8, 3)}

    def fn(p, x):
        step = lambda h, a: (eqx.combine(p["cell"], static)(a, h), None)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros(8), x)[0] @ p["out"]

    return fn, params, (normal(np.random.default_rng(1), 7, 5),)


CASES = (
    Case(
        "linen_cnn",
        linen(LinenCNN(), 2, 8, 8, 2),
        exact=axes(
            "params/Conv_0/kernel:3 params/Conv_0/bias:0 params/BatchNorm_0/scale:0 batch_stats/BatchNorm_0/mean:0 "
            "params/Conv_1/kernel:2,3 params/GroupNorm_0/scale:0 params/Dense_0/kernel:0,1 params/Dense_1/kernel:0"
        ),
        pinned=axes(
            "params/Conv_0/kernel:0,1,2 params/Conv_1/kernel:0,1 params/Dense_1/kernel:1 params/Dense_1/bias:0"
        ),
    ),
    Case(
        "linen_transformer",
        linen(LinenTransformer(), 2, 6, integers=True),
        exact=axes(
            "params/Embed_0/embedding:1 params/Dense_0/kernel:0,1 params/Dense_1/kernel:0 params/RMSNorm_0/scale:0 "
            "params/MultiHeadDotProductAttention_0/{query,key,value}/kernel:0,1,2 "
            "params/MultiHeadDotProductAttention_0/out/kernel:0,1,2"
        ),
        pinned=axes("params/Embed_0/embedding:0 params/Dense_2/kernel:1"),
    ),
    Case(
        "linen_lstm",
        linen(LinenRecurrent(nn.OptimizedLSTMCell(8)), 2, 7, 5),
        exact=axes("params/cell/hf/kernel:0,1 params/cell/ii/kernel:1 params/Dense_0/kernel:0"),
        pinned=axes("params/cell/ii/kernel:0 params/Dense_0/kernel:1"),
    ),
    Case(
        "linen_gru",
        linen(LinenRecurrent(nn.GRUCell(8)), 2, 7, 5),
        exact=axes("params/cell/hn/kernel:0,1 params/cell/in/kernel:1 params/Dense_0/kernel:0"),
        pinned=axes("params/cell/in/kernel:0"),
    ),
    Case(
        "nnx_cnn",
        nnx_model(NnxCNN, 2, 8, 8, 2),
        exact=axes("conv/kernel/value:3 norm/mean/value:0 up/kernel/value:0,1 down/kernel/value:0"),
        pinned=axes("conv/kernel/value:2 down/kernel/value:1"),
    ),
    Case(
        "nnx_attention",
        nnx_model(NnxAttention, 2, 7, 5),
        exact=axes("attention/{query,key,value}/kernel/value:1,2 attention/out/kernel/value:0,1"),
        pinned=axes("attention/query/kernel/value:0 attention/out/kernel/value:2 out/kernel/value:0,1"),
    ),
    Case(
        "equinox_mlp",
        equinox_mlp,
        exact=axes("layers/{0,1}/weight:0 layers/{1,2}/weight:1"),
        pinned=axes("layers/0/weight:1 layers/2/weight:0"),
    ),
    Case("equinox_gru", equinox_gru, exact=axes("cell/weight_hh:0,1 cell/weight_ih:0 out:0"), pinned=axes("out:1")),
)
