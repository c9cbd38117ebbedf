"""The store of teacher outputs: right rows for any order of keys, resumed, refused, damaged."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxopt_compress import distillation as d
from tests.products import normal

KEYS = np.random.default_rng(0).permutation(np.arange(-3, 50) * 7)
OF = {"teacher": d.fingerprint({"w": np.ones(3)}), "data": d.fingerprint(np.arange(5))}
GOLDEN = Path(__file__).parent / "golden" / "store_v1"
W = normal(2, 6)


def load(keys):
    return np.stack([keys, keys**2 % 11], axis=1).astype(np.float32)


def teacher(w, x):
    return x @ w


def outputs(keys):
    return np.asarray(load(np.asarray(keys)) @ np.asarray(W))


def built(folder, fn=teacher, keys=KEYS, **more):
    d.build_store(folder, fn, W, keys, load, of=OF, **{"batch": 4, "size": 8, **more})
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return d.open_store(built(tmp_path_factory.mktemp("store")), of=OF)


@given(st.lists(st.sampled_from(KEYS.tolist()), max_size=12))
def test_rows_come_in_the_order_of_the_keys(store, keys):
    found = store[np.asarray(keys, np.int64)]
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, outputs(np.asarray(keys, np.int64)).reshape(-1, 6), rtol=1e-5)


def test_what_is_not_there(store):
    assert len(store) == len(KEYS)
    with pytest.raises(KeyError, match="has no example 8"):
        store[np.array([7, 8])]
    for wrong in (np.array([7.0]), np.array(7), np.array([[7]])):
        with pytest.raises(KeyError, match="keys are integers"):
            store[wrong]


def test_one_compilation_and_every_example_once(tmp_path):
    seen, traces = [], []

    def counted(w, x):
        traces.append((x.shape, isinstance(w, jax.core.Tracer)))
        return teacher(w, x)

    def watched(keys):
        seen.append(keys)
        return load(keys)

    d.build_store(tmp_path, counted, W, KEYS, watched, of=OF, batch=4, size=8)
    assert set(traces) == {((4, 2), True)} and len(traces) <= 2  # its shapes, its program; no parameter is a constant
    assert sorted(set(np.concatenate(seen))) == sorted(KEYS)


def test_an_interrupted_build_goes_on(tmp_path):
    calls = []

    def dying(keys):
        calls.append(keys)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return load(keys)

    with pytest.raises(KeyboardInterrupt):
        d.build_store(tmp_path, teacher, W, KEYS, dying, of=OF, batch=4, size=8)
    done = len(list(tmp_path.glob("0*.safetensors")))
    assert done == 2
    with pytest.raises(ValueError, match="is not complete: 5 of 7 files are missing"):
        d.open_store(tmp_path, of=OF)
    calls.append(None)
    d.build_store(tmp_path, teacher, W, KEYS, dying, of=OF, batch=4, size=8)
    assert len(calls) == 7 + 1 + 5 * 2  # once for the shapes, then five files of two batches
    np.testing.assert_allclose(d.open_store(tmp_path, of=OF)[KEYS], outputs(KEYS), rtol=1e-5)
    assert not list(tmp_path.glob("*.tmp"))


def test_processes_share_the_work(tmp_path):
    for number in (0, 1):
        built(tmp_path, process=(number, 2))
    np.testing.assert_allclose(d.open_store(tmp_path, of=OF)[KEYS], outputs(KEYS), rtol=1e-5)


@pytest.mark.slow
def test_trees_and_dtypes_come_back(tmp_path):
    def several(w, x):
        top = d.top_k(teacher(w, x), 2, temperature=1.0)
        return {"top": top, "half": teacher(w, x).astype(jnp.bfloat16), "none": x[:, :0]}

    built(tmp_path, several)
    like = {"top": d.TopK(*range(len(d.TopK._fields))), "half": 0, "none": 0}
    found, want = d.open_store(tmp_path, of=OF, like=like)[KEYS], several(W, load(KEYS))
    assert isinstance(found["top"], d.TopK)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=1e-2)
    with pytest.raises(ValueError, match="`like` has the leaves"):
        d.open_store(tmp_path, of=OF, like={"half": 0})


def test_a_step_reads_it_by_key(store):
    """Shuffled batches of keys: the loss sees the row of its own example."""

    @jax.jit
    def gap(x, said):
        return jnp.abs(teacher(W, x) - said).max()

    for number in range(3):
        keys = np.random.default_rng(number).permutation(KEYS)[:16]
        assert gap(load(keys), store[keys]) < 1e-4


@pytest.mark.parametrize("name", OF)
def test_another_teacher_or_other_data(tmp_path, name):
    built(tmp_path)
    other = OF | {name: d.fingerprint({"w": np.zeros(3)})}
    for refuse in (lambda: d.open_store(tmp_path, of=other), lambda: built_with(tmp_path, other)):
        with pytest.raises(ValueError, match=f"is of another {name}: "):
            refuse()


def built_with(folder, of):
    d.build_store(folder, teacher, W, KEYS, load, of=of, batch=4, size=8)


def test_a_build_of_something_else(tmp_path):
    built(tmp_path)
    for more in ({"size": 16}, {"keys": KEYS[:-1]}, {"keys": KEYS[::-1]}, {"fn": lambda w, x: x}):
        with pytest.raises(ValueError, match="holds other examples, outputs or sizes"):
            built(tmp_path, **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"keys": np.array([1, 1])}, "each key stands there once"),
        ({"keys": np.array([1.0])}, "keys are integers"),
        ({"keys": np.array([], int)}, "keys are integers"),
        ({"keys": np.array([2**63], np.uint64)}, "fits into int64"),
        ({"process": (2, 2)}, "a process has a number below their count"),
        ({"size": 6}, "`size` is a multiple of `batch`"),
        ({"fn": lambda w, x: x.sum()}, "outputs have a row an example, 4; '' is"),
    ],
)
def test_builds_that_are_refused(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        built(tmp_path, **more)


def truncated(folder):
    path = folder / "000002.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def swapped(folder):
    shutil.copy(folder / "keys.safetensors", folder / "000002.safetensors")


def edited(**new):
    def edit(folder):
        about = json.loads((folder / "about.json").read_text())
        (folder / "about.json").write_text(json.dumps(about | new))

    return edit


def garbage(folder):
    (folder / "about.json").write_text("[1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "is damaged"),
        (swapped, "holds"),
        (garbage, "is damaged"),
        (edited(size=0), "is damaged"),
        (edited(size="many"), "is damaged"),
        (edited(examples=10**6), "is not complete"),
        (edited(examples=52), "the keys|holds"),
        (edited(version=2), "it has version 2; this library reads 1"),
        (edited(outputs={"": ["float32", [7]]}), "holds"),
        (edited(outputs=[1]), "is damaged"),
    ],
)
def test_damage_is_refused(tmp_path, damage, message):
    damage(built(tmp_path))
    with pytest.raises(ValueError, match=message):
        d.open_store(tmp_path, of=OF)


def test_no_store(tmp_path):
    with pytest.raises(FileNotFoundError):
        d.open_store(tmp_path, of=OF)


def test_the_first_format_version_is_still_read():
    found = d.open_store(GOLDEN, of=OF)[KEYS]
    np.testing.assert_allclose(found, outputs(KEYS), rtol=1e-5)


def test_fingerprints():
    base = {"w": jnp.ones((2, 3)), "n": 3, "none": None}
    same = d.fingerprint({"w": np.ones((2, 3), np.float32), "n": 3, "none": None})
    others = [
        {"w": jnp.ones((3, 2)), "n": 3, "none": None},
        {"w": jnp.ones((2, 3), jnp.bfloat16), "n": 3, "none": None},
        {"w": jnp.ones((2, 3)).at[1, 2].set(-1), "n": 3, "none": None},
        {"w": jnp.ones((2, 3)), "n": 4, "none": None},
        {"v": jnp.ones((2, 3)), "n": 3, "none": None},
    ]
    assert d.fingerprint(base) == same and len({d.fingerprint(tree) for tree in [base, *others]}) == 6
    assert d.fingerprint(jax.random.key(0)) != d.fingerprint(jax.random.key(1))
