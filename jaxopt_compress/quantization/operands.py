"""The operands of a site: what each is rounded to, and the states of those whose range is observed."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import graph
from jaxopt_compress.graph import Site
from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.quantization import fits, numerics
from jaxopt_compress.quantization.products import Conv, Dot
from jaxopt_compress.quantization.rounded import Rounding, Roundings
from jaxopt_compress.quantization.schemes import Scheme


def init(site: Site, scheme: Scheme) -> dict[str, Any]:
    """Return the states of the observers of a site, by operand: "0" and "1"."""
    if scheme.static is None or site.kind == "gather":
        return {}
    state = scheme.static.init()
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (*site.stacked, *x.shape)), state)
    return {str(side): stacked for side in (0, 1) if side != site.weight}


def observe(site: Site, args: Sequence[Any], scheme: Scheme, state: dict[str, Any]) -> dict[str, Any]:
    """Fold activations into the states."""
    return {side: scheme.static.update(old, args[int(side)]) for side, old in state.items()} if scheme.static else state


def roundings(
    site: Site, how: Dot | Conv, args: Sequence[jax.Array], scheme: Scheme, state: dict[str, Any]
) -> Roundings:
    """Return how both operands of a product are rounded."""
    found: list[Rounding | None] = []
    for side, x in enumerate(args):
        if side == site.weight:
            found.append(_weight(site, how, side, x, scheme))
        elif (grid := scheme.activation) is None:
            found.append(None)
        elif (observer := scheme.static) is None:
            largest = jnp.max(jnp.abs(x), axis=how.summed(side), keepdims=True, initial=0)
            found.append(Rounding(grid, numerics.symmetric(largest, grid), clips=False))
        else:
            low, high = (jnp.reshape(edge, (1,) * x.ndim) for edge in observer.range(state[str(side)], grid))
            found.append(_static(grid, low, high, scheme.zero_point and (site.weight is not None or side == 0)))
    return found[0], found[1]


def _weight(site: Site, how: Dot | Conv, side: int, w: jax.Array, scheme: Scheme) -> Rounding | None:
    if scheme.weight is None:
        return None
    shape = [1 if axis in how.summed(side) else n for axis, n in enumerate(w.shape)]
    if scheme.group_size is not None:
        shape[_grouped_axis(how, side)] = _groups(site, w.shape[_grouped_axis(how, side)], scheme.group_size)
    return _fitted(w, tuple(shape), scheme.weight, scheme)


def _grouped_axis(how: Dot | Conv, side: int) -> int:
    return how.numbers.rhs_spec[1] if isinstance(how, Conv) else max(how.contracting[side])


def _groups(site: Site, length: int, group_size: int) -> int:
    if group_size < 1 or length % group_size:
        raise ValueError(
            f"`quantize`: {site.name!r} sums over {length} entries, not a multiple of group_size={group_size}."
        )
    return length // group_size


def _static(grid: Grid, low: jax.Array, high: jax.Array, zero_point: bool) -> Rounding:
    if zero_point and isinstance(grid, Integers):
        return Rounding(grid, numerics.asymmetric(low, high, grid), clips=True)
    return Rounding(grid, numerics.symmetric(jnp.maximum(-low, high), grid), clips=True)


def looked_up(site: Site, args: Sequence[jax.Array], scheme: Scheme) -> jax.Array:
    """Look up in a table whose entries are rounded, each row with a scale of its own: only what is read is rounded."""
    (rows,) = graph.bind(site.op, args)
    numbers, sizes = site.op.params["dimension_numbers"], site.op.params["slice_sizes"]
    table = args[0].shape
    if any(size not in (1, table[axis]) for axis, size in enumerate(sizes)):
        raise ValueError(
            f"`quantize`: {site.name!r} ({site.op.source}) looks up parts of rows, which cannot be rounded."
        )
    shape = tuple(1 if axis in numbers.offset_dims else n for axis, n in enumerate(rows.shape))
    _, affine, clips = rounding = _fitted(rows, shape, scheme.weight or Integers(8), scheme)
    return numerics.straight_through(rows, affine, rounding.grid, clips)


def _fitted(w: jax.Array, shape: tuple[int, ...], grid: Grid, scheme: Scheme) -> Rounding:
    return Rounding(grid, scheme.fit(w, shape, grid), clips=scheme.fit is not fits.absmax)
