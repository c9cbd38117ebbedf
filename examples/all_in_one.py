"""Optimize, prune, quantize and distill in one jitted step: `python -m examples.all_in_one`."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import jaxopt_compress as jc
from examples import data

STEPS = 800


def network(width: int) -> nn.Sequential:
    return nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(width), nn.relu, nn.Dense(10)])


def batches(split: data.Split, seed: int, size: int = 64):
    """Yield random batches."""
    for key in jax.random.split(jax.random.key(seed), STEPS):
        rows = jax.random.choice(key, len(split.label), (size,))
        yield {"image": jnp.asarray(split.image)[rows], "label": jnp.asarray(split.label)[rows]}


def fit(width: int, transform: jc.ParamTransform, split: data.Split, teacher=None, seed: int = 0) -> TrainState:
    """Train a network, with a teacher if there is one; every step is the same compiled program."""
    net = network(width)
    tx = jc.attach(jc.optimizers.adam(2e-3), transform)
    params = net.init(jax.random.key(seed), split.image[:1])
    state = TrainState.create(apply_fn=net.apply, params=params, tx=tx)

    @jax.jit
    def train_step(state, batch):
        def loss_fn(params):
            logits = state.apply_fn(tx.apply(params, state.opt_state), batch["image"])
            if teacher is None:
                return jc.distillation.cross_entropy(logits, batch["label"]).mean()
            soft = teacher(batch["image"])
            return jc.distillation.kd(logits, soft, batch["label"], temperature=4.0, alpha=0.5).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    for batch in batches(split, seed + 1):
        state, _ = train_step(state, batch)
    return state


def main() -> float:
    digits = data.load("digits")
    sparsity = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=400, transition_begin=100)
    compress = jc.chain(
        jc.select("**/kernel", jc.periodic(jc.pruning.prune(jc.pruning.magnitude, sparsity, scope="global"), every=20)),
        jc.select("**/kernel", jc.quantization.fake_quantize(bits=8)),
    )
    large = fit(512, jc.chain(), digits.train)
    small = fit(256, compress, digits.train, teacher=lambda x: large.apply_fn(large.params, x))
    model = small.tx.encode(small.params, small.opt_state)
    print(jc.report.table(small.params, model))
    logits = small.apply_fn(jc.decode(model), digits.validation.image)
    found = float(jnp.mean(logits.argmax(-1) == digits.validation.label))
    print(f"validation accuracy of the compressed student: {found:.1%}")
    return found


if __name__ == "__main__":
    main()
