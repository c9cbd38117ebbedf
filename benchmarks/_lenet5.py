"""LeNet-5 with 32 and 64 filters of 5 x 5 and 512 neurons, in plain JAX, and how it is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._lenet import Part, shuffled

SHAPES = {"conv_0": (5, 5, 1, 32), "conv_1": (5, 5, 32, 64), "dense_0": (1024, 512), "dense_1": (512, 10)}
DROPPED = {"dense_0": 0.25, "dense_1": 0.5}  # shares of inputs that are dropped in training
Params = dict[str, Any]


class Recipe(NamedTuple):
    """How a net is trained: SGD with Nesterov momentum 0.9, warmed up and then along a cosine to zero.

    Attributes:
      epochs: passes over the data.
      rate: the highest learning rate.
      batch: images a step.
      decay: L2 penalty on what has several axes.
    """

    epochs: int
    rate: float = 0.05
    batch: int = 100
    decay: float = 5e-4


def init(key: jax.Array) -> Params:
    """Make the parameters (He et al., 2015)."""
    return {
        name: {
            "kernel": jax.random.normal(k, shape) * (2 / np.prod(shape[:-1])) ** 0.5,
            "bias": jnp.zeros(shape[-1]),
        }
        for k, (name, shape) in zip(jax.random.split(key, len(SHAPES)), SHAPES.items())
    }


def forward(params: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Apply the net to images `(n, 784)`; with a key inputs of the dense layers are dropped."""
    x = x.reshape(-1, 28, 28, 1)
    for name in ("conv_0", "conv_1"):
        x = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(_pooled(x + params[name]["bias"]))
    x = x.reshape(x.shape[0], -1)
    for name, share in DROPPED.items():
        if key is not None:
            key, mine = jax.random.split(key)
            x = x * jax.random.bernoulli(mine, 1 - share, x.shape) / (1 - share)
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = jax.nn.relu(x) if name == "dense_0" else x
    return x


def _pooled(x: jax.Array) -> jax.Array:
    """Return the largest of 2 x 2; unlike `reduce_window` its derivative is fast on CPUs."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def train(forward: Callable, params: Any, data: Part, recipe: Recipe, seed: int) -> Any:
    """Train any parameters; `forward(params, images, key)` returns logits."""
    steps = recipe.epochs * (len(data.label) // recipe.batch)
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.rate, steps // 20, steps)
    decay = optax.add_decayed_weights(recipe.decay, mask=lambda tree: jax.tree.map(lambda w: w.ndim > 1, tree))
    tx = optax.chain(decay, optax.clip_by_global_norm(1.0), optax.sgd(rate, momentum=0.9, nesterov=True))
    key = jax.random.key(seed)

    @jax.jit
    def step(params, state, image, label, number):
        def loss(params):
            logits = forward(params, image, jax.random.fold_in(key, number))
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, image, label = tx.init(params), np.asarray(data.image), np.asarray(data.label)
    for number, rows in enumerate(shuffled(data, recipe.batch, recipe.epochs, seed)):
        params, state = step(params, state, image[rows], label[rows], np.uint32(number))
    return params
