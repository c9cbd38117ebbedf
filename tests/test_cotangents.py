"""What flows back through a matrix product: the right numbers, whatever stands where, in the way CPUs are fast at."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress.products import Dot

# contracting and batch axes of both operands, and their shapes
CASES = {
    "x @ w": (((1,), (0,)), ((), ()), (8, 6), (6, 4)),
    "x @ w, a wide input": (((1,), (0,)), ((), ()), (8, 40), (40, 4)),
    "x @ w, a wide output": (((1,), (0,)), ((), ()), (8, 6), (6, 40)),
    "x @ w.T": (((1,), (1,)), ((), ()), (8, 6), (4, 6)),
    "w @ x": (((1,), (0,)), ((), ()), (4, 6), (6, 8)),
    "w.T @ x": (((0,), (0,)), ((), ()), (6, 4), (6, 8)),
    "rows of tokens": (((2,), (0,)), ((), ()), (3, 5, 6), (6, 4)),
    "heads": (((2,), (0,)), ((), ()), (3, 5, 6), (6, 2, 4)),
    "heads together": (((2, 3), (0, 1)), ((), ()), (3, 5, 2, 4), (2, 4, 6)),
    "two axes, crossed": (((1, 2), (2, 0)), ((), ()), (3, 4, 2), (2, 5, 4)),
    "experts": (((2,), (1,)), ((0,), (0,)), (2, 3, 4), (2, 4, 5)),
    "scores": (((3,), (3,)), ((0, 2), (0, 2)), (2, 5, 3, 4), (2, 7, 3, 4)),
    "batch last": (((0,), (1,)), ((2,), (0,)), (4, 3, 2), (2, 4, 5)),
    "one sum": (((0,), (0,)), ((), ()), (6,), (6,)),
    "nothing to sum": (((0,), (0,)), ((), ()), (0, 3), (0, 4)),
}


def given(name):
    contracting, batch, first, second = CASES[name]
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.integers(-4, 5, shape), jnp.float32) for shape in (first, second))
    return Dot(contracting, batch, (len(first), len(second))), a, b


@pytest.mark.parametrize("name", CASES)
def test_cotangents_are_those_of_the_product(name):
    """Small integers: bfloat16 holds them exactly, and so must everything agree exactly."""
    dot, a, b = given(name)
    out, back = jax.vjp(lambda a, b: dot(a, b, jnp.float32), a, b)
    g = jnp.asarray(np.random.default_rng(1).integers(-4, 5, out.shape), jnp.float32)
    for side, want in enumerate(back(g)):
        narrow = [x.astype(jnp.bfloat16) for x in (g, (a, b)[1 - side])]
        for run in (dot.transposed, jax.jit(dot.transposed, static_argnums=0)):
            found = run(side, *narrow)
            assert found.dtype == jnp.float32
            np.testing.assert_array_equal(found, want)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("x @", "w @", "rows", "heads"))])
def test_no_factor_lies_transposed_on_a_cpu(name):
    """On the left XLA:CPU has kernels of bfloat16 only for rows of what is summed over; others take 5 times as long."""
    dot, a, b = given(name)
    g = dot(a, b, jnp.float32)
    for side in (0, 1):
        narrow = [x.astype(jnp.bfloat16) for x in (g, (a, b)[1 - side])]
        text = str(jax.jit(dot.transposed, static_argnums=0).lower(side, *narrow).compile().as_text())
        (line,) = [line for line in text.splitlines() if " dot(" in line]
        shapes = dict(re.findall(r"%([\w.\-]+) = (\w+\[[\d,]*\]\{[\d,]*\})", text))
        ((left, right),) = re.findall(r"dot\((?:\S+ )?%([\w.\-]+), (?:\S+ )?%([\w.\-]+)\)", line)
        assert "lhs_contracting_dims={1}" in line
        for operand in (left, right):
            assert shapes[operand].endswith("{1,0}"), line
        if side == 1 and name.startswith("x @ w, a wide"):  # the smaller one is turned
            assert ("[4,8]" if "input" in name else "[6,8]") in shapes[left]
