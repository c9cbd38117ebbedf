"""The corpus: what can be removed exactly is, what cannot is flagged, what must stay is refused. No silent error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress import graph, shrinking, tree
from jaxopt_compress.graph.folding import bias_after
from tests.compiling import unoptimized
from tests.corpus import CASES, FILES

CORE = ("cnn_", "resnet", "attention_g", "transformer_v", "rnn", "lstm", "linen_mlp", "nnx", "experts_s")
EVERY_CASE = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case.name.startswith(CORE) else pytest.mark.slow) for case in CASES],
    ids=lambda case: case.name,
)
SAMPLE = [case for cases in FILES for case in cases[::20]]  # some of every file
SAMPLE_OF_CASES = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case in SAMPLE else pytest.mark.exhaustive) for case in CASES],
    ids=lambda case: case.name,
)


def cuts(groups, seed=0):
    """Half of some of the groups that are exact, half of those that are not, and half of all that are exact."""
    rng = np.random.default_rng(seed)
    half = {g.name: np.sort(rng.permutation(g.size)[: max(g.size // 2, 1)]) for g in groups if g.size > 1}
    exact = {g.name: half[g.name] for g in groups if g.name in half and g.exact}
    some = {name: units for name, units in exact.items() if rng.random() < 0.5}
    return some, {name: units for name, units in half.items() if name not in exact}, exact


def axes_of(groups):
    return {(part.path, part.axis) for group in groups for part in group.slices if group.size > 1}


@SAMPLE_OF_CASES
def test_removed_is_masked(case):
    fn, params, inputs = case.make()
    traced = graph.trace(fn, params, *inputs)
    some, inexact, every = cuts(traced.groups)
    for cut in filter(None, (some if len(some) < len(every) else None, inexact)):
        small = shrinking.remove(traced, params, shrinking.Cut(cut), *inputs)  # raises if exact and not equal
        assert small.exact == (cut is some)
    small = shrinking.remove(traced, params, shrinking.Cut(every), *inputs, verify=False)
    assert all(np.shape(leaf) == small.fn.shape(path) for path, leaf in tree.leaves(small.params).items())
    assert_same_values_and_gradients(traced, params, shrinking.Cut(every), small, inputs)


def assert_same_values_and_gradients(traced, params, cut, small, inputs):
    """Compare with the masked function: outputs, and gradients at all that is left."""
    masked = shrinking.mask(traced, params, cut)
    outs, whole = values_and_gradients(traced.fn, masked, inputs)
    small_outs, narrow = values_and_gradients(small.fn, small.params, inputs)
    for one, other in zip(outs, small_outs, strict=True):
        assert_close(other, one)
    folded = {traced.paths[bias.leaf] for op in traced.coupling.folds if (bias := bias_after(traced.coupling, op))}
    left = tree.leaves(small.narrow(tree.replace(params, whole)))
    for path in (narrow.keys() if whole else set()) - folded:
        assert_close(narrow[path], left[path], at_least=np.abs(np.asarray(whole[path], np.float32)).max(initial=1e-3))


def assert_close(found, wanted, at_least=0.0):
    found, wanted = (np.asarray(x).astype(np.complex128) for x in (found, wanted))
    assert found.shape == wanted.shape
    scale = max(np.abs(wanted[np.isfinite(wanted)]).max(initial=0), at_least)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 * scale)


def values_and_gradients(fn, params, inputs):
    """Return the outputs that are numbers, and gradients of a sum of sines; none where JAX has no reverse mode."""
    weights = dict(tree.weights(params))

    def total(weights):
        outs = [o for o in jax.tree.leaves(fn(tree.replace(params, weights), *inputs)) if is_number(o)]
        return sum((jnp.sum(jnp.sin(jnp.abs(o).astype(jnp.float32))) for o in outs), jnp.zeros(())), outs

    try:
        (_, outs), slopes = unoptimized(jax.value_and_grad(total, has_aux=True))(weights)
    except ValueError:  # a `while` loop, a function with a batching rule of its own
        return unoptimized(total)(weights)[1], {}
    return outs, slopes


def is_number(out):
    return jnp.issubdtype(out.dtype, jnp.inexact)


@EVERY_CASE
def test_verdicts(case):
    fn, params, inputs = case.make()
    groups = graph.trace(fn, params, *inputs).groups
    exact, inexact = axes_of(g for g in groups if g.exact), axes_of(g for g in groups if not g.exact)
    assert set(case.exact) <= exact, f"refused: {set(case.exact) - exact}"
    assert set(case.inexact) <= inexact - exact, f"not flagged: {set(case.inexact) - (inexact - exact)}"
    assert not set(case.pinned) & (exact | inexact), f"removable: {set(case.pinned) & (exact | inexact)}"


@pytest.mark.sampled(4)
@pytest.mark.slow
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
