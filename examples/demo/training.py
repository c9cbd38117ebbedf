"""The training runs of the demo: one jitted step each, an epoch in one `lax.scan`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import jaxopt_compress as jc
from examples.data import Split


class MLP(nn.Module):
    """Dense layers with ReLU between them."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        """Compute logits."""
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Setting(NamedTuple):
    """What is trained and for how long; chosen on validation data."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    teacher_epochs: int
    epochs: int
    batch: int
    learning_rate: float
    sparsity: float
    temperature: float
    alpha: float
    jitter: int  # the teacher's images are shifted by up to so many pixels


SETTINGS = {
    "digits": Setting((512, 512, 10), (512, 256, 10), 60, 60, 64, 2e-3, 0.9, 4.0, 0.5, 1),
    "mnist": Setting((1200, 1200, 10), (300, 100, 10), 8, 20, 128, 2e-3, 0.9, 4.0, 0.9, 2),
    "fashion-mnist": Setting((1200, 1200, 10), (300, 100, 10), 8, 20, 128, 2e-3, 0.9, 4.0, 0.5, 0),
}

Loss = Callable[[TrainState, Any, dict[str, jax.Array], Any], jax.Array]


def compression(setting: Setting, steps: int) -> jc.ParamTransform:
    """Prune to the final sparsity over the first two thirds of a run, and train with int8 weights throughout."""
    sparsity = optax.polynomial_schedule(
        0.0, setting.sparsity, power=3, transition_steps=steps // 2, transition_begin=steps // 6
    )
    every = max(steps // 60, 1)
    return jc.chain(
        jc.select("**/kernel", jc.periodic(jc.pruning.prune(jc.pruning.magnitude, sparsity, scope="global"), every)),
        jc.select("**/kernel", jc.quantization.fake_quantize(bits=8)),
    )


def optimizer(setting: Setting, steps: int, t: jc.ParamTransform) -> jc.optimizers.Attached:
    """Adam with a cosine schedule, carrying a transform."""
    return jc.attach(jc.optimizers.adam(optax.cosine_decay_schedule(setting.learning_rate, steps)), t)


def hard_loss(state: TrainState, params: Any, batch: dict[str, jax.Array], teacher_params: Any) -> jax.Array:
    """Compare with the labels."""
    del teacher_params
    logits = state.apply_fn(state.tx.apply(params, state.opt_state), batch["image"])
    return jc.distillation.cross_entropy(logits, batch["label"]).mean()


def distilled_loss(setting: Setting) -> Loss:
    """Compare with the labels and with the teacher's soft targets, through the compressed weights."""
    teacher = MLP(setting.teacher)

    def loss_fn(state, params, batch, teacher_params):
        logits = state.apply_fn(state.tx.apply(params, state.opt_state), batch["image"])
        soft = teacher.apply(teacher_params, batch["image"])
        losses = jc.distillation.kd(logits, soft, batch["label"], temperature=setting.temperature, alpha=setting.alpha)
        return losses.mean()

    return loss_fn


def train_step(state: TrainState, batch: dict[str, jax.Array], teacher_params: Any, loss_fn: Loss):
    """Take one step: optimizing, pruning, quantizing and distilling all happen in here."""
    loss, grads = jax.value_and_grad(lambda params: loss_fn(state, params, batch, teacher_params))(state.params)
    return state.apply_gradients(grads=grads), loss


@partial(jax.jit, static_argnames=("loss_fn", "batch", "jitter"), donate_argnames=("state",))
def epoch(state: TrainState, data: Split, key, teacher_params, *, loss_fn: Loss, batch: int, jitter: int):
    """Scan the training step over one shuffled epoch; the incomplete last batch is left out."""
    order_key, shift_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(data.label))
    order = order[: len(order) // batch * batch].reshape(-1, batch)

    def body(state, step):
        rows, key = step
        images = _shifted(data.image[rows], key, jitter)
        return train_step(state, {"image": images, "label": data.label[rows]}, teacher_params, loss_fn)

    return jax.lax.scan(body, state, (order, jax.random.split(shift_key, len(order))))


def _shifted(images: jax.Array, key: jax.Array, pixels: int) -> jax.Array:
    """Shift square images by up to `pixels` in both directions, zeros moving in."""
    if not pixels:
        return images
    side = int(images.shape[1] ** 0.5)
    padded = jnp.pad(images.reshape(-1, side, side), ((0, 0), (pixels, pixels), (pixels, pixels)))
    starts = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
    crop = jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, start, (side, side)))
    return crop(padded, starts).reshape(images.shape)


class Run(NamedTuple):
    """One model to train; its parts are made once, so that all seeds share one compiled epoch."""

    model: MLP
    tx: jc.optimizers.Attached
    loss_fn: Loss
    epochs: int
    batch: int
    jitter: int = 0


def train(
    run: Run,
    data: Split,
    seed: int,
    teacher_params: Any = None,
    each_epoch: Callable[[int, TrainState], None] = lambda number, state: None,
) -> TrainState:
    """Train a new model and return its state."""
    init_key, key = jax.random.split(jax.random.key(seed))
    data = Split(jnp.asarray(data.image), jnp.asarray(data.label))
    params = run.model.init(init_key, data.image[:1])
    state = TrainState.create(apply_fn=run.model.apply, params=params, tx=run.tx)
    state = state.replace(step=jnp.zeros((), jnp.int32))  # a Python 0 would cost a second compilation
    for number in range(run.epochs):
        state, _ = epoch(
            state,
            data,
            jax.random.fold_in(key, number),
            teacher_params,
            loss_fn=run.loss_fn,
            batch=run.batch,
            jitter=run.jitter,
        )
        each_epoch(number, state)
    return state


def runs(setting: Setting, images: int) -> dict[str, Run]:
    """Return the three runs of the demo; the two students have the same model, seeds, data and number of steps."""
    steps = setting.epochs * (images // setting.batch)
    teacher_steps = setting.teacher_epochs * (images // setting.batch)
    teacher, student = MLP(setting.teacher), MLP(setting.student)
    dense, compressed = jc.chain(), compression(setting, steps)
    return {
        "teacher": Run(
            teacher,
            optimizer(setting, teacher_steps, dense),
            hard_loss,
            setting.teacher_epochs,
            setting.batch,
            setting.jitter,
        ),
        "dense student": Run(student, optimizer(setting, steps, dense), hard_loss, setting.epochs, setting.batch),
        "compressed student": Run(
            student, optimizer(setting, steps, compressed), distilled_loss(setting), setting.epochs, setting.batch
        ),
    }


@partial(jax.jit, static_argnames=("apply_fn",))
def forward(apply_fn: Callable, params: Any, images: jax.Array) -> jax.Array:
    """Compute logits."""
    return apply_fn(params, images)


def accuracy(apply_fn: Callable, params: Any, data: Split) -> float:
    """Return the fraction of images whose largest logit is that of the label."""
    logits = np.asarray(forward(apply_fn, params, jnp.asarray(data.image)))
    return float(np.mean(logits.argmax(-1) == data.label))
