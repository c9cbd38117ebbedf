"""How much of the work of a residual CNN and of a ViT can be removed, against small nets trained for as long.

    python -m benchmarks.structured --net cnn --seeds 5 --jobs 5 --out benchmarks/results/structured_cnn.json

A net is trained on Fashion-MNIST; then channels, heads, neurons and features with the lowest Taylor scores are removed
in two rounds, until half or three quarters of the multiply-adds are gone, and training goes on, each time with the
learning rate it began with (rewinding; Renda et al., 2020). Widths stay multiples of 8, which processors like. Beside
it, a net of the same family, narrow enough to need no more multiply-adds, is trained from scratch for all of these
epochs together. Choices were made with `--validation`.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc
from benchmarks import _latency, _nets, harness
from benchmarks._lenet import Part, Parts, parts, shuffled

BATCH = 128
CUTS = (0.5, 0.75)
NETS = {"cnn": _nets.cnn, "vit": _nets.vit}
TIMED = {"cpu": (1, 128), "gpu": (1, 128, 8192), "tpu": (1, 128, 8192)}  # images at a time


def train(
    net: _nets.Net, forward: Callable, variables: Any, data: Part, epochs: int, seed: int, batch: int = BATCH
) -> Any:
    """Train along a cosine; `forward` returns logits and new statistics."""
    steps = epochs * (len(data.label) // batch)
    tx = net.optimizer(optax.warmup_cosine_decay_schedule(0.0, net.rate, steps // 20, steps))

    @jax.jit
    def step(variables, state, image, label):
        def loss(params):
            logits, stats = forward({**variables, "params": params}, image)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), stats

        slopes, stats = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = tx.update(slopes, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), "stats": stats}, state

    state = tx.init(variables["params"])
    image, label = np.asarray(data.image), np.asarray(data.label)
    for rows in shuffled(data, batch, epochs, seed):
        variables, state = step(variables, state, image[rows], label[rows])
    return variables


def shrink(net: _nets.Net, variables: Any, data: Parts, cut: float, epochs: int, seed: int) -> tuple[Any, Any]:
    """Remove and retrain in two rounds; return the smaller function and its variables."""
    apply, forward = net.apply, net.train
    work = jc.graph.multiply_adds(net.apply, variables, data.train.image[:1])
    for number, goal in enumerate((cut / 2, cut)):
        scores = taylor(apply, variables, data.train, seed)
        graph = jc.graph.trace(apply, variables, data.train.image[:2])
        left = jc.graph.multiply_adds(apply, variables, data.train.image[:1])
        chosen = jc.shrinking.choose(
            graph, scores, multiply_adds=max(1 - (1 - goal) * work / left, 0.0), scope="global", **rules(net)
        )
        small = jc.shrinking.remove(graph, variables, chosen, data.train.image[:2])
        apply, forward = small.fn, small.like(forward, shrinkable=None if net is _nets.vit else "1/**")
        rounds = (epochs // 3, epochs - epochs // 3)[number]
        variables = train(net, forward, small.params, data.train, rounds, seed + 100 * (number + 1))
    return apply, variables


def rules(net: _nets.Net) -> dict[str, Any]:
    """Return how many units stay of a group."""
    return {"multiple": 8, "minimum": 8} if net is _nets.cnn else {"minimum": 2}


def taylor(apply: Callable, variables: Any, data: Part, seed: int) -> Any:
    """Score entries by `|w * g|`, from the gradient over 2,048 images."""
    rows = np.random.default_rng(seed).permutation(len(data.label))[:2048]

    def loss(variables, image, label):
        return optax.softmax_cross_entropy_with_integer_labels(apply(variables, image), label).mean()

    slopes = jax.jit(jax.grad(loss))(variables, data.image[rows], data.label[rows])
    scores = jc.pruning.taylor(variables["params"], grads=slopes["params"])
    return {"params": scores, "stats": jax.tree.map(jnp.zeros_like, variables["stats"])}


def narrower(net: _nets.Net, work: int, image: jax.Array) -> int:
    """Return the largest width of the family that needs no more multiply-adds."""
    step = _nets.HEADS if net is _nets.vit else 1
    widths = range(step, net.width + 1, step)

    def cost(width: int) -> int:
        shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), width))
        return jc.graph.multiply_adds(net.apply, shapes, image)

    return max(width for width in widths if cost(width) <= work)


def error(apply: Callable, variables: Any, data: Part) -> float:
    """Return the percentage of images that are not recognized."""
    predict = jax.jit(lambda v, x: jnp.argmax(apply(v, x), -1))
    found = [predict(variables, data.image[i : i + 1000]) for i in range(0, len(data.label), 1000)]
    return float(100 * np.mean(np.concatenate(found) != np.asarray(data.label)))


def measure(apply: Callable, variables: Any, image: jax.Array) -> dict[str, Any]:
    """Return multiply-adds, parameters, and bytes of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.jc"
        jc.export.save(path, variables)
        size = path.stat().st_size
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return {"multiply_adds": jc.graph.multiply_adds(apply, variables, image), "parameters": count, "bytes": size}


