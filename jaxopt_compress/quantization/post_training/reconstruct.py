"""Reconstruction: learn how all weights of a block are rounded, together, from what the block puts out."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from jaxopt_compress import graph
from jaxopt_compress.calibration import per_layer
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.graph import Site
from jaxopt_compress.products import product
from jaxopt_compress.quantization import numerics, operands
from jaxopt_compress.quantization.numerics import Affine
from jaxopt_compress.quantization.post_training import adam, soft
from jaxopt_compress.quantization.post_training.adam import Adam
from jaxopt_compress.quantization.post_training.round_weights import Rounded
from jaxopt_compress.quantization.post_training.soft import Schedule
from jaxopt_compress.quantization.quantize import Quantization
from jaxopt_compress.quantization.rounded import multiply
from jaxopt_compress.quantization.seen import weights_of
from jaxopt_compress.quantization.serving.weights import chosen, refuse_unknown

Loss = Callable[[Any, Any], jax.Array]


class _Fixed(NamedTuple):
    """What of a weight stays: its lower neighbours, and the scales that it starts with."""

    low: jax.Array
    affine: Affine


class _Free(NamedTuple):
    """What of a weight is learned: how far up it is rounded, and the logarithm of what its scales are multiplied by."""

    v: Any
    stretch: Any


def mean_square(found: Any, wanted: Any) -> jax.Array:
    """Return the mean square difference of two pytrees, summed over leaves."""
    parts = jax.tree.map(lambda a, b: jnp.mean((numerics.wide(a) - numerics.wide(b)) ** 2), found, wanted)
    return sum(jax.tree.leaves(parts), jnp.zeros(()))


def reconstruct(
    q: Quantization,
    params: Any,
    batches: Iterable[Any],
    *,
    ranges: graph.States | None = None,
    outputs: Iterable[Any] | None = None,
    start: Rounded | None = None,
    loss: Loss = mean_square,
    steps: int = 1000,
    rate: float = 0.03,
    scale_rate: float = 3e-3,
    short_scales: bool = False,
    schedule: Schedule = soft.DEFAULT,
    progress: bool = False,
) -> Rounded:
    """Choose between rounding up and down, for all weights together, by gradient descent on what a function puts out.

    Layer by layer (`adaround`), an error is small in itself; what it does to the layers behind, and whether theirs
    undo it, is not seen. Here it is. A few layers are learned well together, a deep net is not: `reconstruct_blocks`
    goes through one block after the other. No labels are needed; activations are rounded as they will be.

    Args:
      q: what `quantize` returned, of weights in integers.
      params: the trained parameters.
      batches: tuples of inputs, or single inputs, of one shape; they are gone through again and again. Few of them are
        learned by heart: watch `loss` on others.
      ranges: of activations; learned scales of weights, and the basis, are taken from there.
      outputs: what is wanted for each batch; what `q.fn` puts out, if not given.
      start: codes to start from, without biases, as of `round_weights` with the same ranges: every weight may go to
        the neighbour of its code that is nearer to it, and with a `rate` of 0 only scales are learned. The weights
        themselves if not given.
      loss: `(outputs, wanted) -> scalar`; it counts in units of what nearest rounding loses.
      steps: of Adam, a batch each.
      rate: the learning rate of the rounding.
      scale_rate: that of the logarithms of the scales; 0 leaves them as they are.
      short_scales: whether scales are kept to the numbers of bfloat16, as by `fits.short`.
      schedule: of what drives weights to a neighbour.
      progress: whether to show a bar.

    Returns:
      Codes; `convert(q, params, ranges, rounded.weights)` takes them, with the same ranges.

    Raises:
      ValueError: no batches, or as many outputs; a start with biases, in
        another basis or on another grid, or of no site; a grid that is not of integers; no weights that
        are rounded.

    Reference: Li et al., "BRECQ: pushing the limit of post-training quantization by block reconstruction", 2021; there
    scales of weights are not learned.
    """
    if steps < 1 or not 0 <= schedule.warm < 1:
        raise ValueError(f"`reconstruct`: `steps` is at least 1, `warm` in [0, 1); got {steps}, {schedule.warm}.")
    ranges = q.init() if ranges is None else ranges
    inputs = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    plain, rounded = jax.jit(q.fn), jax.jit(q)
    wanted = list(outputs) if outputs is not None else [plain(params, *batch) for batch in inputs]
    if not inputs or len(inputs) != len(wanted):
        raise ValueError(f"`reconstruct`: as many batches as outputs, at least 1; got {len(inputs)}, {len(wanted)}.")
    fixed, free = _start(q, params, ranges, start.weights if start else {})
    given, scaled = (params, ranges, fixed), partial(_affine, short=short_scales)
    unit = jnp.mean(jnp.stack([loss(rounded(params, ranges, *x), y) for x, y in zip(inputs, wanted)]))
    unit = jnp.where(unit > 0, unit, 1)
    step = _step(q, scaled, loss, schedule, steps, _Free(rate, scale_rate))
    at, turns = adam.start(free), islice(cycle(zip(inputs, wanted)), steps)
    shown = track(turns, total=steps, description="reconstructing", disable=not progress, transient=True)
    for turn, (batch, y) in enumerate(shown):
        at = step(at, given, np.int32(turn), unit, batch, y)
    return _stored(q, scaled, ranges, fixed, at.x)


def _step(q: Quantization, scaled: Callable, loss: Loss, schedule: Schedule, steps: int, rate: Any) -> Callable:
    """Return a step of Adam on a batch."""
    run = _soft_run(q, scaled)

    def total(free: dict[str, _Free], given: Any, done: jax.Array, unit: jax.Array, batch: Any, wanted: Any):
        count = sum(each.v.size for each in free.values())
        undecided = sum(schedule.undecided(soft.up(each.v), done) for each in free.values())
        return loss(run(*given, free, *batch), wanted) / unit + undecided / count

    @partial(jax.jit, donate_argnums=0)
    def step(at: Adam, given: Any, turn: jax.Array, unit: jax.Array, batch: Any, wanted: Any) -> Adam:
        slope = jax.grad(total)(at.x, given, turn / steps, unit, batch, wanted)
        return adam.step(at, slope, turn, dict.fromkeys(at.x, rate))

    return step


def _start(
    q: Quantization, params: Any, ranges: graph.States, known: dict[str, Any]
) -> tuple[dict[str, _Fixed], dict[str, _Free]]:
    """Start at the weights themselves, or at codes that are known."""
    fixed, free, seen = {}, {}, weights_of(q, params)
    refuse_unknown("reconstruct", "start", q, known)
    for site in q.rounded_sites:
        if site.name not in seen or site.kind == "gather":
            continue
        scheme, state, given = q.schemes[site.name], ranges[site.name], None
        soft.check("reconstruct", scheme.weight)
        if site.name in known:
            given = chosen("reconstruct", site, scheme, state, known[site.name])
            if given.bias is not None:
                raise ValueError(f"`reconstruct`: {site.name!r} starts with a bias, which is not learned.")

        def one(w, state, given, site=site, scheme=scheme):
            turned = operands.turn(site, scheme, state, site.weight or 0, w)
            if given is None:
                affine = operands.weight_affine(site, scheme, turned, state)
                low, v = soft.start(numerics.wide(turned), affine)
            else:
                affine = given.affine
                low, v = soft.start_at(numerics.wide(turned), given.codes, affine)
            return _Fixed(low, affine), _Free(v, jnp.zeros_like(affine.scale))

        fixed[site.name], free[site.name] = per_layer(site, one)(seen[site.name], state, given)
    if not free:
        raise ValueError("`reconstruct`: no weights are rounded.")
    return fixed, free


def _affine(fixed: _Fixed, free: _Free, short: bool) -> Affine:
    scale = fixed.affine.scale * jnp.exp(free.stretch)
    return fixed.affine._replace(scale=numerics.passthrough(scale, numerics.short(scale)) if short else scale)


def _soft_run(q: Quantization, scaled: Callable) -> Callable:
    """Return the function with its weights as they are rounded so far."""

    def replace(site: Site, args: Sequence[Any], state: Any) -> tuple[Sequence[Any], Any]:
        scheme, (own, fixed, free) = q.schemes[site.name], state
        if site.kind == "gather":
            return [operands.looked_up(site, args, scheme)], state
        how, (a, b) = product(site), operands.turned(site, scheme, own, args[:2])
        given, roundings = [a, b], list(operands.roundings(site, how, (a, b), scheme, own))
        if fixed is not None and site.weight is not None:
            grid = soft.check("reconstruct", scheme.weight)
            w = soft.decode(fixed.low, soft.up(free.v), scaled(fixed, free), grid)
            given[site.weight], roundings[site.weight] = w.astype(given[site.weight].dtype), None
        dtype = site.op.outs[0].aval.dtype
        both = roundings[0], roundings[1]
        return [multiply(how, given[0], given[1], both, dtype, q.integers, scheme.compute)], state

    rewritten = graph.rewrite(q.fn, q.schemes, replace)

    def run(params: Any, ranges: graph.States, fixed: dict, free: dict, *inputs: Any) -> Any:
        states = {name: (ranges[name], fixed.get(name), free.get(name)) for name in q.schemes}
        return rewritten(params, states, *inputs)[0]

    return run


def _stored(q: Quantization, scaled: Callable, ranges: graph.States, fixed: dict, free: dict) -> Rounded:
    """Store what was chosen, in the way of `round_weights`."""
    weights, notes = {}, {}
    for site in q.sites:
        if site.name not in free:
            continue
        grid = soft.check("reconstruct", q.schemes[site.name].weight)
        dtype = site.op.ins[site.weight or 0].aval.dtype.name

        def one(fixed, free, grid=grid, dtype=dtype):
            affine, h = scaled(fixed, free), soft.up(free.v)
            codes = soft.codes(fixed.low, h, affine, grid)
            stored = Quantized.of(codes, affine.scale, grid, dtype, affine.zero_point)
            return stored, soft.part_undecided(h)

        codes, undecided = per_layer(site, one)(fixed[site.name], free[site.name])
        weights[site.name] = {"codes": codes}
        weights[site.name] |= {key: state for key, state in ranges[site.name].items() if key == "basis"}
        notes[site.name] = {"undecided": jnp.ravel(undecided)}
    return Rounded(weights, notes)
