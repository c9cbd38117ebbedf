"""Multiply-adds against counts by hand, and the report against naive numbers."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_compress as jc
from jaxopt_compress.graph import multiply_adds
from jaxopt_compress.pruning import magnitude, prune
from jaxopt_compress.quantization import fake_quantize


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def dense(x, w):
    return jnp.tanh(x @ w) * 2


def attention(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def layers(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def blocks(x, w):
    return jax.lax.scan(lambda x, _: (layers(x, w), None), x, length=3)[0]


def turns(x, w):
    return jax.lax.fori_loop(0, 7, lambda i, x: x @ w, x)


def either(x, w):
    return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)


@jax.custom_vjp
def custom(x, w):
    return x @ w


custom.defvjp(lambda x, w: (x @ w, None), lambda saved, g: (g, g))

Q = array(2, 7, 3, 5)
SQUARE = (array(4, 4), array(4, 4))
BY_HAND = {
    "dense": (dense, (array(3, 4), array(4, 5)), 3 * 4 * 5),
    "vector": (jnp.dot, (array(9), array(9)), 9),
    "batched": (jnp.matmul, (array(2, 3, 4), array(2, 4, 5)), 2 * 3 * 4 * 5),
    "elementwise": (lambda x: jnp.exp(x) * x + x.sum(), (array(8, 8),), 0),
    "attention": (attention, (Q, array(2, 11, 3, 5), array(2, 11, 3, 5)), 2 * (2 * 3 * 7 * 11 * 5)),
    "scan": (layers, (array(2, 4), array(6, 4, 4)), 6 * 2 * 4 * 4),
    "scan in scan": (blocks, (array(2, 4), array(6, 4, 4)), 3 * 6 * 2 * 4 * 4),
    "static loop": (turns, SQUARE, 7 * 64),
    "jit": (jax.jit(dense), (array(3, 4), array(4, 5)), 60),
    "remat": (jax.checkpoint(dense), (array(3, 4), array(4, 5)), 60),
    "cond": (either, SQUARE, 2 * 64),
    "custom_vjp": (custom, SQUARE, 64),
    "custom_jvp": (lambda x, w: jax.nn.relu(x @ w), SQUARE, 64),
    "vmap": (jax.vmap(dense), (array(6, 3, 4), array(6, 4, 5)), 6 * 60),
    "gradient of both": (jax.grad(lambda w, x: dense(x, w).sum(), (0, 1)), (array(4, 5), array(3, 4)), 3 * 60),
    "bf16": (dense, (array(3, 4, dtype=jnp.bfloat16), array(4, 5, dtype=jnp.bfloat16)), 60),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_by_hand(name):
    fn, args, count = BY_HAND[name]
    assert multiply_adds(fn, *args) == count


def conv_cost(shape: tuple[int, ...], **options) -> int:
    module = nn.Conv(**options)
    variables = jax.eval_shape(module.init, jax.random.key(0), array(*shape))
    return multiply_adds(module.apply, variables, array(*shape))


@pytest.mark.parametrize(
    ("shape", "options", "count"),
    [
        ((2, 8, 8, 4), {"features": 6, "kernel_size": (3, 3)}, 2 * 8 * 8 * 6 * 3 * 3 * 4),
        ((2, 8, 8, 4), {"features": 6, "kernel_size": (3, 3), "padding": "VALID"}, 2 * 6 * 6 * 6 * 3 * 3 * 4),
        ((2, 8, 8, 4), {"features": 6, "kernel_size": (3, 3), "strides": 2}, 2 * 4 * 4 * 6 * 3 * 3 * 4),
        ((2, 8, 8, 4), {"features": 6, "kernel_size": (3, 3), "feature_group_count": 2}, 2 * 8 * 8 * 6 * 3 * 3 * 2),
        ((2, 8, 8, 4), {"features": 8, "kernel_size": (3, 3), "feature_group_count": 4}, 2 * 8 * 8 * 8 * 3 * 3),
        ((2, 9, 4), {"features": 5, "kernel_size": (3,), "kernel_dilation": 2}, 2 * 9 * 5 * 3 * 4),
        ((1, 5, 5, 5, 2), {"features": 3, "kernel_size": (2, 2, 2)}, 125 * 3 * 8 * 2),
    ],
    ids=["same", "valid", "stride", "groups", "depthwise", "dilated", "3d"],
)
def test_convolutions_by_hand(shape, options, count):
    assert conv_cost(shape, **options, use_bias=False) == count


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_transposed_convolution_does_not_multiply_the_zeros_it_inserts(stride):
    module = nn.ConvTranspose(6, (3, 3), strides=(stride, stride), use_bias=False)
    variables = jax.eval_shape(module.init, jax.random.key(0), array(2, 4, 4, 5))
    assert multiply_adds(module.apply, variables, array(2, 4, 4, 5)) == 2 * 4 * 4 * 5 * 3 * 3 * 6


def test_training_costs_three_times_the_forward_pass_of_a_convolution():
    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, w = array(2, 8, 8, 3), array(4, 4, 3, 5)
    forward = multiply_adds(conv, x, w)
    assert forward == 2 * 4 * 4 * 5 * 4 * 4 * 3
    assert multiply_adds(jax.grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1)), x, w) == 3 * forward


def test_a_model_of_flax():
    model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)])
    x = array(5, 20)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert multiply_adds(model.apply, variables, x) == 5 * (20 * 32 + 32 * 10)


def test_a_loop_of_unknown_length_is_refused_only_if_it_contracts():
    def until(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

    def until_in_test(x, w):
        return jax.lax.while_loop(lambda x: (x @ w).sum() < 9, lambda x: x + 1, x)

    for fn in (until, until_in_test, jax.jit(until)):
        with pytest.raises(ValueError, match="`multiply_adds`: a contraction stands in a `while` loop; its iterations"):
            multiply_adds(fn, *SQUARE)
    assert multiply_adds(lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x) @ w, *SQUARE) == 64


# The report


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


PARAMS = {
    "layer": {"kernel": normal(32, 16), "bias": jnp.zeros(16)},
    "table": normal(8, 4, seed=1).astype(jnp.bfloat16),
    "scale": jnp.asarray(2.0),
    "steps": jnp.arange(3),
    "flags": jnp.array([True, False]),
    "empty": jnp.zeros((0, 3)),
    "nothing": None,
}


@pytest.fixture(scope="module")
def compressed():
    t = jc.chain(*(jc.select("layer/kernel", link) for link in (prune(magnitude, 0.75), fake_quantize(4))))
    state = t.update(PARAMS, t.init(PARAMS), step=0)
    return t.apply(PARAMS, state), t.encode(PARAMS, state)


@pytest.mark.slow
def test_numbers_of_the_report(compressed):
    after, model = compressed
    report = jc.report.table(PARAMS, model)
    before, after = jc.tree.leaves(PARAMS), jc.tree.leaves(after)
    assert [leaf.path for leaf in report.leaves] == list(before)
    for leaf in report.leaves:
        old, new = (np.asarray(x[leaf.path]) for x in (before, after))
        assert (leaf.shape, leaf.original_bytes, leaf.not_finite) == (old.shape, old.nbytes, 0)
        assert leaf.sparsity == (np.mean(new == 0) if new.size else 0)
        old, new = old.astype(np.float64).ravel(), new.astype(np.float64).ravel()
        if np.any(old):
            np.testing.assert_allclose(leaf.error, math.dist(old, new) / math.hypot(*old), rtol=1e-6)
        else:
            assert math.isnan(leaf.error)
    bits = {"layer/kernel": 4, "layer/bias": 32, "table": 16, "scale": 32, "steps": 32, "flags": 8, "empty": 32}
    assert {leaf.path: leaf.bits for leaf in report.leaves} == bits
    kernel = next(leaf for leaf in report.leaves if leaf.path == "layer/kernel")
    assert kernel.sparsity >= 0.75
    assert 0.1 < kernel.error < 0.9


def test_bytes_of_the_report(compressed, tmp_path):
    _, model = compressed
    report = jc.report.table(PARAMS, model)
    assert report.original_bytes == 4 * (512 + 16 + 1 + 3) + 2 * 32 + 2
    assert report.stored_bytes == sum(leaf.stored_bytes for leaf in report.leaves)
    written = jc.export.save(tmp_path / "model.jc", model)
    assert report.stored_bytes < written < report.stored_bytes + 2000  # the manifest
    kernel = next(leaf for leaf in report.leaves if leaf.path == "layer/kernel")
    assert kernel.stored_bytes < 512 * 4 / 8 + 16 * 4  # less than 4 bits a code and the scales


def test_the_printed_table(compressed):
    _, model = compressed
    report = jc.report.table(PARAMS, model)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in str(report).splitlines()]
    cells = {row[0]: row for row in rows}
    for leaf in report.leaves:
        shape, bits, sparsity, error, before, after = cells[leaf.path][1:]
        assert shape == ("x".join(map(str, leaf.shape)) or "()")
        assert (bits, sparsity) == (str(leaf.bits), f"{leaf.sparsity:.1%}")
        assert error == f"{leaf.error:.4f}"
        assert (before, after) == (f"{leaf.original_bytes:,}", f"{leaf.stored_bytes:,}")
    ratio = report.original_bytes / report.stored_bytes
    assert cells["total"][-2:] == [f"{report.original_bytes:,}", f"{report.stored_bytes:,} ({ratio:.1f}x)"]
    assert "\x1b" not in str(report)


def test_entries_that_are_not_finite_are_told():
    bad = {"w": jnp.array([1.0, jnp.nan, jnp.inf, -jnp.inf])}
    report = jc.report.table(bad, bad)
    assert report.leaves[0].not_finite == 3
    assert "(3 not finite)" in str(report)


def test_an_identity_changes_nothing():
    report = jc.report.table(PARAMS, PARAMS)
    assert {leaf.error for leaf in report.leaves if leaf.path in ("layer/kernel", "table", "scale", "steps")} == {0.0}


def test_different_trees_are_refused():
    with pytest.raises(ValueError, match="`report.table`: the trees have different leaves") as error:
        jc.report.table({"a": 1, "b": 2}, {"a": 1})
    assert str(error.value) == "`report.table`: the trees have different leaves: ['a', 'b'] and ['a']."
