"""Matrix products and convolutions as functions of their two operands, with what is to be known to scale them.

A scale has the axes of its operand, of length 1 where the operand is summed over. `outward` turns it into an array that
broadcasts with the output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxopt_compress.graph import Site

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Dot:
    """A `dot_general`; its output has the batch axes, then what is left of the first operand, then of the second.

    Attributes:
      contracting: the axes that are summed over, of each operand.
      batch: the axes that go together, of each operand.
      ndims: the number of axes, of each operand.
      sharding: how the output is split over a mesh with explicit axes, if it is said.
    """

    contracting: tuple[Axes, Axes]
    batch: tuple[Axes, Axes]
    ndims: tuple[int, int]
    sharding: Any = None

    def __call__(self, a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
        """Multiply; the sums are of that dtype."""
        numbers = (self.contracting, self.batch)
        return lax.dot_general(a, b, numbers, preferred_element_type=dtype, out_sharding=self.sharding)

    def summed(self, side: int) -> Axes:
        """Return the axes of an operand that are summed over."""
        return self.contracting[side]

    def free(self, side: int) -> Axes:
        """Return the axes of an operand that come out alone."""
        taken = {*self.contracting[side], *self.batch[side]}
        return tuple(axis for axis in range(self.ndims[side]) if axis not in taken)

    def outward(self, side: int, scale: jax.Array) -> jax.Array:
        """Lay out a scale like the output."""
        order = (*self.batch[side], *self.free(side), *self.contracting[side])
        scale, batch = lax.transpose(scale, order), len(self.batch[side])
        mine, others = len(self.free(side)), len(self.free(1 - side))
        sizes = scale.shape[: batch + mine]
        ones = (1,) * others
        return scale.reshape((*sizes, *ones) if side == 0 else (*sizes[:batch], *ones, *sizes[batch:]))

    def matrix(self, side: int, x: jax.Array) -> jax.Array:
        """View an operand, or its scales, as `(batch, rows, summed)`; of weights the rows are outputs."""
        groups = self._parts(side)
        moved = lax.transpose(x, [axis for group in groups for axis in group])
        return moved.reshape([prod(x.shape[axis] for axis in group) for group in groups])

    def operand(self, side: int, matrix: jax.Array, shape: Axes) -> jax.Array:
        """Undo `matrix` for an operand of some shape."""
        order = [axis for group in self._parts(side) for axis in group]
        moved = matrix.reshape([shape[axis] for axis in order])
        return lax.transpose(moved, [order.index(axis) for axis in range(len(shape))])

    def rows(self, side: int, x: jax.Array, weight: Axes) -> jax.Array:
        """View an activation as the rows that are multiplied with each output of a weight, `(batch, rows, summed)`."""
        del weight
        return self.matrix(side, x)

    def output(self, side: int, found: jax.Array, other: Axes, weight: Axes) -> jax.Array:
        """Give what comes out, `(batch, rows, outs)`, the shape that the product has.

        Args:
          side: which operand the weight is.
          found: of the rows of the other one.
          other: the shape of the other one.
          weight: that of the weight.
        """
        found = jnp.swapaxes(found, 1, 2) if side == 0 else found
        shapes = (weight, other) if side == 0 else (other, weight)
        batch = [shapes[0][axis] for axis in self.batch[0]]
        return found.reshape([*batch, *(shapes[s][axis] for s in (0, 1) for axis in self.free(s))])

    def added(self, side: int, bias: jax.Array, weight: Axes) -> jax.Array:
        """Lay out numbers for each output of a weight, `(batch, outputs)`, so that they can be added to the output."""
        return _added(self, side, bias, weight)

    def _parts(self, side: int) -> tuple[Axes, Axes, Axes]:
        return self.batch[side], self.free(side), self.contracting[side]

    def transposed(self, side: int, g: jax.Array, other: jax.Array) -> jax.Array:
        """Return the cotangent of an operand in float32, given that of the output and the other operand."""
        batch, mine, others = len(self.batch[0]), self.free(side), self.free(1 - side)
        rank = tuple(sorted(self.contracting[1 - side]))  # what is left of the other operand, in its own order
        paired = tuple(self.contracting[side][self.contracting[1 - side].index(axis)] for axis in rank)
        start = batch + len(mine) if side == 0 else batch
        places = tuple(range(start, start + len(others)))
        left = tuple(axis for axis in range(batch, g.ndim) if axis not in places)
        parts = [
            _Part(g, tuple(range(batch)), left, places, mine),
            _Part(other, self.batch[1 - side], rank, others, paired),
        ]
        parts.sort(key=lambda part: (part.turned, part.into))  # of equals, as the operand lies
        found = _matrix_product(*parts)
        order = (*self.batch[side], *parts[0].into, *parts[1].into)
        return lax.transpose(found, [order.index(axis) for axis in range(self.ndims[side])])


class _Part(NamedTuple):
    """A factor of a cotangent.

    Attributes:
      x: the array.
      batch: its axes that go together with those of the other factor.
      kept: its axes that come out.
      summed: its axes that are summed over.
      into: where the ones that come out stand in the operand.
    """

    x: jax.Array
    batch: Axes
    kept: Axes
    summed: Axes
    into: Axes

    @property
    def turned(self) -> int:
        """Return how many numbers have to move to be rows of what is summed over."""
        return 0 if self.kept < self.summed else self.x.size

    def matrix(self, *groups: Axes) -> jax.Array:
        """View it as matrices. XLA:CPU cannot run products of bfloat16 with several axes in place of one."""
        x = lax.transpose(self.x, (*self.batch, *(axis for group in groups for axis in group)))
        sizes = x.shape[: len(self.batch)]
        return x.reshape((*sizes, *(prod(self.x.shape[axis] for axis in group) for group in groups)))


def _matrix_product(a: _Part, b: _Part) -> jax.Array:
    """Multiply and add up in float32."""
    run = lambda lay: lambda x, y: _multiplied(a._replace(x=x), b._replace(x=y), lay)  # noqa: E731
    found = lax.platform_dependent(a.x, b.x, cpu=run(_row_major), default=run(lambda x: x))
    sizes = (part.x.shape[axis] for part in (a, b) for axis in part.kept)
    return found.reshape((*found.shape[: len(a.batch)], *sizes))


def _multiplied(a: _Part, b: _Part, lay: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Multiply as matrices, each of which `lay` has laid out.

    XLA:CPU has kernels of bfloat16 for rows of what is summed over, on the left; a transposed matrix, which it would
    rather take as it lies, takes 5 times as long, or has none at all. The smaller factor is the one that is turned.
    """
    batch, last = tuple(range(len(a.batch))), not b.turned
    rows = lay(a.matrix(a.kept, a.summed))
    columns = lay(b.matrix(b.kept, b.summed) if last else b.matrix(b.summed, b.kept))
    numbers = (((len(batch) + 1,), (len(batch) + last,)), (batch, batch))
    return lay(lax.dot_general(rows, columns, numbers, preferred_element_type=jnp.float32))


