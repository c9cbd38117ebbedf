"""The containers that a model's parameters come in: what every transform must work on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Container(NamedTuple):
    """A container of parameters, its leaves' paths, and a `where` that finds its kernels."""

    name: str
    make: Callable[[], Any]
    paths: list[str]
    where: str
    kernels: list[str]


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="second")(nn.relu(nn.Dense(8, name="first")(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.second = nnx.Linear(8, 4, use_bias=False, rngs=rngs)


class EquinoxNet(eqx.Module):
    layers: list
    scale: jax.Array
    name: str = eqx.field(static=True)

    def __call__(self, x):
        return self.layers[1](jax.nn.relu(self.layers[0](x))) * self.scale


def linen():
    return LinenNet().init(jax.random.key(0), jnp.ones((1, 6)))["params"]


def equinox():
    first, second = jax.random.split(jax.random.key(0))
    layers = [eqx.nn.Linear(6, 8, key=first), eqx.nn.Linear(8, 4, use_bias=False, key=second), None]
    return EquinoxNet(layers, jnp.asarray(2.0), "net")


def w(*shape, seed: int = 0):
    return jax.random.normal(jax.random.key(seed), shape)


LINEN = ["first/bias", "first/kernel", "second/bias", "second/kernel"]
NNX = ["first/bias/value", "first/kernel/value", "second/kernel/value"]

CONTAINERS = [
    Container("linen", linen, LINEN, "**/kernel", LINEN[1::2]),
    Container("frozen_dict", lambda: flax.core.freeze(linen()), LINEN, "**/kernel", LINEN[1::2]),
    Container("nnx_state", lambda: nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param), NNX, "**/kernel", NNX[1:]),
    Container(
        "equinox",
        equinox,
        ["layers/0/weight", "layers/0/bias", "layers/1/weight", "scale"],
        "**/weight",
        ["layers/0/weight", "layers/1/weight"],
    ),
    Container(
        "tuple", lambda: (w(6, 8), (w(8), w(8, 4, seed=1)), jnp.arange(3)), ["0", "1/0", "1/1", "2"], "1/1", ["1/1"]
    ),
    Container("list", lambda: [w(6, 8), [w(8, 4, seed=1)], 3], ["0", "1/0", "2"], "?", ["0", "1/0", "2"]),
    Container("none", lambda: {"a": None, "b": w(6, 8), "c": (None,)}, ["b"], "b", ["b"]),
]
