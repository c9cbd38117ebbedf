"""Prune 90 % of a network's weights while it learns: `python -m examples.prune`."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxopt_compress as jc
from examples import data

STEPS = 600


def model() -> nn.Sequential:
    return nn.Sequential([nn.Dense(256), nn.relu, nn.Dense(10)])


def train(transform: jc.ParamTransform, digits: data.Data, seed: int = 0):
    """Train for some steps and return the parameters that the forward pass sees."""
    net = model()
    tx = jc.attach(jc.optimizers.adam(1e-2), transform)
    params = net.init(jax.random.key(seed), digits.train.image[:1])
    images, labels = jnp.asarray(digits.train.image), jnp.asarray(digits.train.label)

    def step(carry, key):
        params, opt_state = carry
        rows = jax.random.choice(key, len(labels), (64,))

        def loss_fn(params):
            logits = net.apply(tx.apply(params, opt_state), images[rows])
            return jc.distillation.cross_entropy(logits, labels[rows]).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    keys = jax.random.split(jax.random.key(seed + 1), STEPS)
    (params, opt_state), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, tx.init(params)))
    return tx.apply(params, opt_state)


def accuracy(params, split: data.Split) -> float:
    return float(jnp.mean(model().apply(params, split.image).argmax(-1) == split.label))


def main() -> dict[str, tuple[float, float]]:
    digits = data.load("digits")
    sparsity = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=300, transition_begin=100)
    gradual = jc.periodic(jc.pruning.prune(jc.pruning.magnitude, sparsity, scope="global"), every=20)
    found = {}
    for name, transform in (("dense", jc.chain()), ("pruned", jc.select("**/kernel", gradual))):
        params = train(transform, digits)
        kernels = [w for path, w in jc.tree.leaves(params).items() if path.endswith("kernel")]
        zeros = float(sum(jnp.sum(w == 0) for w in kernels) / sum(w.size for w in kernels))
        found[name] = (zeros, accuracy(params, digits.validation))
        print(f"{name:>7}: {found[name][0]:6.1%} of the weights are zero, validation accuracy {found[name][1]:.1%}")
    return found


if __name__ == "__main__":
    main()
