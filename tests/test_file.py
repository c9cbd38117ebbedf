"""The model file: what comes back, and into which tree."""

import collections
import re
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

from jaxopt_compress import core, export
from jaxopt_compress.encoded import Quantized, decode, is_encoded
from jaxopt_compress.export import file, packing
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import fake_quantize
from tests.files import bits, mlp, quantized, saved


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.jc"


class Pair(NamedTuple):
    first: Any
    second: Any


# What comes back


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from(list(packing.WIDTHS)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    size, width = int(np.prod(shape)), packing.WIDTHS[dtype]
    array = rng.integers(0, 2 ** min(width - 1, 7), size).astype(jnp.dtype(dtype))
    if width >= 8:
        array = np.frombuffer(rng.bytes(size * array.itemsize), array.dtype)
    return np.where(rng.random(size) < draw(st.sampled_from([0.0, 0.3, 1.0])), array, np.zeros_like(array)).reshape(
        shape
    )


stored = st.builds(
    quantized,
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6).map(tuple),
    st.integers(2, 8),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.sampled_from([0.0, 0.2, 1.0]),
)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=True, allow_subnormal=True)


def containers(inner):
    return (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(st.characters(exclude_characters="/"), max_size=5), inner, max_size=3)
        | st.dictionaries(st.integers(-(2**70), 2**70), inner, max_size=3)
    )


@pytest.mark.slow
@given(model=st.recursive(arrays() | stored | scalars, containers, max_leaves=8))
def test_any_tree_comes_back(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("any") / "model.jc"
    assert bits(saved(path, model)) == bits(model)
    assert bits(export.load(path, like=model)) == bits(model)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(packing.WIDTHS))
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (40, 50)])
def test_any_dtype_comes_back(path, dtype, shape):
    with jax.enable_x64(True):
        values = np.random.default_rng(0).integers(0, 2, shape).astype(jnp.dtype(dtype))
        model = {"w": jnp.asarray(values)}
        back = saved(path, model)
        assert isinstance(back["w"], jax.Array) and bits(back) == bits(model)


@pytest.mark.parametrize(
    "dtype, patterns",
    [
        ("uint16", [0x8000, 0x7FC1, 0xFFA0, 0x7F80, 0xFF80, 1, 0x807F, 0x3F80]),
        ("uint32", [0x80000000, 0x7FC00001, 0xFFA00001, 0x7F800000, 0xFF800000, 1, 0x807FFFFF, 0x3F800000]),
        ("uint64", [1 << 63, 0x7FF8000000000001, 0xFFF4000000000001, 0x7FF0000000000000, 1, 0x3FF0000000000000]),
    ],
)
def test_special_values_keep_every_bit(path, dtype, patterns):
    """-0, NaN payloads (quiet and signaling), infinities and subnormals, dense and among zeros."""
    plain = np.array(patterns, dtype)
    for array in (plain, np.where(np.arange(5000) % 9 == 0, np.resize(plain, 5000), 0).astype(dtype)):
        for view in {"uint16": ("bfloat16", "float16"), "uint32": ("float32",), "uint64": ("float64",)}[dtype]:
            model = {"w": array.view(jnp.dtype(view))}
            assert bits(saved(path, model)) == bits(model)


def test_64_bits_stay_64_bits_without_x64(path):
    model = {"step": np.int64(2**40), "w": np.array([0.1, -0.0]), "q": quantized((3, 4), dtype="float64")}
    wide = np.asarray(model["q"].scale, np.float64) / 3
    model["q"] = Quantized(np.asarray(model["q"].codes), wide, dtype="float64")  # type: ignore[arg-type]
    back = saved(path, model)
    assert bits(back) == bits(model)
    assert all(isinstance(leaf, np.ndarray) and leaf.flags.writeable for leaf in jax.tree.leaves(back))
    np.testing.assert_array_equal(decode(back)["q"], np.asarray(model["q"].codes) * wide)
    with jax.enable_x64(True):
        assert bits(export.load(path)) == bits(model)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(export.load(path)))


@pytest.mark.parametrize("value", [True, False, 0, -7, 2**64 - 1, -(2**63), 0.1, -0.0, float("inf"), 5e-324, None])
def test_python_scalars_stay_what_they_are(path, value):
    back = saved(path, [value])[0]
    assert type(back) is type(value) and repr(back) == repr(value)


def test_a_python_nan_keeps_its_payload(path):
    nan = float(np.array(0x7FF8000000000123, np.uint64).view(np.float64))
    assert np.float64(saved(path, nan)).view(np.uint64) == 0x7FF8000000000123


@pytest.mark.parametrize(
    "model", [None, {}, [], (), [[], {}, ()], {"a": {"b": [None]}}, {1: 2, 0: (3,)}, {"": {"": 1}}]
)
def test_small_trees(path, model):
    assert saved(path, model) == model


@pytest.mark.parametrize(
    "model, plain",
    [
        (FrozenDict({"a": {"b": 1}, "c": FrozenDict({})}), {"a": {"b": 1}, "c": {}}),
        (Pair(1, [None, (2,)]), {"first": 1, "second": [None, (2,)]}),
        (collections.OrderedDict([("b", 1), ("a", 2)]), {"b": 1, "a": 2}),
        (collections.defaultdict(int, {3: 1}), {3: 1}),
        (jax.tree_util.Partial(max, 1, x=2), {0: (1,), 1: {"x": 2}}),
        (nnx.State({"l": {0: nnx.Param(jnp.ones(2))}}), {"l": {0: {"value": jnp.ones(2)}}}),
    ],
)
def test_other_containers_become_dictionaries(path, model, plain):
    assert bits(saved(path, model)) == bits(plain)
    assert bits(export.load(path, like=model)) == bits(model)


