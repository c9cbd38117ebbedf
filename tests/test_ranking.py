"""The exact top-k against a stable argsort, in every way of searching, with everything a float can be."""

import math
from functools import cache

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxopt_compress.pruning.search import counting, probing, ranking

CUTS = {
    "spread": ranking._cut_spread,
    "fused": ranking._cut_fused,
    "collected": ranking._cut_collected,
    "tiled": ranking._cut_tiled,
}
BY_CUT = pytest.mark.parametrize(
    "cut", [pytest.param(cut, id=name, marks=[] if name == "tiled" else pytest.mark.slow) for name, cut in CUTS.items()]
)
SHAPES = [((1,),), ((40,),), ((5, 8), (3,)), ((2, 3, 4), (1, 1), (17,), (0, 4), (6, 5))]
KINDS = [(shapes, dtype) for shapes in SHAPES for dtype in (np.float32, np.float16, jnp.bfloat16)]
FEW_KINDS = KINDS[::4] + KINDS[-3:-1]  # every shape and every dtype: each kind is a program to compile
TILE = counting.TILE
LARGE = [((TILE - 1,),), ((TILE,),), ((TILE + 1,),), ((3, TILE),), ((2 * TILE + 63,), (5,), (TILE // 4, 4))]
NASTY = [
    0.0,
    -0.0,
    np.nan,
    -np.nan,
    np.inf,
    -np.inf,
    1e-45,
    -1e-45,
    1.1754942e-38,
    3.4028235e38,
    -3.4028235e38,
    1.0,
    -1.0,
]


def naive(arrays, k: int) -> list[np.ndarray]:
    """Keep the first k of a stable sort by (NaN last, score descending); `-0.0` equals `0.0`."""
    flat = np.concatenate([np.asarray(a).astype(np.float32).ravel() for a in arrays])
    order = np.lexsort((-np.where(np.isnan(flat), 0, flat), np.isnan(flat)))
    mask = np.zeros(flat.size, bool)
    mask[order[:k]] = True
    parts = np.split(mask, np.cumsum([a.size for a in arrays])[:-1])
    return [part.reshape(a.shape) for part, a in zip(parts, arrays, strict=True)]


@cache
def compiled(cut):
    """Compile one way of counting, without the choice that `top_k_masks` makes by the machine."""

    def key(operand, index):
        return ranking.ordered_keys(operand)

    @jax.jit
    def masks(operands, k):
        found = cut(operands, key, k)
        firsts = counting.starts(operands)
        return [ranking.mask(operand, key, first, found) for operand, first in zip(operands, firsts)]

    return masks


def agree(cut, arrays, k):
    masks = compiled(cut)([jnp.asarray(a) for a in arrays], jnp.int32(k))
    for got, want in zip(masks, naive(arrays, k), strict=True):
        np.testing.assert_array_equal(got, want)


def total(shapes) -> int:
    return sum(map(math.prod, shapes))


def counts(size: int):
    return st.one_of(st.sampled_from(sorted({0, min(1, size), max(size - 1, 0), size})), st.integers(0, size))


@st.composite
def cases(draw, kinds):
    """Draw arrays of any floats, or of few values so that nearly all are tied, and how many to keep."""
    shapes, dtype = draw(st.sampled_from(kinds))
    pool = st.floats(width=32, allow_subnormal=True)
    few = draw(st.lists(st.one_of(pool, st.sampled_from(NASTY)), min_size=1, max_size=4))
    elements = draw(st.sampled_from([pool, st.sampled_from(few), st.sampled_from(NASTY)]))
    with np.errstate(all="ignore"):
        arrays = [draw(hnp.arrays(np.float32, shape, elements=elements)).astype(dtype) for shape in shapes]
    return arrays, draw(counts(total(shapes)))


@pytest.mark.slow
@BY_CUT
@hypothesis.settings(max_examples=15)
@given(cases(FEW_KINDS))
def test_equals_a_stable_argsort(cut, case):
    agree(cut, *case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@hypothesis.settings(max_examples=100)
@given(cases(KINDS))
def test_equals_a_stable_argsort_at_length(cut, case):
    agree(cut, *case)


@pytest.mark.sampled(16)
@pytest.mark.slow
@BY_CUT
@pytest.mark.parametrize("shapes", LARGE, ids=str)
@pytest.mark.parametrize("kind", ["normal", "one value", "three values", "hardly distinct", "wild"])
def test_around_whole_tiles(cut, shapes, kind):
    rng = np.random.default_rng(len(kind))
    make = {
        "normal": lambda shape: rng.normal(size=shape),
        "one value": lambda shape: np.full(shape, -2.0),
        "three values": lambda shape: rng.choice([1.0, 0.0, -1.0], shape),
        "hardly distinct": lambda shape: 1 + 1e-7 * rng.integers(0, 9, shape),
        "wild": lambda shape: rng.integers(0, 2**32, shape, np.uint32).view(np.float32),
    }[kind]
    arrays = [make(shape).astype(np.float32) for shape in shapes]
    size = total(shapes)
    for k in (0, 1, size // 3, size - 1, size):
        agree(cut, arrays, k)


@pytest.mark.slow
@BY_CUT
def test_equal_scores_go_in_the_order_of_the_arrays(cut):
    arrays = [np.zeros((2, 3), np.float32), np.zeros(4, np.float32)]
    for k in range(11):
        masks = compiled(cut)([jnp.asarray(a) for a in arrays], jnp.int32(k))
        flat = np.concatenate([np.asarray(mask).ravel() for mask in masks])
        np.testing.assert_array_equal(flat, np.arange(10) < k)


def test_nan_ranks_below_everything_and_zeros_are_one():
    values = np.array([np.nan, -np.inf, -1.0, -0.0, 0.0, 1e-45, 1.0, np.inf], np.float32)
    keys = np.asarray(jax.jit(ranking.ordered_keys)(values))
    assert keys[0] == ranking.NAN
    assert keys[3] == keys[4] == ranking.ZERO
    assert np.all(np.diff(keys[[0, 1, 2, 3, 5, 6, 7]].astype(np.int64)) > 0)
    assert keys.max() == ranking.END - 1


@given(hnp.arrays(np.float32, 20, elements=st.floats(width=32)))
def test_keys_have_the_order_of_the_scores(values):
    keys, finite = np.asarray(ranking.ordered_keys(values)), values[~np.isnan(values)]
    order = np.argsort(finite, kind="stable")
    assert np.all(np.diff(keys[~np.isnan(values)][order].astype(np.int64)) >= 0)
    for a in finite:
        np.testing.assert_array_equal(finite == a, keys[~np.isnan(values)] == ranking.ordered_keys(jnp.asarray(a)))


@pytest.mark.slow
@given(cases(KINDS))
def test_the_public_function(case):
    arrays, k = case
    masks = ranking.top_k_masks([jnp.asarray(a) for a in arrays], k, score)
    for got, want in zip(masks, naive([-np.asarray(a) for a in arrays], k), strict=True):
        np.testing.assert_array_equal(got, want)


def score(x):
    return -x


def test_operands_of_two_arrays_and_one_compilation():
    w, g = (jax.random.normal(jax.random.key(seed), (9, 5)) for seed in (0, 1))
    product = lambda operand: jnp.abs(operand["w"] * operand["g"])  # noqa: E731
    size = ranking.top_k_masks._cache_size()
    for k in (0, 7, 20, 45):
        (mask,) = ranking.top_k_masks([{"w": w, "g": g}], jnp.int32(k), product)
        np.testing.assert_array_equal(mask, naive([np.abs(w * g)], k)[0])
    assert ranking.top_k_masks._cache_size() == size + 1


@pytest.mark.slow
@BY_CUT
def test_vmap(cut):
    arrays = np.random.default_rng(0).choice([0.0, 1.0, 2.0, np.nan], (4, 30)).astype(np.float32)
    ks = np.array([0, 11, 29, 30], np.int32)
    (together,) = jax.vmap(lambda x, k: compiled(cut)([x], k))(arrays, ks)
    for mask, x, k in zip(together, arrays, ks, strict=True):
        np.testing.assert_array_equal(mask, naive([x], k)[0])


def passes_of(keys: np.ndarray, k: int, place) -> int:
    """Run one search in Python, count its passes, and hold the bracket that it ends with against the keys."""
    passes = 0

    def count(probes):
        nonlocal passes
        passes += 1
        return [jnp.int32(np.sum(keys >= int(p))) for p in probes]

    bracket, slow = probing.Bracket.of(0, ranking.END, keys.size, 0), jnp.asarray(False)
    while probing.unfinished(bracket, jnp.int32(k)):
        bracket, slow = probing.step(count, bracket, jnp.int32(k), slow, place)
    low, high, above_low, above_high = map(int, bracket)
    assert above_low == np.sum(keys >= low) >= k >= np.sum(keys >= high) == above_high
    assert k in (above_low, above_high) or high - low == 1
    return passes


def adversaries() -> dict[str, np.ndarray]:
    """List keys that mislead a guess by interpolation: the k-th is never where the density says."""
    powers = np.array([2**i for i in range(32)], np.uint64)
    return {
        "powers of two": powers,
        "powers of two from above": ranking.END - 1 - powers,
        "one far away": np.array([3] * 400 + [ranking.END - 1], np.uint64),
        "two far away": np.array([0] + [ranking.END - 2] * 400, np.uint64),
        "steep": np.round(np.exp(np.linspace(0, 22, 300))).astype(np.uint64),
        "nested": np.cumsum([2 ** (31 - i % 31) // 2 for i in range(60)], dtype=np.uint64) % ranking.END,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", adversaries())
def test_a_misled_guess_costs_few_passes(name):
    keys = adversaries()[name]
    for k in {0, 1, keys.size // 2, keys.size - 1, keys.size}:
        assert passes_of(keys, k, probing.evenly(7)) <= 11  # ceil(log_8(2^32))
        assert passes_of(keys, k, probing.interpolated(3)) <= 40
        assert passes_of(keys, k, probing.interpolated(7)) <= 30


@pytest.mark.slow
@hypothesis.settings(max_examples=60)
@given(st.lists(st.integers(0, ranking.END - 1), min_size=1, max_size=40), st.data())
def test_the_number_of_passes_is_bounded(keys, data):
    keys = np.array(keys, np.uint64)
    k = data.draw(st.integers(0, keys.size))
    passes = passes_of(keys, k, probing.interpolated(3))
    hypothesis.target(float(passes))
    # Each pass halves the candidates, or the next one cuts the width to a third.
    assert passes <= math.log2(keys.size) + 2 * math.ceil(32 / math.log2(3)) + 1
