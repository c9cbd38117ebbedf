"""One model in one file: safetensors around a manifest and its sections, checked on the way in, atomic on the way out.

`docs/file_format.md` describes the bytes.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Sequence

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from jaxopt_compress import atomic, encoded, tree
from jaxopt_compress.export import manifest
from jaxopt_compress.export.packing import Section

KEY = "jaxopt_compress"  # the one entry of the metadata: safetensors writes several in random order
DIGEST = 64  # hexadecimal digits before the manifest
MOST_HEADER = 16 * 2**20
MOST_BYTES = 4 * 2**30


def save(path: str | os.PathLike[str], model) -> int:
    """Write a model to a file, each leaf in the smallest of its forms; bit for bit, nothing pickled.

    The file appears under its name when it is complete and on the disk; an older one stays whole until then. The
    same model gives the same bytes.

    Args:
      path: where to; an existing file is replaced.
      model: any pytree of arrays, stored forms (what `ParamTransform.encode` returns), Python `bool`, `int`,
        `float` and `None`. A NumPy scalar counts as an array without axes, a leaf that stands in the tree twice
        is written twice, and shardings and weak types are not kept.

    Returns:
      The bytes written.

    Raises:
      ValueError: a leaf that a file cannot hold (PRNG keys, complex numbers, strings, functions, ...), or a
        dictionary whose keys are not all `str` or all `int`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     size = save(f"{folder}/model.jc", {"w": np.ones((2, 3)), "layers": (1, None)})
      ...     load(f"{folder}/model.jc")["layers"]
      (1, None)
    """
    target = os.path.realpath(os.fspath(path))
    if os.path.lexists(target) and not os.path.isfile(target):
        raise ValueError(f"`save`: {str(path)!r} exists and is not a regular file.")
    try:
        content = _pack(model)
    except ValueError as error:
        raise ValueError(f"`save`: {error}") from error
    atomic.replace(target, content)
    return len(content)


def _pack(model) -> bytes:
    text, sections = manifest.write(model)
    arrays = {str(number): np.frombuffer(section, np.uint8) for number, section in enumerate(sections)}
    content = to_safetensors(arrays, {KEY: _digest(text, sections) + text})
    if _header_length(content) > MOST_HEADER:
        raise ValueError(f"the header takes more than {MOST_HEADER:,} bytes: {len(sections):,} sections.")
    return content


def _header_length(start: bytes) -> int:
    return struct.unpack("<Q", start[:8])[0]


def _digest(text: str, sections: Sequence[Section]) -> str:
    """Hash the manifest and, each after its length, all sections."""
    digest = hashlib.sha256(text.encode())
    for section in sections:
        digest.update(struct.pack("<Q", len(section)))
        digest.update(section)
    return digest.hexdigest()


def load(path: str | os.PathLike[str], like=None, max_bytes: int = MOST_BYTES):
    """Read a model that `save` wrote, bit for bit; `jaxopt_compress.decode` makes arrays of its stored forms.

    A file that is damaged or made to do harm is refused before anything large is allocated.

    Args:
      path: where from.
      like: the tree to put the leaves into, such as the parameters of the model before `encode`, or their
        `jax.ShapeDtypeStruct`s. Without it, dictionaries, lists, tuples and `None` come back as they were and any
        other container (`FrozenDict`, `nnx.State`, a dataclass) as a dictionary by key.
      max_bytes: the most that the arrays may take in memory, stored forms as stored. A small file can hold a large
        array of zeros: for a file you do not trust, pass what you expect.

    Returns:
      The tree, with JAX arrays; with NumPy arrays for 64-bit dtypes when `jax_enable_x64` is off.

    Raises:
      ValueError: the file is not one of `save`, is damaged, of an unknown version, larger than `max_bytes`, or does
        not fit `like`.
      OSError: it cannot be opened, as `FileNotFoundError`.
    """
    try:
        model = _read(os.fspath(path), max_bytes)
        return model if like is None else _into(like, model)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`load`: {str(path)!r}: {error}") from error


def _read(path: str, max_bytes: int):
    _check_start(path)
    try:
        with safe_open(path, framework="numpy") as file:
            lengths = _lengths(file)
            _check_size(sum(lengths), max_bytes)
            head = (file.metadata() or {}).get(KEY, "")
            sections = [file.get_tensor(str(number)).data for number in range(len(lengths))]
    except SafetensorError as error:
        raise ValueError(f"it is no safetensors file: {error}.") from error
    digest, text = head[:DIGEST], head[DIGEST:]
    if not text:
        raise ValueError("it is a safetensors file, but `save` did not write it.")
    if digest != _digest(text, sections):
        raise ValueError("its SHA-256 is not the one it was written with; it is damaged.")
    plan = manifest.read(text, lengths)
    _check_size(sum(layout.nbytes for slot in manifest.slots(plan).values() for layout in slot.layouts), max_bytes)
    return manifest.fill(plan, sections)


def _check_start(path: str) -> None:
    """Refuse what is not a file, and a header that safetensors should not be asked to parse."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file.")
    with open(path, "rb") as file:
        start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"it has {len(start)} bytes, too few for a safetensors file.")
    if _header_length(start) > min(MOST_HEADER, status.st_size - 8):
        raise ValueError(
            f"it has {status.st_size:,} bytes and announces a header of {_header_length(start):,}: it is cut off, or "
            f"no safetensors file, or the header exceeds {MOST_HEADER:,} bytes."
        )


def _lengths(file) -> list[int]:
    """Return the bytes of each section: the tensors are named 0, 1, ... and are flat arrays of bytes."""
    names = set(file.keys())
    numbered = [str(number) for number in range(len(names))]
    if names != set(numbered):
        raise ValueError("its tensors are not named 0, 1, 2, ...: `save` did not write it.")
    views = [file.get_slice(name) for name in numbered]
    if any(view.get_dtype() != "U8" or len(view.get_shape()) != 1 for view in views):
        raise ValueError("its tensors are not flat arrays of bytes: `save` did not write it.")
    return [view.get_shape()[0] for view in views]


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"its arrays take {size:,} bytes, over the limit of {most:,}; `max_bytes` raises it.")


def _into(like, model):
    """Put the leaves of a model into the tree `like`, by path."""
    found = tree.leaves(model, is_leaf=encoded.is_encoded)
    wanted = tree.leaves(like, is_leaf=encoded.is_encoded)
    for path in [*wanted, *found]:
        if path not in found or path not in wanted:
            raise ValueError(f"{path!r} is a leaf of {'`like`' if path in wanted else 'the file'} only.")
        if (here := _facts(found[path])) != (there := _facts(wanted[path])):
            raise ValueError(f"{path!r} is {here} in the file and {there} in `like`.")
    structure = jax.tree.structure(like, is_leaf=encoded.is_encoded)
    return jax.tree.unflatten(structure, [found[path] for path in wanted])


def _facts(leaf) -> str:
    """Write the dtype and the shape of a leaf, after decoding, or the type of a Python scalar."""
    shape = getattr(leaf, "shape", None)
    dtype = getattr(leaf, "dtype", None)
    return type(leaf).__name__ if shape is None or dtype is None else f"{dtype} of shape {tuple(shape)}"
