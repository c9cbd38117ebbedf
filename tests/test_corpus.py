"""The corpus: what can be removed exactly is, what cannot is flagged, what must stay is refused. No silent error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress import graph, shrinking, tree
from tests.corpus import CASES

EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def cuts(groups, seed=0):
    """Half of some of the groups, of those that are not exact, and of all that are exact."""
    rng = np.random.default_rng(seed)
    half = {g.name: np.sort(rng.permutation(g.size)[: max(g.size // 2, 1)]) for g in groups if g.size > 1}
    exact = {g.name: half[g.name] for g in groups if g.name in half and g.exact}
    yield {name: units for name, units in exact.items() if rng.random() < 0.5}
    yield {name: units for name, units in half.items() if name not in exact}
    yield exact


def axes_of(groups):
    return {(part.path, part.axis) for group in groups for part in group.slices if group.size > 1}


@EVERY_CASE
def test_removed_is_masked(case):
    fn, params, inputs = case.make()
    traced = graph.trace(fn, params, *inputs)
    for cut in filter(None, cuts(traced.groups)):
        small = shrinking.remove(traced, params, shrinking.Cut(cut), *inputs)  # raises if exact and not equal
        assert small.exact == all(g.exact for g in traced.groups if g.name in cut)
        assert all(np.shape(leaf) == small.fn.shape(path) for path, leaf in tree.leaves(small.params).items())


@EVERY_CASE
def test_verdicts(case):
    fn, params, inputs = case.make()
    groups = graph.trace(fn, params, *inputs).groups
    exact, inexact = axes_of(g for g in groups if g.exact), axes_of(g for g in groups if not g.exact)
    assert set(case.exact) <= exact, f"refused: {set(case.exact) - exact}"
    assert set(case.inexact) <= inexact - exact, f"not flagged: {set(case.inexact) - (inexact - exact)}"
    assert not set(case.pinned) & (exact | inexact), f"removable: {set(case.pinned) & (exact | inexact)}"


@EVERY_CASE
def test_slices_that_only_read_stay_in_the_masked_function(case):
    """The mask is checked against its definition: what a unit reads is untouched, what makes it is all zero."""
    fn, params, inputs = case.make()
    traced = graph.trace(fn, params, *inputs)
    leaves = tree.leaves(params)
    for group in traced.groups:
        masked = tree.leaves(shrinking.mask(traced, params, shrinking.Cut({group.name: np.array([0])})))
        for part in group.slices:
            now = np.take(np.asarray(masked[part.path], np.complex128), part.index[0], axis=part.axis)
            if part.makes and jnp.issubdtype(leaves[part.path].dtype, jnp.inexact):
                assert not now.any()


@EVERY_CASE
def test_gradients_are_those_of_the_masked_function(case):
    fn, params, inputs = case.make()
    traced = graph.trace(fn, params, *inputs)
    cut = shrinking.Cut(list(cuts(traced.groups))[-1])
    weights = tree.weights(params)
    if not cut.units or not weights:
        return
    small = shrinking.remove(traced, params, cut, *inputs, verify=False)
    masked = shrinking.mask(traced, params, cut)
    try:
        whole = gradients(fn, masked, inputs)
    except ValueError:  # a `while` loop has no reverse mode
        return
    narrow = gradients(small.fn, small.params, inputs)
    folded = {traced.paths[leaf] for leaf in folds(traced)}
    for path, slope in tree.weights(small.narrow(tree.replace(params, whole))).items():
        if path in narrow and path not in folded:
            scale = max(float(np.abs(np.asarray(whole[path], np.float32)).max(initial=0)), 1e-3)
            np.testing.assert_allclose(
                np.asarray(narrow[path], np.float32), np.asarray(slope, np.float32), atol=2e-3 * scale
            )


def folds(traced):
    from jaxopt_compress.graph.folding import bias_after

    found = (bias_after(traced.coupling, op) for op in traced.coupling.folds)
    return [bias.leaf for bias in found if bias]


def gradients(fn, params, inputs):
    weights = tree.weights(params)

    def total(weights):
        outs = jax.tree.leaves(fn(tree.replace(params, weights), *inputs))
        return sum(jnp.sum(jnp.sin(out.astype(jnp.float32))) for out in outs if jnp.issubdtype(out.dtype, jnp.floating))

    return dict(jax.jit(jax.grad(lambda w: total(w) + 0.0))(dict(weights)))