class Job(NamedTuple):
    """What a process is told.

    Attributes:
      net: "cnn" or "vit".
      seed: of everything.
      epochs: of the dense net.
      more: epochs of retraining.
      cuts: shares of the multiply-adds to remove.
      validation: whether the validation images are scored, and not trained on.
      quick: whether to take the digits.
    """

    net: str
    seed: int
    epochs: int
    more: int
    cuts: tuple[float, ...]
    validation: bool
    quick: bool


def run(job: Job) -> tuple[dict[str, Any], dict[str, _latency.Program]]:
    """Train, shrink and compare with one seed; return what was found, and what can be timed."""
    net, (data, scored) = NETS[job.net], images(job)
    one, row, programs = data.train.image[:1], {}, {}

    def keep(name: str, apply: Callable, variables: Any, **more: Any) -> dict[str, Any]:
        row[name] = {"error": error(apply, variables, scored), **more, **measure(apply, variables, one)}
        programs[name] = _latency.program(apply, variables, scored.image, TIMED[jax.default_backend()])
        return row[name]

    def scratch(width: int, epochs: int) -> Any:
        return train(net, net.train, net.init(jax.random.key(job.seed), width), data.train, epochs, job.seed)

    dense = scratch(net.width, job.epochs)
    keep("dense", net.apply, dense)
    for cut in job.cuts:
        found = keep(f"shrunk {cut:.0%}", *shrink(net, dense, data, cut, job.more, job.seed))
        width = narrower(net, found["multiply_adds"], one)
        keep(f"small {cut:.0%}", net.apply, scratch(width, job.epochs + job.more), width=width)
    return row, programs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=NETS, default="cnn")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="of the dense net")
    parser.add_argument("--more", type=int, default=4, help="epochs of retraining")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time; times are taken when all have ended")
    parser.add_argument("--validation", action="store_true", help="train without the validation images and score them")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()
    seeds, epochs, more = (1, 1, 3) if args.quick else (args.seeds, args.epochs, args.more)
    cuts = CUTS[:1] if args.quick else CUTS
    jobs = [Job(args.net, i, epochs, more, cuts, args.validation, args.quick) for i in range(seeds)]
    with _latency.alone(args.jobs) as pool:
        found = list(pool.map(run, jobs))
    rows = [row for row, _ in found]
    for _ in timed(found, np.asarray(images(jobs[0])[1].image), 10 if args.quick else 40):
        harness.write(summary(rows, args.net), args.out, epochs=epochs, more=more, seeds=rows)
    harness.show(f"{args.net}, {len(rows)} seed(s): medians of ratios to dense", *table(rows))
    harness.finish(summary(rows, args.net), args.out, epochs=epochs, more=more, seeds=rows)


def timed(
    found: Sequence[tuple[dict[str, Any], dict[str, _latency.Program]]], image: np.ndarray, rounds: int
) -> Iterator[int]:
    """Add times, seed by seed: on one core, and on an accelerator, where there is one, for the first seed alone."""
    here = jax.default_backend()
    yield -1  # nothing is lost if this ends early
    for number, (row, programs) in enumerate(found):
        for platform in {"cpu", here} if number == 0 else {"cpu"}:
            for name, times in _latency.measure(programs, image, platform, TIMED[platform], rounds).items():
                row[name] |= times
        yield number


def images(job: Job) -> tuple[Parts, Part]:
    """Return the data, and the part of it that is scored."""
    data = digits() if job.quick else parts("fashion-mnist", whole=not job.validation)
    return data, data.validation if job.validation else data.test


def digits() -> Parts:
    """Return some of the digits that ship with scikit-learn, enlarged to 28 x 28: for a quick look at the script."""

    def enlarged(part: Part) -> Part:
        image = jnp.repeat(jnp.repeat(part.image[:512].reshape(-1, 8, 8), 3, 1), 3, 2)
        return Part(jnp.pad(image, ((0, 0), (2, 2), (2, 2))).reshape(-1, 784), part.label[:512])

    return Parts(*map(enlarged, parts("digits")))


def summary(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Return the mean errors, and how much better than the small net the shrunk one is."""
    keys = {}
    for variant in rows[0]:
        label = f"{name}_{variant.replace(' ', '_').replace('%', '')}"
        keys[f"{label}_error"] = mean(row[variant]["error"] for row in rows)
        keys |= {f"{label}_{field}": value for field, value in shares(rows, variant).items()}
    return keys


def shares(rows: list[dict[str, Any]], variant: str) -> dict[str, float]:
    """Return the medians over seeds of ratios to the dense net: multiply-adds, bytes, and times."""
    found = {}
    for field in ("multiply_adds", "bytes"):
        found[field] = median(row[variant][field] / row["dense"][field] for row in rows)
    for field in (f"{platform}_{batch}" for platform in TIMED for batch in TIMED[platform]):
        times = [row[variant][field] for row in rows if field in row[variant]]
        found |= {field: median(times)} if times else {}
    return found


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows for people."""
    lines = []
    for variant in rows[0]:
        errors = [row[variant]["error"] for row in rows]
        spread = f"{mean(errors):.2f} +- {stdev(errors) if len(errors) > 1 else 0:.2f}"
        lines.append([variant, spread, *shares(rows, variant).values()])
    return ["net", "error %", *shares(rows, "dense")], lines


if __name__ == "__main__":
    main()
