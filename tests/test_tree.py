"""Leaf paths and the choice of leaves, in every container that models come in."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import flax
import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given

from jaxopt_compress import tree
from tests.containers import CONTAINERS

TREE = {
    "encoder": {"dense_0": {"kernel": 1, "bias": 2}, "dense_1": {"kernel": 3, "bias": 4}},
    "head": {"kernel": 5},
    "kernel": 6,
    "list": [{"kernel": {"value": 7}}, None, {"bias": {"value": 8}}],
}


def numbers(where) -> list[int]:
    found = tree.leaves(TREE)
    return [found[path] for path in tree.choose(TREE, where)]


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("encoder/dense_0/kernel", [1]),
        ("kernel", [6]),
        ("*", [2, 1, 4, 3, 5, 6, 7, 8]),  # an inner node that matches brings all below it
        ("**", [2, 1, 4, 3, 5, 6, 7, 8]),
        ("*/kernel", [5]),
        ("*/*/kernel", [1, 3, 7]),
        ("**/kernel", [1, 3, 5, 6, 7]),
        ("**kernel", [1, 3, 5, 6, 7]),
        ("**/kernel/value", [7]),
        ("encoder", [2, 1, 4, 3]),
        ("encoder/**", [2, 1, 4, 3]),
        ("encoder/**/kernel", [1, 3]),
        ("**/dense_?", [2, 1, 4, 3]),
        ("**/dense_?/b*", [2, 4]),
        ("**/dense_1", [4, 3]),
        ("h?ad", [5]),
        ("list/0", [7]),
        ("list/?/*/value", [7, 8]),
        (("head", "**/bias"), [2, 4, 5, 8]),  # in the order of the tree, each once
        (["**/kernel", "head/*"], [1, 3, 5, 6, 7]),
        (lambda path, leaf: leaf % 2 == 0, [2, 4, 6, 8]),
        (lambda path, leaf: path.startswith("list"), [7, 8]),
        (partial(lambda least, path, leaf: leaf >= least, 7), [7, 8]),
        (jax.tree.map(lambda x: x in (1, 8), TREE), [1, 8]),
    ],
)
def test_choice(where, chosen):
    assert numbers(where) == chosen


@pytest.mark.parametrize(
    "glob", ["kerne", "dense_0", "**/dense_", "*/value", "encoder/*/*/*", "h??ad", "ENCODER", "a|b"]
)
def test_choice_of_nothing_lists_the_leaves(glob):
    with pytest.raises(ValueError, match="matches no leaf") as error:
        tree.choose({"encoder": {"w": 1}, "head": 2}, glob)
    assert str(error.value) == f"`select`: {glob!r} matches no leaf; the leaves are 'encoder/w', 'head'."


@pytest.mark.parametrize(
    ("where", "named"),
    [
        (("head", "absent"), "'absent'"),  # one glob of several that matches nothing is a mistake too
        (lambda path, leaf: False, "<function"),
        (jax.tree.map(lambda _: False, TREE), "{'encoder'"),
    ],
    ids=["globs", "predicate", "flags"],
)
def test_every_form_of_an_empty_choice_is_refused(where, named):
    with pytest.raises(ValueError, match=r"`select`: .* matches no leaf") as error:
        tree.choose(TREE, where)
    assert named in str(error.value)


@pytest.mark.parametrize("where", [{"encoder": True}, True, None, (), [], ("head", 3), {"head"}], ids=str)
def test_what_is_no_choice_is_refused(where):
    with pytest.raises(ValueError, match="`where` must be a glob, globs, a predicate or a tree of bools"):
        tree.choose(TREE, where)


def test_nothing_to_choose_from_is_no_error():
    assert tree.choose({}, "**/kernel") == ()
    assert tree.choose({"a": None}, {"a": None}) == ()


@given(st.text("ab.+()[]\\^$|{}-", min_size=1, max_size=6))
def test_only_stars_and_question_marks_are_special(name):
    assert tree.choose({name: 1, "other": 2}, name) == (name,)
    with pytest.raises(ValueError, match="matches no leaf"):
        tree.choose({"other": 2}, name)


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4))
def test_any_key_may_be_a_star_and_any_run_of_keys_two(keys):
    nested: Any = 1
    for key in reversed(keys):
        nested = {key: nested}
    path = ("/".join(keys),)
    for i in range(len(keys)):
        assert tree.choose(nested, "/".join([*keys[:i], "*", *keys[i + 1 :]])) == path
        assert tree.choose(nested, "/".join([*keys[:i], "**", *keys[-1:]])) == path


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match=r"`tree.leaves`: two leaves have the path 'a/b'; rename a key."):
        tree.leaves({"a/b": 1, "a": {"b": 2}})


def test_paths_of_a_bare_leaf_and_of_nothing():
    assert list(tree.leaves(jnp.ones(2))) == [""]
    assert list(tree.leaves(None)) == []
    assert tree.choose(jnp.ones(2), "**") == ("",)
    assert tree.choose(jnp.ones(2), True) == ("",)
    assert tree.choose(jnp.ones(2), lambda path, leaf: leaf.ndim == 1) == ("",)


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS, ids=lambda c: c.name)
def test_containers(container):
    made = container.make()
    found = tree.leaves(made)
    assert list(found) == container.paths
    assert list(tree.choose(made, container.where)) == container.kernels
    flags = jax.tree.unflatten(jax.tree.structure(made), [path in container.kernels for path in found])
    assert list(tree.choose(made, flags)) == container.kernels
    assert list(tree.choose(made, lambda path, leaf: path in container.kernels)) == container.kernels
    changed = tree.replace(made, {container.kernels[0]: "new"})
    assert jax.tree.structure(changed) == jax.tree.structure(made)
    for path, leaf in tree.leaves(changed).items():
        assert leaf == "new" if path == container.kernels[0] else leaf is found[path]


@pytest.mark.slow
def test_names_come_from_the_model_that_the_user_wrote():
    variables = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]).init(jax.random.key(0), jnp.ones((1, 4)))
    names = [f"params/layers_{i}/{leaf}" for i in (0, 2) for leaf in ("bias", "kernel")]
    assert list(tree.leaves(variables)) == list(tree.leaves(flax.core.freeze(variables))) == names
    assert tree.choose(variables, "**/kernel") == ("params/layers_0/kernel", "params/layers_2/kernel")
    state = nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    assert list(tree.leaves(state)) == ["bias/value", "kernel/value"]
    assert tree.choose(state, "**/kernel") == tree.choose(state, "kernel") == ("kernel/value",)
    linear = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    assert list(tree.leaves(linear)) == ["weight", "bias"]


def test_a_callable_module_of_bools_is_a_tree_of_bools():
    linear = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    flags = eqx.tree_at(lambda m: m.bias, jax.tree.map(lambda _: True, linear), False)
    assert callable(flags)
    assert tree.choose(linear, flags) == ("weight",)


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@pytest.mark.parametrize(
    ("leaf", "weight"),
    [
        (np.ones(1), True),
        (jnp.ones((2, 0)), True),
        (jnp.ones((2, 2), jnp.bfloat16), True),
        (jax.ShapeDtypeStruct((2,), jnp.float16), True),
        (jnp.ones(()), False),
        (np.float32(1), False),
        (jnp.arange(3), False),
        (jnp.ones(3, bool), False),
        (jnp.ones(3, jnp.complex64), False),
        (jax.random.split(jax.random.key(0)), False),
        (1.0, False),
        ("text", False),
        (None, False),
    ],
    ids=str,
)
def test_weights_are_floating_arrays_with_an_axis(leaf, weight):
    assert tree.is_weight(leaf) is weight
    assert list(tree.weights(Pair(leaf, (jnp.ones(2),)))) == ["kernel"] * weight + ["bias/0"]
