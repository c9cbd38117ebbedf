"""Masks of one bit a weight: the inverse, the size, and the sharding."""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxopt_compress.pruning import bits, masks, unstructured

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=17))


@pytest.mark.slow
@settings(max_examples=20)  # every shape compiles
@given(MASKS)
def test_unpack_is_the_inverse_and_numpy_packs_alike(mask):
    axis = bits.packed_axis(mask.shape)
    packed = bits.pack(mask)
    np.testing.assert_array_equal(packed, np.packbits(mask, axis, bitorder="little"))
    np.testing.assert_array_equal(bits.unpack(packed, jnp.zeros(mask.shape)), mask)


@given(hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=40))
def test_no_other_axis_wastes_less(shape):
    def packed_bytes(axis):
        return math.prod(-(-n // 8) if i == axis else n for i, n in enumerate(shape))

    assert packed_bytes(bits.packed_axis(shape)) == min(map(packed_bytes, range(len(shape))))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((64, 32), 0),
        ((5, 32), 1),
        ((3, 3, 16, 8), 2),
        ((3, 3, 2, 5), 3),
        ((8, 3, 3), 0),
        ((16,), 0),
        ((5,), 0),
        ((1,), 0),
    ],
    ids=str,
)
def test_the_axis(shape, axis):
    assert bits.packed_axis(shape) == axis
    assert jax.eval_shape(bits.pack, jax.ShapeDtypeStruct(shape, bool)).shape[axis] == -(-shape[axis] // 8)


@pytest.mark.parametrize("shape", [(64, 32), (5, 8), (8, 5), (3, 3, 16, 7), (24,), (2, 8, 1, 3)], ids=str)
def test_one_bit_a_weight_where_eight_divides_an_axis(shape):
    packed = jax.eval_shape(bits.pack, jax.ShapeDtypeStruct(shape, bool))
    assert packed.dtype == jnp.uint8
    assert 8 * math.prod(packed.shape) == math.prod(shape)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_masked_is_exact_zero_and_the_rest_keeps_its_bits(dtype):
    values = [jnp.nan, jnp.inf, -jnp.inf, -0.0, -1.5, 1e-7, 0.0, 3.0]
    w = jnp.array([values, values], dtype).T
    mask = np.arange(16).reshape(8, 2) % 2 == 0
    kept = np.asarray(masks.keep(w, bits.pack(mask), unstructured))
    assert kept.dtype == w.dtype
    assert kept[:, 0].tobytes() == np.asarray(w)[:, 0].tobytes()
    assert not kept[:, 1].view(f"u{kept.itemsize}").any()  # +0.0, not -0.0


ALIGNED = [
    ((64, 16), P("data", "model")),
    ((64, 16), P(None, "model")),
    ((64, 16), P("data", None)),
    ((64, 2), P(("data", "model"), None)),
]
UNALIGNED = [((8, 16), P("data", "model")), ((16, 16), P(("data", "model"), None)), ((12, 6), P("data", "model"))]


@pytest.mark.sampled(4)
@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
@pytest.mark.parametrize(("shape", "spec"), ALIGNED + UNALIGNED, ids=str)
def test_packed_masks_are_sharded_like_the_weight(shape, spec, axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    sharding = NamedSharding(mesh, spec)
    w = jax.device_put(jax.random.normal(jax.random.key(0), shape), sharding)
    packed = bits.pack(w > 0)
    np.testing.assert_array_equal(packed, np.packbits(np.asarray(w) > 0, bits.packed_axis(shape), bitorder="little"))
    if (shape, spec) in ALIGNED:
        assert packed.sharding.is_equivalent_to(sharding, 2)
        assert {s.data.nbytes for s in packed.addressable_shards} == {next(iter(w.addressable_shards)).data.size // 8}
    kept = masks.keep(w, packed, unstructured)
    np.testing.assert_array_equal(kept, np.maximum(w, 0))
    assert kept.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.slow
@given(st.integers(1, 40))
def test_padding_bits_are_zero(size):
    packed = np.asarray(bits.pack(np.ones(size, bool)))
    assert int(np.unpackbits(packed).sum()) == size
