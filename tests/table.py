"""The table of all transforms: every law is tested on every row. A new transform is one line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxopt_compress as jc
from jaxopt_compress import grids, pruning
from jaxopt_compress.grids import Integers
from jaxopt_compress.pruning import magnitude, prune, taylor
from jaxopt_compress.quantization import binary, dorefa, fake_quantize, fits, stochastic, ternary, trained_ternary


class Row(NamedTuple):
    """A transform under test, and what is particular about it.

    Attributes:
      name: of the row.
      make: the transform.
      adds: whether its state holds sums, or a tanh, whose last bit depends on how the program is compiled; all other
        rows are held to every bit.
      trains: whether it adds up slopes, of both signs, whose last bit depends even on whether the program is compiled.
    """

    name: str
    make: Callable[[], jc.ParamTransform]
    adds: bool = False
    trains: bool = False


def weights_of(t: jc.ParamTransform) -> jc.ParamTransform:
    return jc.select(("**/kernel", "**/embedding"), t)


def blocks_of(t: jc.ParamTransform) -> jc.ParamTransform:
    """Restrict to two leaves of one shape, for rows that take long to compile."""
    return jc.select("block/**/kernel", t)


def gradual(step):
    return optax.polynomial_schedule(0.0, 0.8, power=3, transition_steps=4)(step)


def cosine(step):
    return optax.cosine_decay_schedule(0.3, 9)(jnp.asarray(step, jnp.float32))


KEY = jax.random.key(0)

TABLE = [
    Row("identity", jc.chain),
    Row("prune_layer", lambda: weights_of(prune(magnitude, 0.7))),
    Row("prune_global", lambda: weights_of(prune(magnitude, 0.7, scope="global"))),
    Row("prune_everything", lambda: prune(magnitude, 1.0)),
    Row("prune_gradual", lambda: weights_of(jc.periodic(prune(magnitude, gradual), every=2, start=1))),
    Row("prune_taylor", lambda: weights_of(prune(taylor, 0.7))),
    Row("prune_unpacked", lambda: blocks_of(prune(magnitude, gradual, allocation=pruning.erk, packed=False))),
    Row("prune_minimum", lambda: blocks_of(prune(magnitude, 0.7, scope="global", minimum=0.1))),
    Row("n_of_m", lambda: weights_of(prune(taylor, pattern=pruning.n_of_m(1, 2)))),
    Row("within", lambda: blocks_of(prune(magnitude, 0.7, pattern=pruning.within()))),
    Row("blocks", lambda: blocks_of(prune(magnitude, gradual, pattern=pruning.blocks(2, 1)))),
    Row("channels", lambda: weights_of(prune(magnitude, 0.5, pattern=pruning.channels(-2), packed=False))),
    Row("heads", lambda: jc.select("block/**/kernel", prune(magnitude, 0.5, pattern=pruning.heads(4)))),
    Row("rigl", lambda: blocks_of(jc.periodic(pruning.rigl(KEY, 0.8, cosine), 3))),
    Row("set", lambda: blocks_of(pruning.set_(KEY, 0.8))),
    Row("static", lambda: blocks_of(pruning.static(KEY, 0.8))),
    Row("movement", lambda: blocks_of(pruning.movement_pruning(gradual, rate=cosine, every=3))),
    Row("top_kast", lambda: blocks_of(jc.periodic(pruning.top_kast(0.8, 0.5), every=3))),
    Row("straight_through", lambda: jc.straight_through(weights_of(prune(magnitude, 0.7)))),
    Row("surgery", lambda: blocks_of(pruning.surgery(magnitude, 0.7, margin=0.2))),
    Row("int8", lambda: weights_of(fake_quantize(8))),
    Row("int4", lambda: weights_of(fake_quantize(4))),
    Row("int2", lambda: weights_of(fake_quantize(2))),
    Row("int8_tensor", lambda: fake_quantize(8, channel_axes=())),
    Row("int8_rows", lambda: jc.select("**/embedding", fake_quantize(8, channel_axes=0))),
    Row("groups_affine", lambda: blocks_of(fake_quantize(Integers(4, False), group_size=8, fit=fits.minmax))),
    Row("nf4", lambda: blocks_of(fake_quantize(grids.NF4, group_size=4))),
    Row("mx", lambda: blocks_of(fake_quantize(grids.E2M1, group_size=8, fit=fits.power_of_two))),
    Row("binary", lambda: blocks_of(fake_quantize(grids.BINARY))),
    Row("binary_connect", lambda: blocks_of(binary(scaled=False))),
    Row("binary_drawn", lambda: blocks_of(binary(key=KEY)), adds=True),
    Row("xnor", lambda: weights_of(binary()), adds=True),
    Row("ternary", lambda: weights_of(ternary()), adds=True),
    Row(
        "trained_ternary",
        lambda: weights_of(trained_ternary(optax.scale(-(2.0**-10)))),
        adds=True,
        trains=True,
    ),
    Row("dorefa", lambda: weights_of(dorefa(2)), adds=True),
    Row("stochastic", lambda: blocks_of(stochastic(4, KEY))),
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


def params(dtype: Any = jnp.float32, seed: int = 0) -> dict[str, Any]:
    """Return parameters with everything that may stand in a tree: `None`, integers, scalars, tied and odd leaves.

    Of two dtypes the weights have one or the other, those of one shape both, and then no leaves are tied.
    """
    if isinstance(dtype, tuple):
        first, second = (params(d, seed) for d in dtype)
        return first | {"block": [first["block"][0], second["block"][1]], "conv": second["conv"]}
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
