"""The weights of rounded products as they are stored: the rounding of a site on the axes of its parameter."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxopt_compress import graph, tree
from jaxopt_compress.core import ParamTransform
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.graph import Graph, Site
from jaxopt_compress.grids import Grid
from jaxopt_compress.quantization import fits, numerics, operands
from jaxopt_compress.quantization.numerics import Affine
from jaxopt_compress.quantization.schemes import Scheme

SUMMED = ("in", "window")


class Plan(NamedTuple):
    """How one parameter is rounded.

    Attributes:
      grid: to what.
      shape: of the scale.
      dtype: in which it is rounded: the one that the product takes.
      fit: how scales are found.
    """

    grid: Grid
    shape: tuple[int, ...]
    dtype: Any
    fit: fits.Fit

    def affine(self, w: jax.Array) -> Affine:
        """Return the scales of a weight."""
        return self.fit(w.astype(self.dtype), self.shape, self.grid)

    def encode(self, w: jax.Array, affine: Affine) -> Quantized:
        """Return the codes in their stored form."""
        codes = numerics.codes(w.astype(self.dtype), affine, self.grid)
        return Quantized.of(codes, affine.scale, self.grid, w.dtype.name, affine.zero_point)

    def apply(self, w: jax.Array, affine: Affine) -> jax.Array:
        """Return what `encode` decodes to, with a straight-through gradient; weights may have outgrown their scales."""
        return numerics.straight_through(w, affine, self.grid, cast=self.dtype)


def transform(traced: Graph, schemes: Mapping[str, Scheme]) -> ParamTransform:
    """Return a transform that rounds parameters like their products do."""
    plans: dict[str, Plan] = {}
    for site in graph.sites_of(traced.program, traced.paths):
        scheme = schemes.get(site.name)
        if scheme is None or scheme.weight is None or site.weight is None:
            continue
        plan = _plan(traced, site, scheme, scheme.weight)
        if plans.setdefault(site.path, plan) != plan:
            raise ValueError(
                f"`quantize`: {site.path!r} has several products, which round it differently: {plans[site.path]} and "
                f"{plan} at {site.op.source}."
            )

    def fit(params):
        leaves = tree.leaves(params)
        return tree.Selection((path, plan.affine(leaves[path])) for path, plan in plans.items())

    def apply(params, state):
        leaves = tree.leaves(params)
        return tree.replace(params, {path: plan.apply(leaves[path], state[path]) for path, plan in plans.items()})

    def update(params, state, *, step, **extra):
        del state, step, extra
        return fit(params)

    def encode(params, state):
        leaves = tree.leaves(params)
        return tree.replace(params, {path: plan.encode(leaves[path], state[path]) for path, plan in plans.items()})

    return ParamTransform(fit, apply, update, encode)


def _plan(traced: Graph, site: Site, scheme: Scheme, grid: Grid) -> Plan:
    if scheme.learned is not None or operands.basis_of(site, scheme) is not None:
        raise ValueError(
            f"`quantize`: {site.path!r} is rounded in another basis, or with scales that are learned, which no "
            "transform of the parameters knows; `convert` stores it."
        )
    leaf = traced.leaves[traced.paths.index(site.path)]
    if not site.moved:
        raise ValueError(
            f"`quantize`: {site.path!r} is computed with before its product at {site.op.source}; its rounded values "
            "cannot be stored in its place."
        )
    roles = _roles(traced, site)
    shape = [1 if role in SUMMED else n for n, role in zip(leaf.shape, roles)]
    if scheme.group_size is not None and site.kind != "gather":
        summed = [axis for axis, role in enumerate(roles) if role == "in"]
        if len(summed) > 1 and leaf.shape != site.shapes[site.weight or 0]:
            raise ValueError(
                f"`quantize`: {site.path!r} is rearranged and sums over several axes: groups have no place."
            )
        shape[summed[-1]] = leaf.shape[summed[-1]] // scheme.group_size
    return Plan(grid, tuple(shape), site.op.ins[site.weight or 0].aval.dtype, scheme.fit)


def _roles(traced: Graph, site: Site) -> list[str]:
    """Return for each axis of the parameter whether it is summed over; of a lookup those that a row has."""
    place = traced.paths.index(site.path)
    roles: list[set[str]] = [set() for _ in traced.leaves[place].shape]
    use = traced.coupling.uses.get((site.op, site.weight or 0))
    for origins, role in zip(use.origins, use.roles) if use else ():
        for leaf, axis in origins:
            if leaf == place:
                roles[axis].add(("in" if role == "out" else "out") if site.kind == "gather" else role)
    mixed = [axis for axis, found in enumerate(roles) if len({role in SUMMED for role in found}) > 1]
    if mixed:
        raise ValueError(
            f"`quantize`: axis {mixed[0]} of {site.path!r} is partly summed over at {site.op.source}, so that its "
            "scales have no place in its shape."
        )
    return [next(iter(found & set(SUMMED)), "out") for found in roles]
