"""The combinators: what each promises beyond the laws of test_laws.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_compress as jc
from jaxopt_compress.pruning import magnitude, prune
from jaxopt_compress.quantization import fake_quantize


def same_bits(left, right) -> bool:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def fit(t, params, step=0, **extra):
    return t.update(params, t.init(params), step=jnp.asarray(step), **extra)


double = jc.leafwise(lambda w: (), lambda w, s: w * 2)
cap = jc.leafwise(lambda w: jnp.max(w), lambda w, s: jnp.minimum(w, s / 2))
count = jc.ParamTransform(
    init=lambda params: jnp.zeros((), jnp.int32),
    apply=lambda params, state: params,
    update=lambda params, state, *, step, **extra: state + 1,
    encode=lambda params, state: params,
)


# chain


def test_links_apply_from_left_to_right():
    params = {"w": jnp.array([1.0, 3.0])}
    for t, want in ((jc.chain(double, cap), [2.0, 3.0]), (jc.chain(cap, double), [2.0, 3.0])):
        assert t.apply(params, fit(t, params))["w"].tolist() == want
    shift = jc.leafwise(lambda w: (), lambda w, s: w + 1)
    assert jc.chain(double, shift).apply(params, ({"w": ()}, {"w": ()}))["w"].tolist() == [3.0, 7.0]
    assert jc.chain(shift, double).apply(params, ({"w": ()}, {"w": ()}))["w"].tolist() == [4.0, 8.0]


def test_each_link_is_fitted_to_what_the_new_states_before_it_let_through():
    t = jc.chain(cap, cap)
    first, second = (s["w"].item() for s in t.init({"w": jnp.array([1.0, 8.0])}))
    assert (first, second) == (8.0, 4.0)
    first, second = (s["w"].item() for s in fit(t, {"w": jnp.array([1.0, 16.0])}))
    assert (first, second) == (16.0, 8.0)


def test_extras_reach_every_link():
    seen = []

    def update(params, state, *, step, **extra):
        seen.append((step, extra["grads"], extra["stats"]))
        return state

    t = jc.chain(count._replace(update=update), jc.chain(), jc.periodic(count._replace(update=update), every=1))
    t.update({"w": 1}, t.init({"w": 1}), step=5, grads="g", stats="s")
    assert seen == [(5, "g", "s")] * 2


@pytest.mark.parametrize(
    "last", [prune(magnitude, 0.5), fake_quantize(4), double], ids=["prune", "quantize again", "leafwise"]
)
def test_a_stored_form_is_not_rewritten(last):
    t = jc.chain(jc.select("a/kernel", fake_quantize(8)), jc.select("**/kernel", last))
    params = {"a": {"kernel": normal(8, 4)}, "b": {"kernel": normal(8, 4)}}
    message = (
        "`chain`: link 1 rewrites 'a/kernel', whose stored form Quantized an earlier link has fixed; "
        "put the link that stores last."
    )
    for refuse in (lambda: jc.check(t, params), lambda: t.encode(params, t.init(params))):
        with pytest.raises(ValueError, match="`chain`") as error:
            refuse()
        assert str(error.value) == message


def test_links_that_store_different_leaves_stand_in_any_order():
    kernels, rows = jc.select("kernel", fake_quantize(4)), jc.select("table", fake_quantize(8, channel_axes=0))
    params = {"kernel": normal(8, 4), "table": normal(8, 4), "bias": normal(4)}
    for t in (jc.chain(kernels, rows), jc.chain(rows, kernels), jc.chain(jc.chain(rows), jc.chain(kernels))):
        stored = t.encode(params, fit(t, params))
        assert (stored["kernel"].bits, stored["table"].bits) == (4, 8)
        assert stored["bias"] is params["bias"]
        assert same_bits(jc.decode(stored), t.apply(params, fit(t, params)))


def test_a_chain_checks_its_number_of_states():
    with pytest.raises(ValueError, match="zip"):
        jc.chain(double, cap).apply({"w": jnp.ones(2)}, ({"w": ()},))


# select


@pytest.mark.slow
def test_selected_leaves_only_and_the_grads_that_belong_to_them():
    seen = {}

    def criterion(params, grads, stats, scalar, **extra):
        seen.update(params=params, grads=grads, stats=stats, scalar=scalar)
        return jax.tree.map(lambda w, g: jnp.abs(w * g), params, grads)

    params = {"a": {"kernel": normal(4, 4), "bias": normal(4)}, "n": jnp.arange(3), "b": {"kernel": normal(4, 2)}}
    grads = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), params)
    t = jc.select("**/kernel", prune(criterion, 0.5))
    fit(t, params, grads=grads, stats={"anything": 1}, scalar=3)
    assert list(seen["params"]) == list(seen["grads"]) == ["a/kernel", "b/kernel"]
    assert seen["grads"]["b/kernel"] is grads["b"]["kernel"]
    assert (seen["stats"], seen["scalar"]) == ({"anything": 1}, 3)


def test_selection_composes():
    params = {"a": {"kernel": normal(4, 4), "bias": normal(4)}, "b": {"kernel": normal(4, 2)}}
    t = jc.select("**/kernel", jc.select("a/*", double))
    assert list(t.init(params)) == ["a/kernel"]
    after = t.apply(params, t.init(params))
    assert after["b"]["kernel"] is params["b"]["kernel"]
    assert after["a"]["bias"] is params["a"]["bias"]
    assert same_bits(after["a"]["kernel"], params["a"]["kernel"] * 2)


# periodic


@pytest.mark.parametrize(
    ("every", "start", "due"), [(1, 0, range(10)), (3, 0, [0, 3, 6, 9]), (4, 2, [2, 6]), (1, 8, [8, 9]), (100, 3, [3])]
)
def test_period(every, start, due):
    t = jc.periodic(count, every, start)
    traced = jax.jit(lambda s, step: t.update({}, s, step=step))
    state = by_hand = t.init({})
    for step in range(10):
        before, state = state, traced(state, jnp.asarray(step))
        assert (int(state - before) == 1) == (step in due), step
        by_hand = t.update({}, by_hand, step=step)  # a Python integer will do
    assert int(state) == int(by_hand) == len(due)
    assert traced._cache_size() == 1


@pytest.mark.parametrize(("every", "start"), [(0, 0), (-1, 0), (1, -1)])
def test_period_out_of_range(every, start):
    message = f"`periodic`: `every` is at least 1 and `start` at least 0; got {every}, {start}."
    with pytest.raises(ValueError, match="`periodic`") as error:
        jc.periodic(count, every, start)
    assert str(error.value) == message


def test_periods_multiply():
    t = jc.periodic(jc.periodic(count, 2), 3)
    state = t.init({})
    for step in range(12):
        state = t.update({}, state, step=step)
    assert state == 2  # steps 0 and 6


# straight_through


def test_passthrough_is_exact_where_the_sum_is_not():
    x, y = normal(1000), jnp.round(normal(1000, seed=1) * 7) / 10
    assert same_bits(jc.passthrough(x, y), y)
    assert same_bits(jax.jit(jc.passthrough)(x, y), y)
    assert not same_bits(x + jax.lax.stop_gradient(y - x), y)
    value, tangent = jax.jvp(jc.passthrough, (x, y), (2 * x, 3 * y))
    assert same_bits(value, y)
    assert same_bits(tangent, 2 * x)
    to_x, to_y = jax.vjp(jc.passthrough, x, y)[1](x)
    assert same_bits(to_x, x)
    assert not to_y.any()


def test_passthrough_of_what_is_not_finite():
    x, y = jnp.array([1.0, jnp.inf, jnp.nan]), jnp.array([jnp.nan, 0.0, 1.0])
    assert same_bits(jc.passthrough(x, y), y)
    assert jax.grad(lambda x: jc.passthrough(x, y)[1:].sum())(x).tolist() == [0.0, 1.0, 1.0]


def test_gradient_of_a_surgeon():
    plain = prune(magnitude, 0.5)
    surgeon = jc.straight_through(plain)
    params = {"w": normal(4, 4), "n": jnp.arange(2)}
    state = fit(surgeon, params)
    assert same_bits(surgeon.apply(params, state), plain.apply(params, state))

    def slope(t):
        return jax.grad(lambda w: jnp.sum(jnp.sin(t.apply({**params, "w": w}, state)["w"])))(params["w"])

    pruned = plain.apply(params, state)["w"]
    assert same_bits(slope(surgeon), jnp.cos(pruned))  # the gradient of the pruned model, for all weights
    assert same_bits(slope(plain), jnp.where(pruned == 0, 0, jnp.cos(pruned)))


# stacked


LAYERS = {"kernel": normal(3, 8, 4), "bias": normal(3, 4, seed=1), "n": jnp.arange(3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "t",
    [
        prune(magnitude, 0.6),
        prune(magnitude, 0.6, scope="global"),
        jc.select("kernel", fake_quantize(4)),
        jc.select("kernel", jc.chain(prune(magnitude, 0.5), fake_quantize(8, channel_axes=()))),
        jc.periodic(cap, every=2),
    ],
    ids=["layer", "global", "quantize", "chain", "periodic"],
)
def test_stacked_equals_a_loop_over_layers(t):
    grads = jax.tree.map(jnp.cos, {k: v for k, v in LAYERS.items() if k != "n"}) | {"n": LAYERS["n"]}
    stack = jc.stacked(t)
    state = fit(stack, LAYERS, grads=grads)
    for i in range(3):
        layer, slope = (jax.tree.map(lambda x, i=i: x[i], x) for x in (LAYERS, grads))
        alone = fit(t, layer, grads=slope)
        assert same_bits(jax.tree.map(lambda x, i=i: x[i], state), alone)
        together = jax.tree.map(lambda x, i=i: x[i], (stack.apply(LAYERS, state), stack.encode(LAYERS, state)))
        assert same_bits(together, (t.apply(layer, alone), t.encode(layer, alone)))


@pytest.mark.slow
def test_stacked_slices_the_grads_and_nothing_else():
    seen = {}

    def criterion(params, grads, table, **extra):
        seen.update(grads=grads, table=table)
        return jax.tree.map(lambda w, g: jnp.abs(w * g), params, grads)

    params = {"w": LAYERS["kernel"]}
    state = fit(jc.stacked(prune(criterion, 0.5)), params, grads={"w": jnp.sin(params["w"])}, table=jnp.ones((7, 5)))
    assert seen["grads"]["w"].shape == (8, 4)
    assert seen["table"].shape == (7, 5)
    alone = fit(prune(criterion, 0.5), {"w": params["w"][1]}, grads={"w": jnp.sin(params["w"][1])}, table=0)
    assert same_bits(state["w"][1], alone["w"])


@pytest.mark.slow
def test_a_slice_of_a_stack_serves_inside_a_scan():
    t = jc.select("kernel", jc.chain(prune(magnitude, 0.5), fake_quantize(4)))
    state = fit(jc.stacked(t), LAYERS)
    _, scanned = jax.lax.scan(lambda c, layer: (c, t.apply(*layer)), None, (LAYERS, state))
    assert same_bits(scanned, jc.stacked(t).apply(LAYERS, state))


# check


def test_check_refuses_in_the_abstract():
    huge = {"w": jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32), "b": jax.ShapeDtypeStruct((2**16,), jnp.float32)}
    for t, message in (
        (prune(magnitude, 0.5), r"at most 2147483647 weights .* got 4294967296 in 'w'"),
        (jc.select("v", prune(magnitude, 0.5)), "'v' matches no leaf; the leaves are 'b', 'w'"),
        (fake_quantize(8), "'b' of shape .* has no axis left"),
        (fake_quantize(8, channel_axes=2), "axis 2 of 'b' does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            jc.check(t, huge)
    jc.check(jc.chain(jc.stacked(prune(magnitude, 0.5)), jc.select("w", fake_quantize(8))), huge)


def test_a_refresh_inside_a_loss_is_not_differentiated():
    t = jc.periodic(fake_quantize(8), every=2)
    params = {"w": normal(8, 4)}

    def loss(params, state, step):
        state = t.update(params, state, step=step, label="not an array")
        return jnp.sum(t.apply(params, state)["w"] ** 2), state

    grad, state = jax.jit(jax.grad(loss, has_aux=True))(params, t.init({"w": normal(8, 4) / 2}), jnp.asarray(2))
    assert same_bits(state, t.init(params))
    np.testing.assert_allclose(grad["w"], 2 * t.apply(params, state)["w"], rtol=1e-6)
