"""Reconstruction of blocks: against layer by layer, on what it was not shown; through scans; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress import grids
from jaxopt_compress.calibration import gram
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Scheme, bases, convert, fits, observers, quantize, schemes
from jaxopt_compress.quantization import post_training as pt
from jaxopt_compress.quantization.numerics import Affine
from jaxopt_compress.quantization.post_training import soft

KEYS = jax.random.split(jax.random.key(0), 8)
MIX = jax.random.normal(KEYS[0], (16, 16)) / 4
PARAMS = {
    "up": jax.random.normal(KEYS[1], (16, 32)) / 4,
    "across": jax.random.normal(KEYS[2], (32, 32)) / 6,
    "down": jax.random.normal(KEYS[3], (32, 8)) / 6,
}
BATCHES = [jax.random.normal(jax.random.key(i), (128, 16)) @ MIX for i in range(1, 9)]
OTHERS = jax.random.normal(jax.random.key(99), (1024, 16)) @ MIX
STATIC = Scheme(Integers(4), Integers(8, False), observers.minmax(), zero_point=True)


def mlp(p, x):
    return jax.nn.relu(jax.nn.relu(x @ p["up"]) @ p["across"]) @ p["down"]


def quantized(scheme, fn=mlp, params=PARAMS, batch=BATCHES[0]):
    return quantize(fn, params, batch, rules={"**": scheme})


def lost(q, rounded, params=PARAMS, ranges=None, x=OTHERS):
    """Return what the served function loses on what no method was shown, as a fraction."""
    fn, served = convert(q, params, q.init() if ranges is None else ranges, rounded)
    wanted = jax.jit(q.fn)(params, x)
    return float(jnp.mean((fn(served, x) - wanted) ** 2) / jnp.mean(wanted**2))


@pytest.mark.sampled(2)
@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3])
def test_a_block_together_beats_layer_by_layer(bits):
    q = quantized(schemes.weight_only(bits))
    layers = [pt.round_weights(q, PARAMS, BATCHES, m).weights for m in (pt.adaround(), pt.gptq(act_order=True))]
    together = lost(q, pt.reconstruct(q, PARAMS, BATCHES).weights)
    assert together < 0.75 * min(lost(q, found) for found in layers)
    assert together < 0.4 * lost(q, None)


@pytest.mark.slow
def test_scales_that_are_learned_help_and_others_stay():
    q = quantized(schemes.weight_only(2))
    fixed = pt.reconstruct(q, PARAMS, BATCHES, scale_rate=0.0)
    nearest = pt.round_weights(q, PARAMS, [], pt.nearest())
    for name, held in fixed.weights.items():
        np.testing.assert_array_equal(held["codes"].scale, nearest.weights[name]["codes"].scale)
        steps = np.asarray(PARAMS[name] / held["codes"].scale)
        codes = np.asarray(held["codes"].codes)
        assert (np.abs(codes - np.clip(steps, -1, 1)) < 1.001).all()  # one of the two neighbours
        assert float(fixed.notes[name]["undecided"][0]) < 0.05
    assert lost(q, pt.reconstruct(q, PARAMS, BATCHES).weights) < 0.9 * lost(q, fixed.weights)


@pytest.mark.slow
def test_short_scales_are_learned_as_such():
    q = quantized(schemes.weight_only(3))
    found = pt.reconstruct(q, PARAMS, BATCHES, steps=400, short_scales=True)
    for held in found.weights.values():
        scale = held["codes"].scale
        np.testing.assert_array_equal(scale, scale.astype(jnp.bfloat16).astype(jnp.float32))
    assert lost(q, found.weights) < 0.6 * lost(q, None)


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(Integers(3)),
        STATIC,
        schemes.weight_only(3, group_size=8),
        Scheme(Integers(3, False), None, fit=fits.minmax),
        Scheme(Integers(3), None, basis=bases.hadamard(jax.random.key(0))),
    ],
    ids=["dynamic", "static", "groups", "zero_points", "hadamard"],
)
def test_every_scheme_is_served_as_it_was_learned(scheme):
    q = quantized(scheme)
    ranges = q.init()
    if scheme.static:
        for batch in BATCHES:
            ranges = q.observe(PARAMS, ranges, batch)
    found = pt.reconstruct(q, PARAMS, BATCHES, ranges=ranges, steps=400)
    assert lost(q, found.weights, ranges=ranges) < 0.6 * lost(q, None, ranges=ranges)


@pytest.mark.slow
def test_layers_of_a_scan_in_bfloat16():
    def fn(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p)[0]

    params = (jax.random.normal(KEYS[4], (3, 16, 16)) / 3).astype(jnp.bfloat16)
    batches = [batch.astype(jnp.bfloat16) for batch in BATCHES]
    q = quantized(schemes.weight_only(3), fn, params, batches[0])
    found = pt.reconstruct(q, params, batches, steps=400)
    assert found.weights[""]["codes"].shape == (3, 16, 16)
    assert found.notes[""]["undecided"].shape == (3,)
    others = OTHERS.astype(jnp.bfloat16)
    assert lost(q, found.weights, params, x=others) < 0.5 * lost(q, None, params, x=others)


def first(p, x):
    return jax.nn.relu(x @ p["up"]), x.sum(-1)


def second(p, x, total):
    return jax.nn.relu(x @ p["across"]) + total[:, None] / 8


def third(p, x):
    return x @ p["down"]


def residual(p, x):
    return third(p, second(p, *first(p, x)))


@pytest.mark.slow
def test_blocks_one_after_the_other():
    q = quantized(schemes.weight_only(3), residual)
    layers = pt.round_weights(q, PARAMS, BATCHES, pt.adaround()).weights
    blocks = pt.reconstruct_blocks(q, PARAMS, BATCHES, [first, second, third], scale_rate=0.0)
    assert set(blocks.weights) == set(blocks.notes) == set(PARAMS)
    assert lost(q, blocks.weights) < 0.9 * lost(q, layers)


@pytest.mark.slow
def test_blocks_name_products_as_the_net_does():
    """A table that is read and multiplied with, products of activations: each block numbers its own anew."""

    def attend(p, x):
        weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", x, x))
        return x + jnp.einsum("nqk,nkd->nqd", weights, x) @ p

    start = lambda p, tokens: attend(p["first"], p["words"][tokens])  # noqa: E731
    middle = lambda p, x: attend(p["second"], x)  # noqa: E731
    end = lambda p, x: x @ p["words"].T  # noqa: E731
    params = {"first": PARAMS["across"][:16, :16], "second": PARAMS["across"][16:, :16], "words": PARAMS["up"].T}
    batches = [jax.random.randint(jax.random.key(i), (16, 8), 0, 32) for i in range(4)]
    q = quantize(lambda p, t: end(p, middle(p, start(p, t))), params, batches[0], rules={"**": STATIC})
    ranges = q.init()
    for batch in batches:
        ranges = q.observe(params, ranges, batch)
    found = pt.reconstruct_blocks(q, params, batches, [start, middle, end], ranges=ranges, steps=50)
    assert set(found.weights) == {"first", "second", "words#2"}
    assert lost(q, found.weights, params, ranges, batches[0]) < 0.9 * lost(q, None, params, ranges, batches[0])


@pytest.mark.slow
def test_it_goes_on_from_codes_that_are_known():
    q = quantized(schemes.weight_only(3), residual)
    gptq = pt.round_weights(q, PARAMS, BATCHES, pt.gptq(act_order=True))
    scales = pt.reconstruct(q, PARAMS, BATCHES, start=gptq, rate=0.0, steps=300)
    for name, held in scales.weights.items():
        np.testing.assert_array_equal(held["codes"].codes, gptq.weights[name]["codes"].codes)
        assert (held["codes"].scale != gptq.weights[name]["codes"].scale).any()
    assert lost(q, scales.weights) < 0.9 * lost(q, gptq.weights)
    both = pt.reconstruct_blocks(q, PARAMS, BATCHES, [first, second, third], start=gptq, steps=300)
    assert lost(q, both.weights) < 0.9 * lost(q, gptq.weights)
    shifted = pt.round_weights(q, PARAMS, BATCHES, pt.corrected(pt.nearest(gram())))
    with pytest.raises(ValueError, match="'across' starts with a bias|'up' starts with a bias"):
        pt.reconstruct(q, PARAMS, BATCHES, start=shifted)
    with pytest.raises(ValueError, match=r"`reconstruct`: 'up' was rounded to Integers\(bits=3.*its scheme says"):
        pt.reconstruct(quantized(schemes.weight_only(4), residual), PARAMS, BATCHES, start=gptq)
    unknown = gptq._replace(weights={"other": gptq.weights["up"]})
    with pytest.raises(ValueError, match="`reconstruct`: 'other' of `start` is no site"):
        pt.reconstruct(q, PARAMS, BATCHES, start=unknown)
    with pytest.raises(ValueError, match="`reconstruct_blocks`: 'other' of `start` is no site"):
        pt.reconstruct_blocks(q, PARAMS, BATCHES, [first, second, third], start=unknown)


def test_soft_rounding_against_numpy():
    rng = np.random.default_rng(0)
    w, scale = rng.normal(size=(6, 4)).astype(np.float32), np.full((1, 4), 0.3, np.float32)
    for zero in (None, np.full((1, 4), 1, np.int8)):
        affine = Affine(jnp.asarray(scale), None if zero is None else jnp.asarray(zero))
        low, v = soft.start(jnp.asarray(w), affine)
        np.testing.assert_array_equal(low, np.floor(w * (1 / scale)))
        h = np.clip(1.2 / (1 + np.exp(-np.asarray(v, np.float64))) - 0.1, 0, 1)
        np.testing.assert_allclose(soft.up(v), h, atol=1e-6)
        shift = 0 if zero is None else 1
        steps = np.clip(low + h, -3 - shift, 3 - shift)
        np.testing.assert_allclose(soft.decode(low, jnp.asarray(h), affine, Integers(3)), steps * scale, atol=1e-6)
        inside = (steps > -3 - shift) & (steps < 3 - shift)
        np.testing.assert_allclose((steps * scale)[inside], w[inside], atol=0.011 * 0.3)  # it starts at the weights
        hard = np.clip(np.floor(w * (1 / scale)) + (h >= 0.5) + shift, -3, 3)
        np.testing.assert_array_equal(soft.codes(low, jnp.asarray(h), affine, Integers(3)), hard)


def test_the_schedule_of_the_term_that_decides():
    schedule, h = soft.Schedule(weight=3.0), jnp.array([0.0, 0.25, 1.0])
    wanted = {0.1: 0.0, 0.2: 0.0, 0.6: 3 * (1 - 0.5**11), 1.0: 3 * (1 - 0.5**2)}
    for done, value in wanted.items():
        np.testing.assert_allclose(schedule.undecided(h, done), value, rtol=1e-3)


def test_refusals():
    q = quantized(schemes.weight_only(3))
    for wrong, message in [
        ({"batches": []}, "as many batches as outputs, at least 1; got 0, 0"),
        ({"outputs": [1]}, "as many batches as outputs"),
        ({"steps": 0}, "`steps` is at least 1"),
        ({"schedule": soft.Schedule(warm=1.0)}, "`warm` in"),
    ]:
        with pytest.raises(ValueError, match=message):
            pt.reconstruct(q, PARAMS, **{"batches": BATCHES, **wrong})
    with pytest.raises(ValueError, match="`reconstruct`: only integers are rounded up or down"):
        pt.reconstruct(quantized(schemes.weight_only(grids.NF4)), PARAMS, BATCHES)
    for blocks, message in [
        ([first], r"\['across', 'down'\] of the net are in no block"),
        ([lambda p, x: x @ p["across"][:16]], r"0 has the products \['across'\]; the next of the net are \['up'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            pt.reconstruct_blocks(quantized(schemes.weight_only(3), residual), PARAMS, BATCHES, blocks)
    with pytest.raises(ValueError, match="`reconstruct_blocks`: there are no batches"):
        pt.reconstruct_blocks(q, PARAMS, [], [mlp])
    with pytest.raises(ValueError, match="no weights are rounded"):
        pt.reconstruct(quantized(Scheme(None)), PARAMS, BATCHES)
