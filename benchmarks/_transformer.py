"""A 70B-parameter transformer in plain JAX: one `lax.scan` over its layers, sharded weights, and its training step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

import jaxopt_compress as jc

KERNELS = "layers/**/kernel"


@dataclass(frozen=True)
class Transformer:
    """Sizes; the default is that of Llama 2 70B with a vocabulary that 16 chips divide, 69 billion weights."""

    layers: int = 80
    width: int = 8192
    heads: int = 64
    key_heads: int = 8
    hidden: int = 28672
    vocabulary: int = 32768
    batch: int = 256
    length: int = 2048

    @property
    def head(self) -> int:
        """The width of one attention head."""
        return self.width // self.heads


def kernels(c: Transformer) -> dict[str, tuple[tuple[int, int], P]]:
    """List the matrices of one layer: shape, and how it lies over the mesh (FSDP on one axis, tensor on the other)."""
    wide, narrow = P("data", "model"), P("model", "data")
    return {
        "query": ((c.width, c.width), wide),
        "key": ((c.width, c.key_heads * c.head), wide),
        "value": ((c.width, c.key_heads * c.head), wide),
        "out": ((c.width, c.width), narrow),
        "gate": ((c.width, c.hidden), wide),
        "up": ((c.width, c.hidden), wide),
        "down": ((c.hidden, c.width), narrow),
    }


def init(c: Transformer) -> dict[str, Any]:
    """Return parameters in float32; only their shapes are ever looked at."""
    layers = {name: {"kernel": jnp.zeros((c.layers, *shape))} for name, (shape, _) in kernels(c).items()}
    norms = {name: {"scale": jnp.ones((c.layers, c.width))} for name in ("norm_attention", "norm_mlp")}
    return {
        "embedding": jnp.zeros((c.vocabulary, c.width)),
        "layers": layers | norms,
        "head": jnp.zeros((c.width, c.vocabulary)),
    }


def specs(c: Transformer) -> dict[str, Any]:
    """Return the sharding of `init(c)` over a mesh ("data", "model")."""
    layers = {name: {"kernel": P(None, *spec)} for name, (_, spec) in kernels(c).items()}
    norms = {name: {"scale": P(None, "data")} for name in ("norm_attention", "norm_mlp")}
    return {"embedding": P("model", "data"), "layers": layers | norms, "head": P("data", "model")}


def losses(c: Transformer, params, tokens: jax.Array, see: Callable, state) -> jax.Array:
    """Return the loss of every token.

    Args:
      c: sizes.
      params: as from `init`.
      tokens: `(batch, length)`.
      see: `(layer, state of the layer) -> layer`, what the forward pass sees of one layer's slice of the parameters.
      state: what is scanned along with the layers, the layer axis first.
    """
    x = params["embedding"].astype(jnp.bfloat16)[tokens]

    @jax.checkpoint
    def body(x, scanned):
        layer = jax.tree.map(lambda w: w.astype(jnp.bfloat16), see(*scanned))
        x = _spread(x + _attention(c, layer, _norm(x, layer["norm_attention"]["scale"])))
        x = _spread(x + _mlp(layer, _norm(x, layer["norm_mlp"]["scale"])))
        return x, None

    x, _ = jax.lax.scan(body, _spread(x), (params["layers"], state))
    logits = jnp.matmul(x, params["head"].astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])


def _spread(x: jax.Array) -> jax.Array:
    """Lay the residual stream over the whole mesh, so that what `checkpoint` keeps of 80 layers fits."""
    return jax.lax.with_sharding_constraint(x, P("data", None, "model"))


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    root = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-5)
    return (wide * root).astype(x.dtype) * scale


def _attention(c: Transformer, layer, x: jax.Array) -> jax.Array:
    batch, length, _ = x.shape
    split = lambda y, heads: y.reshape(batch, length, heads, c.head)  # noqa: E731
    query = split(x @ layer["query"]["kernel"], c.heads)
    query = query.reshape(batch, length, c.key_heads, c.heads // c.key_heads, c.head)
    key = split(x @ layer["key"]["kernel"], c.key_heads)
    value = split(x @ layer["value"]["kernel"], c.key_heads)
    scores = jnp.einsum("bqkgd,bskd->bkgqs", query, key, preferred_element_type=jnp.float32) * c.head**-0.5
    causal = jnp.tril(jnp.ones((length, length), bool))
    weight = jax.nn.softmax(jnp.where(causal, scores, -1e30)).astype(x.dtype)
    mixed = jnp.einsum("bkgqs,bskd->bqkgd", weight, value)
    return mixed.reshape(batch, length, c.width) @ layer["out"]["kernel"]


def _mlp(layer, x: jax.Array) -> jax.Array:
    return (jax.nn.silu(x @ layer["gate"]["kernel"]) * (x @ layer["up"]["kernel"])) @ layer["down"]["kernel"]


def dense_step(c: Transformer):
    """Return the optimizer and the training step without compression."""
    tx = optax.adam(1e-4)
    return tx, partial(_step, c, tx, lambda layer, state: layer, lambda opt_state: None)


def compressed_step(c: Transformer, every: int):
    """Return the optimizer and the step of gradual pruning and int8 weights: masks and scales of each layer."""
    sparsity = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=1_000)
    prune, int8 = jc.pruning.prune(jc.pruning.magnitude, sparsity), jc.quantization.fake_quantize(8)
    return transformed_step(c, jc.chain(prune, int8), jc.chain(jc.periodic(jc.stacked(prune), every), jc.stacked(int8)))


def transformed_step(c: Transformer, inside: jc.ParamTransform, whole: jc.ParamTransform):
    """Return the optimizer and the training step with a transform of all layers and its like for one of them.

    The transform is applied inside the scan, to a slice of parameters and state; `attach` updates all layers at once.
    """
    one = jc.select(KERNELS, inside)
    tx = jc.attach(optax.adam(1e-4), jc.select(KERNELS, whole))

    def see(layer, state):
        return one.forward({"layers": layer}, state)["layers"]

    return tx, partial(_step, c, tx, see, jc.optimizers.compress_state)


def _step(c: Transformer, tx, see: Callable, state_of: Callable, params, opt_state, tokens):
    def loss(params):
        return losses(c, params, tokens, see, state_of(opt_state)).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value
