"""Every loss makes a better student than 60 labels alone: what a dead loss would not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.data import load
from jaxopt_compress import distillation as d

pytestmark = pytest.mark.slow
LABELLED, STEPS = 60, 200
DATA = load("digits")
X, Y = (jnp.asarray(a) for a in DATA.train)
SCORED = tuple(jnp.asarray(a) for a in DATA.test)


def init(key, width):
    keys = jax.random.split(key)
    return {
        "up": {"w": jax.random.normal(keys[0], (64, width)) / 8, "b": jnp.zeros(width)},
        "down": {"w": jax.random.normal(keys[1], (width, 10)) / width**0.5, "b": jnp.zeros(10)},
    }


def net(params, x):
    hidden = jax.nn.relu(x @ params["up"]["w"] + params["up"]["b"][None])
    return hidden @ params["down"]["w"] + params["down"]["b"][None]


def fit(loss, params):
    tx = optax.adam(0.01)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # as a user would run Optax's Adam
        return run(params)


def error(params):
    return float(100 * jnp.mean(net(params, SCORED[0]).argmax(-1) != SCORED[1]))


@pytest.fixture(scope="module")
def teacher():
    return fit(lambda p: d.cross_entropy(net(p, X), Y).mean(), init(jax.random.key(0), 64))


def task(params):
    return d.cross_entropy(net(params, X[:LABELLED]), Y[:LABELLED]).mean()


def soft(s, t):
    return d.soft_targets(s, t, temperature=4.0)


LOGITS: dict[str, Callable] = {
    "soft targets": soft,
    "reverse": lambda s, t: d.reverse_kl(s, t, temperature=4.0),
    "jsd": lambda s, t: d.jsd(s, t, temperature=4.0),
    "dkd": lambda s, t: d.dkd(s, t, t.argmax(-1)),
    "dist": d.dist,
    "standardized": lambda s, t: soft(d.standardize(s), d.standardize(t)),
    "top 3": lambda s, t: d.top_k_soft_targets(s, d.top_k(t, 3, temperature=4.0), temperature=4.0),
    "ensemble": lambda s, t: soft(s, d.ensemble(jnp.stack([t, t]), temperature=4.0)),
}


@pytest.fixture(scope="module")
def plain():
    return error(fit(task, init(jax.random.key(1), 16)))


@pytest.mark.parametrize("name", LOGITS)
def test_losses_of_logits_beat_few_labels(name, teacher, plain):
    said = net(teacher, X)
    taught = fit(lambda p: task(p) + LOGITS[name](net(p, X), said).mean(), init(jax.random.key(1), 16))
    assert error(taught) < plain - 5


PROJECTED: dict[str, Callable] = {
    "hint": lambda s, t, own: d.hint(s, t),
    "vid": lambda s, t, own: d.vid(s, t, own),
    "ofd": lambda s, t, own: d.ofd(s, t, -jnp.ones(64)),
}
RELATIONS: dict[str, Callable] = {
    "distances": lambda s, t: 10 * d.rkd_distance(s, t),
    "angles": lambda s, t: 10 * d.rkd_angle(s, t),
    "similarity": lambda s, t: 1e5 * d.similarity_preserving(s, t),
    "pkt": lambda s, t: 1e5 * d.pkt(s, t),
}


def of_features(loss, teacher, tap) -> float:
    """Train with a loss on features, some labels, and as many steps."""
    params = init(jax.random.key(1), 16)
    student = d.tap(net, [tap], params, X)
    theirs = d.tap(net, [tap], teacher, X)(teacher, X)[1][tap]
    projector = d.projector(jax.random.key(2), student.shapes[tap], theirs)

    def total(trained: Any) -> Any:
        mine = student(trained["net"], X)[1][tap]
        return task(trained["net"]) + loss(mine, theirs, trained).mean()

    start = {"net": params, "projector": projector, "spread": jnp.full(64, d.spread_of(1.0))}
    return error(fit(total, start)["net"])


@pytest.mark.parametrize("name", PROJECTED)
def test_losses_of_features_beat_few_labels(name, teacher, plain):
    tap = "up" if name == "ofd" else "in:down/w"

    def loss(mine, theirs, trained):
        return PROJECTED[name](d.project(trained["projector"], mine, theirs), theirs, trained["spread"])

    assert of_features(loss, teacher, tap) < plain - 2


@pytest.mark.parametrize("name", RELATIONS)
def test_losses_of_relations_beat_few_labels(name, teacher, plain):
    some = np.random.default_rng(0).permutation(len(X))[:128]

    def loss(mine, theirs, trained):
        return RELATIONS[name](mine[some], theirs[some])

    assert of_features(loss, teacher, "in:down/w") < plain - 1
