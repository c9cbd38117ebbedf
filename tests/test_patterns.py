"""Patterns against naive NumPy: what is removed as one, what is compared with what, exact counts, and refusals."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_compress as jc
from jaxopt_compress import pruning
from jaxopt_compress.pruning import blocks, channels, heads, magnitude, n_of_m, prune, within
from jaxopt_compress.pruning.search import grouped

RNG = np.random.default_rng(0)


def normal(*shape) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def kept(w, t, **extra) -> np.ndarray:
    """Return the mask that one update of a transform draws for an array."""
    params = {"w": jnp.asarray(w)}
    state = jax.jit(lambda p: t.update(p, t.init(p), step=0, **extra))(params)
    (gone,) = t.removed(params, state).values()
    after = np.asarray(t.apply(params, state)["w"])
    np.testing.assert_array_equal(after, np.where(gone, 0, w))
    return ~np.asarray(gone)


def best(scores: np.ndarray, number: int) -> np.ndarray:
    """Mark the highest scores, of equal ones those that come first."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:number]] = True
    return mask.reshape(scores.shape)


@pytest.mark.sampled(2)
@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (0, 4), (8, 16), (1, 1)])
@pytest.mark.parametrize("shape", [(16, 6), (3, 3, 16, 5)])
@pytest.mark.parametrize("tied", [False, True])
def test_n_of_m(n, m, shape, tied):
    w = normal(*shape)
    w = np.round(w) if tied else w
    want = np.zeros(shape, bool)
    for at in np.ndindex(*shape[:-2], shape[-2] // m, shape[-1]):
        run = (*at[:-2], slice(at[-2] * m, (at[-2] + 1) * m), at[-1])
        want[run] = best(np.abs(w[run]), n)
    np.testing.assert_array_equal(kept(w, prune(magnitude, pattern=n_of_m(n, m))), want)


def test_n_of_m_along_another_axis():
    w = normal(8, 3, 5)
    mask = kept(w, prune(magnitude, pattern=n_of_m(1, 4, axis=0)))
    np.testing.assert_array_equal(mask.reshape(2, 4, 3, 5).sum(1), 1)
    chosen = np.abs(np.where(mask, w, 0)).reshape(2, 4, 3, 5).max(1)
    np.testing.assert_array_equal(chosen, np.abs(w).reshape(2, 4, 3, 5).max(1))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40, 6), (300, 5), (3, 3, 8, 5)])
@pytest.mark.parametrize("sparsity", [0.3, 1.0])
def test_wanda_compares_within_each_output(shape, sparsity):
    w, norms = normal(*shape), np.abs(normal(*shape[:-1]))
    t = prune(pruning.wanda, sparsity, pattern=within())
    mask = kept(w, t, stats={"w": jnp.asarray(norms)}).reshape(-1, shape[-1])
    scores = (np.abs(w) * norms[..., None]).reshape(-1, shape[-1])
    rows = scores.shape[0]
    want = [best(column, rows - round(sparsity * rows)) for column in scores.T]
    np.testing.assert_array_equal(mask, np.transpose(want))


@pytest.mark.sampled(2)
@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 48, 49, 300])
@pytest.mark.parametrize("spread", [False, True], ids=["bytes", "fused"])
def test_columns_are_cut_exactly_ties_nan_and_all(rows, spread, monkeypatch):
    monkeypatch.setattr(grouped, "spread_out", lambda: spread)
    scores = np.round(normal(rows, 4))
    scores[:, 1] = 1.0
    scores[:, 2] = np.where(RNG.random(rows) < 0.5, np.nan, scores[:, 2])
    scores[:, 3] = np.where(RNG.random(rows) < 0.5, np.inf, -0.0)
    order = np.where(np.isnan(scores), -np.inf, scores)
    for k in {0, 1, rows // 2, rows}:
        mask = jax.jit(partial(grouped.top_k_along, axis=0, k=k))(jnp.asarray(scores))
        for column, want in zip(np.asarray(mask).T, order.T, strict=True):
            np.testing.assert_array_equal(column, best(want, k))


@pytest.mark.sampled(2)
@pytest.mark.slow
@pytest.mark.parametrize(("shape", "tile"), [((12, 8), (3, 4)), ((12, 8), (1, 8)), ((3, 2, 4, 6), (2, 3))])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 1.0])
def test_blocks(shape, tile, sparsity):
    w = normal(*shape)
    matrix = w.reshape(-1, shape[-1])
    tiles = matrix.reshape(matrix.shape[0] // tile[0], tile[0], shape[-1] // tile[1], tile[1])
    norms = np.linalg.norm(tiles, axis=(1, 3))
    want = best(norms, norms.size - round(sparsity * norms.size))
    want = want.repeat(tile[0], 0).repeat(tile[1], 1).reshape(shape)
    np.testing.assert_array_equal(kept(w, prune(magnitude, sparsity, pattern=blocks(*tile))), want)


@pytest.mark.sampled(2)
@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 4, 10)])
def test_channels(axis, shape):
    w = normal(*shape)
    others = tuple(i for i in range(w.ndim) if i != axis % w.ndim)
    norms = np.sqrt(np.sum(w.astype(np.float64) ** 2, others))
    want = best(norms, norms.size - round(0.5 * norms.size))
    mask = kept(w, prune(magnitude, 0.5, pattern=channels(axis)))
    np.testing.assert_array_equal(mask, np.broadcast_to(np.expand_dims(want, others), shape))


