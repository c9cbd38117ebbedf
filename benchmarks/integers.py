"""Does what is served answer like what was trained? `python -m benchmarks.integers [--quick] [--out FILE]`.

An MLP, a residual CNN with batch normalization and a vision transformer are trained on Fashion-MNIST, then quantized
(w8a8): with ranges found as they come, with ranges observed on 1,024 training images, and with such ranges and one more
epoch of quantization-aware training. The function that was trained, which rounds floats, and the served one, which
multiplies stored int8 codes, answer all 10,000 test images; counted is how often they differ.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import _lenet, _nets, harness
from benchmarks.structured import BATCH, digits, train
from jaxopt_compress.quantization import Quantization, Scheme, convert, observers, quantize, schemes

CALIBRATION = 1024


def mlp_init(key: jax.Array, width: int) -> Any:
    """Make the variables of LeNet-300-100."""
    del width
    return {"params": _lenet.init(key), "stats": {}}


def mlp_apply(variables: Any, images: jax.Array) -> jax.Array:
    """Apply LeNet-300-100."""
    return _lenet.forward(variables["params"], images)


MLP = _nets.Net(mlp_init, lambda v, x: (mlp_apply(v, x), {}), mlp_apply, 300, _nets.sgd, 0.1)
NETS = {"mlp": MLP, "cnn": _nets.cnn, "vit": _nets.vit}
SCHEMES = {"dynamic": Scheme(), "static": schemes.static(observers.minmax(), zero_point=True)}


def logits(fn: Callable, images: Any, *args: Any) -> np.ndarray:
    """Answer all images, a thousand at a time."""
    run = jax.jit(fn)
    return np.concatenate([run(*args, images[i : i + 1000]) for i in range(0, len(images), 1000)])


def quantized(net: _nets.Net, variables: Any, images: jax.Array, scheme: Scheme) -> tuple[Quantization, Any]:
    """Quantize all products of a trained net, and observe ranges."""
    q = quantize(net.apply, variables, images[:BATCH], rules={"**": scheme})
    ranges, observe = q.init(), jax.jit(q.observe)
    for i in range(0, min(CALIBRATION, len(images)) // BATCH * BATCH, BATCH):
        ranges = observe(variables, ranges, images[i : i + BATCH])
    return q, ranges


def trained_on(net: _nets.Net, variables: Any, data: _lenet.Part, seed: int) -> tuple[Any, Quantization, Any]:
    """Train for one epoch with products rounded, batch statistics fixed; weights are those of a tenth of the rate."""
    q, ranges = quantized(net, variables, data.image, SCHEMES["static"])
    slow = net._replace(rate=net.rate / 10)
    stats = variables["stats"]
    variables = train(slow, lambda v, x: (q({**v, "stats": stats}, ranges, x), stats), variables, data, 1, seed)
    return variables, *quantized(net, variables, data.image, SCHEMES["static"])


def compare(name: str, epochs: int, parts: _lenet.Parts, seed: int, more: bool) -> dict[str, Any]:
    """Train a net, and compare the function that was trained with the one that is served."""
    net, data, label = NETS[name], parts.train, np.asarray(parts.test.label)
    variables = train(net, net.train, net.init(jax.random.key(seed), net.width), data, epochs, seed)
    off = lambda found: float(100 * np.mean(found.argmax(1) != label))  # noqa: E731
    rows = {"float": {"error": off(logits(net.apply, parts.test.image, variables))}}
    cases = {kind: (variables, *quantized(net, variables, data.image, scheme)) for kind, scheme in SCHEMES.items()}
    if more:
        cases["trained"] = trained_on(net, variables, data, seed)
    for kind, (params, q, ranges) in cases.items():
        int_fn, int_params = convert(q, params, ranges)
        fake = logits(q, parts.test.image, params, ranges)
        real = logits(int_fn, parts.test.image, int_params)
        rows[kind] = {
            "error": off(real),
            "answers that differ": int(np.sum(fake.argmax(1) != real.argmax(1))),
            "largest difference of a logit": float(np.abs(fake - real).max()),
            "largest logit": float(np.abs(fake).max()),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the digits, one epoch, MLP and CNN, no training afterwards"
    )
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    parts = digits() if options.quick else _lenet.parts("fashion-mnist")
    nets, epochs = (["mlp", "cnn"], 1) if options.quick else (options.nets, options.epochs)
    found = {name: compare(name, epochs, parts, options.seed, not options.quick) for name in nets}
    columns = ("error", "answers that differ", "largest difference of a logit", "largest logit")
    rows = [
        (net, kind, *(row.get(key, "") for key in columns)) for net, each in found.items() for kind, row in each.items()
    ]
    title = f"trained function and integers, {len(parts.test.label)} test images"
    harness.show(title, ("net", "ranges", "error, %", *columns[1:]), rows)
    differ = sum(row.get("answers that differ", 0) for rows in found.values() for row in rows.values())
    harness.finish({"answers_that_differ": differ}, options.out, rows=found, options=vars(options))


if __name__ == "__main__":
    main()
