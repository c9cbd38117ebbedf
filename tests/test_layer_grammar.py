"""Functions that nobody wrote: Hypothesis puts layers together, and what is removed equals what is masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_compress import graph, shrinking

ACTIVATIONS = (jax.nn.relu, jax.nn.gelu, jnp.tanh, jax.nn.sigmoid, jax.nn.silu, jnp.exp, jnp.abs)


class Builder:
    """Draws layers; each takes features `(batch, tokens, width)` and gives some of another width."""

    def __init__(self, draw):
        self.draw, self.params, self.rng = draw, {}, np.random.default_rng(draw(st.integers(0, 2**16)))

    def weight(self, *shape):
        name = f"w{len(self.params):02}"
        self.params[name] = jnp.asarray(self.rng.normal(0.1, 0.6, shape), jnp.float32)
        return name

    def width(self):
        return self.draw(st.sampled_from((4, 6, 8, 12)))

    def dense(self, width):
        new = self.width()
        w, b = self.weight(width, new), self.weight(new)
        bias = self.draw(st.booleans())
        return (lambda p, x: x @ p[w] + (p[b][None, None] if bias else 0.0)), new

    def activation(self, width):
        f = self.draw(st.sampled_from(ACTIVATIONS))
        return (lambda p, x: f(x)), width

    def norm(self, width):
        g, b, mean = self.weight(width), self.weight(width), self.draw(st.booleans())

        def fn(p, x):
            x = x - x.mean(-1, keepdims=True) if mean else x
            return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-3) * p[g][None, None] + p[b][None, None]

        return fn, width

    def group_norm(self, width):
        def fn(p, x):
            grid = x.reshape(*x.shape[:2], 2, -1)
            return (grid * jax.lax.rsqrt((grid**2).mean((1, 3), keepdims=True) + 1e-3)).reshape(x.shape)

        return fn, width

    def conv(self, width):
        new, groups = self.width(), self.draw(st.sampled_from((1, 2)))
        k = self.weight(3, width // groups, new)
        how = {"dimension_numbers": ("NWC", "WIO", "NWC"), "feature_group_count": groups}
        return (lambda p, x: jax.lax.conv_general_dilated(x, p[k], (1,), "SAME", **how)), new

    def attention(self, width):
        q, k, v = (self.weight(width, 12) for _ in range(3))
        o = self.weight(12, width)

        def fn(p, x):
            heads = [(x @ p[name]).reshape(*x.shape[:2], 2, 6) for name in (q, k, v)]
            weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", *heads[:2]))
            return jnp.einsum("nhqk,nkhd->nqhd", weights, heads[2]).reshape(*x.shape[:2], 12) @ p[o]

        return fn, width

    def gate(self, width):
        a, b = self.weight(width, 2 * width), self.weight(2 * width)

        def fn(p, x):
            left, right = jnp.split(x @ p[a] + p[b][None, None], 2, -1)
            return left * jax.nn.sigmoid(right)

        return fn, width

    def recurrent(self, width):
        w, u = self.weight(width, 6), self.weight(6, 6)

        def fn(p, x):
            step = lambda h, a: (new := jnp.tanh(a @ p[w] + h @ p[u]), new)  # noqa: E731
            return jax.lax.scan(step, jnp.zeros((x.shape[0], 6)), x.swapaxes(0, 1))[1].swapaxes(0, 1)

        return fn, 6

    def rearrange(self, width):
        return self.draw(
            st.sampled_from(
                (
                    lambda p, x: jnp.flip(x, -1),
                    lambda p, x: jnp.roll(x, 1, -1),
                    lambda p, x: x.reshape(*x.shape[:2], 2, -1).swapaxes(2, 3).reshape(x.shape),
                    lambda p, x: x[..., np.arange(x.shape[-1]) ^ 1],
                    lambda p, x: jnp.concatenate([x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1),
                )
            )
        ), width

    def join(self, width):
        (one, a), (other, b) = self.layer(width), self.layer(width)
        if a == b and self.draw(st.booleans()):
            return (lambda p, x: one(p, x) + other(p, x)), a
        return (lambda p, x: jnp.concatenate([one(p, x), other(p, x)], -1)), a + b

    def residual(self, width):
        first, middle = self.layer(width)
        w = self.weight(middle, width)
        return (lambda p, x: x + first(p, x) @ p[w]), width

    def wrapped(self, width):
        layer, new = self.layer(width)
        mapped = lambda f: lambda p, x: jax.vmap(f, (None, 0))(p, x[:, None])[:, 0]  # noqa: E731
        return self.draw(st.sampled_from((jax.jit, jax.checkpoint, mapped)))(layer), new

    def layer(self, width):
        names = "dense activation norm group_norm conv attention gate recurrent rearrange join residual wrapped"
        return getattr(self, self.draw(st.sampled_from(names.split())))(width)


@st.composite
def functions(draw):
    build = Builder(draw)
    w = build.weight(5, 8)
    layers, width = [], 8
    for _ in range(draw(st.integers(1, 5))):
        layer, width = build.layer(width)
        layers.append(layer)
    out = build.weight(width, 3)

    def fn(p, x):
        x = x @ p[w]
        for layer in layers:
            x = layer(p, x)
        return x @ p[out]

    return fn, build.params, jnp.asarray(build.rng.normal(size=(2, 4, 5)), jnp.float32)


@pytest.mark.slow
@settings(max_examples=9)
@given(functions(), st.integers(0, 2**16))
def test_removed_is_masked(model, number):
    assert_removed_is_masked(model, number)


@pytest.mark.exhaustive
@settings(max_examples=100)
@given(functions(), st.integers(0, 2**16))
def test_removed_is_masked_at_length(model, number):
    assert_removed_is_masked(model, number)


def assert_removed_is_masked(model, number):
    fn, params, x = model
    rng = np.random.default_rng(number)
    traced = graph.trace(fn, params, x)
    units = {
        group.name: np.flatnonzero(rng.random(group.size - 1) < 0.5)
        for group in traced.groups
        if group.exact and rng.random() < 0.7
    }
    small = shrinking.remove(traced, params, shrinking.Cut(units), x)  # raises if they differ
    assert small.exact and small.difference < 1e-4
    assert small.fn(small.params, x[:1]).shape == (1, 4, 3)
