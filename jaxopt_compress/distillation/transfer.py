"""A student that starts from parts of its teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import tree

Source = str | tuple[str, Sequence[int]]
EVERYTHING: Mapping[str, Source] = {"": ""}


def inherit(student: Any, teacher: Any, layers: Mapping[str, Source] = EVERYTHING) -> Any:
    """Start a student from some layers of its teacher.

    A teacher with too many channels is made narrower first: `shrinking.shrink(fn, params, x, ratio=0.5)` keeps those
    that matter, everywhere where the graph says that they occur.

    Args:
      student: its parameters; what `layers` does not name stays.
      teacher: its parameters.
      layers: from the path of a leaf or a subtree of the student to the one of the teacher: `{"block_1": "block_3"}`.
        Of layers that are stacked along the first axis, `("blocks", [0, 2, 4])` takes some. Of both everything if left
        out.

    Returns:
      The student's parameters, in its dtypes.

    Raises:
      ValueError: a path that is not there, leaves or shapes that differ, a layer number outside of the stack.

    Example:
      >>> teacher = {"blocks": jnp.arange(6.0).reshape(6, 1), "head": jnp.ones(2)}
      >>> student = {"blocks": jnp.zeros((3, 1)), "head": jnp.zeros(2)}
      >>> inherit(student, teacher, {"blocks": ("blocks", [0, 2, 4])})["blocks"].ravel().tolist()
      [0.0, 2.0, 4.0]

    Reference: Sanh et al., "DistilBERT, a distilled version of BERT", 2019 (every second layer).
    """
    mine, theirs, new = tree.leaves(student), tree.leaves(teacher), {}
    for path, source in layers.items():
        origin, turns = (source, None) if isinstance(source, str) else source
        wanted, given = _below(mine, path, "student"), _below(theirs, origin, "teacher")
        if wanted.keys() != given.keys():
            differ = sorted(wanted.keys() ^ given.keys())
            raise ValueError(f"`inherit`: {path!r} and {origin!r} have the same leaves; only one has {differ}.")
        for rest, name in wanted.items():
            new[name] = _taken(name, mine[name], given[rest], theirs[given[rest]], turns)
    return tree.replace(student, new)


def _below(leaves: Mapping[str, Any], path: str, whose: str) -> dict[str, str]:
    """Return the paths at and below a path, by what they have behind it."""
    found = {name[len(path) :]: name for name in leaves if name == path or not path or name.startswith(f"{path}/")}
    if not found:
        raise ValueError(f"`inherit`: {path!r} is no path of the {whose}; it has {list(leaves)}.")
    return found


def _taken(name: str, mine: Any, origin: str, theirs: Any, turns: Sequence[int] | None) -> Any:
    if turns is not None:
        layers = jnp.shape(theirs)[:1]
        if not layers or not all(0 <= turn < layers[0] for turn in turns):
            raise ValueError(f"`inherit`: {origin!r} has {layers[0] if layers else 'no'} layers; got {list(turns)}.")
        theirs = theirs[jnp.asarray(turns, int)]
    if jnp.shape(mine) != jnp.shape(theirs):
        raise ValueError(f"`inherit`: {name!r} is {jnp.shape(mine)}; {origin!r} gives {jnp.shape(theirs)}.")
    return theirs.astype(mine.dtype) if isinstance(mine, jax.Array) else theirs
