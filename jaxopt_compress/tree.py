"""Leaf paths, the choice of leaves, and the weights of a tree.

A *path* is the sequence of keys that leads to a leaf, written `"encoder/dense_0/kernel"`. A *selection* is an
ordered dictionary from path to leaf, in the order of the tree: what transforms work on, so that every state and
every error message is keyed by the name that the user knows.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

Where = str | Iterable[str] | Callable[[str, Any], bool] | Any
Selection = OrderedDict[str, Any]


def path_str(key_path) -> str:
    """Write a JAX key path as `"a/b/kernel"`; the path of a bare leaf is `""`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def is_weight(leaf) -> bool:
    """Tell whether a leaf can be compressed: a floating-point array with at least one axis."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.ndim(leaf) > 0


def leaves(tree, is_leaf=None) -> Selection:
    """List the leaves of a tree by path.

    Raises:
      ValueError: two leaves have the same path (`{"a/b": x, "a": {"b": y}}`).
    """
    found: Selection = OrderedDict()
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        path = path_str(key_path)
        if path in found:
            raise ValueError(f"`tree.leaves`: two leaves have the path {path!r}; rename a key.")
        found[path] = leaf
    return found


def weights(tree) -> Selection:
    """List the leaves that can be compressed, by path."""
    return OrderedDict((path, leaf) for path, leaf in leaves(tree).items() if is_weight(leaf))


def replace(tree, new: Mapping[str, Any], is_leaf=None):
    """Return `tree` with the leaves at the given paths replaced; the others are the same objects."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return jax.tree.unflatten(treedef, [new.get(path_str(path), leaf) for path, leaf in flat])


def choose(tree, where: Where) -> tuple[str, ...]:
    """Return the paths of the leaves that `where` chooses.

    Args:
      tree: any pytree.
      where: a glob, several globs (any of them), a predicate `(path, leaf) -> bool`, or a tree of bools with
        the structure of `tree`. In a glob `*` and `?` stay within one key and `**` crosses keys; a glob that
        matches an inner node chooses everything below it, so `"**/kernel"` also finds `kernel/value` of NNX.

    Raises:
      ValueError: nothing is chosen although the tree has leaves, or one of several globs matches nothing.
    """
    found = leaves(tree)
    if isinstance(where, str):
        where = (where,)
    if callable(where) and not _is_module_like(tree, where):
        chosen = tuple(path for path, leaf in found.items() if where(path, leaf))
    elif isinstance(where, (tuple, list)) and where and all(isinstance(glob, str) for glob in where):
        matched = [{path for path in found if matches(glob, path)} for glob in where]
        for glob, paths in zip(where, matched, strict=True):
            _refuse_empty(paths, glob, found)
        chosen = tuple(path for path in found if any(path in paths for paths in matched))
    else:
        chosen = _flagged(tree, where, found)
    _refuse_empty(chosen, where, found)
    return chosen


def _is_module_like(tree, where) -> bool:
    """Tell whether a callable is a tree of bools: modules such as Equinox's are pytrees that can be called."""
    return not jax.tree_util.all_leaves([where]) and jax.tree.structure(where) == jax.tree.structure(tree)


def _flagged(tree, flags, found: Selection) -> tuple[str, ...]:
    if jax.tree.structure(tree) != jax.tree.structure(flags):
        raise ValueError(
            "`select`: `where` must be a glob, globs, a predicate or a tree of bools with the structure of the "
            f"parameters {jax.tree.structure(tree)}; got {flags!r}."
        )
    return tuple(path for path, flag in zip(found, jax.tree.leaves(flags), strict=True) if flag)


def _refuse_empty(chosen, where, found: Selection) -> None:
    if found and not chosen:
        raise ValueError(f"`select`: {where!r} matches no leaf; the leaves are {', '.join(map(repr, found))}.")


def matches(glob: str, path: str) -> bool:
    """Tell whether a glob matches a path or a node above it."""
    keys = path.split("/")
    return any(_pattern(glob).fullmatch("/".join(keys[:end])) for end in range(1, len(keys) + 1))


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    return re.compile("".join(parts.get(token, re.escape(token)) for token in tokens))
