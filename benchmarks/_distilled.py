"""A student that is trained with one more loss, whatever that compares, at one and the same budget."""

from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _nets
from benchmarks._lenet import Part, shuffled
from jaxopt_compress import distillation as d


class Extra(NamedTuple):
    """What a loss needs beside the nets.

    Attributes:
      trained: parameters that are trained, and dropped in the end.
      held: what is carried from step to step.
    """

    trained: Any = None
    held: Any = None


class Batch(NamedTuple):
    """One step's data, and the numbers of its examples."""

    image: jax.Array
    label: jax.Array
    examples: jax.Array


class Method(NamedTuple):
    """A loss under test.

    Attributes:
      loss: `(extra, student, teacher, batch, key) -> (losses, held)`; of each net the features by the names of their
        taps, and its "logits".
      taps: whose features it compares, of both nets.
      extra: `(key, student shapes, teacher shapes, teacher variables, number of examples) -> extra`.
      apart: whether task and teacher have a momentum each.
    """

    loss: Callable
    taps: tuple[str, ...] = ()
    extra: Callable[..., Extra] = lambda *_: Extra()
    apart: bool = False


class Recipe(NamedTuple):
    """How a net is trained.

    Attributes:
      net: its family, at its width.
      epochs: passes over the data.
      batch: examples a step.
    """

    net: _nets.Net
    epochs: int
    batch: int


class Pair(NamedTuple):
    """A teacher and its student, of one family.

    Attributes:
      student: how it is trained.
      teacher: its variables, trained.
      data: what the student is trained on.
      folder: for what the teacher says of the data, which all losses ask for.
    """

    student: Recipe
    teacher: Any
    data: Part
    folder: Path

    @property
    def steps(self) -> int:
        """Return how many steps the student is trained."""
        return self.student.epochs * (len(self.data.label) // self.student.batch)

    @property
    def some(self) -> jax.Array:
        """Return as many examples as a batch has."""
        return self.data.image[: self.student.batch]


PLAIN = Method(lambda extra, student, teacher, batch, key: (jnp.zeros(()), extra.held))


def train(pair: Pair, method: Method, share: float, seed: int) -> Any:
    """Train a student; the gradient of the loss is `share` times as long as that of the labels.

    Returns:
      The student's variables.
    """
    net = pair.student.net
    rate = optax.warmup_cosine_decay_schedule(0.0, net.rate, pair.steps // 20, pair.steps)
    tx: Any = _apart(rate) if method.apart else net.optimizer(rate)
    beside = optax.adam(1e-3)
    teacher, shapes = _asked(pair, method.taps)
    variables, slopes, extra = _started(pair, method, shapes, seed)

    @jax.jit
    def step(carry: Any, batch: Batch, said: Any, number: jax.Array) -> Any:
        variables, extra, state, other = carry
        key = jax.random.fold_in(jax.random.key(seed), number)
        gradients, own, stats, held = slopes(variables, extra, batch, said, key)
        total = d.balanced(gradients, {"loss": share}, "task")
        if method.apart:
            size = jnp.maximum(1, optax.global_norm(total))  # bounded as the sum is for the other losses
            task, both = jax.tree.map(lambda g: g / size, (gradients["task"], total))
            taught = jax.tree.map(jnp.subtract, both, task)
            updates, state = tx.update(task, state, variables["params"], distilled=taught)
        else:
            updates, state = tx.update(total, state, variables["params"])
        more, other = beside.update(own, other, extra.trained)
        params = optax.apply_updates(variables["params"], updates)
        extra = Extra(optax.apply_updates(extra.trained, more), held)
        return {"params": params, "stats": stats}, extra, state, other

    carry = variables, extra, tx.init(variables["params"]), beside.init(extra.trained)
    for number, batch in enumerate(_batches(pair, seed)):
        carry = step(carry, batch, teacher[batch.examples], np.uint32(number))
    return carry[0]


def _batches(pair: Pair, seed: int) -> Iterator[Batch]:
    image, label = np.asarray(pair.data.image), np.asarray(pair.data.label)
    for rows in shuffled(pair.data, pair.student.batch, pair.student.epochs, seed):
        yield Batch(image[rows], label[rows], rows.astype(np.int32))


def _apart(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    decay = optax.add_decayed_weights(5e-4, mask=lambda tree: jax.tree.map(lambda w: w.ndim > 1, tree))
    return optax.chain(decay, d.dot(), optax.scale_by_learning_rate(rate))


def _asked(pair: Pair, taps: tuple[str, ...]) -> tuple[d.Store, dict[str, jax.ShapeDtypeStruct]]:
    """Return what the teacher says of every example, logits and features by tap, and a batch's shapes of features."""
    image = pair.data.image
    teacher = d.tap(pair.student.net.apply, taps, pair.teacher, pair.some)
    of = {"teacher": d.fingerprint(pair.teacher), "data": d.fingerprint(image)}
    folder = pair.folder / d.fingerprint(taps)[:16]
    d.build_store(folder, teacher, pair.teacher, np.arange(len(image)), lambda keys: image[keys], of=of)
    like = jax.eval_shape(teacher, pair.teacher, pair.some)
    return d.open_store(folder, of=of, like=like), teacher.shapes


def _started(pair: Pair, method: Method, shapes: Any, seed: int) -> tuple[Any, Callable, Extra]:
    """Return variables, `(variables, extra, batch, said, key) -> (gradients, own, stats, held)`, and the loss's own."""
    key, net = jax.random.key(seed), pair.student.net
    variables = net.init(key, net.width)
    student = d.tap(net.train, method.taps, variables, pair.some)

    def slopes(variables: Any, extra: Extra, batch: Batch, said: Any, key: jax.Array) -> Any:
        theirs = {"logits": said[0], **said[1]}

        def forward(params: Any) -> Any:
            (logits, stats), features = student({**variables, "params": params}, batch.image)
            return {"logits": logits, **features}, stats

        def taught(mine: Any, trained: Any) -> Any:
            losses, held = method.loss(extra._replace(trained=trained), mine, theirs, batch, key)
            return losses.mean(), held

        mine, back, stats = jax.vjp(forward, variables["params"], has_aux=True)
        task = jax.grad(lambda mine: d.cross_entropy(mine["logits"], batch.label).mean())(mine)
        (loss, own), held = jax.grad(taught, (0, 1), has_aux=True)(mine, extra.trained)
        [both] = jax.vmap(back)(jax.tree.map(lambda *slopes: jnp.stack(slopes), task, loss))  # one pass for the two
        return {name: jax.tree.map(itemgetter(i), both) for i, name in enumerate(("task", "loss"))}, own, stats, held

    own = jax.random.fold_in(key, 1)
    return variables, slopes, method.extra(own, student.shapes, shapes, pair.teacher, len(pair.data.label))
