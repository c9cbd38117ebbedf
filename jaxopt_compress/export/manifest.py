"""The manifest: which tree the sections of a file belong to, as JSON.

A node of the tree is a JSON value:

| in the tree | in the manifest |
|---|---|
| `None`, `bool`, `int` | itself |
| `float` | `["float", hex]`, the sixteen digits of its bits |
| `list`, `tuple` | `["list", node, ...]`, `["tuple", node, ...]` |
| any other container | `{key: node, ...}`; with integers for keys `["dict", [key, ...], node, ...]` |
| array | `[dtype, shape, "dense", how]` or `[dtype, shape, "sparse", count, how, how]` |
| `Quantized` | `["quantized", dtype, codes, scale]`, both arrays; the dtype of the codes is int2 to int8 |
| any other `Quantized` | `["quantized", dtype, grid, codes, scale]` and a zero point if it has one; version 2 |

A grid is `["integers", restricted]`, `["floats", exponent, mantissa, reserved]` or `["levels", hex, ...]`. A file says
the first version that can hold it.

`how` is "raw" or "deflate", one for each section; the sections follow each other as the arrays do.
"""

import itertools
import json
import re
import reprlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import encoded, tree
from jaxopt_compress.export import packing, stored
from jaxopt_compress.export.packing import Layout, Section

VERSIONS = (1, 2)
MOST_DEPTH = 100
MOST_AXES = 64  # of a NumPy array


@dataclass(frozen=True)
class Slot:
    """The place of a leaf in a tree that is being read.

    Attributes:
      layouts: of the array, or of the codes, the scale and the zero point.
      first: the number of its first section.
      form: what else is to be known of a `Quantized`; `None` for an array.
    """

    layouts: tuple[Layout, ...]
    first: int
    form: stored.Form | None

    def share(self, sections: Sequence) -> list[tuple[Layout, Sequence]]:
        """Deal out what belongs to each layout, of all the sections of the file or of their lengths."""
        ends = list(itertools.accumulate((len(layout.deflated) for layout in self.layouts), initial=self.first))
        return [(layout, sections[start:end]) for layout, start, end in zip(self.layouts, ends, ends[1:])]


def write(model) -> tuple[str, list[bytes]]:
    """Return the manifest of a model and its sections.

    Raises:
      ValueError: a leaf or a container that a file cannot hold.
    """
    sections: list[bytes] = []
    node = _node((), model, sections)
    leaves = tree.leaves(model, is_leaf=encoded.is_encoded)  # refuses two leaves with one path
    version = max(map(stored.version, leaves.values()), default=1)
    return json.dumps({"version": version, "model": node}, separators=(",", ":")), sections


def _node(key_path: tuple, value, sections: list[bytes]):
    if len(key_path) > MOST_DEPTH:
        raise ValueError(f"{_name(key_path)[:80]}... lies deeper than {MOST_DEPTH} levels; is a node its own child?")
    children = _children(value)
    if children is None:
        return _leaf(key_path, value, sections)
    nodes = [_node((*key_path, key), child, sections) for key, child in children]
    if type(value) in (list, tuple):
        return [type(value).__name__, *nodes]
    keys = [_key(key) for key, _ in children]
    if all(type(key) is str for key in keys):
        return dict(zip(keys, nodes))
    if all(type(key) is int for key in keys):
        return ["dict", keys, *nodes]
    raise ValueError(f"{_name(key_path)} has the keys {keys}; a file holds keys that are all str or all int.")


def _children(value) -> list[tuple[Any, Any]] | None:
    """Return the children of a container with their keys, or `None` for a leaf."""
    if value is None or encoded.is_encoded(value):
        return None
    calls = itertools.count()  # not `x is value`: a list may hold itself
    flat, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda _: next(calls) > 0)
    return None if flat and flat[0][0] == () else [(key_path[0], child) for key_path, child in flat]


def _key(entry):
    found = (getattr(entry, name) for name in ("key", "name", "idx") if hasattr(entry, name))
    return next(found, tree.path_str((entry,)))


def _name(key_path: tuple) -> str:
    return repr(tree.path_str(key_path))


def _leaf(key_path: tuple, value, sections: list[bytes]):
    if value is None or type(value) is bool:
        return value
    if type(value) is int:
        return _at(tree.path_str(key_path), _int, value)
    if type(value) is float:
        return ["float", struct.pack(">d", value).hex()]
    packed = _at(tree.path_str(key_path), stored.pack_leaf, value)
    sections.extend(section for _, parts in packed for section in parts)
    if not isinstance(value, encoded.Quantized):
        return _entry(packed[0][0], packed[0][0].dtype)
    return stored.node(value, [layout for layout, _ in packed], _entry)


def _entry(layout: Layout, dtype: str) -> list:
    count = [] if layout.count is None else [layout.count]
    coding = "dense" if layout.count is None else "sparse"
    hows = ["deflate" if deflated else "raw" for deflated in layout.deflated]
    return [dtype, list(layout.shape), coding, *count, *hows]


def read(text: str, lengths: Sequence[int]) -> Any:
    """Return the tree of a manifest, with a `Slot` for each array, after checking all that needs no section.

    Args:
      text: the manifest.
      lengths: the bytes of each section in the file.

    Raises:
      ValueError: a manifest that `write` cannot have written for such sections.
    """
    top = _parse(text)
    version = top.get("version") if isinstance(top, dict) else None
    if type(version) is not int or version not in VERSIONS:
        raise ValueError(f"its format version is {reprlib.repr(version)}; this library reads {VERSIONS}.")
    if set(top) != {"version", "model"}:
        raise ValueError(f"its manifest has the entries {reprlib.repr(sorted(top))}, not `version` and `model`.")
    numbers = itertools.count()
    plan = _plan((), top["model"], numbers)
    if (used := next(numbers)) != len(lengths):
        raise ValueError(f"its manifest speaks of {used} sections; the file has {len(lengths)}.")
    for path, slot in slots(plan).items():
        for layout, own in slot.share(lengths):
            _at(path, packing.check_lengths, layout, own)
    return plan