@pytest.mark.slow
def test_heads_and_neighbouring_channels_go_together():
    w = normal(5, 12)
    norms = np.linalg.norm(w.reshape(5, 3, 4), axis=(0, 2))
    want = np.broadcast_to(best(norms, 1).repeat(4), w.shape)
    for pattern in (heads(3), channels(-1, 4)):
        np.testing.assert_array_equal(kept(w, prune(magnitude, 2 / 3, pattern=pattern)), want)
    assert jax.tree.leaves(prune(magnitude, 0.5, pattern=heads(3)).init({"w": jnp.asarray(w)}))[0].shape == (1,)


@pytest.mark.slow
def test_units_are_ranked_by_norms_whose_squares_overflow():
    for scale in (1e-30, 1.0, 1e30):
        w = scale * np.array([[3, 1, 2], [4, 1, 5]], np.float32)
        np.testing.assert_array_equal(kept(w, prune(magnitude, 1 / 3, pattern=channels()))[0], [True, False, True])


def test_a_criterion_with_a_sign_is_summed():
    w, grads = np.array([[1, 1], [1, 1]], np.float32), np.array([[3, -1], [-2, -1]], np.float32)
    for pool, want in ((pruning.norm, [True, False]), (jnp.sum, [False, True])):
        t = prune(pruning.movement, 0.5, pattern=channels(pool=pool))
        np.testing.assert_array_equal(kept(w, t, grads={"w": jnp.asarray(grads)})[0], want)


@pytest.mark.slow
def test_a_nan_takes_its_unit_along_and_does_not_leak():
    w = normal(4, 6)
    w[1, 4] = np.nan
    for pattern in (channels(), blocks(2, 2), within(2)):
        mask = kept(np.where(np.isnan(w), np.nan, w), prune(magnitude, 0.5, pattern=pattern))
        assert not mask[1, 4]


def test_sparsity_moves_within_groups_by_a_schedule():
    t = prune(magnitude, lambda step: step / 8, pattern=within(4))
    params = {"w": jnp.asarray(normal(8, 3))}
    update = jax.jit(lambda step: t.update(params, t.init(params), step=step))
    for step in range(9):
        zeros = np.asarray(t.apply(params, update(jnp.float32(step)))["w"] == 0).reshape(2, 4, 3).sum(1)
        np.testing.assert_array_equal(zeros, round(step / 8 * 4))


@pytest.mark.slow
def test_different_patterns_for_different_leaves():
    params = {"a": {"kernel": jnp.asarray(normal(8, 4))}, "b": {"kernel": jnp.asarray(normal(8, 4))}}
    t = jc.chain(
        jc.select("a/kernel", prune(magnitude, pattern=n_of_m(2, 4))),
        jc.select("b/kernel", prune(magnitude, 0.25, pattern=channels())),
    )
    after = t.apply(params, t.update(params, t.init(params), step=0))
    np.testing.assert_array_equal((np.asarray(after["a"]["kernel"]) == 0).reshape(2, 4, 4).sum(1), 2)
    assert sorted((np.asarray(after["b"]["kernel"]) == 0).sum(0)) == [0, 0, 0, 8]


