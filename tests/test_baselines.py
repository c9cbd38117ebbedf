"""Each verb beats the simplest thing that one could do instead, on every one of several paired seeds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_compress as jc
from jaxopt_compress.distillation import cross_entropy, kd
from jaxopt_compress.pruning import magnitude, prune
from jaxopt_compress.quantization import fake_quantize

pytestmark = pytest.mark.slow
SEEDS = range(8)


def regression(seed: int):
    """Make inputs that hang together and true weights of different sizes: what is left out can be made up for."""
    keys = jax.random.split(jax.random.key(seed), 5)
    x = jax.random.normal(keys[0], (128, 16)) + 0.8 * jax.random.normal(keys[1], (128, 1))
    w = jax.random.normal(keys[2], (16, 4)) * jnp.exp(jax.random.normal(keys[3], (16, 4)))
    return x, x @ w + 0.1 * jax.random.normal(keys[4], (128, 4))


def squared_error(params, x, y):
    return jnp.mean((x @ params["w"] - y) ** 2)


def train(t, x, y, start, loss=squared_error, steps: int = 200, tx=optax.sgd(0.1)):  # noqa: B008
    """Train with `t` in the forward pass, and return what would be shipped."""
    tx = jc.attach(tx, t)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: loss(tx.apply(p, state), x, y))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return t.apply(params, jc.optimizers.compress_state(state))


def at_once(t, params, **extra):
    return t.apply(params, t.update(params, t.init(params), step=0, **extra))


def zeros(params) -> int:
    return int(np.sum(np.asarray(params["w"]) == 0))


def random_scores(params, key, **extra):
    return {"w": jax.random.uniform(key, params["w"].shape)}


def test_magnitude_beats_random_pruning():
    for seed in SEEDS:
        x, y = regression(seed)
        dense = {"w": jnp.linalg.lstsq(x, y)[0]}
        by_size = at_once(prune(magnitude, 0.5), dense)
        by_chance = at_once(prune(random_scores, 0.5), dense, key=jax.random.key(seed))
        assert zeros(by_size) == zeros(by_chance) == 32
        assert squared_error(by_size, x, y) < 0.8 * squared_error(by_chance, x, y), seed


def test_pruning_while_training_beats_pruning_after_it():
    start = {"w": jnp.zeros((16, 4))}
    schedule = optax.polynomial_schedule(0.0, 0.75, power=3, transition_steps=80, transition_begin=20)
    during = jax.jit(partial(train, jc.periodic(prune(magnitude, schedule), 5), start=start))
    dense = jax.jit(partial(train, jc.chain(), start=start))
    for seed in SEEDS:
        x, y = regression(seed)
        learned, cut = during(x, y), at_once(prune(magnitude, 0.75), dense(x, y))
        assert zeros(learned) == zeros(cut) == 48
        assert squared_error(learned, x, y) < squared_error(cut, x, y), seed


def curve(seed: int):
    """Make a curved function and the start of a network with one hidden layer that is wide enough for it."""
    keys = jax.random.split(jax.random.key(seed), 4)
    x = jax.random.normal(keys[0], (128, 4))
    hidden = {"kernel": jax.random.normal(keys[1], (4, 32)) / 2, "bias": jnp.zeros((1, 32))}
    last = {"kernel": jax.random.normal(keys[2], (32, 3)) / 6, "bias": jnp.zeros((1, 3))}
    return x, jnp.sin(x @ jax.random.normal(keys[3], (4, 3))), {"hidden": hidden, "last": last}


def network_error(params, x, y):
    hidden, last = params["hidden"], params["last"]
    h = jnp.tanh(x @ hidden["kernel"] + hidden["bias"])
    return jnp.mean((h @ last["kernel"] + last["bias"] - y) ** 2)


def test_training_with_rounding_beats_rounding_after_training():
    rate = optax.cosine_decay_schedule(0.02, 300)

    def learn(t, x, y, start):
        with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
            return train(t, x, y, start, network_error, 300, optax.adam(rate))

    dense = jax.jit(partial(learn, jc.chain()))
    for bits in (2, 3):
        t = jc.select("**/kernel", fake_quantize(bits))
        aware = jax.jit(partial(learn, t))
        for seed in SEEDS:
            x, y, start = curve(seed)
            learned, rounded = aware(x, y, start), at_once(t, dense(x, y, start))
            assert all(len(np.unique(column)) <= 2**bits - 1 for column in np.asarray(learned["last"]["kernel"]).T)
            assert network_error(learned, x, y) < network_error(rounded, x, y), (bits, seed)


def classes(seed: int):
    """Make a linear teacher with unequal class weights, and very few labelled examples for the student."""
    keys = jax.random.split(jax.random.key(seed), 3)
    w = jax.random.normal(keys[0], (8, 5))
    return w, jax.random.normal(keys[1], (16, 8)), jax.random.normal(keys[2], (2000, 8))


def test_a_teacher_beats_hard_labels():
    start = {"w": jnp.zeros((8, 5))}

    def hard(params, x, labels):
        return cross_entropy(x @ params["w"], labels).mean()

    def soft(params, x, teacher):
        return kd(x @ params["w"], teacher, jnp.argmax(teacher, -1), temperature=2.0, alpha=0.9).mean()

    alone = jax.jit(partial(train, jc.chain(), start=start, loss=hard, steps=300, tx=optax.sgd(0.5)))
    taught = jax.jit(partial(train, jc.chain(), start=start, loss=soft, steps=300, tx=optax.sgd(0.5)))
    for seed in SEEDS:
        w, x, unseen = classes(seed)
        truth = jnp.argmax(unseen @ w, -1)
        right = [
            float(jnp.mean(jnp.argmax(unseen @ params["w"], -1) == truth, dtype=jnp.float32))
            for params in (alone(x, jnp.argmax(x @ w, -1)), taught(x, x @ w))
        ]
        assert right[1] > right[0], seed
