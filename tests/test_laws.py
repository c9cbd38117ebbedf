"""The laws of a parameter transform, each over the table of all transforms."""

from collections import Counter
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_compress as jc
from jaxopt_compress import tree
from tests.compiling import unoptimized
from tests.table import TABLE, grads, params

FAST = ("prune_then_int8",)  # in `make quick`; every row is in `make test`
SLOW = pytest.mark.slow
ROWS = pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[] if row.name in FAST else SLOW) for row in TABLE]
)
HALVES = (jnp.bfloat16, jnp.float16)
ROWS_AND_DTYPES = pytest.mark.parametrize(
    ("row", "dtype"),
    [pytest.param(row, jnp.float32, id=f"f32-{row.name}", marks=[] if row.name in FAST else SLOW) for row in TABLE]
    + [
        pytest.param(row, HALVES, id=f"bf16_and_f16-{row.name}", marks=SLOW if i % 10 == 1 else pytest.mark.exhaustive)
        for i, row in enumerate(TABLE)
    ],
)


def assert_same_bits(left, right):
    """Compare two trees bit for bit, structure, dtypes and shapes included."""
    chex.assert_trees_all_equal_structs(left, right)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype, tree.path_str(path)
        assert a.shape == b.shape, tree.path_str(path)
        assert a.tobytes() == b.tobytes(), tree.path_str(path)


def assert_same(row, left, right):
    """Compare two trees bit for bit, or, where a transform adds up floats, to the last bits of these sums."""
    if row.adds:
        chex.assert_trees_all_equal_structs(left, right)
        chex.assert_trees_all_close(left, right, rtol=1e-6)
    else:
        assert_same_bits(left, right)


STEP = 3  # every periodic row is due or not, as it comes


def fitted(t, p):
    """Return a state after one update, computed op by op."""
    return t.update(p, t.init(p), step=jnp.asarray(STEP), grads=grads(p))


def state_of(row, p):
    """Return a state after one update, by the functions that are compiled already."""
    _, init, _, update, _ = jitted(row)
    return update(p, init(p), jnp.asarray(STEP))


TRACES: Counter[str] = Counter()


@cache
def jitted(row):
    """Return the four functions of a row under `jit`, compiled once for all laws."""
    t = row.make()

    @jax.jit
    def run(p, s, step, g):
        TRACES[row.name] += 1
        return t.update(p, s, step=step, grads=g)

    def update(p, s, step):
        return run(p, s, step, grads(p))

    return t, jax.jit(t.init), jax.jit(t.apply), update, jax.jit(t.encode)


@ROWS_AND_DTYPES
def test_fidelity(row, dtype):
    t, _, apply, _, encode = jitted(row)
    p = params(dtype)
    state = state_of(row, p)
    assert_same_bits(jc.decode(t.encode(p, state)), t.apply(p, state))
    assert_same_bits(jc.decode(encode(p, state)), apply(p, state))


@ROWS_AND_DTYPES
def test_shape(row, dtype):
    p = params(dtype)
    chex.assert_trees_all_equal_shapes_and_dtypes(p, row.make().apply(p, state_of(row, p)))


@pytest.mark.sampled(10)
@ROWS_AND_DTYPES
def test_eager_equals_jit(row, dtype):
    t, init, apply, update, encode = jitted(row)
    p = params(dtype)
    same = partial(assert_same, row) if row.trains else assert_same_bits
    same(t.init(p), init(p))
    state = fitted(t, p)
    same(state, update(p, init(p), jnp.asarray(3)))
    assert_same_bits(t.apply(p, state), apply(p, state))
    assert_same_bits(t.encode(p, state), encode(p, state))


@ROWS
def test_stability_and_one_trace(row):
    _, init, _, update, _ = jitted(row)
    p = params()
    state = init(p)
    for step in range(7):
        new = update(jax.tree.map(lambda x: x + jnp.ones((), x.dtype), p), state, jnp.asarray(step))
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
        state = new
    assert TRACES[row.name] <= 2  # one for each choice of dtypes of the other laws: none for a step


@ROWS
def test_state_is_arrays_only(row):
    t = row.make()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(t.init(params())))


@ROWS
def test_purity(row):
    t = row.make()
    p = params()
    everything = ("prune_everything", "int8_tensor", "leafwise")
    after = tree.leaves(t.apply(p, state_of(row, p)))
    for path, leaf in tree.leaves(p).items():
        chosen = row.name in everything or path.split("/")[-1] in ("kernel", "embedding")
        if not (tree.is_weight(leaf) and chosen):
            assert after[path] is leaf, path


@ROWS
def test_tied_leaves_stay_tied(row):
    t = row.make()
    if row.name in ("prune_global", "prune_minimum", "prune_then_int8"):
        pytest.skip("a global ranking breaks ties between leaves by their order")
    if row.name in ("rigl", "set", "static", "prune_unpacked"):
        pytest.skip("random masks differ from leaf to leaf, and so may by one the counts of an allocation")
    after = t.apply(params(), state_of(row, params()))
    assert_same_bits(after["block"][0]["kernel"], after["block"][1]["kernel"])


@pytest.mark.sampled(8)
@ROWS
def test_scan_equals_loop(row):
    t = row.make()
    p = params()
    g = grads(p)

    def step(state, i):
        return t.update(p, state, step=i, grads=g), None

    scanned, _ = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(5)))(t.init(p))
    _, init, _, update, _ = jitted(row)
    looped = init(p)
    for i in range(5):
        looped = update(p, looped, jnp.asarray(i))
    assert_same(row, scanned, looped)


