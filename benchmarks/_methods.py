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
ROUNDS = 10
FADING = 2e-3  # how strongly weights that the forward pass does not see are pulled towards zero
OFTEN = 10  # steps between masks that are learned straight through
Settled = tuple[jc.ParamTransform, int]  # to be updated in so many rounds, by `settle`
Pulled = tuple[jc.ParamTransform, float]  # to be trained with so much of `distance` in the loss


def kernels(t: jc.ParamTransform) -> jc.ParamTransform:
    """Leave biases alone."""
    return jc.select(KERNELS, t)


def gradual(density: float, steps: int) -> optax.Schedule:
    """Return the cubic schedule, over the middle of a run."""
    return optax.polynomial_schedule(
        0.0, 1 - density, power=3, transition_steps=steps // 2, transition_begin=steps // 10
    )


def moving(method: Callable, density: float, steps: int, key: jax.Array, **how: Any) -> jc.ParamTransform:
    """Return SET or RigL, which moves weights twenty times in a run, ever fewer: what is new needs time to grow."""
    fraction = optax.cosine_decay_schedule(0.3, 3 * steps // 4)
    return jc.periodic(method(key, 1 - density, fraction, **how), max(steps // 20, 1))


def period(steps: int) -> int:
    """Return the steps between masks that are drawn sixty times in a run."""
    return max(steps // 60, 1)


def now_and_then(t: jc.ParamTransform, steps: int) -> jc.ParamTransform:
    """Draw masks sixty times in a run."""
    return jc.periodic(t, period(steps))


def fixed(key: jax.Array) -> Callable:
    """Return random scores that stay the same, so that masks of rising sparsity lie in one another."""
    return lambda params, **extra: p.random(key)(params)


def from_scratch(density: float, steps: int, key: jax.Array) -> dict[str, Pulled]:
    """Return the ways of training sparsely from the first step or to a sparse end; `random` is what to beat."""
    schedule = gradual(density, steps)
    phases = [0.0, 1 - density] * 4  # dense and sparse by turns, an eighth of the run each
    ac_dc = optax.join_schedules([optax.constant_schedule(s) for s in phases], [steps * i // 8 for i in range(1, 8)])
    now, often = partial(now_and_then, steps=steps), partial(jc.periodic, every=OFTEN)
    learning = jc.straight_through(often(p.prune(p.magnitude, schedule, allocation=p.erk)))
    found = {
        "random": p.static(key, 1 - density),
        "random, gradual": now(p.prune(fixed(key), schedule, allocation=p.erk)),
        "SET": moving(p.set_, density, steps, key),
        "RigL": moving(p.rigl, density, steps, key),
        "Top-KAST": now(p.top_kast(1 - density, 1 - 2 * density, allocation=p.erk)),
        "gradual magnitude, uniform": now(p.prune(p.magnitude, schedule, allocation=p.uniform)),
        "gradual magnitude, ERK": now(p.prune(p.magnitude, schedule, allocation=p.erk)),
        "gradual magnitude, global": now(p.prune(p.magnitude, schedule, scope="global")),
        "gradual LAMP": now(p.prune(p.lamp, schedule, scope="global")),
        "gradual Taylor": p.accumulate(p.taylor, schedule, decay=0.99, every=period(steps), scope="global"),
        "AC/DC": now(p.prune(p.magnitude, ac_dc, scope="global")),
        "straight-through": learning,
        "surgery": often(p.surgery(p.magnitude, schedule, allocation=p.erk)),
    }
    return {name: (t, 0.0) for name, t in found.items()} | {"straight-through, fading": (learning, FADING)}


def uniform_or_erk(density: float, steps: int, key: jax.Array) -> dict[str, Pulled]:
    """Return static masks, SET, RigL and gradual magnitude pruning, each with two allocations."""
    found = {}
    for name, allocation in (("uniform", p.uniform), ("ERK", p.erk)):
        how = {"allocation": allocation}
        found["random" if name == "uniform" else "static, ERK"] = p.static(key, 1 - density, **how)
        found[f"SET, {name}"] = moving(p.set_, density, steps, key, **how)
        found[f"RigL, {name}"] = moving(p.rigl, density, steps, key, **how)
        magnitude = p.prune(p.magnitude, gradual(density, steps), **how)
        found[f"gradual magnitude, {name}"] = now_and_then(magnitude, steps)
    return {name: (t, 0.0) for name, t in found.items()}


def before_training(density: float, params: Any, part: Part, key: jax.Array) -> dict[str, Pulled]:
    """Return the ways of finding a mask at initialization, held from then on."""
    target = 1 - density
    grads = jax.grad(_lenet.loss)(params, part)

    def tempered(params, part):
        labels = jax.nn.one_hot(part.label, 10)
        return jnp.mean(optax.softmax_cross_entropy(_lenet.forward(params, part.image) / 200, labels))

    no_bias = {name: {**layer, "bias": jnp.zeros_like(layer["bias"])} for name, layer in params.items()}
    synflow = p.synflow(_lenet.forward, no_bias, part.image[:1])
    found = {
        "magnitude": (p.prune(p.magnitude, target, scope="global"), 1),
        "SNIP": (p.prune(p.snip, target, scope="global"), 1),
        "GraSP": (p.prune(p.grasp(tempered, params, part), target, scope="global"), 1),
        "SynFlow": (p.prune(synflow, in_rounds(density, 100), scope="global"), 100),
    }
    held = {"random": p.static(key, target, allocation=p.uniform), "random, ERK": p.static(key, target)}
    for name, (t, rounds) in found.items():
        held[name] = jc.held(t, p.settle(kernels(t), params, rounds, grads=grads))
    return {name: (t, 0.0) for name, t in held.items()}


def in_rounds(density: float, rounds: int) -> Callable[[Any], Any]:
    """Return the sparsity after each round, each of which removes the same fraction of what is left."""
    return lambda number: 1 - density ** ((number + 1) / rounds)


def at_once(density: float, params: Any, part: Part, key: jax.Array) -> dict[str, Settled]:
    """Return the ways of choosing weights of a trained net; those of the loss also in rounds, net by net."""
    everywhere = {"scope": "global"}
    batches = jax.tree.map(lambda x: x.reshape(-1, 10, *x.shape[1:]), part)
    of_the_loss = {
        "Taylor": p.averaged(p.taylor, _lenet.loss, params, batches),
        "Fisher": p.fisher(one, params, part, chunk=50),
    }
    of_the_weights = {
        "random": p.prune(p.random(key), 1 - density),
        "magnitude": p.prune(p.magnitude, 1 - density),
        "magnitude, global": p.prune(p.magnitude, 1 - density, **everywhere),
        "LAMP": p.prune(p.lamp, 1 - density, **everywhere),
        "Wanda": p.prune(p.wanda, 1 - density, pattern=p.within()),
        "blocks random": p.prune(p.random(key), 1 - density, pattern=p.blocks(4, 2)),
        "blocks magnitude": p.prune(p.magnitude, 1 - density, pattern=p.blocks(4, 2)),
    }
    found = {name: (t, 1) for name, t in of_the_weights.items()}
    for name, criterion in of_the_loss.items():
        found[f"{name}, global"] = p.prune(criterion, 1 - density, **everywhere), 1
        slowly = p.prune(criterion, in_rounds(density, ROUNDS), **everywhere)
        found[f"{name}, global, {ROUNDS} rounds"] = slowly, ROUNDS
    return found


def n_of_m_at_once(n: int, m: int, key: jax.Array) -> dict[str, Settled]:
    """Return the ways of choosing `n` of `m` neighbours of a trained net."""
    how = {"pattern": p.n_of_m(n, m)}
    found = {"random": p.random(key), "magnitude": p.magnitude, "Wanda": p.wanda}
    return {name: (p.prune(criterion, **how), 1) for name, criterion in found.items()}


def neurons(density: float, params: Any, part: Part, key: jax.Array) -> dict[str, Settled]:
    """Return the ways of choosing hidden neurons of a trained net."""
    how = {"pattern": p.channels()}
    gate = p.averaged(p.gate(), one, params, part)
    found = {"random": p.random(key), "norm": p.magnitude, "geometric median": p.geometric_median(), "gate": gate}
    slowly = p.prune(gate, in_rounds(density, ROUNDS), **how), ROUNDS
    at_once = {name: (p.prune(criterion, 1 - density, **how), 1) for name, criterion in found.items()}
    return at_once | {f"gate, {ROUNDS} rounds": slowly}


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


def while_tuning(density: float, steps: int, key: jax.Array) -> dict[str, Pulled]:
    """Return the ways of pruning a trained net while it is tuned."""
    schedule = gradual(density, steps)
    now, often = partial(now_and_then, steps=steps), partial(jc.periodic, every=OFTEN)
    found = {
        "random": now(p.prune(fixed(key), schedule)),
        "magnitude": now(p.prune(p.magnitude, schedule)),
        "surgery": often(p.surgery(p.magnitude, schedule)),
        "movement": p.movement_pruning(schedule, rate=optax.cosine_decay_schedule(1.0, steps), every=OFTEN),
        "accumulated Taylor": p.accumulate(p.taylor, schedule, decay=0.99, every=period(steps)),
        "straight-through": jc.straight_through(often(p.prune(p.magnitude, schedule))),
    }
    return {name: (t, 0.0) for name, t in found.items()}


def n_of_m(n: int, m: int, steps: int, key: jax.Array) -> dict[str, Pulled]:
    """Return the ways of training with `n` of every `m` weights from scratch; masks are drawn in every step."""
    random = jc.periodic(p.prune(p.random(key), pattern=p.n_of_m(n, m)), every=2**30)
    learning = jc.straight_through(p.prune(p.magnitude, pattern=p.n_of_m(n, m)))
    slowly = p.prune(p.magnitude, gradual(n / m, steps), pattern=p.within(m))
    return {
        "random": (random, 0.0),
        "straight-through": (learning, 0.0),
        "SR-STE": (learning, FADING),
        "gradual magnitude": (now_and_then(slowly, steps), 0.0),
        "gradual SR-STE": (jc.straight_through(slowly), FADING),
    }


def one(params: Any, example: Part) -> jax.Array:
    """Return the loss of one example."""
    return _lenet.loss(params, Part(example.image[None], example.label[None]))


def norms_of_inputs(params: Any, part: Part) -> Any:
    """Return the norms of what every weight multiplies, for Wanda."""
    x, stats = part.image, {}
    for i in range(len(params)):
        layer = params[f"dense_{i}"]
        stats[f"dense_{i}"] = {"kernel": jnp.linalg.norm(x, axis=0), "bias": jnp.zeros(())}
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return stats
