"""The real TPU compiler, without a TPU: every transform and the whole step compile for a chip and for a pod."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import jaxopt_compress as jc
from benchmarks import _aot, _mlp, _steps, tpu_aot
from jaxopt_compress.pruning.search import ranking
from tests.table import TABLE, grads, params

pytestmark = [pytest.mark.tpu, pytest.mark.skipif(bool(_aot.missing()), reason=str(_aot.missing()))]


@pytest.fixture(autouse=True)
def user_promotion():
    """Run with JAX's own settings, as a user would."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def everything(row):
    """Return a function of parameters that runs every part of a transform, and its gradient."""
    t = row.make()

    def run(p):
        state = t.update(p, t.init(p), step=jnp.asarray(3), grads=grads(p))
        loss = lambda w: sum(jnp.sum(x * x) for x in jc.tree.weights(t.apply(jc.tree.replace(p, w), state)).values())  # noqa: E731
        return state, t.apply(p, state), t.encode(p, state), jax.grad(loss)(dict(jc.tree.weights(p)))

    return run


@pytest.mark.sampled(10)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_transform_compiles_for_a_chip_and_lowers_for_cuda(row):
    shapes = jax.eval_shape(params)
    on = _aot.mesh("v5e:2x2")
    assert _aot.program(on, everything(row), _aot.abstract(on, shapes)).memory > 0
    assert _aot.lowers_for_cuda(everything(row), shapes) > 0


@pytest.mark.sampled(5)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_transform_compiles_for_a_pod_and_gathers_no_parameter(row):
    on = _aot.mesh("v5e:16x16", (16, 16))
    kernel = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
    shapes = {"block": {"kernel": kernel, "bias": kernel.update(shape=(1024,))}, "embed": {"embedding": kernel}}
    specs = {"block": {"kernel": P("data", "model"), "bias": P("model")}, "embed": {"embedding": P("model", "data")}}
    program = _aot.program(on, everything(row), _aot.abstract(on, shapes, specs))
    for kind, shape in program.collectives:
        if (row.name, kind) == ("heads", "collective-permute"):  # four heads on sixteen chips: numbers change places
            assert math.prod(shape) <= 4
            continue
        assert kind == "all-reduce", (kind, shape)
        assert len(shape) <= 1, (kind, shape)


@pytest.mark.parametrize("chips", tpu_aot.CHIPS)
def test_the_whole_step_compiles_for_every_generation(chips):
    on, model = _aot.mesh(chips), tpu_aot.small_mlp()
    tx = jc.attach(_steps.ADAM, tpu_aot.compressed())
    step = _steps.compressed(model.forward, tx, distilled=True)
    program = _aot.program(on, step, *_aot.abstract(on, tpu_aot.arguments(model, (16, 256), tx)), donate=(0,))
    assert program.memory > 3 * 4 * 256 * 128  # parameters and two moments: it is the whole step


def own_criterion(params, **extra):
    return jax.tree.map(jnp.abs, params)


def flipped(params, state, **extra):
    return jax.tree.map(jnp.invert, state)


@pytest.mark.parametrize("quantized", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["alone", "int8"])
@pytest.mark.parametrize("cheap", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["ranked", "flipped"])
def test_a_donated_mask_that_is_refreshed_in_a_step_compiles(cheap, quantized):
    """The order of reads and writes once made the compiler find a cycle."""
    prune = jc.pruning.prune(own_criterion, 0.5)
    prune = jc.select("**/kernel", jc.periodic(prune._replace(update=flipped) if cheap else prune, every=100))
    on, model = _aot.mesh("v5e:2x2"), SimpleNamespace(init=_mlp.init, forward=_mlp.forward)
    tx = jc.attach(_steps.ADAM, jc.chain(prune, _steps.int8()) if quantized else prune)
    args = _aot.abstract(on, tpu_aot.arguments(model, (128, 1024), tx))
    assert _aot.program(on, _steps.compressed(model.forward, tx), *args, donate=(0,)).memory > 0


def test_a_large_mask_is_read_from_memory_little_more_than_twice():
    """Once to collect the candidates, once to write the mask; the loop that reads everything does not turn."""

    def key(operand, index):
        return ranking.ordered_keys(jnp.abs(operand))

    on, w = _aot.mesh("v5e:2x2"), jax.ShapeDtypeStruct((2304, 2304), jnp.float32)
    find = lambda w: ranking.mask(w, key, 0, ranking._cut_collected([w], key, jnp.int32(10**6)))  # noqa: E731
    program, size = _aot.program(on, find, _aot.abstract(on, w)), w.size * w.dtype.itemsize
    assert program.bytes - 4 * program.prefetched - size < 3 * size
    assert program.temporaries < size / 4


def test_the_pod_step_adds_scalars_and_channels_only():
    found = tpu_aot.pod(tpu_aot.SMALL_POD)
    assert found["added collectives"], "no collective at all: the refresh is not in the program"
    assert all(row["memory"] > 0 for row in found["rows"].values())


def test_what_counts_as_scalars_and_channels():
    assert tpu_aot.per_channel((80,), 80)
    assert tpu_aot.per_channel((80, 512), 80)
    assert not tpu_aot.per_channel((1024, 128), 2)


def test_prefetches_are_read_from_the_program_text():
    text = """
      %copy-start = (f32[20,64]{1,0:T(8,128)S(1)}, f32[20,64]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w.1)
      %copy-start.1 = (pred[8]{0:T(32)}, pred[8]{0:T(32)S(1)}, u32[]{:S(2)}) copy-start(%mask)
      %copy-start.2 = (bf16[8]{0:T(32)S(1)}, bf16[8]{0:T(32)}, u32[]{:S(2)}) copy-start(%bias)
    """
    assert _aot.prefetched(text) == 20 * 64 * 4 + 8 * 2


def test_collectives_are_read_from_the_program_text():
    text = """
      %a = f32[1,1024,128]{2,1,0} all-gather(%x), dimensions={1}
      %b = (s32[]{:T(128)}, s32[2]{0}) all-reduce-start(%y), to_apply=%sum
      %c = (s32[], s32[2]) all-reduce-done(%b)
    """
    assert _aot.collectives(text) == {("all-gather", (1024, 128)): 1, ("all-reduce", ()): 1, ("all-reduce", (2,)): 1}
