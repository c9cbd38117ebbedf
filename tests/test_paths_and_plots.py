"""Effective sparsity against a search through the graph of a small net, and the density-error plot."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_compress as jc
from jaxopt_compress import report

WIDTHS = (7, 6, 5, 4, 3)


def sparse_net(seed: int, density: float) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        f"dense_{i}": {
            "kernel": np.where(rng.random((n, m)) < density, rng.normal(size=(n, m)), 0).astype(np.float32),
            "bias": rng.normal(size=m).astype(np.float32),
        }
        for i, (n, m) in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
    }


def forward(params, x):
    for i in range(len(params)):
        x = x @ params[f"dense_{i}"]["kernel"] + params[f"dense_{i}"]["bias"][None]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def by_search(params) -> dict[str, int]:
    """Count the weights between units that an input reaches and units that reach an output."""
    there = [layer["kernel"] != 0 for layer in params.values()]
    reached = [np.ones(WIDTHS[0], bool)]
    for mask in there:
        reached.append(reached[-1] @ mask > 0)
    reaching = [np.ones(WIDTHS[-1], bool)]
    for mask in reversed(there):
        reaching.insert(0, mask @ reaching[0] > 0)
    return {
        f"{name}/kernel": int(np.sum(mask & reached[i][:, None] & reaching[i + 1][None]))
        for i, (name, mask) in enumerate(zip(params, there, strict=True))
    }


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.0, 0.15, 0.3, 1.0])
def test_effective_sparsity_is_that_of_a_search(density):
    for seed in range(4):
        params = sparse_net(seed, density)
        found = report.effective_sparsity(forward, params, jnp.zeros((1, 7)))
        assert {leaf.path: leaf.effective for leaf in found.leaves} == by_search(params)
        size = sum(n * m for n, m in zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
        kept = sum(int(np.sum(layer["kernel"] != 0)) for layer in params.values())
        assert found.sparsity == pytest.approx(1 - kept / size)
        assert found.effective_sparsity == pytest.approx(1 - sum(by_search(params).values()) / size)


@pytest.mark.slow
def test_a_convolutional_flax_net_and_a_dead_channel():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), name="first")(x))
            x = nn.avg_pool(nn.relu(nn.Conv(4, (3, 3), name="second")(x)), (2, 2), (2, 2))
            return nn.Dense(3, name="head")(x.reshape(len(x), -1))

    net, image = Net(), jnp.ones((1, 8, 8, 2))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        params: Any = net.init(jax.random.key(0), image)
        kernel = params["params"]["first"]["kernel"].at[..., 1].set(0)
        params["params"]["first"]["kernel"] = kernel
        found = {x.path: x for x in report.effective_sparsity(net.apply, params, image).leaves}
    assert found["params/first/kernel"].effective == found["params/first/kernel"].kept == 9 * 2 * 3
    assert found["params/second/kernel"].effective == 9 * 3 * 4  # a quarter of its inputs is dead
    assert found["params/head/kernel"].effective == 4 * 4 * 4 * 3


@pytest.mark.slow
def test_deep_nets_neither_overflow_nor_fade():
    params = {f"layer_{i:03}": jnp.ones((50, 50)) for i in range(100)}

    def deep(params, x):
        for w in params.values():
            x = jax.nn.relu(x @ w)
        return x

    assert report.effective_sparsity(deep, params, jnp.ones((1, 50))).effective_sparsity == 0


def test_layers_that_hide_paths_are_refused():
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32))}
    with pytest.raises(ValueError, match="A layer that subtracts"):
        report.effective_sparsity(lambda p, x: -(x @ p["w"]), params, jnp.ones((1, 4)))
    with pytest.raises(ValueError, match="matches no leaf"):
        report.effective_sparsity(lambda p, x: x @ p["w"], params, jnp.ones((1, 4)), where="**/kernel")


def test_the_table_prints():
    text = str(report.effective_sparsity(forward, sparse_net(0, 0.3), jnp.zeros((1, 7))))
    assert "dense_0/kernel" in text
    assert "effective sparsity" in text
    assert "total" in text


def test_total_sparsity_of_the_model_table():
    found = report.table({"a": jnp.ones((4, 4)), "b": jnp.ones(4)}, {"a": jnp.eye(4), "b": jnp.ones(4)})
    assert found.sparsity == 12 / 20
    assert "60.0%" in str(found)
    assert jc.report.table({}, {}).sparsity == 0


def test_the_density_error_plot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    curves = {"ours": {0.01: [2.0, 2.2], 0.1: [1.5, 1.4]}, "theirs": {0.01: [3.0]}}
    ax = report.density_error(curves, {"paper": {0.02: 2.4}})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ours", "theirs", "paper"]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 2.1], [10, 1.45]])
    assert ax.get_xscale() == "log"
    assert report.density_error(curves, ax=ax) is ax
    pyplot.close("all")
    with pytest.raises(ValueError, match="`density_error`: a curve has densities"):
        report.density_error({"empty": {0.1: []}})
