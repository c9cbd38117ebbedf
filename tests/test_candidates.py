"""Candidates around the k-th entry: all of them are collected, or the search says so and reads everything."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress.pruning.search import candidates, counting, ranking
from tests.test_ranking import naive

SHAPES = [(256, 40), (3, 64, 5), (128,), (2, 3, 64, 7), (100, 6), ()]


def key(operand, index):
    return ranking.ordered_keys(operand)


@cache
def collected():
    return jax.jit(lambda operands, low, high: candidates.collect(operands, key, low, high))


def arrays(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def key_of(value: float) -> jax.Array:
    return ranking.ordered_keys(jnp.float32(value))


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(1.0, 1.01), (-0.01, -0.005), (5.0, 6.0), (0.5, 0.5)])
def test_every_entry_between_is_collected_with_its_place_once(low, high):
    operands = arrays()
    slots, (above_low, above_high), fits = collected()(operands, key_of(low), key_of(high))
    flat = np.concatenate([x.ravel() for x in operands])
    assert fits
    assert above_low == np.sum(flat >= np.float32(low))
    assert above_high == np.sum(flat >= np.float32(high))
    keys, places = (np.concatenate([np.ravel(part) for part in parts]) for parts in zip(*(s.read() for s in slots)))
    keys, places = keys[keys > 0], places[keys > 0]
    np.testing.assert_array_equal(
        np.sort(places), np.flatnonzero((flat >= np.float32(low)) & (flat < np.float32(high)))
    )
    np.testing.assert_array_equal(keys, np.asarray(ranking.ordered_keys(flat))[places])


def test_a_group_with_more_candidates_than_slots_is_noticed():
    x = np.zeros((128, 3), np.float32)
    x[: candidates.SLOTS, 1] = 1.0
    assert collected()([x], key_of(0.9), key_of(1.1))[2]
    x[candidates.SLOTS, 1] = 1.0
    assert not collected()([x], key_of(0.9), key_of(1.1))[2]


def test_probes_too_far_apart_for_a_slot_are_noticed():
    x, low = np.zeros((128, 3), np.float32), jnp.uint32(1 << 20)
    assert collected()([x], low, low + candidates.WIDEST)[2]
    assert not collected()([x], low, low + candidates.WIDEST + 1)[2]


def readings(x: np.ndarray, k: int) -> tuple[list[str], np.ndarray]:
    """Return what each pass of the search read, and the mask."""
    read = []

    def count(operands, key, probes):
        jax.debug.callback(lambda: read.append(type(operands[0]).__name__))
        return counting.count_fused(operands, key, probes)

    @jax.jit
    def masked(x, k):
        return ranking.mask(x, key, 0, ranking._cut_collected([x], key, k, count))

    mask = np.asarray(masked(x, k))
    jax.effects_barrier()
    return read, mask


SOME = ["misleading"]
MORE = ["normal", "integers", "half precision", "zeros", "one value", "sorted", "nan"]


@pytest.mark.sampled(8)
@pytest.mark.slow
@pytest.mark.parametrize("kind", SOME + [pytest.param(kind, marks=pytest.mark.slow) for kind in MORE])
def test_the_search_reads_the_slots_where_they_suffice_and_else_everything(kind):
    """The sample is a fraction of the array here, as it is of a large one; ties, and what no sample foretells."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4096, 128)).astype(np.float32)
    x = {
        "normal": lambda: x,
        "misleading": lambda: x * np.where(np.add.outer(np.arange(4096) % 2, np.arange(128) % 2) == 0, 1.1, 1.0),
        "half precision": lambda: x.astype(jnp.bfloat16).astype(np.float32),
        "integers": lambda: np.round(8 * x),
        "zeros": lambda: np.where(rng.random(x.shape) < 0.95, 0, x),
        "one value": lambda: np.full_like(x, 2.0),
        "sorted": lambda: np.sort(x.ravel()).reshape(x.shape),
        "nan": lambda: np.where(rng.random(x.shape) < 0.95, np.nan, x),
    }[kind]().astype(np.float32)
    for k in (x.size // 10, x.size // 3):
        read, mask = readings(x, k)
        np.testing.assert_array_equal(mask, naive([x], k)[0])
        slots = [name == "Slots" for name in read]
        if kind == "normal":
            assert all(slots)
            assert 1 <= len(slots) <= 12
        elif kind in ("integers", "misleading", "one value", "nan"):  # misleading: the sample takes every other entry
            assert not any(slots)


def test_what_is_worth_collecting():
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    assert candidates.worthwhile([array(2048, 2048)])
    assert candidates.worthwhile([array(2304, 2304), array(2304)])
    assert candidates.worthwhile([array(3, 3, 512, 1024)])
    assert not candidates.worthwhile([array(1024, 1024)])  # small
    assert not candidates.worthwhile([array(10_000, 1000)])  # 64 does not divide the rows
    assert not candidates.worthwhile([array(1 << 23)])  # no rows
