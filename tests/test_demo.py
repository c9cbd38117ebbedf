"""The demo, on few epochs and one seed: everything it promises but the accuracy of a full run."""

import json

import jax
import numpy as np
import pytest

import jaxopt_compress as jc
from examples.demo import __main__ as demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = demo.main(["--seeds", "1", "--epochs", "30", "--out", str(folder)])
    return folder, found


def test_file_is_small_and_accurate(outcome):
    folder, found = outcome
    assert found["ratios"]["compression"] >= 15
    assert found["ratios"]["accuracy_difference_points"] > -3
    assert (folder / "student-digits-0.jc").stat().st_size == found["rows"][2]["file_bytes"][0]


def test_one_compilation_for_each_kind_of_run(outcome):
    assert outcome[1]["compilations_of_the_training_epoch"] == 3


def test_compressed_student_is_sparse_and_int8(outcome):
    stored = jc.export.load(outcome[0] / "student-digits-0.jc")
    kernels = [leaf for leaf in jax.tree.leaves(stored, is_leaf=jc.is_encoded) if jc.is_encoded(leaf)]
    assert len(kernels) == 3
    assert all(kernel.codes.dtype == np.int8 for kernel in kernels)
    zeros = sum(int((kernel.codes == 0).sum()) for kernel in kernels) / sum(k.codes.size for k in kernels)
    assert zeros >= 0.9 - 1e-6


def test_results_and_plot_are_written(outcome):
    folder, found = outcome
    assert json.loads((folder / "demo-digits.json").read_text())["ratios"] == found["ratios"]
    assert (folder / "demo-digits.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder / "demo-digits.png").stat().st_size > 20_000


def test_missing_data_says_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / ".keras"))
    monkeypatch.setenv("JAXOPT_COMPRESS_DATA", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="Looked in:"):
        demo.main(["--data", "mnist"])
