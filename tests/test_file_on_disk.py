"""The model file on the disk: how large, how it gets there, older versions, and the description of the format."""

import os
import pathlib
import re
import runpy
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress import export, grids, tree
from jaxopt_compress.encoded import Quantized, decode, is_encoded
from jaxopt_compress.export import packing
from jaxopt_compress.grids import Integers
from tests.files import bits, mlp, quantized

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / "golden" / "model_v1.jc"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.jc"


# How large it is


def test_the_overhead_of_a_small_model(path):
    """Six leaves, three of them sparse: less than 2 kB beside the sections."""
    model = mlp(lambda shape: quantized(shape, 8, density=0.1))
    leaves = jax.tree.leaves(model, is_leaf=is_encoded)
    assert len(leaves) == 6
    assert export.save(path, model) - sum(map(export.packed_bytes, leaves)) < 1600


def test_a_pruned_int8_model_is_over_20_times_smaller(path):
    model = mlp(lambda shape: quantized(shape, 8, density=0.1))
    dense = sum(leaf.nbytes for leaf in jax.tree.leaves(decode(model)))
    assert dense / export.save(path, model) > 20


# How it gets on the disk


def test_same_model_same_bytes(path, tmp_path):
    export.save(path, mlp())
    export.save(tmp_path / "again.jc", export.load(path))
    assert path.read_bytes() == (tmp_path / "again.jc").read_bytes()


@pytest.mark.slow
def test_a_fresh_process_reads_and_writes_the_same_bytes(path, tmp_path):
    export.save(path, export.load(GOLDEN))
    program = "import sys; from jaxopt_compress import export; export.save(sys.argv[2], export.load(sys.argv[1]))"
    again = tmp_path / "again.jc"
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", program, path, again], check=True, env=environment)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_mode_follows_the_umask(path, umask, mode):
    before = os.umask(umask)
    try:
        export.save(path, 1)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_older_file_and_nothing_else(path, monkeypatch, function, error):
    export.save(path, {"w": 1})
    before = path.read_bytes()

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(type(error)):
            export.save(path, {"w": 2})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    export.save(path, {"w": 2})
    assert export.load(path) == {"w": 2} and list(path.parent.iterdir()) == [path]


def test_file_and_directory_are_synced_before_and_after_the_name_changes(path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, f=original, n=name: (calls.append(n), f(*args))[1])
    export.save(path, 1)
    assert calls == ["fsync", "replace", "fsync"]


def test_a_link_is_followed_and_a_bare_name_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export.save("model.jc", 1)
    pathlib.Path("link.jc").symlink_to("model.jc")
    export.save("link.jc", 2)
    assert pathlib.Path("link.jc").is_symlink() and export.load("model.jc") == 2


def test_only_a_regular_file_is_replaced(tmp_path):
    with pytest.raises(ValueError, match="not a regular file"):
        export.save(tmp_path, 1)
    with pytest.raises(FileNotFoundError):
        export.save(tmp_path / "none" / "model.jc", 1)


# The files of older versions, and the description of the format


@pytest.mark.slow
def test_golden_file_of_version_2():
    """Version 2 adds the grids; `save` writes the same bytes today."""
    golden = HERE / "golden" / "model_v2.jc"
    made = runpy.run_path(str(HERE / "golden" / "make_model_v2.py"))["model"]()
    assert bits(export.load(golden)) == bits(made)
    content = golden.read_bytes()
    for word in (b'version\\":2', b"integers", b"floats", b"levels", b"uint1", b"uint4", b"uint6", b"uint8"):
        assert word in content
    plain = example()(golden)
    for path, leaf in tree.leaves(made, is_leaf=is_encoded).items():
        np.testing.assert_array_equal(plain[path].astype(jnp.dtype(leaf.dtype)), leaf.decode(), err_msg=path)


@pytest.mark.parametrize("bits_", [3, 8])
def test_a_file_says_the_first_version_that_can_hold_it(path, bits_):
    codes, one = jnp.zeros((4, 6), jnp.int8), jnp.ones((1, 6))
    old = Quantized.of(codes, one, Integers(bits_))
    for leaf, version in (
        (old, 1),
        (Quantized.of(codes, jnp.ones((2, 6)), Integers(bits_)), 2),
        (Quantized.of(codes, one, Integers(bits_, restricted=False)), 2),
        (Quantized.of(codes, one, Integers(bits_), zero_point=jnp.zeros((1, 6), jnp.int8)), 2),
        (Quantized.of(codes.astype(jnp.uint8), one, grids.NF4), 2),
    ):
        export.save(path, {"w": leaf})
        assert f'version\\":{version}'.encode() in path.read_bytes()
        assert bits(export.load(path)) == bits({"w": leaf})


def test_golden_file():
    made = runpy.run_path(str(HERE / "golden" / "make_model_v1.py"))
    assert bits(export.load(GOLDEN)) == bits(made["model"]())
    manifest = GOLDEN.read_bytes()
    for word in (
        b"sparse",
        b"dense",
        b"raw",
        b"deflate",
        b"int3",
        b"int4",
        b"int8",
        b"tuple",
        b"list",
        b"dict",
        b"float",
    ):
        assert b'\\"' + word + b'\\"' in manifest  # the file covers the format


def example():
    page = (HERE.parent / "docs" / "file_format.md").read_text()
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    return names["read"]


def widened(leaf):
    """Return what the example of the page makes of a leaf: bfloat16 as float32, codes times scale."""
    if is_encoded(leaf):
        return np.asarray(leaf.codes, np.int64) * np.asarray(leaf.scale)
    if not hasattr(leaf, "dtype"):
        return leaf
    return np.asarray(leaf, np.float32) if leaf.dtype == jnp.bfloat16 else np.asarray(leaf)


def same_numbers(model, plain):
    found, wanted = (tree.leaves(x, is_leaf=is_encoded) for x in (plain, model))
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[path]), widened(leaf), err_msg=path)


def test_the_reader_in_the_documentation_reads_the_golden_file():
    plain = example()(GOLDEN)
    same_numbers(export.load(GOLDEN), plain)
    assert plain["encoder"]["bias"].view(np.uint32).tolist()[:3] == [0x80000000, 0x7FC00001, 0xFFA00000]
    assert np.signbit(plain["heads"][2]) and plain["blocks"][7] == {}


@pytest.mark.parametrize("dtype", [name for name in packing.WIDTHS if not name.startswith("float8")])
def test_the_reader_in_the_documentation_reads_every_dtype(path, dtype):
    values = np.random.default_rng(0).integers(0, 2, (40, 50)).astype(jnp.dtype(dtype))
    lowest = np.array([-(2 ** (packing.WIDTHS[dtype] - 1)) if dtype.startswith("int") else 1], jnp.dtype(dtype))
    export.save(path, [values, lowest, values[:0], values[0, 0]])
    same_numbers(export.load(path), example()(path))