@pytest.mark.slow
def test_the_stored_form_of_a_transform_decodes_to_what_was_trained(path):
    params = nn.Dense(30).init(jax.random.key(0), jnp.ones((1, 20)))
    compress = core.select("**/kernel", fake_quantize(bits=4))
    state = compress.init(params)
    back = saved(path, compress.encode(params, state))
    assert is_encoded(back["params"]["kernel"])
    assert bits(decode(back)) == bits(compress.apply(params, state))


# Into which tree


class Net(eqx.Module):
    layers: list
    scale: jax.Array
    name: str = eqx.field(static=True)


def equinox_net():
    first, second = (eqx.nn.Linear(6, 4, key=jax.random.key(seed)) for seed in (0, 1))
    return eqx.filter(Net([first, second], jnp.ones(()), "net"), eqx.is_array)


def nnx_state():
    return nnx.state(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Param)


@pytest.mark.slow
@pytest.mark.parametrize("make", [equinox_net, nnx_state, lambda: FrozenDict(mlp(jnp.ones)), lambda: mlp(jnp.ones)])
@pytest.mark.parametrize("abstract", [False, True])
def test_like_gives_the_structure_back(path, make, abstract):
    params = make()

    def store(w):
        return Quantized.of(jnp.ones(w.shape, jnp.int8), jnp.ones((1,) * w.ndim), Integers(4)) if w.ndim == 2 else w

    model = jax.tree.map(store, params)
    export.save(path, model)
    like = jax.eval_shape(lambda: decode(params)) if abstract else decode(params)
    back = export.load(path, like=like)
    assert bits(back) == bits(model) and type(back) is type(params)
    assert jax.tree.structure(decode(back)) == jax.tree.structure(like)


WANTED = {"a": {"w": jnp.ones((2, 3)), "n": 1}, "b": [jnp.ones(3, jnp.bfloat16), None]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"a": {"w": jnp.ones((3, 2)), "n": 1}}, r"'a/w' is float32 of shape \(2, 3\) in the file and .*\(3, 2\)"),
        ({"a": {"w": jnp.ones((2, 3), jnp.int8), "n": 1}}, "'a/w' is float32 .* and int8 of shape"),
        ({"a": {"w": jnp.ones((2, 3)), "n": 1.0}}, "'a/n' is int in the file and float in `like`"),
        ({"a": {"w": jnp.ones((2, 3)), "n": jnp.ones(())}}, "'a/n' is int in the file and float32"),
        ({"a": {"w": jnp.ones((2, 3))}}, "'a/n' is a leaf of the file only"),
        ({"b": [jnp.ones(3, jnp.bfloat16), 1]}, "'b/1' is a leaf of `like` only"),
        ({"c": 1}, "'c' is a leaf of `like` only"),
    ],
)
def test_like_that_does_not_fit_is_refused_by_leaf(path, change, message):
    export.save(path, WANTED | {"a": {"w": quantized((2, 3), 4), "n": 1}})
    assert bits(decode(export.load(path, like=WANTED))["b"]) == bits(WANTED["b"])
    with pytest.raises(ValueError, match=f"`load`: '{re.escape(str(path))}': {message}"):
        export.load(path, like=WANTED | change)


# What a file cannot hold


def nested(depth):
    model = 1
    for _ in range(depth):
        model = [model]
    return model


def cyclic():
    model: list = [1]
    model.append(model)
    return model


@pytest.mark.parametrize(
    "model, message",
    [
        ({"a": {"k": jax.random.key(0)}}, "'a/k' is an array of key<fry>"),
        ({"a": ["text"]}, "'a/0' is a str"),
        (
            {"a": {"q": Quantized(jnp.full((2,), 8, jnp.int8), jnp.ones(()), grid=Integers(4))}},
            "'a/q' has codes outside",
        ),
        ({"a": {("x", "y"): 1}}, r"'a' has the keys \[\('x', 'y'\)\]"),
        (collections.OrderedDict([("x", 1), (2, 1)]), "'' has the keys"),
        ({"a": {True: 1}}, "'a' has the keys"),
        ({"a": 2**64}, "'a' is an int that needs more than 64 bits"),
        ({"a/b": 1, "a": {"b": 2}}, "two leaves have the path 'a/b'"),
        (nested(101), "deeper than 100 levels"),
        (cyclic(), "deeper than 100 levels"),
    ],
)
def test_save_refuses_by_leaf(path, model, message):
    with pytest.raises(ValueError, match=f"^`save`: .*{message}"):
        export.save(path, model)
    assert not list(path.parent.iterdir())


def test_depth_of_a_hundred(path):
    assert saved(path, nested(100)) == nested(100)


def test_a_header_that_load_would_refuse_is_not_written(path, monkeypatch):
    monkeypatch.setattr(file, "MOST_HEADER", 1000)
    with pytest.raises(ValueError, match="header takes more than 1,000 bytes: 30 sections"):
        export.save(path, [jnp.ones(1)] * 30)
    assert not path.exists()
