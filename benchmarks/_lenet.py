"""LeNet-300-100 and its like in plain JAX, on MNIST or Fashion-MNIST: a whole training run is one compiled program."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc
from examples.data import load

WIDTHS = (784, 300, 100, 10)
KERNELS = "**/kernel"
Params = dict[str, Any]


class Part(NamedTuple):
    """Images `(n, 784)` and labels `(n,)`."""

    image: jax.Array
    label: jax.Array


class Taught(NamedTuple):
    """What a teacher said of each image.

    Attributes:
      logits: `(n, 10)`.
      temperature: of the loss.
      alpha: its share.
    """

    logits: jax.Array
    temperature: float
    alpha: float


class Parts(NamedTuple):
    """What is trained on, what choices are made on, and what is touched once."""

    train: Part
    validation: Part
    test: Part


class Recipe(NamedTuple):
    """How a net is trained.

    Attributes:
      epochs: passes over the data.
      batch: images a step.
      learning_rate: of SGD with Nesterov momentum 0.9, warmed up for one step in fifty, then along a cosine to zero.
      decay: L2 penalty on kernels.
      smoothing: of the labels.
      longest: a gradient over all parameters, which is cut to this length; None for no bound.
    """

    epochs: int
    batch: int = 100
    learning_rate: float = 0.1
    decay: float = 5e-4
    smoothing: float = 0.0
    longest: float | None = None

    def steps(self, data: Part) -> int:
        """Return the number of steps of a run."""
        return self.epochs * (len(data.label) // self.batch)


def parts(name: str, whole: bool = True, standardized: bool = True) -> Parts:
    """Load a data set; `whole` trains on the validation images too, once all choices are made.

    Args:
      name: as for `examples.data.load`.
      whole: whether the validation images are trained on too.
      standardized: whether pixels have mean 0 and deviation 1 over all images, or are in [0, 1].
    """
    data = load(name)
    image, label = (np.concatenate([getattr(data.train, f), getattr(data.validation, f)]) for f in ("image", "label"))
    mean, deviation = (image.mean(), image.std()) if standardized else (np.float32(0), np.float32(1))
    part = lambda x, y: Part(jnp.asarray((x - mean) / deviation), jnp.asarray(y))  # noqa: E731
    train = part(image, label) if whole else part(*data.train)
    return Parts(train, part(*data.validation), part(*data.test))


def shuffled(data: Part, batch: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Give the numbers of each step's examples, in another order every epoch; what is left over is left out."""
    count = len(data.label)
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        yield from order[: count // batch * batch].reshape(-1, batch)


def init(key: jax.Array, widths: tuple[int, ...] = WIDTHS) -> Params:
    """Make the parameters of an MLP (He et al., 2015)."""
    keys = jax.random.split(key, len(widths) - 1)
    return {
        f"dense_{i}": {"kernel": jax.random.normal(k, (n, m)) * (2 / n) ** 0.5, "bias": jnp.zeros(m)}
        for i, (k, n, m) in enumerate(zip(keys, widths[:-1], widths[1:]))
    }


def forward(params: Params, x: jax.Array) -> jax.Array:
    """Apply the MLP; a layer with a `scale` standardizes its outputs over the batch and multiplies them by it."""
    for i in range(len(params)):
        layer = params[f"dense_{i}"]
        x = jnp.matmul(x, layer["kernel"], preferred_element_type=jnp.float32)
        x = jax.nn.standardize(x, axis=0) * layer["scale"] if "scale" in layer else x
        x = x + layer["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def loss(params: Params, part: Part, smoothing: float = 0.0) -> jax.Array:
    """Return the mean cross-entropy."""
    labels = optax.smooth_labels(jax.nn.one_hot(part.label, 10), smoothing)
    return jnp.mean(optax.softmax_cross_entropy(forward(params, part.image), labels))


def train(
    recipe: Recipe,
    data: Part,
    key: jax.Array,
    start: Params,
    t: jc.ParamTransform,
    penalty: Callable[[Params, Any], Any] = lambda params, state: 0.0,
    taught: Taught | None = None,
) -> tuple[Any, Any]:
    """Train with a transform in the forward pass.

    Args:
      recipe: how.
      data: on what.
      key: for the order of the images.
      start: the first parameters.
      t: the transform, which sees all parameters.
      penalty: `(params, state of t) -> scalar`, added to the loss.
      taught: by whom, if by anyone.

    Returns:
      The parameters and the state of the transform.
    """
    steps, each = recipe.steps(data), recipe.steps(data) // recipe.epochs
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, steps // 50, steps)
    kernels = partial(jax.tree.map, lambda w: w.ndim > 1)
    decay = optax.add_decayed_weights(recipe.decay, mask=kernels)
    cut = optax.identity() if recipe.longest is None else optax.clip_by_global_norm(recipe.longest)
    tx = jc.attach(optax.chain(cut, decay, optax.sgd(rate, momentum=0.9, nesterov=True)), t)

    def step(carry, rows):
        params, state = carry

        def total(params):
            seen = tx.apply(params, state)
            here = Part(data.image[rows], data.label[rows])
            task = loss(seen, here, recipe.smoothing) + penalty(params, jc.optimizers.compress_state(state))
            if taught is None:
                return task
            soft = jc.distillation.soft_targets(
                forward(seen, here.image), taught.logits[rows], temperature=taught.temperature
            )
            return jc.distillation.mix(task, soft.mean(), taught.alpha)

        updates, state = tx.update(jax.grad(total)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(key, number), len(data.label))
        return jax.lax.scan(step, carry, order[: each * recipe.batch].reshape(each, recipe.batch))[0], None

    (params, state), _ = jax.lax.scan(epoch, (start, tx.init(start)), jnp.arange(recipe.epochs))
    return params, jc.optimizers.compress_state(state)


def kept(params: Params) -> dict[str, int]:
    """Count the kernel entries that are not zero, by layer."""
    return {name: int(jnp.sum(layer["kernel"] != 0)) for name, layer in params.items()}


@jax.jit
def error(params: Params, part: Part) -> jax.Array:
    """Return the percentage of images that are not recognized."""
    return 100 * jnp.mean(jnp.argmax(forward(params, part.image), -1) != part.label)
