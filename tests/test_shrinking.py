"""Choosing and removing: targets, what comes back, what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxopt_compress import graph, shrinking, tree
from tests.corpus import CASES
from tests.corpus.layers import dense, dense_chain, normal, seed

BY_NAME = {case.name: case for case in CASES}


def mlp(widths=(5, 8, 6, 3), activation=jax.nn.relu):
    rng = seed()
    params = dense_chain(rng, *widths)

    def fn(p, x):
        for i in range(len(p) - 1):
            x = activation(dense(p[f"dense_{i}"], x))
        return dense(p[f"dense_{len(p) - 1}"], x)

    return fn, params, (normal(rng, 4, widths[0]),)


def squares(params):
    return jax.tree.map(jnp.square, params)


def planned(model, **target):
    fn, params, inputs = model
    traced = graph.trace(fn, params, *inputs)
    return traced, shrinking.choose(traced, squares(params), **target)


def sizes(cut):
    return {name: len(units) for name, units in cut.units.items()}


# --- choose ---


def test_scores_of_a_unit_are_the_sum_over_its_slices():
    fn, params, inputs = mlp()
    traced = graph.trace(fn, params, *inputs)
    first, second, third = (jax.tree.map(np.asarray, squares(params))[f"dense_{i}"] for i in range(3))
    wanted = first["kernel"].sum(0) + first["bias"] + second["kernel"].sum(1)
    found = shrinking.unit_scores(traced, squares(params))
    np.testing.assert_allclose(found["dense_0/kernel[1]"], wanted, rtol=1e-6)
    np.testing.assert_allclose(
        found["dense_1/kernel[1]"].sum(),
        (second["kernel"].sum() + second["bias"].sum()) + third["kernel"].sum(),
        rtol=1e-6,
    )


def test_the_lowest_go():
    traced, cut = planned(mlp(), ratio=0.5)
    scores = shrinking.unit_scores(traced, squares(mlp()[1]))
    for name, units in cut.units.items():
        assert scores[name][units].max() <= np.delete(scores[name], units).min()


def test_ratio_of_all_and_by_name_and_counts():
    assert sizes(planned(mlp(), ratio=0.5)[1]) == {"dense_0/kernel[1]": 4, "dense_1/kernel[1]": 3}
    assert sizes(planned(mlp(), ratio={"dense_0/kernel[1]": 0.25})[1]) == {"dense_0/kernel[1]": 2}
    assert sizes(planned(mlp(), keep={"dense_1/kernel[1]": 5})[1]) == {"dense_1/kernel[1]": 1}


def test_widths_stay_multiples_and_minima():
    assert sizes(planned(mlp(), ratio=0.6, multiple=4)[1]) == {"dense_0/kernel[1]": 4, "dense_1/kernel[1]": 2}
    assert sizes(planned(mlp(), ratio=0.99, minimum=3)[1]) == {"dense_0/kernel[1]": 5, "dense_1/kernel[1]": 3}
    assert sizes(planned(mlp(), ratio=0.99)[1]) == {"dense_0/kernel[1]": 7, "dense_1/kernel[1]": 5}


def test_a_global_ranking_takes_where_scores_are_low():
    fn, params, inputs = mlp()
    params["dense_0"] = jax.tree.map(lambda w: w * 0.01, params["dense_0"])
    params["dense_1"]["kernel"] *= 0.01
    traced = graph.trace(fn, params, *inputs)
    cut = shrinking.choose(traced, squares(params), ratio=0.5, scope="global")
    assert sizes(cut)["dense_0/kernel[1]"] == 7 and sizes(cut)["dense_1/kernel[1]"] == 0


def test_groups_of_a_kind_are_ranked_together():
    fn, params, inputs = mlp((5, 7, 7, 7, 3))
    params["dense_1"] = jax.tree.map(lambda w: w * 10.0, params["dense_1"])
    traced = graph.trace(fn, params, *inputs)
    kinds = {group.name: group.kind for group in traced.groups}
    assert kinds["dense_0/kernel[1]"] != kinds["dense_1/kernel[1]"]
    cut = shrinking.choose(traced, squares(params), ratio=3 / 7, scope="kind")
    assert sizes(cut) == dict.fromkeys(kinds, 3)  # each is alone of its kind


@pytest.mark.slow
@pytest.mark.parametrize("goal", [0.3, 0.5, 0.75])
def test_multiply_adds_are_what_is_counted_afterwards(goal):
    fn, params, inputs = mlp((5, 40, 30, 3))
    small = shrinking.shrink(fn, params, *inputs, multiply_adds=goal)
    before, after = (graph.multiply_adds(f, p, *inputs) for f, p in ((fn, params), (small.fn, small.params)))
    assert (1 - goal) * before * 0.93 <= after <= (1 - goal) * before


def test_choices_that_make_no_sense_are_refused():
    fn, params, inputs = mlp()
    traced = graph.trace(fn, params, *inputs)
    choose = lambda **target: shrinking.choose(traced, squares(params), **target)  # noqa: E731
    for target, message in (
        ({}, "one of `ratio`, `keep`, `multiply_adds`"),
        ({"ratio": 0.5, "multiply_adds": 0.5}, "one of `ratio`, `keep`, `multiply_adds`"),
        ({"ratio": 1.0}, r"in \[0, 1\); got 1.0"),
        ({"ratio": float("nan")}, r"in \[0, 1\)"),
        ({"multiply_adds": 0.999}, "can be removed"),
        ({"ratio": 0.5, "scope": "layer"}, "`scope` is 'group', 'global' or 'kind'; got 'layer'"),
        ({"ratio": 0.5, "multiple": 0}, "at least 1"),
        ({"keep": {"dense": 3}}, "no group is called 'dense'"),
        ({"ratio": 0.5, "where": lambda group: False}, "some group may lose units"),
        ({"blocks": 1}, "`blocks` is a number of residual branches, of which there are none; got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            choose(**target)
    with pytest.raises(ValueError, match="scores have the shapes of the parameters; 'dense_0/bias'"):
        shrinking.choose(traced, {"dense_0": {"kernel": np.ones(3)}}, ratio=0.5)


@pytest.mark.slow
def test_groups_that_leak_are_left_alone_unless_asked():
    fn, params, inputs = BY_NAME["exotic_noise_added"].make()
    traced = graph.trace(fn, params, *inputs)
    with pytest.raises(ValueError, match="none is exact: `.*` .* over an axis whose removed entries are not zero"):
        shrinking.choose(traced, squares(params), ratio=0.5)
    cut = shrinking.choose(traced, squares(params), ratio=0.5, inexact=True)
    small = shrinking.remove(traced, params, cut, *inputs)
    assert not small.exact and small.difference > 1e-3


# --- remove ---


def test_what_comes_back():
    fn, params, inputs = mlp()
    small = shrinking.shrink(fn, params, *inputs, ratio=0.5)
    assert small.exact and small.difference < 1e-5
    assert small.widths["dense_1/kernel"] == (4, 3) == small.params["dense_1"]["kernel"].shape
    np.testing.assert_array_equal(
        small.params["dense_0"]["kernel"], params["dense_0"]["kernel"][:, small.kept["dense_0/kernel"][1]]
    )


@pytest.mark.slow
def test_the_smaller_function_takes_any_batch_and_any_transformation():
    fn, params, inputs = mlp()
    small = shrinking.shrink(fn, params, *inputs, ratio=0.5)
    x = normal(seed(), 11, 5)
    once = small.fn(small.params, x)
    np.testing.assert_allclose(jax.jit(small.fn)(small.params, x), once, rtol=1e-5, atol=1e-6)
    rows = jax.vmap(small.fn, (None, 0))(small.params, x[:, None])[:, 0]
    np.testing.assert_allclose(rows, once, rtol=1e-5, atol=1e-6)
    slopes = jax.grad(lambda p: small.fn(p, x).sum())(small.params)
    assert jax.tree.map(jnp.shape, slopes) == jax.tree.map(jnp.shape, small.params)
    assert small.fn(small.params, x[:0]).shape == (0, 3)


def test_the_smaller_function_is_traced_once_for_each_shape():
    calls = []

    def fn(p, x):
        calls.append(x.shape)
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    params = {"a": normal(seed(), 5, 8), "b": normal(seed(), 8, 3)}
    small = shrinking.shrink(fn, params, jnp.ones((2, 5)), ratio=0.5)
    del calls[:]
    for _ in range(3):
        small.fn(small.params, jnp.ones((7, 5)))
    assert calls == [(7, 5)]


@pytest.mark.slow
def test_it_can_be_shrunk_again():
    fn, params, inputs = mlp((5, 16, 12, 3), jax.nn.sigmoid)
    first = shrinking.shrink(fn, params, *inputs, ratio=0.5)
    second = shrinking.shrink(first.fn, first.params, *inputs, ratio=0.5)
    assert second.widths["dense_1/kernel"] == (4, 3) and second.difference < 1e-5


def test_constants_go_into_the_next_bias():
    fn, params, inputs = mlp(activation=jax.nn.sigmoid)
    small = shrinking.shrink(fn, params, *inputs, ratio=0.5)
    gone = np.setdiff1d(np.arange(8), small.kept["dense_0/kernel"][1])
    left = small.kept["dense_1/kernel"][1]
    wanted = params["dense_1"]["bias"] + 0.5 * params["dense_1"]["kernel"][gone].sum(0)
    np.testing.assert_allclose(small.params["dense_1"]["bias"], np.asarray(wanted)[left], rtol=1e-5)


def test_means_are_counted_as_before_or_anew():
    fn, params, inputs = normed()
    traced = graph.trace(fn, params, *inputs)
    cut = shrinking.choose(traced, squares(params), ratio=0.5, where=lambda group: group.counted)
    same, anew = (shrinking.remove(traced, params, cut, *inputs, recount=recount) for recount in (False, True))
    assert same.exact and same.difference < 1e-5
    assert not anew.exact and anew.difference > 1e-3


def normed():
    rng = seed()
    params = {"up": normal(rng, 5, 8), "scale": normal(rng, 8), "down": normal(rng, 8, 3)}

    def fn(p, x):
        h = x @ p["up"]
        h = h - h.mean(-1, keepdims=True)
        return (h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6) * p["scale"][None]) @ p["down"]

    return fn, params, (normal(rng, 4, 5),)


@pytest.mark.slow
def test_recounting_is_what_a_module_of_the_new_width_does():
    fn, params, inputs = normed()
    small = shrinking.shrink(fn, params, *inputs, ratio=0.5, recount=True)
    np.testing.assert_allclose(small.fn(small.params, *inputs), fn(small.params, *inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_new_statistics_shrink_with_their_channels():
    def train(variables, x):
        p, stats = variables["params"], variables["stats"]
        h = x @ p["up"]
        mean, var = h.mean(0), h.var(0)
        h = (h - mean[None]) * jax.lax.rsqrt(var[None] + 1e-5) * p["scale"][None]
        return jax.nn.relu(h) @ p["down"], {
            "mean": 0.9 * stats["mean"] + 0.1 * mean,
            "var": 0.9 * stats["var"] + 0.1 * var,
        }

    rng = seed()
    params = {"up": normal(rng, 5, 8), "scale": normal(rng, 8), "down": normal(rng, 8, 3)}
    variables = {"params": params, "stats": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}
    x = normal(rng, 4, 5)
    assert not graph.trace(train, variables, x).groups
    traced = graph.trace(train, variables, x, shrinkable="1/**")
    small = shrinking.remove(traced, variables, shrinking.choose(traced, squares(variables), ratio=0.5), x)
    assert small.fn(small.params, x)[1]["mean"].shape == (4,) and small.difference < 1e-5


@pytest.mark.slow
def test_optimizer_states_and_averages_shrink_along():
    fn, params, inputs = mlp()
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3), optax.trace(0.9))
    state = tx.init(params)
    slopes = jax.grad(lambda p: jnp.square(fn(p, *inputs)).sum())(params)
    with jax.numpy_dtype_promotion("standard"):  # Optax multiplies floats and integers
        _, state = tx.update(slopes, state, params)
    small = shrinking.shrink(fn, params, *inputs, ratio=0.5)
    narrow = small.narrow_state(tx, state)
    like_new = tx.init(small.params)
    assert jax.tree.map(jnp.shape, narrow) == jax.tree.map(jnp.shape, like_new)
    new, old = (optax.tree.get(s, "nu")["dense_0"]["kernel"] for s in (narrow, state))
    np.testing.assert_array_equal(new, old[:, small.kept["dense_0/kernel"][1]])
    with jax.numpy_dtype_promotion("standard"):
        tx.update(small.narrow(slopes), narrow, small.params)


def test_removals_that_make_no_sense_are_refused():
    fn, params, inputs = mlp()
    traced = graph.trace(fn, params, *inputs)
    remove = lambda units, *x, blocks=(): shrinking.remove(traced, params, shrinking.Cut(units, blocks), *(x or inputs))  # noqa: E731
    for units, message in (
        ({"dense": [0]}, "no group is called 'dense'"),
        ({"dense_0/kernel[1]": [8]}, "units of 'dense_0/kernel.1.' are 0 to 7"),
        ({"dense_0/kernel[1]": range(8)}, "some of each axis stays"),
    ):
        with pytest.raises(ValueError, match=message):
            remove({name: np.array(list(which)) for name, which in units.items()})
    with pytest.raises(ValueError, match="the example has the shapes"):
        remove({"dense_0/kernel[1]": np.array([0])}, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="no block is called 'x'"):
        remove({}, blocks=("x",))


def test_parameters_of_the_wrong_shape_or_structure_are_refused():
    fn, params, inputs = mlp()
    small = shrinking.shrink(fn, params, *inputs, ratio=0.5)
    with pytest.raises(ValueError, match=r"'dense_0/kernel' is \(5, 4\) after removal; got \(5, 8\)"):
        small.fn(
            {**small.params, "dense_0": {**small.params["dense_0"], "kernel": params["dense_0"]["kernel"]}}, *inputs
        )
    with pytest.raises(ValueError, match="structure of the original"):
        small.fn({"dense_0": small.params["dense_0"]}, *inputs)


@pytest.mark.slow
def test_a_wrong_removal_would_be_found():
    """The oracle compares for real: with other parameters it raises."""
    from jaxopt_compress.shrinking.verify import difference

    fn, params, inputs = mlp()
    traced, cut = planned((fn, params, inputs), ratio=0.5)
    small = shrinking.remove(traced, params, cut, *inputs)
    removed = np.zeros(traced.coupling.atoms.count, bool)
    with pytest.raises(ValueError, match="computes what the masked one does"):
        difference(traced, small.fn, params, small.params, inputs, removed, exact=True)


@pytest.mark.slow
def test_an_output_that_is_nothing_but_rounding_is_no_fault():
    """The mean of a normalized layer is zero but for rounding, which is another one when the sum is shorter."""
    fn, params, inputs = mlp()
    hidden = lambda p, x: jax.nn.gelu(x @ p["dense_0"]["kernel"] + p["dense_0"]["bias"][None])  # noqa: E731
    rest = lambda p, x: jax.nn.standardize(hidden(p, x)).mean() * jnp.ones((1,))  # noqa: E731
    small = shrinking.shrink(lambda p, x: (fn(p, x), rest(p, x)), params, *inputs, ratio=0.5)
    assert small.exact and max(abs(rest(params, *inputs))) < 1e-6


def test_the_function_is_compiled_once_for_all_removals_to_be_checked():
    fn, params, inputs = mlp()
    traced = graph.trace(fn, params, *inputs)
    for units in ([0], [1, 2]):
        cut = shrinking.Cut({"dense_0/kernel[1]": np.array(units)})
        assert shrinking.remove(traced, params, cut, *inputs).exact
    assert traced.at_full_precision._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]


# --- blocks ---


@pytest.mark.sampled(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", [c.name for c in CASES if c.name.startswith(("resnet", "gpt", "vit", "linen_tr"))])
def test_residual_branches_go_whole(name):
    fn, params, inputs = BY_NAME[name].make()
    traced = graph.trace(fn, params, *inputs)
    if not traced.blocks:
        pytest.skip("no branch of its own parameters alone")
    small = shrinking.shrink(fn, params, *inputs, blocks=1)
    gone = next(block for block in traced.blocks if block.name in small.fn.blocks)
    assert small.exact and small.difference < 1e-5
    assert all(leaf.size == 0 for path, leaf in tree.leaves(small.params).items() if path in gone.paths and leaf.ndim)
    assert graph.multiply_adds(small.fn, small.params, *inputs) < graph.multiply_adds(fn, params, *inputs)
    both = shrinking.shrink(fn, params, *inputs, blocks=1, ratio=0.4)
    assert both.difference < 1e-5


# --- modules of one's own ---


class Linen(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(3)(x)


@pytest.mark.slow
def test_linen_refuses_smaller_parameters_and_takes_the_new_widths():
    model, x = Linen(8), normal(seed(), 4, 5)
    params = model.init(jax.random.key(0), x)
    small = shrinking.shrink(model.apply, params, x, ratio=0.5)
    with pytest.raises(Exception, match="shape"):
        model.apply(small.params, x)
    narrow = Linen(small.widths["params/Dense_0/kernel"][1])
    own = np.asarray(narrow.apply(small.params, x))
    np.testing.assert_allclose(own, small.fn(small.params, x), rtol=1e-5, atol=1e-6)


def test_nnx_takes_smaller_parameters():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up, self.down = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    graphdef, state = nnx.split(Net(nnx.Rngs(0)))
    x = normal(seed(), 4, 5)
    small = shrinking.shrink(lambda s, x: nnx.merge(graphdef, s)(x), state, x, ratio=0.5)
    np.testing.assert_allclose(nnx.merge(graphdef, small.params)(x), small.fn(small.params, x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_smaller_function_takes_parameters_of_another_dtype():
    mlp = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]  # noqa: E731
    rng = np.random.default_rng(0)
    params = {"up": jnp.asarray(rng.normal(size=(4, 8)), jnp.float32), "down": jnp.ones((8, 3))}
    x = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    small = shrinking.shrink(mlp, params, x, ratio=0.5)
    small.fn(small.params, x)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small.params)
    found = small.fn(half, x.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, mlp(half, x.astype(jnp.bfloat16)))
