"""The trace: who consumes which parameter, what is refused and why, and that nothing is assumed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress import graph
from jaxopt_compress.graph.atoms import NEVER, Atoms
from tests.corpus.layers import normal, seed


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def names(traced):
    return {group.name: group.size for group in traced.groups}


def reads(fn, **shapes):
    return graph.trace(fn, {name: struct(*shape) for name, shape in shapes.items()}, struct(2, 5)).uses


# --- uses ---


def test_uses_name_axes_and_work():
    (first, second) = reads(lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"].T, up=(5, 8), down=(3, 8))
    assert (first.path, first.roles, first.activation, first.multiply_adds) == ("up", ("in", "out"), (2, 5), 80)
    assert (second.path, second.roles, second.multiply_adds, second.runs) == ("down", ("out", "in"), 48, 1)
    assert "test_graph.py" in second.source


def test_uses_see_through_what_arranges_casts_and_wraps():
    def fn(p, x):
        w = jax.jit(lambda w: jnp.flip(w.reshape(8, 5).T, 0).astype(jnp.bfloat16))(p["w"])
        apply = jax.checkpoint(lambda w: x.astype(jnp.bfloat16) @ w)
        return apply(w)

    (use,) = reads(fn, w=(40,))
    assert (use.path, use.primitive, use.multiply_adds) == ("w", "dot_general", 80)


def test_uses_count_loops_and_tell_lookups_and_convolutions():
    def fn(p, x):
        h = p["table"][jnp.zeros(2, jnp.int32)][None]
        h = jax.lax.scan(lambda c, _: (jnp.tanh(c @ p["w"]), None), h, length=7)[0]
        return jax.lax.conv_general_dilated(h, p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")) + x.sum()

    table, loop, conv = reads(fn, table=(11, 4), w=(4, 4), k=(3, 4, 6))
    assert loop.runs == 7 and loop.multiply_adds == 7 * 2 * 16
    assert conv.roles == ("window", "in", "out")
    assert table.path == "w" or table.path == "table"


def test_a_parameter_used_twice_has_two_uses_and_an_unused_one_none():
    traced = graph.trace(
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, {"w": struct(5, 8), "left": struct(3)}, struct(2, 5)
    )
    assert [use.roles for use in traced.uses] == [("in", "out"), ("out", "in")]
    text = str(traced)
    assert "use 2 of 2" in text and "nothing" in text


def test_leaves_that_are_one_array_stay_alike():
    w = normal(seed(), 5, 5)
    fn = lambda p, x: jnp.tanh(jnp.tanh(x @ p["in"]) @ p["a"]) @ p["b"] @ p["out"]  # noqa: E731
    params = {"in": normal(seed(), 4, 5), "a": w, "b": w, "out": normal(seed(), 5, 3)}
    traced = graph.trace(fn, params, jnp.ones((2, 4)))
    for group in traced.groups:
        held = {(part.path, part.axis): part.index.tolist() for part in group.slices}
        for axis in (0, 1):
            assert held.get(("a", axis)) == held.get(("b", axis))


# --- refusals ---


def test_what_is_not_understood_is_refused_with_the_primitive_and_the_line():
    def fn(p, x):
        h = x @ p["a"]
        return jnp.linalg.svd(h, compute_uv=False) @ p["b"]

    traced = graph.trace(fn, {"a": struct(5, 8), "b": struct(2, 3)}, struct(2, 5))
    assert names(traced) == {}
    assert "`svd` is not understood" in traced.why_fixed("a", 1) and "test_graph.py" in traced.why_fixed("a", 1)


def test_ends_are_refused_as_such():
    traced = graph.trace(lambda p, x: {"y": x @ p["w"]}, {"w": struct(5, 3)}, struct(2, 5))
    assert "an input of the function" in traced.why_fixed("w", 0)
    assert "the caller sees it: axis 1 of output 'y'" in traced.why_fixed("w", 1)


def test_outputs_shrink_if_asked():
    fn = lambda p, x: {"y": x @ p["w"], "z": x @ p["v"]}  # noqa: E731
    params = {"w": struct(5, 3), "v": struct(5, 4)}
    assert names(graph.trace(fn, params, struct(2, 5), shrinkable="y")) == {"w[1]": 3}
    with pytest.raises(ValueError, match="matches no leaf"):
        graph.trace(fn, params, struct(2, 5), shrinkable="w")


def test_leaks_name_the_line():
    traced = graph.trace(
        lambda p, x: jnp.exp(x @ p["a"]) @ p["b"], {"a": struct(5, 8), "b": struct(8, 3)}, struct(2, 5)
    )
    ((text, units),) = traced.groups[0].leaks
    assert "`dot_general`" in text and "test_graph.py" in text and len(units) == 8
    assert not traced.groups[0].exact


@pytest.mark.parametrize("leaf", ["text", object()])
def test_leaves_are_arrays(leaf):
    with pytest.raises(ValueError, match="`graph.trace`: leaves are arrays or numbers; 'b'"):
        graph.trace(lambda p, x: x, {"a": jnp.ones(3), "b": leaf}, jnp.ones(3))


def test_a_mean_over_a_group_is_noted_and_a_sum_of_squares_is_not():
    params = {"a": struct(5, 8), "b": struct(8, 3)}
    over = lambda norm: graph.trace(lambda p, x: norm(x @ p["a"]) @ p["b"], params, struct(2, 5)).groups[0]  # noqa: E731
    mean = over(lambda h: h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6))
    norm = over(lambda h: h * jax.lax.rsqrt((h * h).sum(-1, keepdims=True) + 1e-6))
    assert mean.exact and mean.counted and norm.exact and not norm.counted


# --- blocks ---


def test_blocks_are_the_branches_of_a_stream():
    def fn(p, x):
        x = x + jax.nn.relu(x @ p["0"]["up"]) @ p["0"]["down"]
        x = x + jax.nn.sigmoid(x @ p["1"]["up"] + p["1"]["bias"][None]) @ p["1"]["down"]
        return x + jnp.exp(x @ p["2"]["up"])  # one, not zero, when its parameters are zero

    layer = lambda: {"up": struct(5, 5), "down": struct(5, 5), "bias": struct(5)}  # noqa: E731
    traced = graph.trace(fn, {str(i): layer() for i in range(3)}, struct(2, 5))
    assert [set(block.paths) for block in traced.blocks] == [{"0/up", "0/down"}, {"1/up", "1/down", "1/bias"}]


def test_a_branch_that_shares_a_parameter_is_none():
    fn = lambda p, x: (x + x @ p["w"]) @ p["w"]  # noqa: E731
    assert graph.trace(fn, {"w": struct(5, 5)}, struct(2, 5)).blocks == ()


# --- atoms ---


def solution(atoms, sets, removed):
    return np.isin(atoms.resolve(sets)[0], removed).any(axis=1)


@pytest.mark.parametrize("first", [(2, 6), (4, 3), (3, 4), (12,)])
@pytest.mark.parametrize("second", [(2, 6), (6, 2), (3, 4), (2, 2, 3)])
def test_two_grids_over_one_axis_lose_the_same_indices(first, second):
    from jaxopt_compress.graph.axes import axis, merge

    atoms = Atoms()
    one, other = (merge([axis(atoms.fresh(n).reshape(-1, 1)) for n in grid]).ids for grid in (first, second))
    atoms.unify(one, other, atoms.reason("apart"))
    left = np.unique(atoms.resolve(one)[0])
    for atom in left[left > NEVER]:
        np.testing.assert_array_equal(solution(atoms, one, [atom]), solution(atoms, other, [atom]))
    if {first, second} in (
        {(2, 6)},
        {(2, 6), (12,)},
        {(3, 4)},
        {(2, 6), (2, 2, 3)},
        {(4, 3), (2, 2, 3)},
        {(4, 3), (2, 6)},
    ):
        assert (left > NEVER).sum() >= 2  # grids that nest leave something to remove


def test_pinned_atoms_pin_their_equals():
    atoms = Atoms()
    one, other, third = (atoms.fresh(4).reshape(-1, 1) for _ in range(3))
    atoms.unify(one, other, 0)
    atoms.pin(other[1:2], atoms.reason("because"))
    atoms.unify(other, third, 0)
    ids, why = atoms.resolve(third)
    assert ids[1, 0] == NEVER and (ids[[0, 2, 3], 0] > NEVER).all() and atoms.reasons[why] == "because"
