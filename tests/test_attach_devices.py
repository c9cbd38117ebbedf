"""The whole compressed step on one device and on eight: one compilation a run, equal masks, no parameter gathered."""

import logging
import re
from collections import Counter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_compress as jc

SLOW = pytest.mark.slow
STEPS = 9  # refreshes at 0, 4 and 8; the schedule moves between them
BATCH = 16


class Student(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(8)(nn.relu(nn.Dense(128)(x)))


@pytest.fixture(autouse=True)
def user_promotion():
    """Run with JAX's own settings, as a user would."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def compress(scope: str = "global") -> jc.ParamTransform:
    sparsity = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=8)
    prune = jc.pruning.prune(jc.pruning.magnitude, sparsity, scope=scope)
    return jc.select("**/kernel", jc.chain(jc.periodic(prune, every=4), jc.quantization.fake_quantize(8)))


def batches(steps: int = STEPS) -> dict[str, jax.Array]:
    x = jax.random.normal(jax.random.key(1), (steps, BATCH, 32))
    return {"image": x, "label": jnp.argmax(x[..., :8], -1)}


def training(scope: str = "global"):
    """Return a state and the compressed training step of the README, with a teacher."""
    student: Any = Student()
    params = student.init(jax.random.key(0), jnp.zeros((1, 32)))["params"]
    teacher = student.init(jax.random.key(2), jnp.zeros((1, 32)))
    tx = jc.attach(jc.optimizers.adam(1e-2), compress(scope))
    state: Any = TrainState.create(apply_fn=student.apply, params=params, tx=tx)
    state = state.replace(step=jnp.zeros((), jnp.int32))

    def train_step(state, batch, reduce=lambda x: x):
        def loss_fn(params):
            logits = state.apply_fn({"params": tx.apply(params, state.opt_state)}, batch["image"])
            target = student.apply(teacher, batch["image"])
            return jc.distillation.kd(logits, target, batch["label"], temperature=4.0, alpha=0.7).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=reduce(grads)), reduce(loss)

    return state, train_step


def at(stacked, i: int):
    return jax.tree.map(lambda x: x[i], stacked)


def sparsity_of(state) -> float:
    masks = jc.optimizers.compress_state(state.opt_state)[0]
    ones = sum(int(np.unpackbits(np.asarray(mask).view(np.uint8)).sum()) for mask in jax.tree.leaves(masks))
    return 1 - ones / (32 * 64 + 64 * 128 + 128 * 8)


class Compilations(logging.Handler):
    """Counts what JAX's compile log names."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        found = re.search(r"Finished XLA compilation of (?:jit|pmap)\((.*?)\)", record.getMessage())
        if found:
            self.names.append(found.group(1))

    def __enter__(self):
        self.context = jax.log_compiles()
        self.context.__enter__()
        logging.getLogger("jax").addHandler(self)
        return self

    def __exit__(self, *error):
        logging.getLogger("jax").removeHandler(self)
        self.context.__exit__(*error)


def loop(step, state, batch):
    """Run a whole training; return the state, the loss and what was compiled."""
    loss = None
    with Compilations() as log:
        for i in range(STEPS):
            state, loss = jax.block_until_ready(step(state, batch(i)))
    return state, loss, log.names


def run_jit():
    state, train_step = training()
    return loop(jax.jit(train_step, donate_argnums=0), state, lambda i: at(DATA, i))


def run_scan():
    state, train_step = training()

    def whole(state, data):
        return jax.lax.scan(train_step, state, data)

    with Compilations() as log:
        state, loss = jax.block_until_ready(jax.jit(whole)(state, DATA))
    return state, loss, log.names


def run_pmap():
    state, train_step = training()
    state = jax.pmap(lambda i, s: s, axis_name="devices", in_axes=(0, None))(jnp.arange(8), state)
    mean = lambda x: jax.lax.pmean(x, "devices")  # noqa: E731
    step = jax.pmap(lambda s, b: train_step(s, b, mean), axis_name="devices")
    shards = lambda i: jax.tree.map(lambda x: x.reshape(8, BATCH // 8, *x.shape[1:]), at(DATA, i))  # noqa: E731
    state, loss, compiled = loop(step, state, shards)
    for leaf in jax.tree.leaves(state):
        assert all(np.array_equal(leaf[0], leaf[i]) for i in range(8))
    return at(state, 0), loss, compiled


def placed(axis_type: AxisType, scope: str = "global"):
    """Return the state sharded over 4 x 2 devices, the batch placed alike, and the step."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    state, train_step = training(scope)

    def place(x):
        spec = {0: P(), 1: P("model"), 2: P("data", "model")}[jnp.ndim(x)]
        return jax.device_put(x, NamedSharding(mesh, spec))

    tx: Any = state.tx
    params = jax.tree.map(place, state.params)
    counters = lambda tree: jax.tree.map(lambda x: x if jnp.ndim(x) else place(x), tree)  # noqa: E731
    state = state.replace(params=params, opt_state=counters(tx.init(params)), step=place(state.step))
    batch = lambda i: jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("data"))), at(DATA, i))  # noqa: E731
    return mesh, state, batch, train_step


def run_sharded():
    mesh, state, batch, train_step = placed(AxisType.Auto)
    with jax.set_mesh(mesh):
        return loop(jax.jit(train_step, donate_argnums=0), state, batch)


DATA = batches()
RUNS = {"sharded": (run_sharded, "train_step"), "jit": (run_jit, "train_step")}
RUNS |= {"scan": (run_scan, "whole"), "pmap": (run_pmap, "_fun")}


@pytest.mark.sampled(5)
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_one_compilation_for_a_whole_run(name):
    run, program = RUNS[name]
    state, loss, compiled = run()
    assert compiled.count(program) == 1, compiled
    assert sparsity_of(state) == pytest.approx(0.9, abs=1e-3)
    assert np.isfinite(np.asarray(loss)).all()


@pytest.mark.sampled(5)
@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=SLOW)], ids=["auto", "explicit"]
)
def test_masks_and_scales_on_eight_devices_equal_those_on_one(axis_type, scope):
    """The same parameters and the same clock: the state after a refresh, bit for bit, and sharded as the weights."""
    mesh, state, _, _ = placed(axis_type, scope)
    t = compress(scope)

    def refresh(params):
        return t.update(params, t.init(params), step=jnp.asarray(8))

    with jax.set_mesh(mesh):
        sharded = jax.jit(refresh)(state.params)
    single = jax.jit(refresh)(jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state.params))
    assert len(jax.tree.leaves(single)) == 6
    for ours, other in zip(jax.tree.leaves(sharded), jax.tree.leaves(single)):
        assert np.asarray(ours).tobytes() == np.asarray(other).tobytes()
    for mask in jax.tree.leaves(sharded[0]):
        assert mask.sharding.spec == P("data", "model")


def collectives(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return kind and shape of what each collective of a compiled program gives."""
    found = []
    pattern = r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    for shapes, kind in re.findall(pattern, text):
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes):
            found.append((kind, tuple(int(n) for n in shape.split(",") if n)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_sharded_step_gathers_nothing_that_the_dense_step_does_not(scope):
    mesh, state, batch, train_step = placed(AxisType.Auto, scope)
    apply: Any = state.apply_fn

    def dense_step(params, opt_state, batch):
        def loss_fn(params):
            logits = apply({"params": params}, batch["image"])
            return jc.distillation.kd(logits, jnp.zeros_like(logits), batch["label"]).mean()

        updates, opt_state = optax.adam(1e-2).update(jax.grad(loss_fn)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    with jax.set_mesh(mesh):
        ours = jax.jit(train_step).lower(state, batch(0)).compile().as_text()
        inner: Any = optax.adam(1e-2)
        dense = jax.jit(dense_step).lower(state.params, inner.init(state.params), batch(0)).compile().as_text()
    added = Counter(collectives(ours)) - Counter(collectives(dense))
    assert added, "no collective at all: the refresh is not in the program"
    for kind, shape in added:  # scalars of the ranking, per-channel ranges of the quantizer
        assert kind == "all-reduce", (kind, shape)
        assert sum(n > 1 for n in shape) <= 1, (kind, shape)
