"""The pruning methods that `pruning_methods` compares: functions of what they need to transforms, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxopt_compress as jc
from benchmarks import _lenet
from benchmarks._lenet import KERNELS, Part

p = jc.pruning
EVERY = 100


def kernels(t: jc.ParamTransform) -> jc.ParamTransform:
    """Leave biases alone."""
    return jc.select(KERNELS, t)


def gradual(density: float, steps: int) -> optax.Schedule:
    """Return the cubic schedule, over the middle of a run."""
    return optax.polynomial_schedule(
        0.0, 1 - density, power=3, transition_steps=steps // 2, transition_begin=steps // 10
    )


def from_scratch(density: float, steps: int, key: jax.Array) -> dict[str, jc.ParamTransform]:
    """Return the ways of training sparsely from the first step or to a sparse end; `random` is what to beat."""
    moving = optax.cosine_decay_schedule(0.3, 3 * steps // 4)
    schedule = gradual(density, steps)
    phases = [0.0, 1 - density] * 4  # dense and sparse by turns, an eighth of the run each
    ac_dc = optax.join_schedules([optax.constant_schedule(s) for s in phases], [steps * i // 8 for i in range(1, 8)])
    now = partial(jc.periodic, every=EVERY)
    return {
        "random": p.static(key, 1 - density),
        "SET": now(p.set_(key, 1 - density, moving, allocation=p.erk)),
        "RigL": now(p.rigl(key, 1 - density, moving)),
        "gradual random": now(p.prune(p.random(key), schedule, allocation=p.erk)),
        "gradual magnitude, uniform": now(p.prune(p.magnitude, schedule, allocation=p.uniform)),
        "gradual magnitude, ERK": now(p.prune(p.magnitude, schedule, allocation=p.erk)),
        "gradual magnitude, global": now(p.prune(p.magnitude, schedule, scope="global")),
        "gradual LAMP": now(p.prune(p.lamp, schedule, scope="global")),
        "gradual Taylor": p.accumulate(p.taylor, schedule, decay=0.99, every=EVERY, scope="global"),
        "AC/DC": now(p.prune(p.magnitude, ac_dc, scope="global")),
        "straight-through": jc.straight_through(now(p.prune(p.magnitude, schedule, scope="global"))),
        "Top-KAST": now(p.top_kast(1 - density, 1 - 2 * density, allocation=p.erk)),
    }


def before_training(density: float, params: Any, part: Part, key: jax.Array) -> dict[str, jc.ParamTransform]:
    """Return the ways of finding a mask at initialization, held from then on."""
    target = 1 - density
    grads = jax.grad(_lenet.loss)(params, part)

    def tempered(params, part):
        labels = jax.nn.one_hot(part.label, 10)
        return jnp.mean(optax.softmax_cross_entropy(_lenet.forward(params, part.image) / 200, labels))

    no_bias = {name: {**layer, "bias": jnp.zeros_like(layer["bias"])} for name, layer in params.items()}
    synflow = p.synflow(_lenet.forward, no_bias, part.image[:1])
    exponential = lambda round_: 1 - density ** ((round_ + 1) / 100)  # noqa: E731
    found = {
        "magnitude": (p.prune(p.magnitude, target, scope="global"), 1),
        "SNIP": (p.prune(p.snip, target, scope="global"), 1),
        "GraSP": (p.prune(p.grasp(tempered, params, part), target, scope="global"), 1),
        "SynFlow": (p.prune(synflow, exponential, scope="global"), 100),
    }
    held = {"random": p.static(key, target)}
    for name, (t, rounds) in found.items():
        held[name] = jc.held(t, p.settle(kernels(t), params, rounds, grads=grads))
    return held


def at_once(params: Any, part: Part, key: jax.Array) -> dict[str, Callable[[float], jc.ParamTransform]]:
    """Return the ways of choosing weights of a trained net, as functions of the sparsity."""

    def one(params, example):
        return _lenet.loss(params, Part(example.image[None], example.label[None]))

    fisher = p.fisher(one, params, part)
    return {
        "random": lambda s: p.prune(p.random(key), s),
        "magnitude": lambda s: p.prune(p.magnitude, s),
        "magnitude, global": lambda s: p.prune(p.magnitude, s, scope="global"),
        "LAMP": lambda s: p.prune(p.lamp, s, scope="global"),
        "Wanda": lambda s: p.prune(p.wanda, s, pattern=p.within()),
        "Taylor": lambda s: p.prune(p.taylor, s),
        "Taylor, global": lambda s: p.prune(p.taylor, s, scope="global"),
        "Fisher": lambda s: p.prune(fisher, s),
        "Fisher, global": lambda s: p.prune(fisher, s, scope="global"),
        "2:4 random": lambda s: p.prune(p.random(key), pattern=p.n_of_m(2, 4)),
        "2:4 magnitude": lambda s: p.prune(p.magnitude, pattern=p.n_of_m(2, 4)),
        "2:4 Wanda": lambda s: p.prune(p.wanda, pattern=p.n_of_m(2, 4)),
        "blocks random": lambda s: p.prune(p.random(key), s, pattern=p.blocks(4, 10)),
        "blocks magnitude": lambda s: p.prune(p.magnitude, s, pattern=p.blocks(4, 10)),
    }


def neurons(key: jax.Array) -> dict[str, jc.ParamTransform]:
    """Return the ways of choosing a half of the hidden neurons of a trained net."""
    how = {"pattern": p.channels()}
    return {
        "random": p.prune(p.random(key), 0.5, **how),
        "norm": p.prune(p.magnitude, 0.5, **how),
        "geometric median": p.prune(p.geometric_median(), 0.5, **how),
        "gate": p.accumulate(p.gate(), 0.5, **how),
    }


def scaled_neurons(key: jax.Array) -> dict[str, jc.ParamTransform]:
    """Return the ways of choosing a half of the hidden neurons of a net whose scales were drawn to zero in training."""
    kernel, scale, how = "dense_{}/kernel", "dense_{}/scale", {"pattern": p.channels()}
    slim = p.normalization_scale({kernel.format(i): scale.format(i) for i in (0, 1)})
    both = [name.format(i) for i in (0, 1) for name in (kernel, scale)]
    hidden = [kernel.format(i) for i in (0, 1)]
    return {
        "random": jc.select(hidden, p.prune(p.random(key), 0.5, **how)),
        "norm": jc.select(hidden, p.prune(p.magnitude, 0.5, **how)),
        "normalization scale": jc.select(both, p.prune(slim, 0.5, **how)),
    }


def while_tuning(density: float, steps: int, key: jax.Array) -> dict[str, jc.ParamTransform]:
    """Return the ways of pruning a trained net while it is tuned."""
    schedule, now = gradual(density, steps), partial(jc.periodic, every=EVERY)
    return {
        "random": now(p.prune(p.random(key), schedule)),
        "magnitude": now(p.prune(p.magnitude, schedule)),
        "surgery": now(p.surgery(p.magnitude, schedule)),
        "movement": p.movement_pruning(schedule, every=EVERY),
        "accumulated Taylor": p.accumulate(p.taylor, schedule, decay=0.99, every=EVERY),
        "straight-through": jc.straight_through(now(p.prune(p.magnitude, schedule))),
    }


def two_of_four(key: jax.Array) -> dict[str, tuple[jc.ParamTransform, float]]:
    """Return the ways of training 2:4 from scratch, and how strongly masked weights are pulled towards zero."""
    two = {"pattern": p.n_of_m(2, 4)}
    magnitude = jc.periodic(p.prune(p.magnitude, **two), every=10)
    return {
        "random": (jc.periodic(p.prune(p.random(key), **two), every=2**30), 0.0),
        "straight-through": (jc.straight_through(magnitude), 0.0),
        "SR-STE": (jc.straight_through(magnitude), 2e-4),
    }


def uniform_or_erk(density: float, steps: int, key: jax.Array) -> dict[str, jc.ParamTransform]:
    """Return static masks, RigL and gradual magnitude pruning, each with two allocations."""
    moving, found = optax.cosine_decay_schedule(0.3, 3 * steps // 4), {}
    for name, allocation in (("uniform", p.uniform), ("ERK", p.erk)):
        found["random" if name == "uniform" else "static, ERK"] = p.static(key, 1 - density, allocation=allocation)
        found[f"RigL, {name}"] = jc.periodic(p.rigl(key, 1 - density, moving, allocation=allocation), EVERY)
        magnitude = p.prune(p.magnitude, gradual(density, steps), allocation=allocation)
        found[f"gradual magnitude, {name}"] = jc.periodic(magnitude, EVERY)
    return found


def evidence(params: Any, part: Part) -> dict[str, Any]:
    """Return what criteria need to know of a trained net: mean absolute gradients of batches, and norms of inputs."""
    batches = jax.tree.map(lambda x: x.reshape(-1, 10, *x.shape[1:]), part)
    each = jax.lax.map(lambda batch: jax.grad(_lenet.loss)(params, batch), batches)
    grads = jax.tree.map(lambda g: jnp.mean(jnp.abs(g), 0), each)
    x, stats = part.image, {}
    for i in range(len(params)):
        layer = params[f"dense_{i}"]
        stats[f"dense_{i}"] = {"kernel": jnp.linalg.norm(x, axis=0), "bias": jnp.zeros(())}
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return {"grads": grads, "stats": stats}
