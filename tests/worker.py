"""One of two processes that train together: `python -m tests.worker PORT NUMBER OUT`; started by `test_processes`."""

import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_compress as jc
from benchmarks import _aot

STEPS, DEVICES = 5, 4
METHODS = {
    "global": lambda: jc.pruning.prune(jc.pruning.magnitude, optax.linear_schedule(0.2, 0.8, 4), scope="global"),
    "erk": lambda: jc.pruning.prune(jc.pruning.taylor, 0.7, allocation=jc.pruning.erk),
    "channels": lambda: jc.pruning.prune(jc.pruning.magnitude, 0.5, pattern=jc.pruning.channels()),
    "n_of_m": lambda: jc.pruning.prune(jc.pruning.magnitude, pattern=jc.pruning.n_of_m(2, 4)),
    "rigl": lambda: jc.pruning.rigl(jax.random.key(0), 0.8, 0.3),
    "set": lambda: jc.pruning.set_(jax.random.key(0), 0.8, 0.3),
}
SPECS = {"in": {"kernel": P("data", "model"), "bias": P("model")}, "out": {"kernel": P("model", "data")}}


def start() -> dict:
    """Return parameters that are exact binary fractions, so that sums of their products are exact in any order."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.integers(-512, 512, shape) / 256).astype(np.float32)  # noqa: E731
    return {"in": {"kernel": draw(32, 64), "bias": np.zeros(64, np.float32)}, "out": {"kernel": draw(64, 16)}}


def train(method: str, place=lambda tree: tree):
    """Run a few steps with gradients that depend on the parameters, and return the final parameters and masks."""
    tx = jc.attach(optax.sgd(0.125), jc.select("**/kernel", jc.periodic(METHODS[method](), 2)))
    params = place(start())

    def loss(params, state):
        seen = tx.apply(params, state)
        return sum(jnp.sum(jnp.abs(w - 0.25)) for w in jax.tree.leaves(seen))

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params, state)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for _ in range(STEPS):
        params, state = jax.block_until_ready(step(params, state))
    text = step.lower(params, state).compile().as_text()
    removed = jax.jit(tx.transform.removed)(params, jc.optimizers.compress_state(state))
    return params, removed, text


def shrink(place=lambda tree, specs: tree) -> dict[str, np.ndarray]:
    """Remove half of the hidden units, whose constants go into the bias of the output, and return what is left."""
    rng = np.random.default_rng(1)
    params = place({**start(), "last": rng.normal(size=16).astype(np.float32)}, {**SPECS, "last": P("data")})
    x = place(rng.normal(size=(8, 32)).astype(np.float32), P("data"))

    def forward(params, x):
        h = jax.nn.sigmoid(x @ params["in"]["kernel"] / 8 + params["in"]["bias"][None])
        return h @ params["out"]["kernel"] + params["last"][None]

    small = jc.shrinking.shrink(forward, params, x, ratio=0.5)
    return {**jc.tree.leaves(small.params), "outputs": jax.block_until_ready(jax.jit(small.fn)(small.params, x))}


def flat(params, removed) -> dict[str, np.ndarray]:
    """Name the arrays of a result."""
    return {f"w/{k}": v for k, v in jc.tree.leaves(params).items()} | {f"m/{k}": v for k, v in removed.items()}


def main(port: str, number: str, out: str) -> None:
    """Train with every method on a mesh over both processes, and let the first write what came of it."""
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(number))
    if jax.device_count() != 2 * DEVICES:
        raise RuntimeError(f"{jax.device_count()} devices")
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    place = lambda tree, specs=SPECS, mesh=mesh: jax.tree.map(  # noqa: E731
        lambda x, spec: jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda at: x[at]), tree, specs
    )
    found = {}
    for method in METHODS:
        with jax.set_mesh(mesh):
            params, removed, text = train(method, place)
        whole = multihost_utils.process_allgather(flat(params, removed), tiled=True)
        found |= {f"{method}/{name}": np.asarray(x) for name, x in whole.items()}
        gathers = [math.prod(shape) for kind, shape in _aot.collectives(text) if kind == "all-gather"]
        found[f"{method}/gathered"] = np.array(max(gathers, default=0))
    auto = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    small = shrink(partial(place, mesh=auto))
    found |= {f"shrink/{k}": np.asarray(v) for k, v in multihost_utils.process_allgather(small, tiled=True).items()}
    if number == "0":
        np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
