"""A method over all weights of a quantized function."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxopt_compress import graph, layout
from jaxopt_compress.calibration import Gram, calibrate, per_layer, stages
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.graph import Site
from jaxopt_compress.grids import Grid
from jaxopt_compress.products import product
from jaxopt_compress.quantization import numerics, operands
from jaxopt_compress.quantization.numerics import Affine
from jaxopt_compress.quantization.post_training.method import Found, Layer, Method, error
from jaxopt_compress.quantization.quantize import Quantization
from jaxopt_compress.quantization.seen import weights_of


class Rounded(NamedTuple):
    """The weights of a function in codes, for `convert`; print it for a table.

    Attributes:
      weights: by the name of a site, "codes", a `Quantized` in the shape that the product sees, maybe "bias", which is
        added to its output, and "basis", in which they were chosen. Layers of a scan stand in front.
      notes: numbers by the name of a site, one for each layer and group: "error" is the mean square error of the
        outputs as a fraction of their mean square, where the method knows how inputs go together.
    """

    weights: dict[str, dict[str, Any]]
    notes: dict[str, dict[str, jax.Array]]

    def __str__(self) -> str:
        keys = sorted({key for notes in self.notes.values() for key in notes})
        table = Table("site", "codes", *keys, title="post-training rounding")
        for name, held in self.weights.items():
            shown = [_span(self.notes[name][key]) if key in self.notes[name] else "" for key in keys]
            table.add_row(name, "x".join(map(str, held["codes"].shape)), *shown)
        console = Console(width=120, no_color=True)
        with console.capture() as capture:
            console.print(table)
        return capture.get()


def _span(values: jax.Array) -> str:
    low, high = float(jnp.min(values)), float(jnp.max(values))
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def round_weights(
    q: Quantization,
    params: Any,
    batches: Iterable[Any],
    method: Method,
    *,
    ranges: graph.States | None = None,
    states: graph.States | None = None,
    sequential: bool = False,
    progress: bool = False,
) -> Rounded:
    """Choose the codes of all weights of a quantized function, without labels.

    Args:
      q: what `quantize` returned; its schemes say to which grids, and with which scales.
      params: the trained parameters.
      batches: tuples of inputs, or single inputs; with `sequential` they are gone through once for every stage.
      method: one of `post_training`.
      ranges: of activations; learned scales of weights, and the basis, are taken from there.
      states: the statistics, of `calibrate(q.fn, params, batches, method.statistic)`, in place of batches.
      sequential: whether layers are rounded in the order of the program, each calibrated on what the rounded layers
        before it let through, and not on what the trained ones did. Layers of a scan are rounded together.
      progress: whether to show a bar.

    Returns:
      Codes; `convert(q, params, ranges, rounded.weights)` takes them, with the same ranges.

    Raises:
      ValueError: no batches for a method that needs some; a grid that the method cannot round to.
    """
    sites = [site for site in q.rounded_sites if q.schemes[site.name].weight and site.weight is not None]
    sites = [site for site in sites if site.kind != "gather"]
    seen, ranges = weights_of(q, params), q.init() if ranges is None else ranges
    if states is not None and any("basis" in ranges[site.name] for site in sites):
        raise ValueError("`round_weights`: weights are rounded in another basis, in which `states` were not gathered.")
    done, known = Rounded({}, {}), states is not None or method.statistic is None
    batches = list(batches) if sequential else batches
    for stage in stages(sites) if sequential and not known else [sites]:
        if not known:
            states = _measured(q, params, batches, stage, ranges, done, method.statistic, progress)
        new = _solve(q, stage, seen, ranges, states or {}, method)
        done = Rounded(done.weights | new.weights, done.notes | new.notes)
    return done


def _measured(
    q: Quantization,
    params: Any,
    batches: Iterable[Any],
    stage: Sequence[Site],
    ranges: graph.States,
    done: Rounded,
    statistic: Any,
    progress: bool,
) -> graph.States:
    """Calibrate some sites, in their bases, behind those that are rounded already."""
    extra = {name: {key: state["basis"] for key in state if key == "basis"} for name, state in ranges.items()}
    for name, held in done.weights.items():
        extra[name] |= {"weight": held["codes"].decode()} | {key: held[key] for key in held if key == "bias"}

    def run(site: Site, args: Sequence[Any], extra: Any) -> tuple[Sequence[Any], Sequence[Any]]:
        if extra is None:
            return args, graph.bind(site.op, args)
        turned = operands.turned(site, q.schemes[site.name], extra, args[:2])
        if "weight" not in extra:
            return turned, graph.bind(site.op, args)
        given = [extra["weight"] if side == site.weight else x for side, x in enumerate(turned)]
        (out,) = graph.bind(site.op, given)
        return turned, [out + extra["bias"].astype(out.dtype) if "bias" in extra else out]

    names = {site.name for site in stage}
    where = lambda site: site.name in names  # noqa: E731
    return calibrate(q.fn, params, batches, statistic, where=where, run=run, extra=extra, progress=progress)


class _Task(NamedTuple):
    """The layers of a site, and its groups, on one axis."""

    site: Site
    layer: Layer


def _solve(
    q: Quantization,
    sites: Sequence[Site],
    seen: dict[str, jax.Array],
    ranges: graph.States,
    states: graph.States,
    method: Method,
) -> Rounded:
    """Solve layers of one shape together."""
    alike, affines = defaultdict[Any, list[_Task]](list), {}
    for site in sites:
        scheme, state = q.schemes[site.name], ranges[site.name]
        turn = lambda state, w, site=site, scheme=scheme: operands.turn(site, scheme, state, site.weight or 0, w)  # noqa: E731
        w = per_layer(site, turn)(state, seen[site.name])
        affines[site.name] = per_layer(site, partial(operands.weight_affine, site, scheme))(w, state)
        layer = per_layer(site, partial(_layer, site))(w, affines[site.name], states.get(site.name))
        layer = _merged(layer, len(site.stacked))
        shapes = tuple((x.shape[1:], x.dtype) for x in jax.tree.leaves(layer))
        alike[scheme.weight, shapes].append(_Task(site, layer))
    found: dict[str, Found] = {}
    for (grid, _), tasks in alike.items():
        stacked = jax.tree.map(lambda *xs: jnp.concatenate(xs), *[task.layer for task in tasks])
        whole = _solved(stacked, method=method, grid=grid)
        ends = np.cumsum([len(task.layer.w) for task in tasks])
        for task, end in zip(tasks, ends):
            own = slice(end - len(task.layer.w), end)
            found[task.site.name] = jax.tree.map(lambda x, own=own: x[own], whole)
    weights = {}
    for site in sites:
        stored = partial(_stored, site, q.schemes[site.name].weight, seen[site.name].dtype.name)
        weights[site.name] = stored(affines[site.name], found[site.name])
        weights[site.name] |= {key: state for key, state in ranges[site.name].items() if key == "basis"}
    return Rounded(weights, {site.name: dict(found[site.name].notes) for site in sites})


def _merged(layer: Layer, axes: int) -> Layer:
    """Put layers of scans and groups on one axis."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[axes + 1 :]), layer)