def slots(plan) -> dict[str, Slot]:
    """List the places of arrays and stored forms in a tree that is being read, by path."""
    return {path: leaf for path, leaf in tree.leaves(plan).items() if isinstance(leaf, Slot)}


def fill(plan, sections: Sequence[Section]):
    """Return the tree of a plan with its leaves.

    Raises:
      ValueError: a section that does not hold what its leaf asks for.
    """
    return tree.replace(plan, {path: _at(path, _fill, slot, sections) for path, slot in slots(plan).items()})


def _fill(slot: Slot, sections: Sequence[Section]):
    parts = slot.share(sections)
    if slot.form is None:
        return _placed([packing.unpack(*parts[0])])[0]
    codes = packing.unpack(*parts[0], check=partial(stored.check_codes, slot.form))
    return slot.form.make(_placed([codes, *(packing.unpack(layout, own) for layout, own in parts[1:])]))


def _placed(arrays: list[np.ndarray]) -> list:
    """Make JAX arrays of all, or of none where JAX would round one to 32 bits (without `jax_enable_x64`)."""
    if any(jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype for array in arrays):
        return [np.array(array) for array in arrays]
    return [jnp.asarray(array) for array in arrays]


def _at(where: str, fn, *args):
    try:
        return fn(*args)
    except ValueError as error:
        raise ValueError(f"{where!r} {error}") from error


def _parse(text: str):
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_refuse)
    except RecursionError:
        raise ValueError("its manifest is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"its manifest is not the JSON that `save` writes: {error}.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key occurs twice among {reprlib.repr([key for key, _ in pairs])}")
    return found


def _refuse(number: str):
    raise ValueError(f"it has the number {number[:20]}")


def _plan(path: tuple[str, ...], node, numbers: Iterator[int]):
    if len(path) > MOST_DEPTH:
        raise ValueError(f"its manifest is nested deeper than {MOST_DEPTH} levels.")
    where = "/".join(path)
    match node:
        case None | bool():
            return node
        case int():
            return _at(where, _int, node)
        case ["float", str(digits)] if re.fullmatch("[0-9a-f]{16}", digits):
            return struct.unpack(">d", bytes.fromhex(digits))[0]
        case dict():
            return _inner(path, node.keys(), node.values(), numbers)
        case ["dict", [*keys], *nodes] if len(keys) == len(nodes) and all(type(key) is int for key in keys):
            return _inner(path, keys, nodes, numbers)
        case ["list", *nodes]:
            return list(_inner(path, range(len(nodes)), nodes, numbers).values())
        case ["tuple", *nodes]:
            return tuple(_inner(path, range(len(nodes)), nodes, numbers).values())
        case ["quantized", str(dtype), codes, scale]:
            return _at(where, _quantized, dtype, None, (codes, scale), numbers)
        case ["quantized", str(dtype), grid, codes, scale, *zero] if len(zero) < 2:
            return _at(where, _quantized, dtype, grid, (codes, scale, *zero), numbers)
        case _:
            return _at(where, _array, node, numbers)


def _inner(path: tuple[str, ...], keys: Iterable, nodes: Iterable, numbers: Iterator[int]) -> dict:
    found = {key: _plan((*path, str(key)), child, numbers) for key, child in zip(keys, nodes)}
    if len(found) != len(list(keys)):
        raise ValueError(f"{'/'.join(path)!r} has a key twice.")
    return found


def _int(value: int) -> int:
    if not -(2**63) <= value < 2**64:
        raise ValueError("is an int that needs more than 64 bits.")
    return value


def _array(node, numbers: Iterator[int]) -> Slot:
    return _slot((_layout(node, packing.WIDTHS),), None, numbers)


def _quantized(dtype: str, grid, arrays: Sequence, numbers: Iterator[int]) -> Slot:
    codes, *rest = arrays
    layouts = _layout(codes, stored.CODES), *(_layout(node, packing.WIDTHS) for node in rest)
    form = stored.form(dtype, grid, layouts[0].width)
    stored.check(form, layouts)
    return _slot(layouts, form, numbers)


def _slot(layouts: tuple[Layout, ...], form: stored.Form | None, numbers: Iterator[int]) -> Slot:
    first, *_ = [next(numbers) for layout in layouts for _ in layout.deflated]
    return Slot(layouts, first, form)


def _layout(node, widths: dict[str, int]) -> Layout:
    match node:
        case [str(dtype), [*shape], "dense", how]:
            count, hows = None, [how]
        case [str(dtype), [*shape], "sparse", int(count), *hows] if len(hows) == 2 and type(count) is int:
            pass
        case _:
            raise ValueError(f"is nothing that this library knows: {reprlib.repr(node)}.")
    if dtype not in widths:
        raise ValueError(f"has the unknown dtype {reprlib.repr(dtype)}.")
    if len(shape) > MOST_AXES or not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise ValueError(f"has the shape {reprlib.repr(shape)}.")
    if any(how not in ("raw", "deflate") for how in hows):
        raise ValueError(f"has a section that is {reprlib.repr(hows)}, neither raw nor deflate.")
    in_memory = dtype.rstrip("12345678") + "8" if widths is stored.CODES else dtype
    return Layout(in_memory, widths[dtype], tuple(shape), count, tuple(how == "deflate" for how in hows))
