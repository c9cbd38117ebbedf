"""What do weights of one bit cost an MLP? `python -m benchmarks.binary_mlp [--data NAME] [--quick] [--out FILE]`.

The net of BinaryConnect: three hidden layers of 1,024 ReLUs, batch normalization behind every layer, a squared hinge
loss, no augmentation, no dropout. All four kernels are +1 or -1 in the forward pass; the same net with floats
is trained for as long. What is scored has been through a file: a bit a weight, floats for the normalization. Published,
on MNIST: 1.29 % (Courbariaux et al., 2015, the best of up to 1,000 epochs). Choices were made with `--validation`.
"""

from functools import partial
from statistics import mean, stdev
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxopt_compress as jc
from benchmarks import _lenet, _seeds, harness
from benchmarks._lenet import KERNELS, Part

WIDTHS = (784, 1024, 1024, 1024, 10)
RATES = {"float": 1e-3, "binary": 3e-3}
TRANSFORMS = {"float": jc.chain(), "binary": jc.select(KERNELS, jc.quantization.binary(scaled=False))}


def init(key: jax.Array) -> Any:
    """Make the parameters: kernels uniform within a tenth of the levels."""
    keys = jax.random.split(key, len(WIDTHS) - 1)
    return {
        f"dense_{i}": {
            "kernel": jax.random.uniform(k, (n, m), minval=-0.1, maxval=0.1),
            "scale": jnp.ones(m),
            "shift": jnp.zeros(m),
        }
        for i, (k, n, m) in enumerate(zip(keys, WIDTHS[:-1], WIDTHS[1:]))
    }


def forward(params: Any, x: jax.Array, stats: Any = None) -> tuple[jax.Array, Any]:
    """Return outputs and the statistics of the batch; with `stats`, those are normalized by instead."""
    seen = {}
    for name, layer in params.items():
        x = jnp.matmul(x.astype(jnp.bfloat16), layer["kernel"].astype(jnp.bfloat16), preferred_element_type=jnp.float32)
        center, spread = seen[name] = (x.mean(0), x.var(0)) if stats is None else stats[name]
        x = (x - center) * jax.lax.rsqrt(spread + 1e-4) * layer["scale"] + layer["shift"]
        x = x if name == list(params)[-1] else jax.nn.relu(x)
    return x, seen


def loss(params: Any, part: Part) -> jax.Array:
    """Return the mean over examples of the squared hinge losses of ten classes."""
    wanted = 2 * jax.nn.one_hot(part.label, 10) - 1
    return jnp.mean(jnp.sum(jnp.maximum(0, 1 - wanted * forward(params, part.image)[0]) ** 2, -1))


@partial(jax.jit, static_argnames=("kind", "epochs", "batch"))
def train(kind: str, data: Part, seed: jax.Array, epochs: int, batch: int = 200) -> tuple[Any, Any]:
    """Return parameters and the state of the transform, after one compiled run."""
    each = len(data.label) // batch
    rate = optax.cosine_decay_schedule(RATES[kind], epochs * each)
    kept = optax.identity() if kind == "float" else jc.optimizers.keep_within()
    tx = jc.attach(optax.chain(jc.optimizers.adam(rate), kept), TRANSFORMS[kind])
    key = jax.random.key(seed)

    def step(carry, rows):
        params, state = carry
        slopes = jax.grad(lambda p: loss(tx.apply(p, state), Part(data.image[rows], data.label[rows])))(params)
        updates, state = tx.update(slopes, state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(key, number), len(data.label))
        return jax.lax.scan(step, carry, order[: each * batch].reshape(each, batch))[0], None

    params = init(key)
    (params, state), _ = jax.lax.scan(epoch, (params, tx.init(params)), jnp.arange(epochs))
    return params, jc.optimizers.compress_state(state)


@jax.jit
def error(variables: Any, part: Part) -> jax.Array:
    """Return the percentage of images that are not recognized."""
    found, _ = forward(variables["params"], part.image, variables["stats"])
    return 100 * jnp.mean(jnp.argmax(found, -1) != part.label)


def run(kind: str, data: Part, scored: Part, seed: int, epochs: int) -> dict[str, Any]:
    """Return the error and the bytes of one net, normalized by the statistics of 10,000 training images."""
    params, state = train(kind, data, seed, epochs)
    t = TRANSFORMS[kind]
    stats = forward(t.apply(params, state), data.image[:10_000])[1]
    variables, size = harness.saved({"params": t.encode(params, state), "stats": stats})
    return {"error": round(float(error(jc.decode(variables), scored)), 2), "bytes": size}


def main() -> None:
    parser = _seeds.arguments(__doc__, "two epochs", "mnist")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", choices=RATES, default=list(RATES))
    options = parser.parse_args()
    epochs = 2 if options.quick else options.epochs
    data = _lenet.parts(options.data, whole=not options.validation, standardized=False)
    scored = data.validation if options.validation else data.test

    def each(seed: int) -> _seeds.Rows:
        return [{"seed": seed} | {kind: run(kind, data.train, scored, seed, epochs) for kind in options.kinds}]

    rows = _seeds.over(options, keys, each)
    cells = []
    for kind in options.kinds:
        errors = [row[kind]["error"] for row in rows]
        spread = stdev(errors) if len(errors) > 1 else 0.0
        cells.append((kind, f"{mean(errors):.2f} +- {spread:.2f}", rows[0][kind]["bytes"]))
    harness.show(f"MLP 3x1024 on {options.data}", ("weights", "error, %", "bytes"), cells)
    _seeds.finish(options, keys(rows), rows)


def keys(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean errors."""
    return {f"binary_mlp_{kind}_error": mean(row[kind]["error"] for row in rows) for kind in RATES if kind in rows[0]}


if __name__ == "__main__":
    main()
