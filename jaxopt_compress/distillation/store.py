"""What a teacher says of every example, computed once and kept in a folder.

| file | what it holds |
|---|---|
| `about.json` | the format version, whose outputs of what these are, and their shapes |
| `keys.safetensors` | the key of every example, `keys`, int64 |
| `000000.safetensors`, ... | the outputs of so many examples each, in the order of the keys, by path |
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import track

from jaxopt_compress import atomic, tree
from jaxopt_compress.distillation import chunks

VERSION = 1
ABOUT, KEYS = "about.json", "keys.safetensors"


@dataclass(frozen=True, eq=False)
class Store:
    """Outputs of a teacher on disk.

    Attributes:
      folder: where they are.
      keys: of all examples, int64, in ascending order.
      rows: where the example of each key lies.
      size: examples a file.
      files: the arrays of each file, by path, mapped into memory.
      structure: of what the teacher returns.
    """

    folder: Path
    keys: np.ndarray
    rows: np.ndarray
    size: int
    files: tuple[Mapping[str, np.ndarray], ...]
    structure: Any

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, keys: Any) -> Any:
        """Return what the teacher said of some examples, in the order of the keys: NumPy arrays in its structure.

        Args:
          keys: integers `(examples,)`.

        Raises:
          KeyError: an example that is not in the store.
        """
        wanted = np.asarray(keys)
        if wanted.ndim != 1 or not np.issubdtype(wanted.dtype, np.integer):
            raise KeyError(f"`Store`: keys are integers (examples,); got {wanted.dtype} of {wanted.shape}.")
        places = np.searchsorted(self.keys, wanted).clip(max=max(len(self.keys) - 1, 0))
        absent = wanted[self.keys[places] != wanted] if len(self.keys) else wanted
        if len(absent):
            raise KeyError(f"`Store`: {str(self.folder)!r} has no example {absent[0]}; it has {len(self.keys):,}.")
        rows = self.rows[places]
        return jax.tree.unflatten(self.structure, [self._gathered(path, rows) for path in self.files[0]])

    def _gathered(self, path: str, rows: np.ndarray) -> np.ndarray:
        first = self.files[0][path]
        found = np.empty((len(rows), *first.shape[1:]), first.dtype)
        numbers, inside = np.divmod(rows, self.size)
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self.files[number][path][inside[here]]
        return found


def build_store(
    folder: str | Path,
    teacher: Callable[[Any, Any], Any],
    params: Any,
    keys: Any,
    load: Callable[[np.ndarray], Any],
    *,
    of: Mapping[str, str],
    batch: int = 256,
    size: int = 4096,
    process: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> None:
    """Compute what a teacher says of every example, and keep it; go on where an earlier call was interrupted.

    An example is known by its key, whatever the order in which training asks for it: its number, and with augmentation
    a number of the augmented one, from which `load` draws it again.

    Args:
      folder: where to; made if it is not there.
      teacher: `(params, inputs) -> outputs`, any pytree of arrays with one row an example. What is to be small makes it
        so: `lambda params, x: top_k(fn(params, x), 32)`, or float16. It is compiled here.
      params: of the teacher, sharded or not.
      keys: int64 `(examples,)`, each once.
      load: `keys (batch,) -> inputs`, the examples of these keys.
      of: what must be the same to read the store again: `{"teacher": fingerprint(params), "data": fingerprint(x)}`.
      batch: examples a call of the teacher; a divisor of `size`.
      size: examples a file.
      process: `(number, count)` of processes that share the work, each its files.
      progress: whether to show a bar.

    Raises:
      ValueError: a store of something else in this folder; keys that are no integers, twice there, or none; sizes that
        do not divide; a process that there is not; outputs without a row an example.
    """
    keys = _checked(keys, batch, size, process)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = jax.jit(teacher)
    shapes = jax.eval_shape(teacher, params, load(np.resize(keys, batch)))
    _begin(folder, keys, _about(of, keys, size, tree.leaves(shapes), batch))
    starts = range(0, len(keys), size)[process[0] :: process[1]]
    todo = [start for start in starts if not _file(folder, start // size).exists()]
    for start in track(todo, description="asking the teacher", disable=not progress, transient=True):
        mine, found = keys[start : start + size], []
        for first in range(0, len(mine), batch):
            some = mine[first : first + batch]
            outputs = run(params, load(np.resize(some, batch)))  # one compilation: the last ones are repeated
            found.append({path: np.asarray(array)[: len(some)] for path, array in tree.leaves(outputs).items()})
        whole = {path: np.concatenate([each[path] for each in found]) for path in found[0]}
        chunks.write(_file(folder, start // size), whole)


def open_store(folder: str | Path, *, of: Mapping[str, str], like: Any = None) -> Store:
    """Open what `build_store` wrote.

    Args:
      folder: where it is.
      of: as it was built with.
      like: a pytree with the structure of the teacher's outputs; a dictionary by path if None.

    Raises:
      ValueError: a store of another teacher or of other data, one that is not complete, or damaged; `like` that does
        not fit.
      FileNotFoundError: there is none.
    """
    folder = Path(folder)
    about = _read(folder)
    _same(folder, about.of, dict(of))
    count = -(-about.examples // about.size)
    missing = [number for number in range(count) if not _file(folder, number).exists()]
    if missing:
        raise ValueError(
            f"`open_store`: {str(folder)!r} is not complete: {len(missing)} of {count} files are missing; "
            "`build_store` goes on where it stopped."
        )
    structure, paths = _structure(about, like)
    files = tuple(_opened(folder, number, about, paths) for number in range(count))
    keys = _keys(folder, about)
    order = np.argsort(keys, kind="stable")
    return Store(folder, keys[order], order, about.size, files, structure)


class _About(NamedTuple):
    """What `about.json` says.

    Attributes:
      of: whose outputs of what these are, as fingerprints.
      examples: how many.
      size: examples a file.
      outputs: dtype and shape of each leaf, without the axis of the examples, by path.
    """

    of: dict[str, str]
    examples: int
    size: int
    outputs: dict[str, tuple[str, tuple[int, ...]]]


def _checked(keys: Any, batch: int, size: int, process: tuple[int, int]) -> np.ndarray:
    found = np.asarray(keys)
    if found.ndim != 1 or not len(found) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"`build_store`: keys are integers (examples,); got {found.dtype} of {found.shape}.")
    if len(np.unique(found)) < len(found) or found.max() > np.iinfo(np.int64).max:
        raise ValueError("`build_store`: each key stands there once and fits into int64.")
    if not 0 <= process[0] < process[1]:
        raise ValueError(f"`build_store`: a process has a number below their count; got {process}.")
    if batch < 1 or size < 1 or size % batch:
        raise ValueError(f"`build_store`: `size` is a multiple of `batch`; got {size} and {batch}.")
    return found.astype(np.int64)


def _about(of: Mapping[str, str], keys: np.ndarray, size: int, outputs: Mapping[str, Any], batch: int) -> _About:
    for path, shape in outputs.items():
        if shape.shape[:1] != (batch,):
            raise ValueError(f"`build_store`: outputs have a row an example, {batch}; {path!r} is {shape.shape}.")
    shapes = {path: (str(shape.dtype), shape.shape[1:]) for path, shape in outputs.items()}
    return _About(dict(of), len(keys), size, shapes)


def _begin(folder: Path, keys: np.ndarray, about: _About) -> None:
    """Write what the store is about, or compare with what is there."""
    if not (folder / ABOUT).exists():
        chunks.write(folder / KEYS, {"keys": keys})
        atomic.replace(str(folder / ABOUT), json.dumps({"version": VERSION, **about._asdict()}, indent=1).encode())
        return
    there = _read(folder)
    _same(folder, there.of, about.of)
    if there != about or not np.array_equal(_keys(folder, about), keys):
        raise ValueError(f"`build_store`: {str(folder)!r} holds other examples, outputs or sizes; got {about}.")


def _read(folder: Path) -> _About:
    path = folder / ABOUT
    try:
        found = json.loads(path.read_text())
        version = found.pop("version")
        if version != VERSION:
            raise ValueError(f"it has version {version!r}; this library reads {VERSION}")
        outputs = {path: (str(dtype), tuple(map(int, shape))) for path, (dtype, shape) in found["outputs"].items()}
        about = _About(dict(found["of"]), int(found["examples"]), int(found["size"]), outputs)
        if about.examples < 1 or about.size < 1 or not outputs:
            raise ValueError(str(about))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"`open_store`: {str(path)!r} is damaged, or of a later version: {error!r}.") from error
    return about


def _same(folder: Path, there: dict[str, str], here: dict[str, str]) -> None:
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"`open_store`: {str(folder)!r} is of another {name}: {there.get(name)} there, {here.get(name)} here."
            )


def _keys(folder: Path, about: _About) -> np.ndarray:
    keys = chunks.mapped(folder / KEYS).get("keys")
    if keys is None or keys.shape != (about.examples,) or keys.dtype != np.int64:
        raise ValueError(f"`open_store`: the keys of {str(folder)!r} are damaged.")
    return np.array(keys)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.safetensors"


def _opened(folder: Path, number: int, about: _About, paths: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = chunks.mapped(_file(folder, number))
    rows = min(about.size, about.examples - number * about.size)
    wanted = {path: (dtype, (rows, *shape)) for path, (dtype, shape) in about.outputs.items()}
    found = {path: (str(array.dtype), array.shape) for path, array in arrays.items()}
    if found != wanted:
        raise ValueError(f"`open_store`: {str(_file(folder, number))!r} holds {found}, not {wanted}.")
    return {path: arrays[path] for path in paths}


def _structure(about: _About, like: Any) -> tuple[Any, list[str]]:
    """Return the structure of the outputs, and the paths of its leaves in their order."""
    if like is None:
        like = 0 if list(about.outputs) == [""] else dict.fromkeys(about.outputs, 0)
    paths = list(tree.leaves(like))
    if set(paths) != about.outputs.keys():
        raise ValueError(f"`open_store`: `like` has the leaves {list(about.outputs)}; got {paths}.")
    return jax.tree.structure(like), paths
