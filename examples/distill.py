"""Teach with few labels, by logits that are stored and by hidden features: `python -m examples.distill`."""

import tempfile
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples import data
from jaxopt_compress import distillation

LABELLED, STEPS, TAP = 60, 300, "in:layers_2/kernel"  # what goes into the last layer


def net(width: int) -> nn.Sequential:
    return nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(10)])


def fit(loss, params: Any) -> Any:
    tx = optax.adam(0.01)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params


def main() -> dict[str, float]:
    digits = data.load("digits")
    (x, y), held_out = digits.train, digits.validation
    large, small = net(64), net(16)
    start, first = (each.init(jax.random.key(0), x) for each in (small, large))
    teacher = fit(lambda p: distillation.cross_entropy(large.apply(p, x), y).mean(), first)

    with tempfile.TemporaryDirectory() as folder:  # asked once; a run that is interrupted goes on
        of = {"teacher": distillation.fingerprint(teacher), "data": distillation.fingerprint(x)}
        tapped = distillation.tap(large.apply, [TAP], teacher, x)
        distillation.build_store(folder, tapped, teacher, np.arange(len(x)), lambda keys: x[keys], of=of)
        like = tapped(teacher, x[:1])
        logits, features = distillation.open_store(folder, of=of, like=like)[np.arange(len(x))]

    labels = lambda p: distillation.cross_entropy(small.apply(p, x[:LABELLED]), y[:LABELLED]).mean()  # noqa: E731

    def soft(p):
        return labels(p) + distillation.soft_targets(small.apply(p, x), logits, temperature=4.0).mean()

    student = distillation.tap(small.apply, [TAP], start, x)
    projector = distillation.projector(jax.random.key(1), student.shapes[TAP], features[TAP])

    def hinted(trained):
        mine = distillation.project(trained["projector"], student(trained["net"], x)[1][TAP], features[TAP])
        return soft(trained["net"]) + distillation.hint(mine, features[TAP]).mean()

    nets = {
        f"student, {LABELLED} labels": fit(labels, start),
        "taught by logits": fit(soft, start),
        "and by features": fit(hinted, {"net": start, "projector": projector})["net"],
    }
    right = lambda fn, p: float(jnp.mean(fn.apply(p, held_out.image).argmax(-1) == held_out.label))  # noqa: E731
    found = {"teacher": right(large, teacher)} | {name: right(small, p) for name, p in nets.items()}
    for name, value in found.items():
        print(f"{name:>20}: validation accuracy {value:.1%}")
    return found


if __name__ == "__main__":
    main()
