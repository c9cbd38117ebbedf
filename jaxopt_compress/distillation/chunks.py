"""Rows of arrays in a safetensors file: written at once, read where they lie."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxopt_compress import atomic

SIZES = {"F": (16, 32, 64), "I": (8, 16, 32, 64), "U": (8, 16, 32, 64)}
WORDS = {"F": "float", "I": "int", "U": "uint"}
DTYPES = {f"{kind}{size}": np.dtype(f"{WORDS[kind]}{size}") for kind, sizes in SIZES.items() for size in sizes}
DTYPES |= {"BF16": np.dtype(jnp.bfloat16), "BOOL": np.dtype(bool)}


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a file, at once."""
    atomic.replace(str(path), save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def mapped(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file, mapped into memory: only what is looked at is read.

    Raises:
      ValueError: the file is cut off, or no safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # checks the header against the length of the file
            names = list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}.") from error
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: _mapped(path, 8 + length, header[name]) for name in names}


def _mapped(path: Path, start: int, entry: dict) -> np.ndarray:
    dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
    if dtype is None:
        raise ValueError(f"{str(path)!r} holds {entry['dtype']}, which no teacher gives.")
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", start + entry["data_offsets"][0], shape)
