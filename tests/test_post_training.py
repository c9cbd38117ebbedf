"""Post-training methods: against references in NumPy, against rounding to nearest, and on what they cannot take."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress import grids
from jaxopt_compress.calibration import calibrate, gram
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Scheme, convert, fits, quantize, schemes
from jaxopt_compress.quantization import post_training as pt
from tests.products import EVERY_PRODUCT, normal

RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(np.maximum(RNG.normal(size=(256, 24)) @ RNG.normal(size=(24, 24)), -0.5), jnp.float32)
WEIGHT = jnp.asarray(RNG.normal(size=(24, 16)) / 5, jnp.float32)
METHODS = {"gptq": pt.gptq(), "act_order": pt.gptq(act_order=True), "adaround": pt.adaround(300)}
SCHEMES = {
    "int3": schemes.weight_only(3),
    "groups": schemes.weight_only(3, group_size=8),
    "affine": Scheme(Integers(3, False), None, fit=fits.minmax),
    "w4a8": Scheme(Integers(4)),
}


def dense(p, x):
    return x @ p


def rounded(method, scheme, w=WEIGHT, batches=(INPUTS,), fn: Any = dense, **options):
    q = quantize(fn, w, batches[0], rules={"**": scheme})
    return q, pt.round_weights(q, w, batches, method, **options)


def error_of(found, name=""):
    return float(jnp.mean(found.notes[name]["error"]))


@pytest.mark.slow
@pytest.mark.sampled(4)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_beat_rounding_to_nearest(method, scheme):
    plain = error_of(rounded(pt.nearest(gram()), scheme)[1])
    q, found = rounded(method, scheme)
    assert error_of(found) < 0.75 * plain
    # What is reported is what runs.
    if scheme.activation is None:
        int_fn, int_params = convert(q, WEIGHT, q.init(), found.weights)
        wanted = dense(WEIGHT, INPUTS)
        off = float(jnp.mean((int_fn(int_params, INPUTS) - wanted) ** 2) / jnp.mean(wanted**2))
        np.testing.assert_allclose(off, error_of(found), rtol=1e-3)


def test_nearest_is_the_rounding_of_training():
    q, found = rounded(pt.nearest(), Scheme(Integers(4)))
    int_fn, int_params = convert(q, WEIGHT, q.init(), found.weights)
    np.testing.assert_array_equal(int_fn(int_params, INPUTS), jax.jit(q)(WEIGHT, q.init(), INPUTS))


def gptq_in_numpy(w, scale, x, damping, order):
    """Remove one input after the other from the inverse of H, as in optimal brain surgery; all in float64."""
    w, h = np.array(w, np.float64), np.asarray(x, np.float64).T @ np.asarray(x, np.float64) / len(x)
    h += damping * np.mean(np.diag(h)) * np.eye(len(h))
    inverse, codes = np.linalg.inv(h), np.zeros_like(w)
    for j in order:
        codes[:, j] = np.clip(np.round(w[:, j] / scale), -7, 7)
        off = (w[:, j] - codes[:, j] * scale) / inverse[j, j]
        w -= off[:, None] * inverse[j]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        w[:, j] = 0
    return codes


@pytest.mark.sampled(3)
@pytest.mark.slow
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block", [1, 5, 128])
def test_gptq_is_optimal_brain_surgery(act_order, block):
    q, found = rounded(pt.gptq(0.01, act_order, block), schemes.weight_only(4))
    codes = found.weights[""]["codes"]
    x, scale = np.asarray(INPUTS), np.asarray(codes.scale)[0]
    order = np.argsort(-np.square(x).sum(0)) if act_order else range(24)
    wanted = gptq_in_numpy(np.asarray(WEIGHT).T, scale, x, 0.01, order)
    assert np.mean(wanted != np.asarray(codes.codes).T) < 0.01  # float32 may fall to the other side of a boundary


def test_adaround_rounds_up_or_down():
    _, found = rounded(METHODS["adaround"], schemes.weight_only(4))
    codes = found.weights[""]["codes"]
    steps = np.asarray(WEIGHT) / np.asarray(codes.scale)
    assert np.all(np.abs(np.asarray(codes.codes) - steps) < 1.001)
    assert float(found.notes[""]["undecided"][0]) < 0.02
    with pytest.raises(ValueError, match="only integers are rounded up or down"):
        rounded(METHODS["adaround"], schemes.weight_only(grids.NF4))


@pytest.mark.slow
def test_correction_leaves_no_shift():
    batches = (INPUTS + 1,)
    for method in (pt.nearest(), pt.gptq()):
        q, found = rounded(pt.corrected(method), schemes.weight_only(2), batches=batches)
        int_fn, int_params = convert(q, WEIGHT, q.init(), found.weights)
        shift = jnp.mean(int_fn(int_params, batches[0]) - dense(WEIGHT, batches[0]), axis=0)
        np.testing.assert_allclose(shift, 0, atol=1e-4)
    plain = rounded(pt.nearest(), schemes.weight_only(2), batches=batches)[1]
    int_fn, int_params = convert(q, WEIGHT, q.init(), plain.weights)
    assert float(jnp.abs(jnp.mean(int_fn(int_params, batches[0]) - dense(WEIGHT, batches[0]), axis=0)).max()) > 0.1


@pytest.mark.sampled(6)
@pytest.mark.slow
@EVERY_PRODUCT
def test_every_kind_of_product(fn, params, x):
    if "g" in params:
        pytest.skip("has no weight")
    plain = error_of(rounded(pt.nearest(gram()), schemes.weight_only(3), params, (x,), fn)[1], "w")
    q, found = rounded(pt.corrected(pt.gptq()), schemes.weight_only(3), params, (x,), fn)
    assert error_of(found, "w") <= plain
    int_fn, int_params = convert(q, params, q.init(), found.weights)
    wanted, outs = fn(params, x), int_fn(int_params, x)
    assert float(jnp.mean((outs - wanted) ** 2) / jnp.mean(wanted**2)) < 1.05 * plain
    assert int_params.floats == {}


def deep(p, x):
    """Two layers of a scan behind a first one."""
    h = jax.nn.relu(x @ p["first"])
    return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), h, p["layers"])[0] @ p["last"]


DEEP = {"first": normal(24, 24) / 4, "layers": normal(2, 24, 24, seed=1) / 4, "last": normal(24, 5, seed=2) / 4}


@pytest.mark.slow
def test_layer_after_layer_is_better_than_all_at_once():
    errors = {}
    for sequential in (False, True):
        q, found = rounded(pt.gptq(), schemes.weight_only(3), DEEP, (INPUTS,), deep, sequential=sequential)
        int_fn, int_params = convert(q, DEEP, q.init(), found.weights)
        errors[sequential] = float(jnp.mean((int_fn(int_params, INPUTS) - deep(DEEP, INPUTS)) ** 2))
        assert found.notes["layers"]["error"].shape == (2,)
    q, found = rounded(pt.nearest(), schemes.weight_only(3), DEEP, (INPUTS,), deep)
    int_fn, int_params = convert(q, DEEP, q.init(), found.weights)
    plain = float(jnp.mean((int_fn(int_params, INPUTS) - deep(DEEP, INPUTS)) ** 2))
    assert errors[True] < errors[False] < plain
    assert "layers" in str(found)


@pytest.mark.slow
def test_statistics_that_were_gathered_before():
    q, found = rounded(METHODS["gptq"], schemes.weight_only(3))
    states = calibrate(dense, WEIGHT, [INPUTS], gram())
    again = pt.round_weights(q, WEIGHT, [], METHODS["gptq"], states=states)
    jax.tree.map(np.testing.assert_array_equal, again, found)


@pytest.mark.sampled(3)
@pytest.mark.slow
@pytest.mark.parametrize("case", ["nan", "zeros", "few"])
def test_inputs_that_say_little(case):
    """NaN: rounded to nearest, and said so. Zeros, or fewer rows than inputs: the damping makes it invertible."""
    batch = {"nan": INPUTS.at[0, 0].set(jnp.nan), "zeros": 0 * INPUTS, "few": INPUTS[:3]}[case]
    _, found = rounded(pt.gptq(), schemes.weight_only(4), batches=(batch,))
    plain = rounded(pt.nearest(), schemes.weight_only(4))[1].weights[""]["codes"].codes
    damping = float(found.notes[""]["damping"][0])
    assert damping == (np.inf if case == "nan" else np.float32(0.01))
    if case != "few":
        np.testing.assert_array_equal(found.weights[""]["codes"].codes, plain)


def test_what_is_refused():
    q = quantize(dense, WEIGHT, INPUTS, rules={"**": schemes.weight_only(4)})
    with pytest.raises(ValueError, match="there are no batches"):
        pt.round_weights(q, WEIGHT, [], pt.gptq())
    with pytest.raises(ValueError, match="`damping` is above 0"):
        pt.gptq(0)
    with pytest.raises(ValueError, match="`block` is at least 1"):
        pt.gptq(block=0)
    with pytest.raises(ValueError, match="`steps` is at least 1"):
        pt.adaround(0)
    other = quantize(dense, WEIGHT, INPUTS, rules={"**": schemes.weight_only(3)})
    found = pt.round_weights(q, WEIGHT, [], pt.nearest())
    with pytest.raises(ValueError, match="was rounded to Integers.*its scheme says"):
        convert(other, WEIGHT, other.init(), found.weights)
    with pytest.raises(ValueError, match="are codes by site.*got Rounded"):
        convert(q, WEIGHT, q.init(), found)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="'other' of `rounded` is no site"):
        convert(q, WEIGHT, q.init(), {"other": found.weights[""]})
    with pytest.raises(ValueError, match="the weight of '' has NaN"):
        convert(q, WEIGHT.at[0].set(jnp.nan), q.init())
