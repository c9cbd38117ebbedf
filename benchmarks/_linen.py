"""An MLP with 10M parameters, a vision transformer with 5M and ResNet-18, as Flax modules: what peers take."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Mlp(nn.Module):
    """784-2048-2048-2048-10, or other widths."""

    widths: tuple[int, ...] = (2048, 2048, 2048, 10)
    dense: Any = nn.Dense

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths[:-1]:
            x = nn.relu(self.dense(width)(x))
        return self.dense(self.widths[-1])(x)


class Block(nn.Module):
    """A pre-norm layer of a transformer; attention is written out, so that every product is a module or an einsum."""

    heads: int
    dense: Any = nn.Dense

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        h = nn.LayerNorm()(x)
        query, key, value = (
            self.dense(width, name=name)(h).reshape(*h.shape[:2], self.heads, -1) for name in ("query", "key", "value")
        )
        weights = nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5)
        x = x + self.dense(width, name="out")(jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(h.shape))
        h = nn.gelu(self.dense(4 * width, name="up")(nn.LayerNorm()(x)))
        return x + self.dense(width, name="down")(h)


class Vit(nn.Module):
    """Patches as vectors `(n, tokens, size)`, mean over tokens, ten classes."""

    width: int = 384
    layers: int = 3
    heads: int = 6
    dense: Any = nn.Dense

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dense(self.width, name="patches")(x)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for i in range(self.layers):
            x = Block(self.heads, self.dense, name=f"layer_{i}")(x)
        return self.dense(10, name="head")(nn.LayerNorm()(x).mean(1))


class Residual(nn.Module):
    """Two convolutions with batch normalization around a shortcut."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = lambda: nn.BatchNorm(use_running_average=True)  # noqa: E731
        strides = (self.stride, self.stride)
        h = nn.relu(norm()(nn.Conv(self.width, (3, 3), strides, use_bias=False)(x)))
        h = norm()(nn.Conv(self.width, (3, 3), use_bias=False)(h))
        if x.shape != h.shape:
            x = norm()(nn.Conv(self.width, (1, 1), strides, use_bias=False)(x))
        return nn.relu(x + h)


class ResNet(nn.Module):
    """ResNet-18 for small images."""

    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(self.width, (3, 3), use_bias=False)(x)))
        for i in range(4):
            for j in range(2):
                x = Residual(self.width * 2**i, 2 if i and not j else 1)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def mlp(quick: bool = False) -> tuple[nn.Module, jax.Array]:
    """Return the MLP and a batch of 128."""
    return Mlp((256, 256, 10) if quick else Mlp.widths), jax.random.normal(jax.random.key(1), (128, 784))


def vit(quick: bool = False) -> tuple[nn.Module, jax.Array]:
    """Return the transformer and a batch of 16 pictures of 14 x 14 patches."""
    model: Any = Vit(64, 1, 2) if quick else Vit()
    return model, jax.random.normal(jax.random.key(1), (16, 49 if quick else 196, 768))
