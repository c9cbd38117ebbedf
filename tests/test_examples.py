"""The examples, the README and the docs run as they stand, and say what they claim."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState

import jaxopt_compress as jc
from examples import all_in_one, distill, prune, quantize, save_load, shrink

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def user_promotion():
    """Run with JAX's own settings, as a user would."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def code_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.slow
def test_prune_example_keeps_accuracy():
    found = prune.main()
    assert found["pruned"][0] == pytest.approx(0.9, abs=1e-3)
    assert found["pruned"][1] > found["dense"][1] - 0.03


@pytest.mark.slow
def test_quantize_example_beats_rounding():
    found = list(quantize.main().values())
    assert found[2] > found[1] + 0.05


@pytest.mark.slow
def test_distill_example_needs_few_labels():
    teacher, plain, logits, features = distill.main().values()
    assert teacher > 0.95 and min(logits, features) > plain + 0.05


@pytest.mark.slow
def test_all_in_one_example():
    assert all_in_one.main() > 0.95


@pytest.mark.exhaustive
def test_shrink_example_keeps_accuracy():
    found = shrink.main()
    assert found["retrained"][0] == found["removed"][0] <= 0.25 * found["dense"][0]
    assert found["retrained"][1] > found["dense"][1] - 0.03


@pytest.mark.slow
def test_save_load_example(tmp_path):
    dense, size = save_load.main(str(tmp_path / "model.jc"))
    assert size == (tmp_path / "model.jc").stat().st_size
    assert dense > 20 * size


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    if path.stem != "data":
        assert len(path.read_text().splitlines()) < 80


PAGES = ["concepts", "optimizers", "tpu"]
LONG_PAGES = ("distillation", "pruning", "quantization", "shrinking")
PAGES += [pytest.param(page, marks=pytest.mark.exhaustive) for page in LONG_PAGES]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_pages_run(page, tmp_path, monkeypatch):
    names, blocks = {}, code_blocks(f"docs/{page}.md")
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.slow
def test_readme_training_step_runs_compiles_once_and_ships_what_it_trained(tmp_path, monkeypatch):
    step, after = code_blocks("README.md")[:2]
    student = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(4)])
    batch = {"image": jax.random.normal(jax.random.key(1), (16, 8)), "label": jnp.arange(16) % 4}
    names = {"student": student, "params": student.init(jax.random.key(0), batch["image"])}
    names["teacher"] = lambda x: 3 * x[:, :4]
    exec(compile(step, "README.md", "exec"), names)
    state = names["state"].replace(step=jnp.zeros((), jnp.int32))
    losses = []
    for _ in range(120):
        state, loss = names["train_step"](state, batch)
        losses.append(float(loss))
    assert names["train_step"]._cache_size() == 1
    assert losses[-1] < losses[0]
    trained = names["tx"].apply(state.params, state.opt_state)
    monkeypatch.chdir(tmp_path)
    names |= {"state": state}
    exec(compile(after, "README.md", "exec"), names)
    for a, b in zip(jax.tree.leaves(names["params"]), jax.tree.leaves(trained), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_readme_step_is_the_one_that_was_promised():
    lines = [line for line in code_blocks("README.md")[0].splitlines() if line.strip()]
    assert len(lines) <= 20


def test_readme_is_the_first_thing_a_user_reads():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any("pip install" in line for line in lines[:10])
    assert any("apply_gradients" in line for line in lines[:40])
    assert "Unrelated to the `jaxopt` package" in lines[1]


@pytest.mark.slow
def test_module_runs_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "examples.save_load", str(tmp_path / "m.jc")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "identical bit for bit" in done.stdout


def test_train_state_is_used_unchanged():
    assert TrainState.__module__.startswith("flax")
    assert isinstance(jc.attach(jc.optimizers.sgd(1.0), jc.chain()), tuple)
