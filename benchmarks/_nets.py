"""A residual CNN with batch normalization and a vision transformer for 28 x 28 images, in plain JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Variables = dict[str, Any]


class Net(NamedTuple):
    """A network family.

    Attributes:
      init: `(key, width) -> variables`, of "params" and "stats".
      train: `(variables, images) -> (logits, new stats)`.
      apply: `(variables, images) -> logits`.
      width: its usual width.
      optimizer: `rate -> transformation`.
      rate: the highest learning rate.
    """

    init: Callable[[jax.Array, int], Variables]
    train: Callable[[Variables, jax.Array], tuple[jax.Array, Any]]
    apply: Callable[[Variables, jax.Array], jax.Array]
    width: int
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
    rate: float


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda w: w.ndim > 1, params)


def sgd(rate: optax.Schedule) -> optax.GradientTransformation:
    """SGD with Nesterov momentum and weight decay."""
    decay = optax.add_decayed_weights(5e-4, mask=_kernels)
    return optax.chain(decay, optax.clip_by_global_norm(1.0), optax.sgd(rate, momentum=0.9, nesterov=True))


def adamw(rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam with decoupled weight decay."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.02, mask=_kernels))


def _normal(key: jax.Array, *shape: int) -> jax.Array:
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= size
    return jax.random.normal(key, shape) * (2 / fan_in) ** 0.5


# --- residual CNN: a stem, two stages of two blocks, 14 x 14 and 7 x 7 ---

CNN_BLOCKS = ("a0", "a1", "b0", "b1")


def cnn_init(key: jax.Array, width: int) -> Variables:
    """Make the variables of the residual CNN."""
    keys = iter(jax.random.split(key, 16))
    params: Variables = {"stem": _conv_params(next(keys), 3, 1, width)}
    for name, c_in, c_out in _BLOCKS(width):
        block = {"first": _conv_params(next(keys), 3, c_in, c_out), "second": _conv_params(next(keys), 3, c_out, c_out)}
        if c_in != c_out:
            block["shortcut"] = _conv_params(next(keys), 1, c_in, c_out)
        params[name] = block
    params["head"] = {"kernel": _normal(next(keys), 2 * width, 10), "bias": jnp.zeros(10)}
    stats = {name: _stats(p) for name, p in params.items() if name != "head"}
    return {"params": params, "stats": stats}


def _BLOCKS(width: int) -> list[tuple[str, int, int]]:  # noqa: N802
    return [("a0", width, width), ("a1", width, width), ("b0", width, 2 * width), ("b1", 2 * width, 2 * width)]


def _conv_params(key: jax.Array, size: int, c_in: int, c_out: int) -> Variables:
    return {"kernel": _normal(key, size, size, c_in, c_out), "scale": jnp.ones(c_out), "shift": jnp.zeros(c_out)}


def _stats(p: Any) -> Any:
    if "kernel" in p:
        return {"mean": jnp.zeros(p["kernel"].shape[-1]), "var": jnp.ones(p["kernel"].shape[-1])}
    return {name: _stats(inner) for name, inner in p.items()}


def _cnn(variables: Variables, images: jax.Array, training: bool) -> tuple[jax.Array, Any]:
    params, stats = variables["params"], variables["stats"]
    new: Variables = {}
    x, new["stem"] = _stem(params["stem"], stats["stem"], images, training)
    for name in CNN_BLOCKS:
        with jax.named_scope(name):
            x, new[name] = _block(params[name], stats[name], x, 2 if name == "b0" else 1, training)
    return _head(params["head"], x), new


def cnn_blocks() -> list[Callable]:
    """Return what the trained net does as functions of the variables, one after the other."""

    def block(name: str) -> Callable:
        stride = 2 if name == "b0" else 1
        return lambda v, x: _block(v["params"][name], v["stats"][name], x, stride, False)[0]

    stem = lambda v, x: _stem(v["params"]["stem"], v["stats"]["stem"], x, False)[0]  # noqa: E731
    return [stem, *map(block, CNN_BLOCKS), lambda v, x: _head(v["params"]["head"], x)]


def _stem(p: Variables, stats: Variables, images: jax.Array, training: bool) -> tuple[jax.Array, Any]:
    x, new = _conv_norm(p, stats, images.reshape(-1, 28, 28, 1), 2, training)
    return jax.nn.relu(x), new


def _head(p: Variables, x: jax.Array) -> jax.Array:
    return x.mean((1, 2)) @ p["kernel"] + p["bias"]


def _block(p: Variables, stats: Variables, x: jax.Array, stride: int, training: bool) -> tuple[jax.Array, Any]:
    new: Variables = {}
    h, new["first"] = _conv_norm(p["first"], stats["first"], x, stride, training)
    h, new["second"] = _conv_norm(p["second"], stats["second"], jax.nn.relu(h), 1, training)
    if "shortcut" in p:
        x, new["shortcut"] = _conv_norm(p["shortcut"], stats["shortcut"], x, stride, training)
    return jax.nn.relu(x + h), new


def _conv_norm(p: Variables, stats: Variables, x: jax.Array, stride: int, training: bool) -> tuple[jax.Array, Any]:
    x = jax.lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if training else (stats["mean"], stats["var"])
    kept = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * p["scale"] + p["shift"], kept


cnn = Net(cnn_init, lambda v, x: _cnn(v, x, True), lambda v, x: _cnn(v, x, False)[0], 24, sgd, 0.1)

# --- vision transformer: 49 tokens of 4 x 4 pixels, three pre-norm layers of four heads, mean over tokens ---

HEADS = 4


def vit_init(key: jax.Array, width: int) -> Variables:
    """Make the variables of the vision transformer; `width` is a multiple of the number of heads."""
    keys = iter(jax.random.split(key, 32))
    dense = lambda n, m: {"kernel": _normal(next(keys), n, m) / 2**0.5, "bias": jnp.zeros(m)}  # noqa: E731
    norm = lambda: {"scale": jnp.ones(width), "shift": jnp.zeros(width)}  # noqa: E731
    params: Variables = {"patches": dense(16, width), "positions": 0.02 * jax.random.normal(next(keys), (49, width))}
    for i in range(3):
        attention = {name: dense(width, width) for name in ("query", "key", "value", "out")}
        mlp = {"up": dense(width, 2 * width), "down": dense(2 * width, width)}
        params[f"layer_{i}"] = {"norm_0": norm(), "attention": attention, "norm_1": norm(), "mlp": mlp}
    return {"params": {**params, "norm": norm(), "head": dense(width, 10)}, "stats": {}}


def _vit(variables: Variables, images: jax.Array) -> jax.Array:
    params = variables["params"]
    patches = images.reshape(-1, 7, 4, 7, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 49, 16)
    x = _dense(params["patches"], patches) + params["positions"]
    for i in range(3):
        layer = params[f"layer_{i}"]
        x = x + _attention(layer["attention"], _norm(layer["norm_0"], x))
        x = x + _dense(layer["mlp"]["down"], jax.nn.gelu(_dense(layer["mlp"]["up"], _norm(layer["norm_1"], x))))
    return _dense(params["head"], _norm(params["norm"], x).mean(1))


def _dense(p: Variables, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


def _norm(p: Variables, x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * p["scale"] + p["shift"]


def _attention(p: Variables, x: jax.Array) -> jax.Array:
    query, key, value = (_dense(p[name], x).reshape(*x.shape[:2], HEADS, -1) for name in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5)
    return _dense(p["out"], jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(*x.shape[:2], -1))


vit = Net(vit_init, lambda v, x: (_vit(v, x), {}), _vit, 64, adamw, 2e-3)