def _layer(site: Site, w: jax.Array, affine: Affine, state: Any) -> Layer:
    """View a weight as matrices, one for each group."""
    how, side = product(site), site.weight or 0
    whole = jax.tree.map(lambda x: how.matrix(side, layout.spread(x, w.shape)), affine)
    matrix = how.matrix(side, numerics.wide(w))
    return Layer(matrix, whole, state)


@partial(jax.jit, static_argnames=("method", "grid"))
def _solved(layers: Layer, *, method: Method, grid: Grid) -> Found:
    def solve(layer: Layer) -> Found:
        found = method.solve(layer, grid)
        notes = {"error": error(layer, found.codes, grid)} if isinstance(layer.seen, Gram) else {}
        return found._replace(notes={**notes, **found.notes})

    return jax.vmap(solve)(layers)


def _stored(site: Site, grid: Any, dtype: str, affine: Affine, found: Found) -> dict[str, Any]:
    how, side = product(site), site.weight or 0

    def one(codes, bias, affine):
        whole = how.operand(side, codes, site.shapes[side])
        held: dict[str, Any] = {"codes": Quantized.of(whole, affine.scale, grid, dtype, affine.zero_point)}
        return held if bias is None else held | {"bias": how.added(side, bias, site.shapes[side])}

    by_layer = lambda x: None if x is None else x.reshape(*site.stacked, -1, *x.shape[1:])  # noqa: E731
    return per_layer(site, one)(by_layer(found.codes), by_layer(found.bias), affine)
