"""The operands of a site: what each is rounded to, and the states of those whose range is observed."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import graph
from jaxopt_compress.graph import Site
from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.products import Conv, Dot, product
from jaxopt_compress.quantization import fits, numerics
from jaxopt_compress.quantization.bases import Basis
from jaxopt_compress.quantization.learned import Learned
from jaxopt_compress.quantization.numerics import Affine
from jaxopt_compress.quantization.observers import Observer
from jaxopt_compress.quantization.rounded import Rounding, Roundings
from jaxopt_compress.quantization.schemes import Scheme

TABLE = Integers(8)  # what a table is rounded to if a scheme says nothing


def init(site: Site, scheme: Scheme) -> dict[str, Any]:
    """Return the states of the ranges of a site, by operand, "0" and "1": of nothing seen."""
    states = {}
    for side, (range_, grid) in _ranges(site, scheme).items():
        state = _unset(site, side, range_, grid, scheme) if isinstance(range_, Learned) else range_.init()
        states[str(side)] = state
    if (basis := basis_of(site, scheme)) is not None:
        states["basis"] = basis.init(tuple(site.shapes[0][axis] for axis in inner_axes(site, 0)))
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*site.stacked, *x.shape)), states)


def basis_of(site: Site, scheme: Scheme) -> Basis | None:
    """Return the coordinates into which the operands of a site are turned, if they are."""
    return scheme.basis if site.weight is not None and site.kind != "gather" else None


def turned(site: Site, scheme: Scheme, state: dict[str, Any], args: Sequence[Any]) -> list[Any]:
    """Turn both operands into the coordinates in which they are rounded."""
    return [turn(site, scheme, state, side, x) for side, x in enumerate(args)]


def turn(site: Site, scheme: Scheme, state: dict[str, Any], side: int, x: jax.Array) -> jax.Array:
    """Turn an operand into the coordinates in which it is rounded."""
    if (basis := basis_of(site, scheme)) is None:
        return x
    apply = basis.weight if side == site.weight else basis.activation
    return apply(x, state["basis"], inner_axes(site, side))


def inner_axes(site: Site, side: int) -> tuple[int, ...]:
    """Return the axes that are summed over, in the same order for both operands; of a convolution the features."""
    how = product(site)
    if isinstance(how, Conv):
        return ((how.numbers.lhs_spec, how.numbers.rhs_spec)[side][1],)
    return how.contracting[side]


def observe(site: Site, args: Sequence[Any], scheme: Scheme, state: dict[str, Any]) -> dict[str, Any]:
    """Fold operands into the states; a learned range is set once."""
    after, args = dict(state), turned(site, scheme, state, args[:2]) if site.kind != "gather" else args
    for side, (range_, grid) in _ranges(site, scheme).items():
        x, old = args[side], state[str(side)]
        if isinstance(range_, Learned):
            start = _start(site, side, range_, grid, scheme, x)
            after[str(side)] = jax.tree.map(lambda was, new: jnp.where(jnp.isnan(was), new, was), old, start)
        else:
            after[str(side)] = range_.update(old, x)
    return after


def _ranges(site: Site, scheme: Scheme) -> dict[int, tuple[Observer | Learned, Grid]]:
    """Return the ranges of a site that have a state, and their grids, by operand."""
    found: dict[int, tuple[Observer | Learned, Grid]] = {}
    for side in () if site.kind == "gather" else (0, 1):
        is_weight = side == site.weight
        range_, grid = (scheme.learned, scheme.weight) if is_weight else (scheme.static, scheme.activation)
        if range_ is not None and grid is not None:
            found[side] = range_, grid
    return found


def _unset(site: Site, side: int, range_: Learned, grid: Grid, scheme: Scheme) -> Any:
    x = jax.ShapeDtypeStruct(site.shapes[side], site.op.ins[side].aval.dtype)
    shapes = jax.eval_shape(lambda x: _start(site, side, range_, grid, scheme, x), x)
    return jax.tree.map(lambda like: jnp.full(like.shape, jnp.nan, like.dtype), shapes)


def _start(site: Site, side: int, range_: Learned, grid: Grid, scheme: Scheme, x: jax.Array) -> Any:
    """Set a learned range: of a weight with the axes of its scale, of an activation a scalar."""
    if side == site.weight:
        return range_.init(x, _scale_shape(site, product(site), side, x.shape, scheme), grid)
    found = range_.init(x, (1,) * x.ndim, grid)
    return jax.tree.map(lambda leaf: leaf.reshape(()), found)


def roundings(
    site: Site, how: Dot | Conv, args: Sequence[jax.Array], scheme: Scheme, state: dict[str, Any]
) -> Roundings:
    """Return how both operands of a product are rounded."""
    found: list[Rounding | None] = []
    for side, x in enumerate(args):
        if side == site.weight:
            found.append(rounding_of(site, x, scheme, state) if scheme.weight else None)
        else:
            found.append(activation(site, how, side, x, scheme, state))
    return found[0], found[1]


def activation(site: Site, how: Dot | Conv, side: int, x: jax.Array, scheme: Scheme, state: Any) -> Rounding | None:
    """Return how an operand that depends on the inputs is rounded."""
    grid, range_ = scheme.activation, scheme.static
    if grid is None:
        return None
    if range_ is None:
        largest = jnp.max(jnp.abs(x), axis=how.summed(side), keepdims=True, initial=0)
        return Rounding(grid, numerics.symmetric(largest, grid), clips=False)
    if isinstance(range_, Learned):
        own = jax.tree.map(lambda leaf: leaf.reshape((1,) * x.ndim), state[str(side)])
        return _learned(range_, own, grid, sharing=x.size / max(x.shape[0], 1) if x.ndim > 1 else x.size)
    return Rounding(grid, spread(known(site, side, scheme, state[str(side)]), x.ndim), clips=True)


def known(site: Site, side: int, scheme: Scheme, state: Any) -> Affine:
    """Return the scale and the zero point of a static range, as scalars."""
    grid, range_ = scheme.activation, scheme.static
    if grid is None or range_ is None:
        raise ValueError(f"`quantize`: operand {side} of {site.name!r} has no static range.")
    if isinstance(range_, Learned):
        return range_.affine(state, grid)
    low, high = range_.range(state, grid)
    if scheme.zero_point and isinstance(grid, Integers) and (site.weight is not None or side == 0):
        return numerics.asymmetric(low, high, grid)
    return numerics.symmetric(jnp.maximum(-low, high), grid)


def spread(affine: Affine, ndim: int) -> Affine:
    """Give scalars the axes of an operand."""
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (1,) * ndim), affine)


def rounding_of(site: Site, w: jax.Array, scheme: Scheme, state: Any) -> Rounding:
    """Return how the weight or the table of a site is rounded as a whole."""
    grid, shape = scheme.weight or TABLE, scale_shape_of(site, scheme)
    if scheme.learned is not None and site.kind != "gather":
        return _learned(scheme.learned, state[str(site.weight)], grid, sharing=w.size / max(prod(shape), 1))
    return fitted(w, shape, grid, scheme)


def weight_affine(site: Site, scheme: Scheme, w: jax.Array, state: Any) -> Affine:
    """Return the scales and zero points of one weight, fitted or learned."""
    return rounding_of(site, w, scheme, state).affine


def _learned(range_: Learned, state: Any, grid: Grid, sharing: float) -> Rounding:
    smooth = lambda x: range_.smooth(x, state, grid, max(sharing, 1))  # noqa: E731
    return Rounding(grid, jax.lax.stop_gradient(range_.affine(state, grid)), clips=True, learned=smooth)


def _scale_shape(site: Site, how: Dot | Conv, side: int, w: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    shape = [1 if axis in how.summed(side) else n for axis, n in enumerate(w)]
    if scheme.group_size is not None:
        shape[_grouped_axis(how, side)] = _groups(site, w[_grouped_axis(how, side)], scheme.group_size)
    return tuple(shape)


def _grouped_axis(how: Dot | Conv, side: int) -> int:
    return how.numbers.rhs_spec[1] if isinstance(how, Conv) else max(how.contracting[side])


def _groups(site: Site, length: int, group_size: int) -> int:
    if group_size < 1 or length % group_size:
        raise ValueError(
            f"`quantize`: {site.name!r} sums over {length} entries, not a multiple of group_size={group_size}."
        )
    return length // group_size


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
    rounding = fitted(rows, shape, scheme.weight or TABLE, scheme)
    return rounding.rounded(rows)


def fitted(w: jax.Array, shape: tuple[int, ...], grid: Grid, scheme: Scheme) -> Rounding:
    """Return the rounding of a weight whose scales are of that shape."""
    return Rounding(grid, scheme.fit(w, shape, grid), clips=scheme.fit is not fits.absmax)


def scale_shape_of(site: Site, scheme: Scheme) -> tuple[int, ...]:
    """Return the shape of the scales of the weight of a site, as its product sees it."""
    side = site.weight or 0
    if site.kind == "gather":
        return _rows_shape(site)
    return _scale_shape(site, product(site), side, site.shapes[side], scheme)


def _rows_shape(site: Site) -> tuple[int, ...]:
    """Return the shape of the scales of a table: one for each row that can be read."""
    sizes = site.op.params["slice_sizes"]
    return tuple(n if size == 1 else 1 for n, size in zip(site.shapes[0], sizes))


def has_zero_point(site: Site, scheme: Scheme) -> bool:
    """Tell whether the activation of a site that has a weight is rounded with a zero point."""
    if isinstance(scheme.static, Learned) and scheme.activation is not None:
        grid, range_ = scheme.activation, scheme.static
        x = jax.ShapeDtypeStruct((1,), jnp.float32)
        return jax.eval_shape(lambda x: range_.affine(range_.init(x, (1,), grid), grid), x).zero_point is not None
    return scheme.zero_point and isinstance(scheme.activation, Integers) and site.weight is not None


def unset(site: Site, scheme: Scheme, state: dict[str, Any]) -> list[int]:
    """Return the operands whose ranges were never observed."""
    found = []
    for side, (range_, grid) in _ranges(site, scheme).items():
        seen: Any = state[str(side)]
        if isinstance(range_, Observer):
            edges = lambda state, range_=range_, grid=grid: range_.range(state, grid)  # noqa: E731
            for _ in site.stacked:
                edges = jax.vmap(edges)
            seen = edges(seen)
        if any(bool(jnp.any(jnp.isnan(leaf))) for leaf in jax.tree.leaves(seen)):
            found.append(side)
    return found
