"""`report.table(fn, params, x)`: numbers that can be counted by hand, and a function beside its smaller version."""

import jax
import jax.numpy as jnp
import pytest

from jaxopt_compress import report, shrinking
from tests.corpus.layers import dense, dense_chain, normal, seed


def forward(p, x):
    return dense(p["dense_1"], jax.nn.relu(dense(p["dense_0"], x)))


def test_counts_by_leaf_and_in_all():
    rng = seed()
    params, x = dense_chain(rng, 5, 8, 3), normal(rng, 4, 5)
    found = report.table(forward, params, x, rounds=2)
    by_path = {leaf.path: leaf for leaf in found.before.leaves}
    assert by_path["dense_0/kernel"].multiply_adds == 160 and by_path["dense_0/kernel"].bytes == 160
    assert by_path["dense_0/bias"].multiply_adds == 0 and by_path["dense_1/kernel"].uses == 1
    assert (found.before.multiply_adds, found.before.parameters, found.before.bytes) == (256, 75, 300)
    assert found.before.flops >= 2 * 256 and found.before.seconds > 0 and found.after is None
    assert "dense_1/kernel" in str(found) and "XLA" in str(found)


def test_before_and_after_in_one():
    rng = seed()
    params, x = dense_chain(rng, 5, 8, 3), normal(rng, 4, 5)
    small = shrinking.shrink(forward, params, x, ratio=0.5)
    found = report.table(forward, params, x, after=small, rounds=2)
    assert found.after is not None and found.after.multiply_adds == 128 and found.latency > 0
    assert "5x8 -> 5x4" in str(found) and "(0.500x)" in str(found)


def test_scalars_and_functions_without_inputs():
    found = report.table(lambda p: p["w"] @ p["w"] * p["s"], {"w": jnp.ones((3, 3)), "s": 2.0}, rounds=1)
    assert found.before.multiply_adds == 27 and found.before.parameters == 10


def test_rounds_are_at_least_one():
    with pytest.raises(ValueError, match="`rounds` is at least 1; got 0"):
        report.cost(lambda p: p, jnp.ones(3), rounds=0)
