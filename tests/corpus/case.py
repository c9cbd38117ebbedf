"""What one entry of the corpus is, and a short way to write its axes."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Case:
    """A model, and which axes of its leaves can be removed. An axis in none of the three is one nobody vouches for.

    Attributes:
        name: unique in the corpus.
        make: returns `(fn, params, inputs)`; the function is called as `fn(params, *inputs)`.
        exact: some slices of the axis can be removed, and the smaller function equals the masked one.
        inexact: slices can be removed, but not exactly; this must be said.
        pinned: must not be removable: visible to the caller, an input, an unknown primitive, data-dependent.
    """

    name: str
    make: Callable[[], tuple[Callable[..., Any], Any, tuple]]
    exact: Axes
    inexact: Axes = ()
    pinned: Axes = ()


def axes(text: str) -> Axes:
    """Return the axes in `text`: "a/{b,c}:0,1 d:2" is a/b axes 0 and 1, a/c axes 0 and 1, d axis 2."""
    found = []
    for token in text.split():
        path, _, numbers = token.rpartition(":")
        found += [(one, int(axis)) for one in _expanded(path) for axis in numbers.split(",")]
    return tuple(found)


def _expanded(path: str) -> list[str]:
    parts = re.split(r"\{([^}]*)\}", path)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]