@pytest.mark.sampled(8)
@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
@pytest.mark.parametrize("spec", [P("data", "model"), P(None, ("data", "model"))])
@pytest.mark.parametrize(
    "pattern", [blocks(2, 2), channels(), channels(-2, 2), heads(4), within(4), within(), pruning.unstructured]
)
def test_sharded_masks_equal_those_of_one_device(pattern, spec, axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    params = {"w": jnp.asarray(normal(64, 32))}
    t = prune(magnitude, 0.5, pattern=pattern)

    def run(p):
        state = t.update(p, t.init(p), step=0)
        return t.apply(p, state), t.removed(p, state)

    placed = jax.device_put(params, NamedSharding(mesh, spec))
    sharded = jax.jit(run)(placed)
    jax.tree.map(np.testing.assert_array_equal, sharded, jax.jit(run)(params))
    assert sharded[0]["w"].sharding.is_equivalent_to(placed["w"].sharding, 2)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("pattern", [blocks(2, 2), channels(), within(2), n_of_m(1, 2)])
def test_empty_and_uncompressible_leaves(pattern, scope):
    sparsity = 0.5 if pattern.sparsity is None else None
    if pattern.rank and scope == "global":
        return
    t = prune(magnitude, sparsity, pattern=pattern, scope=scope)
    for params in ({"w": jnp.zeros((0, 4)), "n": 3}, {"w": jnp.zeros((4, 0))}, {"n": None}):
        after = t.apply(params, t.update(params, t.init(params), step=0))
        assert jax.tree.structure(after) == jax.tree.structure(params)


BAD_LEAVES = [
    (n_of_m(2, 4), (30, 8), r"`n_of_m\(2, 4\)`: axis 0 of 'dense/kernel' has 30 entries, not a multiple of 4."),
    (n_of_m(1, 2), (8,), r"`n_of_m\(1, 2\)`: a weight has at least 2 axes; 'dense/kernel' is of shape \(8,\)."),
    (within(4, axis=2), (8, 8), r"`within\(4\)`: a weight has the axis 2; 'dense/kernel' is of shape \(8, 8\)."),
    (blocks(4, 4), (8, 6), r"`blocks\(4, 4\)`: 'dense/kernel' has 6 columns as a matrix, not a multiple of 4."),
    (blocks(4, 4), (3, 3, 2, 8), r"`blocks\(4, 4\)`: 'dense/kernel' has 18 rows as a matrix, not a multiple of 4."),
    (blocks(1, 2), (8,), r"`blocks\(1, 2\)`: a weight has at least 2 axes; 'dense/kernel' is of shape \(8,\)."),
    (channels(1), (8,), r"`channels\(1\)`: a weight has the axis 1; 'dense/kernel' is of shape \(8,\)."),
    (channels(0, 3), (8, 2), r"`channels\(0, 3\)`: axis 0 of 'dense/kernel' has 8 entries, not a multiple of 3."),
    (heads(3), (8, 8), r"`heads\(3, -1\)`: axis 1 of 'dense/kernel' has 8 entries, not a multiple of 3."),
]


@pytest.mark.parametrize(("pattern", "shape", "message"), BAD_LEAVES)
def test_leaves_that_a_pattern_does_not_fit(pattern, shape, message):
    t = prune(magnitude, None if pattern.sparsity is not None else 0.5, pattern=pattern)
    with pytest.raises(ValueError, match=message):
        jc.check(t, {"dense": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}})


BAD_ARGUMENTS = [
    (lambda: n_of_m(5, 4), r"`n_of_m\(5, 4\)`: `n` of `m` stay, 0 <= n <= m; got 5 and 4."),
    (lambda: n_of_m(0, 0), r"`n_of_m\(0, 0\)`: sizes are at least 1; got 0."),
    (lambda: blocks(0, 4), r"`blocks\(0, 4\)`: sizes are at least 1; got 0."),
    (lambda: channels(-1, 0), r"`channels\(-1, 0\)`: sizes are at least 1; got 0."),
    (lambda: heads(0), r"`heads\(0, -1\)`: sizes are at least 1; got 0."),
    (lambda: within(0), r"`within\(0\)`: sizes are at least 1; got 0."),
    (lambda: prune(magnitude), "`prune`: `sparsity` is given, or fixed by the pattern"),
    (lambda: prune(magnitude, 0.5, pattern=n_of_m(2, 4)), "`prune`: `sparsity` is given, or fixed by the pattern"),
    (lambda: prune(magnitude, 0.5, pattern=within(4), scope="global"), 'scope="global" ranks all leaves together'),
]


@pytest.mark.parametrize(("make", "message"), BAD_ARGUMENTS)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_equal_patterns_are_one_object_so_that_compiled_code_is_found_again():
    for make in (
        lambda: blocks(2, 4),
        lambda: channels(-1, 2),
        lambda: n_of_m(2, 4),
        lambda: within(),
        lambda: heads(2),
    ):
        assert make() is make()


@pytest.mark.slow
def test_a_mask_of_units_is_one_bit_a_unit():
    params = {"w": jnp.zeros((128, 256))}
    sizes = {
        pattern: sum(x.nbytes for x in jax.tree.leaves(prune(magnitude, 0.5, pattern=pattern).init(params)))
        for pattern in (pruning.unstructured, blocks(64, 64), channels())
    }
    assert list(sizes.values()) == [128 * 256 // 8, 2, 256 // 8]


@pytest.mark.slow
def test_packed_or_not_the_masks_are_the_same():
    w = normal(12, 8)
    for pattern, scope in itertools.product((pruning.unstructured, blocks(2, 4), channels()), ("layer", "global")):
        left, right = (kept(w, prune(magnitude, 0.3, pattern=pattern, scope=scope, packed=p)) for p in (True, False))
        np.testing.assert_array_equal(left, right)
