"""Products that skip blocks: the same numbers, fewer bytes, whatever stands around them; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxopt_compress as jc
from jaxopt_compress.pruning import patterns
from jaxopt_compress.quantization import Scheme, convert, observers, quantize, schemes
from tests.compiling import unoptimized

KEYS = jax.random.split(jax.random.key(0), 4)


def pruned(*shape, block=(8, 4), sparsity=0.75, seed=0):
    """Return a weight of which whole blocks are zero, as many in each column of blocks, but not all."""
    rng = np.random.default_rng(seed)
    rows, columns = shape[-2] // block[0], shape[-1] // block[1]
    keep = rng.permuted(
        np.arange(rows * columns).reshape(columns, rows) % rows >= min(sparsity * rows, rows - 1), axis=1
    ).T
    w = rng.normal(size=shape).reshape(*shape[:-2], rows, block[0], columns, block[1]) * keep[:, None, :, None]
    return jnp.asarray(w.reshape(shape), jnp.float32)


def stored_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


PARAMS = {"up": pruned(32, 16), "bias": jnp.ones((1, 16)), "down": pruned(16, 8, seed=1)}
X = jax.random.normal(KEYS[0], (5, 32))


def mlp(p, x):
    return jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]


@pytest.mark.slow
def test_an_mlp_computes_the_same_from_a_quarter_of_the_weights():
    fn, sparse = jc.skip_blocks(mlp, PARAMS, X, block=(8, 4))
    assert bool((mlp(PARAMS, X) != 0).all())
    np.testing.assert_allclose(fn(sparse, X), mlp(PARAMS, X), atol=1e-5)
    np.testing.assert_allclose(fn(sparse, X[:1]), mlp(PARAMS, X[:1]), atol=1e-5)  # any batch
    assert list(sparse.dense) == ["bias"]
    assert sparse.blocks["up"]["values"].shape == (1, 4, 8, 4)
    assert sparse.blocks["up"]["values"].size == PARAMS["up"].size // 4


@pytest.mark.slow
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 4),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
)
@settings(max_examples=25)
def test_any_blocks_that_are_zero_against_numpy(rows, columns, block, seed, share):
    rng = np.random.default_rng(seed)
    keep = rng.random((rows, 1, columns, 1)) > share
    w = (rng.normal(size=(rows, block[0], columns, block[1])) * keep).reshape(rows * block[0], -1).astype(np.float32)
    x = rng.normal(size=(3, len(w))).astype(np.float32)
    fn, sparse = jc.skip_blocks(lambda p, x: x @ p, jnp.asarray(w), x, block=block, least=0.0)
    np.testing.assert_allclose(fn(sparse, x), x @ w, atol=1e-5)
    most = max(int(keep.sum(axis=0).max()), 1)
    assert sparse.blocks[""]["values"].shape == (1, columns, most * block[0], block[1])


AROUND = {
    "weight first": (lambda p, x: jnp.einsum("io,ni->on", p, x), pruned(32, 16), X),
    "transposed": (lambda p, x: x @ p.T, pruned(32, 16).T, X),
    "scanned": (lambda p, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p)[0], pruned(3, 32, 32), X),
    "two axes in, two out": (
        lambda p, x: jnp.einsum("abcd,nab->ncd", p, x),
        pruned(32, 16).reshape(4, 8, 4, 4),
        X.reshape(5, 4, 8),
    ),
    "batched": (lambda p, x: jnp.einsum("hio,nhi->nho", p, x), pruned(2, 32, 16), jnp.stack([X, 2 * X], 1)),
    "in a remat": (jax.checkpoint(lambda p, x: jnp.sin(x @ p)), pruned(32, 16), X),
    "bfloat16": (lambda p, x: x @ p, pruned(32, 16).astype(jnp.bfloat16), X.astype(jnp.bfloat16)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("fn", "w", "x"), AROUND.values(), ids=AROUND)
def test_products_of_every_kind(fn, w, x):
    sparse_fn, sparse = jc.skip_blocks(fn, w, x, block=(8, 4))
    wanted = np.asarray(unoptimized(fn)(w, x), np.float32)
    tolerance = 0.05 if w.dtype == jnp.bfloat16 else 1e-5
    found = sparse_fn(sparse, x)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, atol=tolerance)
    assert stored_bytes(sparse) < 0.5 * stored_bytes(w)


@pytest.mark.slow
@pytest.mark.parametrize("zero_point", [False, True])
def test_integers_are_the_same_to_the_bit(zero_point):
    scheme = schemes.static(observers.minmax(), zero_point=True) if zero_point else Scheme()
    q = quantize(mlp, PARAMS, X, rules={"**": scheme})
    int_fn, int_params = convert(q, PARAMS, q.observe(PARAMS, q.init(), X))
    fn, sparse = jc.skip_blocks(int_fn, int_params, X, block=(8, 4))
    np.testing.assert_array_equal(fn(sparse, X), int_fn(int_params, X))
    assert len(sparse.blocks) == 2  # one for each weight, though the program has a branch for every platform
    assert {leaf["values"].dtype.name for leaf in sparse.blocks.values()} == {"int8"}


@pytest.mark.slow
def test_pruned_by_the_library_saved_and_read_again(tmp_path):
    t = jc.select("up", jc.pruning.prune(jc.pruning.magnitude, 0.75, pattern=patterns.blocks(8, 4)))
    params = {**PARAMS, "up": jax.random.normal(KEYS[1], (32, 16))}
    params = t.apply(params, t.update(params, t.init(params), step=0))
    fn, sparse = jc.skip_blocks(mlp, params, X, block=(8, 4), least=0.25)
    jc.export.save(tmp_path / "model.jc", sparse._asdict())
    again = jc.BlockSparse(**jc.export.load(tmp_path / "model.jc"))
    np.testing.assert_array_equal(fn(again, X), fn(sparse, X))
    np.testing.assert_allclose(fn(again, X), mlp(params, X), atol=1e-5)


def test_gradients_of_the_blocks_are_those_of_the_weights():
    fn, sparse = jc.skip_blocks(lambda p, x: x @ p, PARAMS["up"], X, block=(8, 4))
    found = jax.grad(lambda s: jnp.sum(fn(s, X) ** 2), allow_int=True)(sparse).blocks[""]["values"]
    wanted = jax.grad(lambda w: jnp.sum((X @ w) ** 2))(PARAMS["up"])
    kept = wanted.reshape(4, 8, 4, 4)[sparse.blocks[""]["places"][0, :, 0], :, jnp.arange(4)]
    np.testing.assert_allclose(found[0], kept, rtol=1e-4)


def test_nothing_is_left_of_a_weight_of_zeros_and_what_is_full_stays_dense():
    params = {"up": jnp.zeros((32, 16)), "bias": jnp.ones((1, 16)), "down": jnp.ones((16, 8))}
    fn, sparse = jc.skip_blocks(mlp, params, X, block=(8, 4))
    np.testing.assert_allclose(fn(sparse, X), mlp(params, X))
    assert sorted(sparse.dense) == ["bias", "down"]


def test_weights_that_happen_to_be_alike_stay_two():
    params = {"a": pruned(32, 32), "b": pruned(32, 32)}
    fn, sparse = jc.skip_blocks(lambda p, x: jnp.sin(x @ p["a"]) @ p["b"], params, X, block=(8, 4))
    assert sorted(sparse.blocks) == ["a", "b"]
    assert fn(sparse, X).shape == (5, 32)


def test_refusals():
    for options, message in [
        ({"block": (0, 4)}, r"blocks are at least 1 x 1.*got \(0, 4\)"),
        ({"least": 1.5}, r"`least` in \[0, 1\]; got \(64, 64\), 1.5"),
        ({"block": (8, 4), "least": 0.8}, r"no product can skip 0.8 of its blocks.*'up': 0.75"),
        ({}, r"of its blocks of \(64, 64\); they can \{'down': 0.0, 'up': 0.0\}|\{'up': 0.0, 'down': 0.0\}"),
    ]:
        with pytest.raises(ValueError, match=message):
            jc.skip_blocks(mlp, PARAMS, X, **options)
