"""The table of all transforms: every law is tested on every row. A new transform is one line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxopt_compress as jc
from jaxopt_compress.pruning import magnitude, prune, taylor
from jaxopt_compress.quantization import fake_quantize


class Row(NamedTuple):
    """A transform under test, and what is particular about it."""

    name: str
    make: Callable[[], jc.ParamTransform]


def weights_of(t: jc.ParamTransform) -> jc.ParamTransform:
    return jc.select(("**/kernel", "**/embedding"), t)


def gradual(step):
    return optax.polynomial_schedule(0.0, 0.8, power=3, transition_steps=4)(step)


TABLE = [
    Row("identity", jc.chain),
    Row("prune_layer", lambda: weights_of(prune(magnitude, 0.7))),
    Row("prune_global", lambda: weights_of(prune(magnitude, 0.7, scope="global"))),
    Row("prune_everything", lambda: prune(magnitude, 1.0)),
    Row("prune_gradual", lambda: weights_of(jc.periodic(prune(magnitude, gradual), every=2, start=1))),
    Row("prune_taylor", lambda: weights_of(prune(taylor, 0.7))),
    Row("surgery", lambda: jc.straight_through(weights_of(prune(magnitude, 0.7)))),
    Row("int8", lambda: weights_of(fake_quantize(8))),
    Row("int4", lambda: weights_of(fake_quantize(4))),
    Row("int2", lambda: weights_of(fake_quantize(2))),
    Row("int8_tensor", lambda: fake_quantize(8, channel_axes=())),
    Row("int8_rows", lambda: jc.select("**/embedding", fake_quantize(8, channel_axes=0))),
    Row("int8_periodic", lambda: weights_of(jc.periodic(fake_quantize(8), every=3))),
    Row("leafwise", lambda: jc.leafwise(lambda w: jnp.max(w), lambda w, s: jnp.minimum(w, s))),
    Row("stacked", lambda: jc.select("**/embedding", jc.stacked(fake_quantize(8, channel_axes=())))),
    Row(
        "prune_then_int8",
        lambda: jc.chain(weights_of(prune(magnitude, 0.7, scope="global")), weights_of(fake_quantize(8))),
    ),
    Row(
        "two_groups",
        lambda: jc.chain(
            jc.select("**/kernel", jc.chain(prune(magnitude, 0.5), fake_quantize(4))),
            jc.select("**/embedding", fake_quantize(8, channel_axes=0)),
        ),
    ),
]


def params(dtype=jnp.float32, seed: int = 0) -> dict[str, Any]:
    """Return parameters with everything that may stand in a tree: `None`, integers, scalars, tied and odd leaves."""
    keys = jax.random.split(jax.random.key(seed), 3)
    tied = jax.random.normal(keys[0], (16, 24), dtype)
    return {
        "embed": {"embedding": jax.random.normal(keys[1], (24, 16), dtype)},
        "block": [{"kernel": tied, "bias": jnp.zeros(24, dtype)}, {"kernel": tied, "bias": None}],
        "conv": ({"kernel": jax.random.normal(keys[2], (3, 3, 2, 5), dtype), "scale": jnp.ones(5, dtype)},),
        "count": jnp.arange(3),
        "temperature": jnp.asarray(0.5, dtype),
    }


def grads(tree):
    """Return gradients for `params`, with their sharding; zeros where a leaf has none."""
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda x: jnp.cos(7 * x) if floating(x) else jnp.zeros_like(x), tree)
