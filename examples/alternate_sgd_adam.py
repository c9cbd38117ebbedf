"""Train a small classifier with SGD on even epochs and Adam on odd ones, in one compiled program.

    python examples/alternate_sgd_adam.py

The same model, data, initial weights and alternation in Keras give the same losses: Adam follows Keras's convention.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_compress.optimizers.alternate import alternate
from jaxopt_compress.optimizers.first_order import adam, sgd

EPOCHS = 100
SIZES = (10, 16, 1)


def dataset():
    """Draw 1000 points and labels that have nothing to do with them: what is learned is learned by heart."""
    random = np.random.RandomState(0)
    x = random.randn(1000, SIZES[0])
    return x.astype("float32"), random.randint(0, 2, 1000).astype("float32")


def glorot(seed):
    """Draw uniform kernels with the variance 2 / (fan in + fan out), and zero biases."""
    keys, init = jax.random.split(jax.random.key(seed)), jax.nn.initializers.glorot_uniform()
    return [leaf for k, i, o in zip(keys, SIZES, SIZES[1:]) for leaf in (init(k, (i, o)), jnp.zeros(o))]


def loss_fn(params, x, y):
    """Return the binary cross-entropy of the probabilities, clipped as Keras clips them."""
    kernel0, bias0, kernel1, bias1 = params
    hidden = jax.nn.relu(jnp.dot(x, kernel0) + bias0[None])
    p = jnp.clip(jax.nn.sigmoid(jnp.dot(hidden, kernel1) + bias1[None])[:, 0], 1e-7, 1 - 1e-7)
    return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))


@jax.jit
def train(params, x, y):
    """Return the loss before each epoch and after the last; an epoch is one step on all the data."""
    tx = alternate(sgd(0.01), adam(0.01, eps=1e-7, eps_hat=True))

    def epoch(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    (params, _), losses = jax.lax.scan(epoch, (params, tx.init(params)), length=EPOCHS)
    return jnp.append(losses, loss_fn(params, x, y))


def main(argv=None):
    """Train, and print the losses."""
    parser = argparse.ArgumentParser(description="Train an MLP with SGD and Adam in turns.")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--init", help=".npz with the initial weights: init0..init3 (kernel, bias, kernel, bias)")
    parser.add_argument("--json", action="store_true", help="print nothing but the losses")
    args = parser.parse_args(argv)
    saved = np.load(args.init) if args.init else None
    params = [jnp.asarray(saved[f"init{i}"]) for i in range(4)] if saved else glorot(args.seed)
    losses = train(params, *dataset()).tolist()
    if args.json:
        print(json.dumps({"loss": losses}))
    else:
        for epoch in range(0, EPOCHS + 1, 10):
            print(f"after {epoch:3} epochs: loss {losses[epoch]:.4f}")


if __name__ == "__main__":
    main()
