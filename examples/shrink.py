"""Remove three quarters of a network's work and train on: `python -m examples.shrink`."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxopt_compress as jc
from examples import data


def model() -> nn.Sequential:
    return nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10)])


def train(forward, params, digits: data.Data, steps: int, seed: int):
    """Train with Adam; `forward` is the network, or what is left of it."""
    tx = jc.optimizers.adam(optax.cosine_decay_schedule(3e-3, steps))
    images, labels = jnp.asarray(digits.train.image), jnp.asarray(digits.train.label)

    def step(carry, key):
        params, opt_state = carry
        rows = jax.random.choice(key, len(labels), (64,))
        loss = lambda p: jc.distillation.cross_entropy(forward(p, images[rows]), labels[rows]).mean()  # noqa: E731
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(jax.random.key(seed), steps)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, tx.init(params)))
    return params


def accuracy(forward, params, split: data.Split) -> float:
    return float(jnp.mean(forward(params, split.image).argmax(-1) == split.label))


def main() -> dict[str, tuple[int, float]]:
    digits, net = data.load("digits"), model()
    image = jnp.asarray(digits.train.image[:64])
    params = train(net.apply, net.init(jax.random.key(0), image), digits, 600, seed=1)

    graph = jc.graph.trace(net.apply, params, image)
    loss = lambda p: jc.distillation.cross_entropy(net.apply(p, image), digits.train.label[:64]).mean()  # noqa: E731
    scores = jc.pruning.taylor(params, grads=jax.grad(loss)(params))
    cut = jc.shrinking.choose(graph, scores, multiply_adds=0.75, scope="global", multiple=8)
    small = jc.shrinking.remove(graph, params, cut, image)
    print(jc.report.table(net.apply, params, image, after=small))

    tuned = train(small.fn, small.params, digits, 600, seed=2)
    work = jc.graph.multiply_adds
    found = {
        "dense": (work(net.apply, params, image[:1]), accuracy(net.apply, params, digits.validation)),
        "removed": (work(small.fn, small.params, image[:1]), accuracy(small.fn, small.params, digits.validation)),
        "retrained": (work(small.fn, tuned, image[:1]), accuracy(small.fn, tuned, digits.validation)),
    }
    for name, (count, score) in found.items():
        print(f"{name:>9}: {count:6,} multiply-adds, validation accuracy {score:.1%}")
    return found


if __name__ == "__main__":
    main()
