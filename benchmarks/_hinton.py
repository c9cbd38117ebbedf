"""The nets of Hinton's distillation of MNIST: a large one with dropout and shifted images, a smaller one with neither.

A whole training run is one compiled program; products are of bfloat16, sums of float32.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxopt_compress as jc
from benchmarks._lenet import Part, init
from jaxopt_compress import distillation
from jaxopt_compress.products import Dot

Params = dict[str, Any]
PRODUCT = Dot(contracting=((1,), (0,)), batch=((), ()), ndims=(2, 2))
SHIFT = 2  # pixels, each way
MOST_NORM = 3.5  # of what goes into a neuron of the large net
DROPPED = (26, 77, 77)  # of 256 inputs of its layers, on average


class Recipe(NamedTuple):
    """How a net is trained: Adam, along a cosine to zero.

    Attributes:
      widths: of its layers.
      epochs: passes over the data.
      rate: the first learning rate.
      batch: images a step.
      regularized: whether inputs of the layers are dropped and norms bounded.
      shifts: whether images are shifted.
      averaged: whether a teacher's logits are the mean over an image and four more, one pixel from it.
      temperature: of the teacher's targets.
      alpha: the teacher's share of the loss; 0 needs no teacher.
    """

    widths: tuple[int, ...]
    epochs: int
    rate: float = 1e-3
    batch: int = 100
    regularized: bool = False
    shifts: bool = False
    averaged: bool = False
    temperature: float = 20.0
    alpha: float = 0.0


@jax.custom_vjp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiply what is rounded to bfloat16, and add up in float32; in the backward pass too, which JAX would not do."""
    return PRODUCT(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), jnp.float32)


def _product(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, w), (x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))


def _slopes(held: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    slope = slope.astype(jnp.bfloat16)
    return PRODUCT.transposed(0, slope, held[1]), PRODUCT.transposed(1, slope, held[0])


product.defvjp(_product, _slopes)


def forward(params: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Return logits; with a key inputs of the layers are dropped."""
    for number, (name, layer) in enumerate(params.items()):
        if key is not None:
            key, mine = jax.random.split(key)
            x = dropped(x, DROPPED[number], mine)
        x = product(x, layer["kernel"]) + layer["bias"]
        x = x if name == list(params)[-1] else jax.nn.relu(x)
    return x


def dropped(x: jax.Array, share: int, key: jax.Array) -> jax.Array:
    """Replace `share / 256` of the values by zeros and scale the others up; drawing bytes is faster than floats."""
    words = jax.random.bits(key, (len(x), -(-x.shape[1] // 4)), jnp.uint32)
    drawn = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(len(x), -1)[:, : x.shape[1]]
    return jnp.where(drawn < share, 0, x * (256 / (256 - share)))


def shifted(images: jax.Array, offsets: jax.Array) -> jax.Array:
    """Shift each image by its own pixels up and left, `[2, images]` out of `0 .. 2 SHIFT`; what comes in is black."""
    size = 28 + 2 * SHIFT
    padded = _padded(images, SHIFT).reshape(len(images), -1)
    rows, columns = offsets[:, :, None] + jnp.arange(28)
    places = rows[:, :, None] * size + columns[:, None, :]
    return jnp.take_along_axis(padded, places.reshape(len(images), -1), axis=1)


def _padded(images: jax.Array, pixels: int) -> jax.Array:
    return jnp.pad(images.reshape(-1, 28, 28), ((0, 0), (pixels, pixels), (pixels, pixels)))


@partial(jax.jit, static_argnames="recipe")
def says(recipe: Recipe, teacher: Params, images: jax.Array) -> jax.Array:
    """Return what a teacher says of every image at every offset that a student may see it at.

    Returns:
      Logits, `[offsets, offsets, images, classes]`: one offset each way without `shifts`. With `averaged` they are the
      mean of those at this offset and one pixel up, down, left and right of it.
    """
    reach = SHIFT * recipe.shifts + recipe.averaged
    padded = _padded(images, reach)

    def at(offset: jax.Array) -> jax.Array:
        seen = jax.lax.dynamic_slice(padded, (0, *offset), (len(images), 28, 28))
        return logits(teacher, seen.reshape(len(images), -1))

    count = 2 * reach + 1
    offsets = jnp.stack(jnp.meshgrid(jnp.arange(count), jnp.arange(count), indexing="ij"), -1)
    found = jax.lax.map(at, offsets.reshape(-1, 2)).reshape(count, count, len(images), -1)
    if not recipe.averaged:
        return found
    inner = found[1:-1, 1:-1]
    return (inner + found[:-2, 1:-1] + found[2:, 1:-1] + found[1:-1, :-2] + found[1:-1, 2:]) / 5


@partial(jax.jit, static_argnames="recipe")
def train(recipe: Recipe, data: Part, said: jax.Array | None, seed: jax.Array | int) -> Any:
    """Return parameters; what a teacher `says` is of each image as the student sees it."""
    each = len(data.label) // recipe.batch
    tx = jc.optimizers.adam(optax.cosine_decay_schedule(recipe.rate, recipe.epochs * each))
    starts, orders, draws = jax.random.split(jax.random.key(seed), 3)

    def loss(params, rows, key):
        image, label = data.image[rows], data.label[rows]
        offsets = jax.random.randint(key, (2, len(rows)), 0, 2 * SHIFT * recipe.shifts + 1)
        image = shifted(image, offsets) if recipe.shifts else image
        found = forward(params, image, jax.random.fold_in(key, 1) if recipe.regularized else None)
        if said is None:
            return distillation.cross_entropy(found, label).mean()
        theirs = said[offsets[0], offsets[1], rows]
        return distillation.kd(found, theirs, label, temperature=recipe.temperature, alpha=recipe.alpha).mean()

    def step(carry, inputs):
        params, state = carry
        rows, number = inputs
        slopes = jax.grad(loss)(params, rows, jax.random.fold_in(draws, number))
        updates, state = tx.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        return (_bounded(params) if recipe.regularized else params, state), None

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(orders, number), len(data.label))
        rows = order[: each * recipe.batch].reshape(each, recipe.batch)
        return jax.lax.scan(step, carry, (rows, number * each + jnp.arange(each)))[0], None

    params = init(starts, recipe.widths)
    return jax.lax.scan(epoch, (params, tx.init(params)), jnp.arange(recipe.epochs))[0][0]


def _bounded(params: Params) -> Params:
    """Scale down what goes into a neuron where its length is over the bound."""

    def bound(w: jax.Array) -> jax.Array:
        return w * jnp.minimum(1, MOST_NORM / jnp.maximum(jnp.linalg.norm(w, axis=0, keepdims=True), 1e-12))

    return {name: {**layer, "kernel": bound(layer["kernel"])} for name, layer in params.items()}


@jax.jit
def logits(params: Params, image: jax.Array) -> jax.Array:
    """Return the logits of all images, some at a time."""
    parts = jnp.array_split(image, -(-len(image) // 10_000))
    return jnp.concatenate([forward(params, part) for part in parts])
