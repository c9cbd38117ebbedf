"""Cross-layer equalization: channels of like size, in a function that computes the same.

Behind a ReLU, a maximum, a sum, anything that lets a positive factor through, a channel may be made smaller by the
layer in front and be read larger by the layer behind. Which slices of which parameters go together is what the graph
knows; whether a factor passes is tried out. Factors are powers of two: the function stays the same to the last bit,
of float16, whose small numbers have fewer, to its rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxopt_compress import graph, tree
from jaxopt_compress.graph import Group, Slices

Sides = tuple[Sequence[Slices], Sequence[Slices]]  # those that make channels, those that read them
FACTORS = (-6, -1, 1, 6)  # exponents to be tried; large ones, so that a bound that the example does not reach is seen


class Equalized(NamedTuple):
    """Parameters of the same function; print it for a table.

    Attributes:
      params: the tree that was given, with other numbers.
      octaves: by the name of a group of channels how far the exponents of its factors are apart; 0 where nothing was to
        be done, None where no positive factor passes or nothing reads the channels.
    """

    params: Any
    octaves: dict[str, int | None]

    def __str__(self) -> str:
        table = Table("channels", "octaves", title="cross-layer equalization")
        for name, octaves in self.octaves.items():
            table.add_row(name, "no factor passes" if octaves is None else str(octaves))
        console = Console(width=100, no_color=True)
        with console.capture() as capture:
            console.print(table)
        return capture.get()


def equalize(fn: Callable, params: Any, *inputs: Any, rounds: int = 10) -> Equalized:
    """Make the largest weight of each channel alike in the layer that makes it and in those that read it.

    For scales that channels share: those of a whole tensor, of the inputs of a weight, of an activation. No data is
    needed but one example, on which it is tried whether a factor passes; a bound in the function that is more than 64
    times what the example reaches is not noticed.

    Args:
      fn: `fn(params, *inputs)`, as it is used: normalizations with statistics that are given.
      params: the trained parameters; statistics may be among them.
      *inputs: an example.
      rounds: how often all groups of channels are gone through at most; it ends where no factor is left.

    Returns:
      The parameters, and what was done.

    Raises:
      ValueError: `rounds` below 1; a leaf that is no array; an example of no rows; the outputs for the example changed.

    Reference: Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019, with the
    largest absolute weight for the range. There it is for pairs of layers with a ReLU between; here for all that go
    together, so that layers around a residual sum get one factor.

    Example:
      >>> mlp = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> params = {"up": jnp.array([[8.0, 1.0]]), "down": jnp.array([[1.0], [8.0]])}
      >>> after = equalize(mlp, params, jnp.ones((3, 1))).params
      >>> after["up"].tolist(), after["down"].tolist()
      ([[2.0, 4.0]], [[4.0], [2.0]])
    """
    if rounds < 1:
        raise ValueError(f"`equalize`: `rounds` is at least 1; got {rounds}.")
    traced = graph.trace(fn, params, *inputs)
    run = partial(jax.jit(lambda inputs, params: jax.tree.leaves(fn(params, *inputs))), inputs)
    before = run(params)
    if not any(map(np.size, before)):
        raise ValueError(
            "`equalize`: whether a factor passes is tried on an example; all outputs of this one are empty."
        )
    groups = [group for group in traced.groups if group.size > 1]
    found = {group.name: _sides(run, before, params, group) for group in groups}
    sides = {name: both for name, both in found.items() if both}
    total = {name: np.zeros(len(makers[0].index), int) for name, (makers, _) in sides.items()}
    after = params
    for _ in range(rounds):
        moved = False
        for name, both in sides.items():
            exponents = _exponents(tree.leaves(after), *both)
            after, total[name] = _moved(after, both, exponents), total[name] + exponents
            moved = moved or bool(exponents.any())
        if not moved:
            break
    if not all(map(_equal, before, run(after))):
        raise ValueError("`equalize`: the function must stay the same, and does not. Please report it.")
    return Equalized(after, {name: int(np.ptp(total[name])) if name in sides else None for name in found})


def _sides(run: Callable, before: Sequence[Any], params: Any, group: Group) -> Sides | None:
    """Find the slices that may be scaled, those that make channels against those that read them; None if none may."""
    leaves = tree.leaves(params)
    makers, readers = ([part for part in group.slices if part.makes == makes] for makes in (True, False))
    makers = [part for part in makers if jnp.issubdtype(leaves[part.path].dtype, jnp.inexact)]
    if not (makers and readers and all(jnp.issubdtype(leaves[part.path].dtype, jnp.inexact) for part in readers)):
        return None
    tried = np.random.default_rng(0).choice(FACTORS, group.size)
    tried[:2] = FACTORS[0], FACTORS[-1]  # at least these differ
    for some in _choices(run, params, makers):
        if some and all(map(_equal, before, run(_moved(params, (some, readers), tried)))):
            return some, readers
    return None


def _choices(run: Callable, params: Any, makers: Sequence[Slices]) -> Iterator[Sequence[Slices]]:
    """Yield sets of slices through which a channel may become smaller by one factor.

    All slices that make it are too many behind a normalization with given statistics, whose own scale takes up the
    factor, and of a gated product, of which one side does. Few enough are those without any of which the channel is no
    longer zero when the others are.
    """
    yield makers
    leaves, nothing = tree.leaves(params), np.zeros(len(makers[0].index))
    masked = run(_scaled(params, makers, nothing))
    for order in (makers, makers[::-1]):
        left = list(order)
        for part in sorted(order, key=lambda part: leaves[part.path].ndim == 1):
            fewer = [other for other in left if other is not part]
            if all(map(_equal, masked, run(_scaled(params, fewer, nothing)))):
                left = fewer
        yield left


def _exponents(leaves: dict[str, Any], makers: Sequence[Slices], readers: Sequence[Slices]) -> np.ndarray:
    """Return for each channel the power of two that makes both sides alike: those that make it become smaller by it."""
    kernels = [part for part in makers if leaves[part.path].ndim > 1]
    made, read = (_largest(leaves, side) for side in (kernels or makers, readers))
    known = (made > 0) & (read > 0) & np.isfinite(made) & np.isfinite(read)  # else there is nothing to be made alike
    ratio = np.where(known, made, 1) / np.where(known, read, 1)
    return np.rint(np.log2(ratio) / 2).astype(int)


def _largest(leaves: dict[str, Any], side: Sequence[Slices]) -> np.ndarray:
    """Return the largest weight of each channel, as a part of the largest of its leaf."""
    found = []
    for part in side:
        leaf = jnp.abs(leaves[part.path]).astype(jnp.float32)
        along = np.asarray(jnp.max(leaf, axis=tuple(a for a in range(leaf.ndim) if a != part.axis), initial=0))
        largest = along.max(initial=0, where=np.isfinite(along))
        found.append(along[part.index].max(1, initial=0) / max(largest, np.finfo(np.float32).tiny))
    return np.max(found, axis=0)


def _moved(params: Any, sides: Sides, exponents: np.ndarray) -> Any:
    """Divide the slices that make channels by powers of two, and multiply those that read them."""
    makers, readers = sides
    return _scaled(_scaled(params, makers, np.ldexp(1.0, -exponents)), readers, np.ldexp(1.0, exponents))


def _scaled(params: Any, side: Sequence[Slices], factors: np.ndarray) -> Any:
    """Multiply the slices of each channel."""
    leaves = tree.leaves(params)
    for part in side:
        leaf = jnp.asarray(leaves[part.path])
        along = np.ones(leaf.shape[part.axis])
        along[part.index] = factors[:, None]
        shape = [1] * leaf.ndim
        shape[part.axis] = -1
        leaves[part.path] = leaf * jnp.asarray(along.reshape(shape), leaf.dtype)
    return tree.replace(params, leaves)


def _equal(one: Any, other: Any) -> bool:
    """Compare two outputs bit for bit, NaN with NaN; where small numbers lose bits, as in float16, to the rounding."""
    one, other = np.asarray(one), np.asarray(other)
    if not jnp.issubdtype(one.dtype, jnp.inexact):
        return bool(np.array_equal(one, other))
    kind = jnp.finfo(one.dtype)
    if kind.minexp < -100:
        return bool(np.array_equal(one, other, equal_nan=True))
    one, other = one.astype(np.float32), other.astype(np.float32)
    largest = np.abs(one).max(initial=0, where=np.isfinite(one))
    return bool(np.allclose(one, other, rtol=0, atol=4 * float(kind.eps) * largest, equal_nan=True))