@pytest.mark.sampled(12)
@pytest.mark.slow
@ROWS
def test_vmap_equals_loop(row):
    t = row.make()
    models = [params(seed=seed) for seed in (0, 1)]
    ensemble = jax.tree.map(lambda *xs: jnp.stack(xs), *models)

    def run(p):
        state = fitted(t, p)
        return state, t.apply(p, state)

    together = jax.jit(jax.vmap(run))(ensemble)
    apply = jitted(row)[2]
    for i, p in enumerate(models):
        state = state_of(row, p)
        same = partial(assert_same, row) if row.trains else assert_same_bits
        same(jax.tree.map(lambda x, i=i: x[i], together), (state, apply(p, state)))


@pytest.mark.sampled(12)
@pytest.mark.slow
@ROWS
def test_pmap_equals_single_device(row):
    t = row.make()
    p = params()

    def run(p):
        state = fitted(t, p)
        return state, t.apply(p, state)

    replicas = jax.pmap(run)(jax.tree.map(lambda x: jnp.stack([x] * 8), p))
    state = state_of(row, p)
    single = state, jitted(row)[2](p, state)
    for i in (0, 7):
        assert_same_bits(
            jax.tree.map(lambda x, i=i: np.asarray(x)[i], replicas), single
        )  # a slice over devices adds: -0 is lost


@pytest.mark.sampled(4)
@ROWS
def test_gradient_is_defined_and_shaped(row):
    t = row.make()
    p = dict(tree.weights(params()))
    state = unoptimized(partial(fitted, t))(p)
    grad = unoptimized(jax.grad(lambda p: sum(jnp.sum(w**2) for w in jax.tree.leaves(t.apply(p, state)))))(p)
    chex.assert_trees_all_equal_shapes_and_dtypes(p, grad)
    chex.assert_tree_all_finite(grad)


@ROWS
def test_apply_is_idempotent(row):
    t = row.make()
    p = params()
    state = state_of(row, p)
    once = t.apply(p, state)
    chex.assert_trees_all_close(t.apply(once, state), once, rtol=1e-6)


@pytest.mark.sampled(8)
@pytest.mark.slow
@ROWS
def test_chain_is_associative_with_identity(row):
    t = row.make()
    if row.name == "int8_tensor":
        pytest.skip("claims every leaf, so that nothing is left for a second link: test_core tests the refusal")
    u = jc.select("**/scale", jc.leafwise(lambda w: jnp.max(w) / 2, lambda w, s: jnp.minimum(w, s)))
    p = params()
    chains = (jc.chain(jc.chain(t, u), jc.chain()), jc.chain(t, jc.chain(u, jc.chain())), jc.chain(t, u))
    programs = [jax.jit(lambda p, c=c: jax.tree.leaves(fitted(c, p))).lower(p) for c in chains]
    assert len({program.as_text() for program in programs}) == 1, "not the same computation"
    leaves = programs[0].compile()(p)
    trees = []
    for c in chains:
        state = jax.tree.unflatten(jax.tree.structure(c.init(p)), leaves)
        trees.append((c.apply(p, state), c.encode(p, state)))
    assert_same_bits(trees[0], trees[1])
    assert_same_bits(trees[0], trees[2])


@ROWS
def test_check_accepts_what_works(row):
    jc.check(row.make(), jax.eval_shape(params))


@ROWS
def test_checkpoint_of_state_resumes_bit_for_bit(row, tmp_path):
    t, init, _, update, _ = jitted(row)
    p = params()
    state = update(p, init(p), jnp.asarray(1))
    np.savez(tmp_path / "state.npz", *[np.asarray(x) for x in jax.tree.leaves(state)])
    with np.load(tmp_path / "state.npz") as file:
        loaded = [jnp.asarray(file[name]) for name in file.files]
    restored = jax.tree.unflatten(jax.tree.structure(state), loaded)
    assert_same_bits(update(p, restored, jnp.asarray(3)), update(p, state, jnp.asarray(3)))


def test_table_lists_every_public_transform():
    public = {"prune", "fake_quantize", "chain", "select", "periodic", "straight_through", "stacked", "leafwise"}
    public |= {"rigl", "set_", "static", "movement_pruning", "top_kast", "surgery"}
    source = (__import__("pathlib").Path(__file__).parent / "table.py").read_text()
    assert not {name for name in public if f"{name}(" not in source}


@pytest.mark.sampled(12)
@pytest.mark.slow
@ROWS
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_sharded_equals_single_device(row, axis_type):
    t = row.make()
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)

    def place(x):
        spec = [None] * x.ndim
        if x.ndim >= 2 and x.shape[-1] % 2 == 0 and x.shape[-2] % 4 == 0:
            spec[-2:] = ["data", "model"]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def run(p):
        state = fitted(t, p)
        return state, t.apply(p, state), t.encode(p, state)

    p = params()
    placed = jax.tree.map(place, p)
    sharded = jax.block_until_ready(jax.jit(run)(placed))
    _, _, apply, _, encode = jitted(row)
    state = state_of(row, p)
    single = state, apply(p, state), encode(p, state)
    assert_same(row, jax.tree.map(np.asarray, sharded), jax.tree.map(np.asarray, single))
    for before, after in zip(jax.tree.leaves(placed), jax.tree.leaves(sharded[1]), strict=True):
        assert after.sharding.is_equivalent_to(before.sharding, before.ndim)
