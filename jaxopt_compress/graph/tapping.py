"""A function that returns, beside its outputs, values from inside."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import tree
from jaxopt_compress.graph.program import Op, Program, program
from jaxopt_compress.graph.rewriting import watch
from jaxopt_compress.graph.sites import Site
from jaxopt_compress.graph.taps import Tap, Taps, taps_of


@dataclass(frozen=True, eq=False)
class Tapped:
    """A function with taps: `(params, *inputs) -> (outputs, features)`, the features by name.

    Attributes:
      fn: the function.
      names: of the taps.
      shapes: of the features, by name, for the inputs that it was built with.
    """

    fn: Callable
    names: tuple[str, ...]
    shapes: dict[str, jax.ShapeDtypeStruct]

    def __call__(self, params: Any, *inputs: Any) -> tuple[Any, dict[str, jax.Array]]:
        """Run the function once; where the taps are is looked up anew, so that inputs may have other lengths."""

        def find(whole: Program, paths: Sequence[str]) -> dict[Site, dict[str, jax.Array]]:
            places: dict[Op, dict[str, Tap]] = defaultdict(dict)
            for name, here in _resolved(self.names, taps_of(whole, paths)).items():
                places[here.op][name] = here
            for op, held in places.items():
                name, first = next(iter(held.items()))
                sites[name] = held
                site = Site(name, op, None, "", loops=first.loops)
                blank[site] = {each: jnp.zeros(tap.shape.shape, tap.shape.dtype) for each, tap in held.items()}
            return blank

        def read(site: Site, args: Sequence[Any], outs: Sequence[Any]) -> dict[str, jax.Array]:
            return {name: (args if tap.takes else outs)[tap.place] for name, tap in sites[site.name].items()}

        blank: dict[Site, dict[str, jax.Array]] = {}
        sites: dict[str, dict[str, Tap]] = {}
        outputs, found = watch(self.fn, find, read)(params, *inputs)
        features = {name: value for held in found.values() for name, value in held.items()}
        return outputs, {name: features[name] for name in self.names}


def taps(fn: Callable, params: Any, *inputs: Any) -> dict[str, tuple[jax.ShapeDtypeStruct, ...]]:
    """List the values inside a function that `tap` can read, by name.

    Args:
      fn: `fn(params, *inputs)`, pure.
      params: any pytree of arrays or shapes.
      *inputs: what else it takes, arrays or shapes.

    Returns:
      What a name stands for: one value, or several, which have names of their own too.

    Example:
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["a"]) @ params["b"]
      >>> shapes = taps(mlp, {"a": jnp.ones((4, 3)), "b": jnp.ones((3, 2))}, jnp.ones((8, 4)))
      >>> {name: shape.shape for name, (shape,) in shapes.items()}
      {'out:a': (8, 3), 'in:a': (8, 4), 'out:b': (8, 2), 'in:b': (8, 3)}
    """
    return {name: tuple(tap.shape for tap in found) for name, found in _listed(fn, params, inputs).items()}


def tap(fn: Callable, names: Iterable[str], params: Any, *inputs: Any) -> Tapped:
    """Return a function that also returns values from inside, for losses on features.

    The function is read from its jaxpr, so that it need not know: a module of Linen or NNX, or bare JAX. It still runs
    once, under any transformation.

    Args:
      fn: `fn(params, *inputs)`, pure.
      names: as `taps` lists them; the first part of a path, such as the outermost module, may be left out.
      params: any pytree of arrays or shapes.
      *inputs: what else it takes, arrays or shapes.

    Raises:
      ValueError: a name that the function does not have, that several values have, or that stands there twice.

    Example:
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["a"]) @ params["b"]
      >>> params = {"a": jnp.ones((4, 3)), "b": jnp.ones((3, 2))}
      >>> logits, features = tap(mlp, ["in:b"], params, jnp.ones((8, 4)))(params, jnp.ones((8, 4)))
      >>> features["in:b"].shape
      (8, 3)
    """
    names = tuple(names)
    if len(set(names)) < len(names):
        raise ValueError(f"`tap`: a name stands there once; got {list(names)}.")
    found = _resolved(names, _listed(fn, params, inputs))
    return Tapped(fn, names, {name: here.shape for name, here in found.items()})


def _listed(fn: Callable, params: Any, inputs: Any) -> Taps:
    leaves = tree.leaves(params)
    return taps_of(program(jax.make_jaxpr(fn)(params, *inputs), len(leaves)), tuple(leaves))


def _resolved(names: Sequence[str], found: Taps) -> dict[str, Tap]:
    inner = defaultdict[str, list[str]](list)
    for key in found:
        side, colon, path = key.rpartition(":")
        inner[side + colon + path.partition("/")[2]].append(key)
    chosen = {}
    for name in names:
        keys = [name] if name in found else inner[name]
        taps = [tap for key in keys for tap in found[key]]
        if len(taps) != 1:
            what = "stands for several values" if taps else "is no tap"
            listed = "\n  ".join(f"{key} {', '.join(map(_text, found[key]))}" for key in keys or found)
            raise ValueError(f"`tap`: {name!r} {what} of this function; there are\n  {listed}")
        chosen[name] = taps[0]
    return chosen


def _text(tap: Tap) -> str:
    return f"{tap.shape.dtype.name}{list(tap.shape.shape)}"
