"""The rungs of `benchmarks.ladder`: one trained net, its weights rounded in many ways."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import _nets
from benchmarks._lenet import Part
from benchmarks.structured import train
from jaxopt_compress.calibration import calibrate, gram
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Quantization, Scheme, bases, convert, fits, learned, observers, quantize
from jaxopt_compress.quantization import post_training as pt


class Task(NamedTuple):
    """A net, its data, and how long it is trained.

    Attributes:
      net: the network family.
      data: what it is trained on.
      more: what quantization-aware training sees once, and the float net too, that the comparison be fair.
      score: `(fn, variables) -> number`, of which less is better.
      epochs: of training in floats.
      batch: examples a step.
      blocks: what the net does as functions, one after the other.
      calibration: how many examples the methods after training see.
    """

    net: _nets.Net
    data: Part
    more: Part
    score: Callable[[Callable, Any], float]
    epochs: int
    batch: int
    blocks: Sequence[Callable]
    calibration: int = 1024

    def batches(self) -> list[jax.Array]:
        """Return the examples that the methods after training see."""
        rows = range(0, self.calibration, self.batch)
        return [self.data.image[i : i + self.batch] for i in rows]


def scheme(bits: int, **more: Any) -> Scheme:
    """Round weights to some bits, activations to eight with a zero point."""
    return Scheme(Integers(bits), Integers(8, restricted=False), observers.minmax(), zero_point=True, **more)


def observed(q: Quantization, variables: Any, ranges: Any, batches: Sequence[jax.Array]) -> Any:
    """Observe the ranges of activations."""
    observe = jax.jit(q.observe)
    for batch in batches:
        ranges = observe(variables, ranges, batch)
    return ranges


def float_net(task: Task, seed: int) -> Any:
    """Train the net in floats."""
    return train(
        task.net, task.net.train, task.net.init(jax.random.key(seed), task.net.width), task.data, task.epochs, seed,
        task.batch,
    )  # fmt: skip


def trained_on(task: Task, forward: Callable, variables: Any, seed: int) -> Any:
    """Train for the one epoch more, statistics fixed, at a tenth of the rate."""
    slow = task.net._replace(rate=task.net.rate / 10)
    fixed = lambda v, x: (forward(v, x), variables["stats"])  # noqa: E731
    return train(slow, fixed, variables, task.more, 1, seed + 100, task.batch)


class Rungs:
    """What the methods after training start from: the net, the same net equalized, and statistics of both."""

    def __init__(self, task: Task, variables: Any):
        """Calibrate and equalize."""
        self.task, self.variables, self.batches = task, variables, task.batches()
        apply = task.net.apply
        self.states = calibrate(apply, variables, self.batches, gram())
        self.equal = pt.equalize(apply, variables, self.batches[0]).params
        self.equal_states = calibrate(apply, self.equal, self.batches, gram())

    def after_training(self, bits: int, methods: Sequence[str]) -> dict[str, float]:
        """Return the score of the served function, by method."""
        plain, even = (self.variables, self.states), (self.equal, self.equal_states)
        rounding = {
            "nearest": (pt.nearest(), *plain),
            "bias corrected": (pt.corrected(pt.nearest(gram())), *plain),
            "equalized": (pt.nearest(), *even),
            "equalized, bias corrected": (pt.corrected(pt.nearest(gram())), *even),
            "adaround": (pt.adaround(), *plain),
            "gptq": (pt.gptq(act_order=True), *plain),
        }
        found = {name: self._rounded(bits, *rounding[name]) for name in methods if name in rounding}
        own = {"awq": self._awq, "block by block": self._by_block}
        return found | {name: own[name](bits) for name in methods if name in own}

    def _rounded(self, bits: int, method: pt.Method, variables: Any, states: Any) -> float:
        q = quantize(self.task.net.apply, variables, self.batches[0], rules={"**": scheme(bits)})
        ranges = observed(q, variables, q.init(), self.batches)
        rounded = pt.round_weights(q, variables, (), method, states=states)
        return self.task.score(*convert(q, variables, ranges, rounded.weights))

    def _by_block(self, bits: int) -> float:
        q = quantize(self.task.net.apply, self.variables, self.batches[0], rules={"**": scheme(bits)})
        ranges = observed(q, self.variables, q.init(), self.batches)
        rounded = pt.reconstruct_blocks(q, self.variables, self.batches, self.task.blocks, ranges=ranges)
        return self.task.score(*convert(q, self.variables, ranges, rounded.weights))

    def _awq(self, bits: int) -> float:
        rules = {"**": scheme(bits, basis=bases.diagonal())}
        q = quantize(self.task.net.apply, self.variables, self.batches[0], rules=rules)
        ranges = pt.awq(q, self.variables, q.init(), (), states=self.states)
        ranges = observed(q, self.variables, ranges, self.batches)
        return self.task.score(*convert(q, self.variables, ranges))


def qat(task: Task, bits: int, variables: Any, seed: int) -> float:
    """Return the score after an epoch with scales that are fitted at every step."""
    stats, batches = variables["stats"], task.batches()
    q = quantize(task.net.apply, variables, batches[0], rules={"**": scheme(bits)})
    ranges = observed(q, variables, q.init(), batches)
    after = trained_on(task, lambda v, x: q({**v, "stats": stats}, ranges, x), variables, seed)
    return task.score(*convert(q, after, observed(q, after, q.init(), batches)))


def lsq(task: Task, bits: int, variables: Any, seed: int) -> float:
    """Return the score after an epoch with step sizes that are learned, from those of least square error."""
    stats, batches = variables["stats"], task.batches()
    steps = scheme(bits, learned=learned.lsq(fit=fits.mse()))
    q = quantize(task.net.apply, variables, batches[0], rules={"**": steps})
    ranges, shape = jax.tree.flatten(observed(q, variables, q.init(), batches))
    sizes = [leaf.shape for leaf in ranges]

    def unflatten(steps: list[jax.Array]) -> Any:  # they are flat in training, so that weight decay leaves them alone
        return jax.tree.unflatten(shape, [leaf.reshape(size) for leaf, size in zip(steps, sizes)])

    def forward(v: Any, x: jax.Array) -> jax.Array:
        params = {name: leaf for name, leaf in v["params"].items() if name != "steps"}
        return q({"params": params, "stats": stats}, unflatten(v["params"]["steps"]), x)

    start = {"params": {**variables["params"], "steps": [leaf.ravel() for leaf in ranges]}, "stats": stats}
    after = trained_on(task, forward, start, seed)
    ranges = unflatten(after["params"].pop("steps"))
    return task.score(*convert(q, after, ranges))
