"""Every benchmark runs in its quick form and prints the keys it promises; nothing is timed here."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import _aot, _seeds
from examples.data import load

ROOT = Path(__file__).parent.parent
KEYS = {
    "mask_update": {"mask_1e6", "mask_1e7", "mask_global_1e7", "mask_bytes_per_weight"},
    "train_step": {
        "prune_step_time",
        "prune_step_memory",
        "magnitude_refresh_step",
        "packed_mask_time",
        "compilations",
    },
    "pruning_methods": {"half of the neurons at once, after one epoch: gate"},
    "lottery": {"best_ticket_at", "gain_at_17", "ticket_as_good_down_to", "other_initialization_worse_from"},
    "density_error": {"error_at_0.05", "error_at_1"},
    "shards": {"masks_equal", "widest_gather_8", "rigl_refresh_8"},
    "refresh_step": {"magnitude_refresh_step", "rigl_refresh_step", "set_refresh_step"},
    "refresh_pod": {"dynamic_pod_memory", "rigl_pod_bytes", "dynamic_pod_wires"},
    "structured": {"cnn_shrunk_50_error", "cnn_small_50_multiply_adds", "cnn_shrunk_50_cpu_128"},
    "widths": {"cnn_float32_8_time", "vit_float32_8_multiply_adds"},
    "quantized_step": {"qat_mlp_step", "qat_vit_step", "qat_vit_memory", "qat_compile"},
    "integers": {"answers_that_differ"},
    "serving": {"w8a8_b16", "int4_b1", "w8only_b16", "mlp_int8_b128", "worst_vs_f32"},
    "quantized_lenet5": {"lenet5_float_error", "lenet5_2_2_error"},
    "binary_mlp": {"binary_mlp_float_error", "binary_mlp_binary_error"},
    "hinton": {"hinton_teacher", "hinton_student", "hinton_distilled", "hinton_without_threes_bias"},
    "distill_losses": {"distilled_cnn_plain", "distilled_cnn_soft_targets", "distilled_cnn_review"},
    "together": {"together_none_error", "together_pruned_quantized_distilled_smaller"},
    "distill_step": {"distill_step", "distill_cached_step", "kd_vocab_mib"},
    "block_sparse": {"block90_b1", "block90_int8_b16"},
    "gptq": {"gptq_seconds"},
    "tpu_quantized": {"tpu_w8a8_bytes", "tpu_w8_bytes", "tpu_w4_bytes", "tpu_w4a8_bytes"},
    "ladder": {"nearest_minus_adaround", "nearest_minus_gptq"},
    "graph_time": {"graph_seconds_10", "graph_seconds_per_layer_growth"},
    "tpu_aot": {"tpu_step_bytes", "tpu_mask_vs_sort", "pod_memory", "pod_compile"},
}
NEEDS_DATA = ("pruning_methods", "density_error", "lottery", "binary_mlp")


def has_data() -> bool:
    try:
        return bool(load("fashion-mnist") and load("mnist"))
    except FileNotFoundError:
        return False


NEEDS_TPU = [pytest.mark.tpu, pytest.mark.skipif(bool(_aot.missing()), reason=str(_aot.missing()))]


QUICKEST = ("gptq", "block_sparse")  # seconds each; `make exhaustive` runs all, many of which take most of a minute


def marks(name: str) -> list:
    needs = NEEDS_TPU if name in ("tpu_aot", "tpu_quantized", "refresh_pod") else []
    return [pytest.mark.slow if name in QUICKEST else pytest.mark.exhaustive, *needs]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in KEYS])
def test_benchmark_prints_its_keys(name, tmp_path):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--out", str(tmp_path / "out.json")]
    if name in NEEDS_DATA and not has_data():
        pytest.skip("Fashion-MNIST is not on this machine")
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    ratios = json.loads(done.stdout.splitlines()[-1])
    assert set(ratios) >= KEYS[name]
    assert json.loads((tmp_path / "out.json").read_text())["ratios"] == ratios
    if name == "train_step":
        assert ratios["compilations"] == 1
    if name == "integers":
        assert ratios["answers_that_differ"] == 0
    if name == "mask_update":
        assert ratios["mask_bytes_per_weight"] <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_benchmark_says_how_it_is_run(name):
    """What `make exhaustive` runs can at least be imported, and says how it is run."""
    module = importlib.import_module(f"benchmarks.{name}")
    assert f"python -m benchmarks.{name}" in str(module.__doc__)
    assert callable(module.main)


def test_results_are_committed_with_their_conditions():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        found = json.loads(path.read_text())
        assert {"ratios", "environment"} <= set(found), path


@pytest.mark.parametrize(
    ("name", "nets"),
    [
        ("structured", ("cnn", "vit")),
        ("ladder", ("cnn", "text")),
        ("distill_losses", ("cnn", "text")),
        ("hinton", ("temperatures_mnist",)),
    ],
)
def test_pictures_are_drawn_from_the_committed_results(name, nets, tmp_path):
    pytest.importorskip("matplotlib")
    results = [f"benchmarks/results/{name}_{net}.json" for net in nets]
    command = [sys.executable, "-m", f"benchmarks.{name}_plot", *results]
    subprocess.run([*command, "--out", str(tmp_path / "out.png")], cwd=ROOT, check=True)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_are_run_on_where_they_stopped(tmp_path):
    """Without `--resume` nothing old is kept; with it nothing is run twice, and other options are refused."""
    ran, out = [], str(tmp_path / "out.json")

    def seeds(*arguments):
        options = _seeds.arguments("", "less", "mnist").parse_args(["--out", out, *arguments])
        return _seeds.over(options, lambda rows: {"count": len(rows)}, lambda s: ran.append(s) or [{"seed": s}])

    seeds("--seeds", "2")
    assert seeds("--seeds", "4", "--resume") == [{"seed": s} for s in range(4)] and ran == [0, 1, 2, 3]
    assert json.loads(Path(out).read_text())["ratios"] == {"count": 4}
    with pytest.raises(SystemExit, match="of other options: data"):
        seeds("--resume", "--data", "fashion-mnist")
    assert seeds("--seeds", "1") == [{"seed": 0}] and ran == [0, 1, 2, 3, 0]
