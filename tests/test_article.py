"""The article's program, `examples/alternate_sgd_adam.py`, against the same program in Keras."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxopt_compress.optimizers.first_order import adam

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "examples/alternate_sgd_adam.py"
KERAS = ROOT / "tests/golden/alternate_keras.npz"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("alternate_sgd_adam", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(printed):
    """Hold what `--json` printed against Keras's losses; float32 rounding is about 1e-7 of them."""
    result = json.loads(printed)
    assert list(result) == ["loss"]
    assert len(result["loss"]) == 101
    np.testing.assert_allclose(result["loss"], np.load(KERAS)["loss"], rtol=1e-5)


def test_loses_what_keras_loses(program, capsys):
    program.main(["--init", str(KERAS), "--json"])
    check(capsys.readouterr().out)


@pytest.mark.slow
def test_runs_as_a_program():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), "--init", str(KERAS), "--json"]
    check(subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120).stdout)


def test_draws_the_data_of_the_article(program):
    x, y = program.dataset()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1000, 10), "float32", (1000,), "float32")
    init, keras = [np.load(KERAS)[f"init{i}"] for i in range(4)], np.load(KERAS)["loss"]
    np.testing.assert_allclose(program.loss_fn(init, x, y), keras[0], rtol=1e-6)


@pytest.mark.slow
def test_another_epsilon_convention_does_not_follow_keras(program, monkeypatch):
    monkeypatch.setattr(program, "adam", lambda rate, eps, eps_hat: adam(rate, eps=eps, eps_hat=not eps_hat))
    init, keras = [np.load(KERAS)[f"init{i}"] for i in range(4)], np.load(KERAS)["loss"]
    with jax.numpy_dtype_promotion("standard"):
        losses = program.train.__wrapped__(init, *program.dataset())
    assert abs(losses / keras - 1).max() > 5e-5


def test_prints_progress_from_a_seed_of_its_own(program, capsys):
    program.main(["--seed", "1"])
    first = capsys.readouterr().out
    program.main(["--seed", "1"])
    assert first == capsys.readouterr().out
    assert first.count("loss") == 11
    program.main(["--seed", "2"])
    assert first != capsys.readouterr().out
