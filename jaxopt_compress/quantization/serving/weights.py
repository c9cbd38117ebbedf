"""The weights of a quantized function as codes, in the layout in which they are served."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress import encoded, graph, layout, tree
from jaxopt_compress.calibration import per_layer
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.graph import Site
from jaxopt_compress.products import Conv, product
from jaxopt_compress.quantization import numerics, operands
from jaxopt_compress.quantization.numerics import Affine
from jaxopt_compress.quantization.quantize import Quantization
from jaxopt_compress.quantization.schemes import Scheme
from jaxopt_compress.quantization.seen import weights_of
from jaxopt_compress.quantization.serving import forms


class Given(NamedTuple):
    """A weight whose codes are known, in the shape that its product sees.

    Attributes:
      codes: one a byte.
      affine: what they stand for.
      bias: what is added to the output.
    """

    codes: jax.Array
    affine: Affine
    bias: jax.Array | None = None


def prepare(
    q: Quantization, params: Any, ranges: graph.States, rounded: Mapping[str, Any], native: bool
) -> graph.States:
    """Return the weights of the sites in codes.

    Weights are found wherever they are, in a scan or behind a transpose, as their products see them. Leaves that are
    codes already keep them.
    """
    leaves = tree.leaves(params, is_leaf=is_stored)
    codes = {path: leaf for path, leaf in leaves.items() if is_stored(leaf)}
    seen = weights_of(q, encoded.decode(params))
    parts = _parts(q, params, codes) if codes else {}
    held = {}
    for site in q.rounded_sites:
        if site.name in seen:
            scheme, state = q.schemes[site.name], ranges[site.name]
            given = _given(site, scheme, codes[site.path], parts) if site.path in codes else None
            given = chosen("convert", site, scheme, state, rounded[site.name]) if site.name in rounded else given
            form = per_layer(site, partial(_form, site, scheme, native))
            held[site.name] = form(seen[site.name], state, given)
    return held


def activations(q: Quantization, ranges: graph.States) -> graph.States:
    """Return what is kept of the ranges of activations, by site and operand: "scale", maybe "zero_point"; the basis."""
    found = {}
    for site in q.rounded_sites:
        scheme, own = q.schemes[site.name], dict[str, Any]()
        for side, state in ranges[site.name].items():
            if side == "basis":
                own[side] = state
            elif side != str(site.weight):
                own[side] = _named(per_layer(site, partial(operands.known, site, int(side), scheme))(state))
        found[site.name] = own
    return found


def _named(affine: Affine) -> dict[str, jax.Array]:
    """Return plain names, which a file keeps."""
    return {name: leaf for name, leaf in affine._asdict().items() if leaf is not None}


def is_stored(leaf: Any) -> bool:
    """Tell whether a leaf is codes already."""
    return isinstance(leaf, Quantized)


def _form(site: Site, scheme: Scheme, native: bool, w: jax.Array, state: Any, given: Given | None) -> dict[str, Any]:
    """Store one weight: fitted, with the scales that were learned, or as the codes that it is already."""
    side, grid = site.weight or 0, scheme.weight or operands.TABLE
    if given is None:
        w = operands.turn(site, scheme, state, side, w)
        affine = operands.weight_affine(site, scheme, w, state)
        given = Given(numerics.codes(w, affine, grid), affine)
    codes, affine, bias = given
    more = {} if bias is None else {"bias": bias}
    if site.kind == "gather" or isinstance(how := product(site), Conv):
        return {"weight": Quantized.of(codes, affine.scale, grid, w.dtype.name, affine.zero_point), **more}
    weight = forms.stored(how, side, codes, affine, grid, w.dtype.name, native)
    if operands.has_zero_point(site, scheme):
        more["sums"] = forms.sums(weight)
    return {"weight": weight, **more}


def refuse_unknown(call: str, name: str, q: Quantization, rounded: Any) -> None:
    """Refuse codes that no product would take: they would be left out without a word."""
    if not isinstance(rounded, Mapping):
        raise ValueError(
            f"`{call}`: `{name}` are codes by site, `.weights` of a `Rounded`; got {type(rounded).__name__}."
        )
    absent = sorted(set(rounded) - {site.name for site in q.rounded_sites})
    if absent:
        raise ValueError(
            f"`{call}`: {absent[0]!r} of `{name}` is no site that is rounded; there are {list(q.schemes)}."
        )


def chosen(call: str, site: Site, scheme: Scheme, state: Any, held: Mapping[str, Any]) -> Given:
    """Return codes that a method chose.

    Raises:
      ValueError: they were chosen in another basis, or for another grid.
    """
    codes = held["codes"]
    if ("basis" in held) != ("basis" in state) or not _same(held.get("basis"), state.get("basis")):
        raise ValueError(
            f"`{call}`: the codes of {site.name!r} were chosen in another basis than that of these ranges; give "
            "`round_weights` the same ranges."
        )
    if codes.grid != scheme.weight:
        raise ValueError(f"`{call}`: {site.name!r} was rounded to {codes.grid}; its scheme says {scheme.weight}.")
    return Given(codes.codes, Affine(codes.scale, codes.zero_point), held.get("bias"))


def _same(a: Any, b: Any) -> bool:
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _parts(q: Quantization, params: Any, codes: Mapping[str, Quantized]) -> dict[str, dict[str, jax.Array]]:
    """Return what codes, scales and zero points become on the way to their products."""

    def whole(read: Callable[[Quantized], jax.Array]) -> dict[str, jax.Array]:
        as_floats = {path: _moved(leaf, read(leaf)) for path, leaf in codes.items()}
        return weights_of(q, tree.replace(params, as_floats, is_leaf=is_stored))

    found = {"codes": whole(lambda leaf: leaf.codes), "scale": whole(lambda leaf: leaf.scale)}
    if any(leaf.zero_point is not None for leaf in codes.values()):
        found["zero_point"] = whole(lambda leaf: jnp.zeros(()) if leaf.zero_point is None else leaf.zero_point)
    return found


def _moved(leaf: Quantized, x: jax.Array) -> jax.Array:
    spread = layout.spread(x, leaf.shape) if x.ndim else x
    return jnp.broadcast_to(spread, leaf.shape).astype(leaf.dtype)


def _given(site: Site, scheme: Scheme, leaf: Quantized, parts: Any) -> Given:
    """Return the codes of a leaf where its product sees them.

    Raises:
      ValueError: a leaf that is computed with or cast on the way, or whose grid or scales are not those of the scheme.
    """
    grid, name = scheme.weight or operands.TABLE, site.name
    if not site.moved or leaf.dtype != site.op.ins[site.weight or 0].aval.dtype.name:
        raise ValueError(f"`convert`: {site.path!r} is stored as codes, and computed with before its product {name!r}.")
    if operands.basis_of(site, scheme) is not None:
        raise ValueError(f"`convert`: {site.path!r} is stored as codes, and its scheme rounds it in another basis.")
    if leaf.grid != grid:
        raise ValueError(f"`convert`: {site.path!r} is stored on {leaf.grid}; the scheme of {name!r} says {grid}.")
    shape = operands.scale_shape_of(site, scheme)
    reduce = per_layer(site, lambda x: layout.reduce_runs(jnp.max, x, shape))
    found = {key: reduce(part[name]) for key, part in parts.items() if key != "codes"}
    least = per_layer(site, lambda x: layout.reduce_runs(jnp.min, x, shape))(parts["scale"][name])
    if not bool(jnp.array_equal(found["scale"], least)):
        raise ValueError(f"`convert`: the scales of {site.path!r} vary within what {name!r} gives one scale.")
    zero = found["zero_point"].astype(jnp.int8) if leaf.zero_point is not None else None
    codes = parts["codes"][name].astype(leaf.codes.dtype)
    return Given(codes, Affine(found["scale"], zero))