def _row_major(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


@dataclass(frozen=True)
class Conv:
    """A `conv_general_dilated`.

    Attributes:
      numbers: where batch, features and window stand in the two operands and in the output.
      strides, padding, lhs_dilation, rhs_dilation, groups: as in JAX.
    """

    numbers: lax.ConvDimensionNumbers
    strides: Axes
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: Axes
    rhs_dilation: Axes
    groups: int

    def __call__(self, a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
        """Convolve; the sums are of that dtype."""
        return lax.conv_general_dilated(
            *(a, b, self.strides, self.padding, self.lhs_dilation, self.rhs_dilation, self.numbers, self.groups),
            preferred_element_type=dtype,
        )

    def summed(self, side: int) -> Axes:
        """Return the axes of an operand that are summed over: of the input all but the batch."""
        spec = self.numbers.lhs_spec if side == 0 else self.numbers.rhs_spec
        return tuple(sorted(spec[1:]))

    def outward(self, side: int, scale: jax.Array) -> jax.Array:
        """Lay out a scale like the output."""
        spec, out = (self.numbers.lhs_spec, self.numbers.rhs_spec)[side], self.numbers.out_spec
        sizes = [1] * scale.ndim
        sizes[out[side]] = scale.shape[spec[0]]
        return scale.reshape(sizes)

    def matrix(self, side: int, x: jax.Array) -> jax.Array:
        """View the kernel, or its scales, as `(groups, outputs, summed)`."""
        if side == 0:
            raise ValueError("`Conv.matrix`: the input is read in windows; see `rows`.")
        moved = lax.transpose(x, self.numbers.rhs_spec)
        return moved.reshape(self.groups, moved.shape[0] // self.groups, prod(moved.shape[1:]))

    def operand(self, side: int, matrix: jax.Array, shape: Axes) -> jax.Array:
        """Undo `matrix` for a kernel of some shape."""
        del side
        order = self.numbers.rhs_spec
        moved = matrix.reshape([shape[axis] for axis in order])
        return lax.transpose(moved, [order.index(axis) for axis in range(len(shape))])

    def rows(self, side: int, x: jax.Array, weight: Axes) -> jax.Array:
        """View the input as the windows that are multiplied with each output, `(groups, places, summed)`."""
        del side
        window = [weight[axis] for axis in self.numbers.rhs_spec[2:]]
        moved = lax.transpose(x, self.numbers.lhs_spec)  # batch, features, places
        found = lax.conv_general_dilated_patches(
            *(moved, window, self.strides, self.padding, self.lhs_dilation, self.rhs_dilation),
            precision=lax.Precision.HIGHEST,
        )
        examples, places, size = found.shape[0], prod(found.shape[2:]), found.shape[1] // self.groups
        split = found.reshape(examples, self.groups, size, places)
        return lax.transpose(split, (1, 0, 3, 2)).reshape(self.groups, examples * places, size)

    def added(self, side: int, bias: jax.Array, weight: Axes) -> jax.Array:
        """Lay out numbers for each output, `(groups, outputs)`, so that they can be added to the output."""
        return _added(self, side, bias, weight)

    def transposed(self, side: int, g: jax.Array, other: jax.Array, shape: Axes) -> jax.Array:
        """Return the cotangent of an operand of some shape, all in float32: no other dtype has fast kernels on CPU."""
        like = jax.ShapeDtypeStruct(shape, jnp.float32)
        given = (lambda x: self(x, other, jnp.float32)) if side == 0 else (lambda x: self(other, x, jnp.float32))
        return jax.linear_transpose(given, like)(g)[0]

    def padded(self, a: jax.Array, filling: jax.Array) -> tuple["Conv", jax.Array]:
        """Pad the input with a code that stands for 0; return the convolution that is left to do."""
        config = [(0, 0, 0)] * a.ndim
        for axis, (low, high), dilation in zip(self.numbers.lhs_spec[2:], self.padding, self.lhs_dilation):
            config[axis] = (low, high, dilation - 1)
        none = ((0, 0),) * len(self.padding)
        rest = Conv(self.numbers, self.strides, none, (1,) * len(none), self.rhs_dilation, self.groups)
        return rest, lax.pad(a, filling, config)


def _added(how: "Dot | Conv", side: int, bias: jax.Array, weight: Axes) -> jax.Array:
    summed = how.summed(side)
    like = tuple(1 if axis in summed else n for axis, n in enumerate(weight))
    return how.outward(side, how.operand(side, bias[..., None], like))


def product(site: Site) -> Dot | Conv:
    """Read a site.

    Raises:
      ValueError: a primitive that is no plain product, such as a ragged one.
    """
    p = site.op.params
    if site.kind == "dot_general":
        contracting, batch = p["dimension_numbers"]
        pair: Any = lambda parts: tuple(map(tuple, parts))  # noqa: E731
        first, second = site.shapes
        return Dot(pair(contracting), pair(batch), (len(first), len(second)), p.get("out_sharding"))
    if site.kind == "conv_general_dilated" and p["batch_group_count"] == 1:
        strides, padding, lhs, rhs = (
            tuple(p[name]) for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        )
        return Conv(p["dimension_numbers"], strides, padding, lhs, rhs, p["feature_group_count"])
    raise ValueError(
        f"`product`: {site.name!r} is a `{site.kind}` ({site.op.source}), no plain product, so it cannot be rounded."
    )


def runs(summed: Sequence[int], shape: Axes) -> int:
    """Return how many entries go into one sum."""
    return prod(shape[axis] for axis in summed)
