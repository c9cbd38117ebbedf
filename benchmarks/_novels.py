"""A small transformer that predicts the next character of a novel, in plain JAX.

The texts are looked for in the folder `novels` of the one that the environment variable JAXOPT_COMPRESS_DATA names: six
novels of one author, each a file `<name>.txt`. Jane Austen's are in the R package janeaustenr and on Project Gutenberg.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _nets
from benchmarks._lenet import Part, Parts
from benchmarks._transformer_layers import embed, forward, layer, logits, shapes
from examples.data import VARIABLE

LENGTH = 128
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
DEPTH, WIDTH, HEAD = 2, 128, 32  # HEAD: channels a head, at any width


def init(key: jax.Array, width: int) -> _nets.Variables:
    """Make the variables of the transformer."""
    leaves, tree = jax.tree.flatten_with_path(shapes(DEPTH, width, len(ALPHABET), LENGTH))
    keys = jax.random.split(key, len(leaves))
    return {"params": tree.unflatten(_leaf(k, path, leaf.shape) for k, (path, leaf) in zip(keys, leaves)), "stats": {}}


def _leaf(key: jax.Array, path: Any, shape: tuple[int, ...]) -> jax.Array:
    name = path[-1].key
    if name in ("scale", "shift", "bias"):
        return jnp.full(shape, float(name == "scale"))
    deviation = shape[0] ** -0.5 if name == "kernel" else 0.02
    return deviation * jax.random.normal(key, shape)


def apply(variables: _nets.Variables, text: jax.Array) -> jax.Array:
    """Return the logits `(batch, length, characters)` of what follows each character."""
    params = variables["params"]
    return forward(params, text, params["words"].shape[1] // HEAD)


def blocks() -> list[Callable]:
    """Return what the net does as functions of the variables, one after the other."""

    def block(name: str) -> Callable:
        return lambda v, x: layer(v["params"][name], x, x.shape[-1] // HEAD)

    start = lambda v, text: embed(v["params"], text)  # noqa: E731
    end = lambda v, x: logits(v["params"], x)  # noqa: E731
    return [start, *[block(f"layer_{i:03}") for i in range(DEPTH)], end]


net = _nets.Net(init, lambda v, x: (apply(v, x), {}), apply, WIDTH, partial(_nets.adamw), 3e-3)


def bits_per_character(fn: Any, params: Any, part: Part) -> float:
    """Return how many bits a character takes that the net is told the ones before of."""

    @jax.jit
    def bits(params, text, following):
        losses = optax.softmax_cross_entropy_with_integer_labels(fn(params, text), following)
        return losses.sum(0).sum() / jnp.log(2.0)

    found = [bits(params, part.image[i : i + 16], part.label[i : i + 16]) for i in range(0, len(part.label), 16)]
    return float(np.sum(found) / part.label.size)


def novels(whole: bool = True) -> Parts:
    """Return windows of five novels, and of the shortest for the test; `whole` trains on what validates too.

    Raises:
      FileNotFoundError: there are no six texts.
    """
    folder = Path(os.environ.get(VARIABLE, ".")) / "novels"
    texts = sorted((path.read_text(encoding="utf-8") for path in folder.glob("*.txt")), key=len)
    if len(texts) != 6:
        raise FileNotFoundError(f"six novels as {folder}/*.txt are needed, see {__name__}; there are {len(texts)}.")
    test, validation, *train = texts
    return Parts(windows(*train, *([validation] if whole else [])), windows(validation), windows(test))


def windows(*texts: str) -> Part:
    """Cut texts into characters `(n, length)` and those that follow each; unknown ones become `?`."""
    index = {character: i for i, character in enumerate(ALPHABET)}
    coded = [np.array([index.get(c, index["?"]) for c in text], np.int32) for text in texts]
    cut = lambda x: x[: len(x) // LENGTH * LENGTH].reshape(-1, LENGTH)  # noqa: E731
    return Part(*(np.concatenate([cut(x[by : len(x) - 1 + by]) for x in coded]) for by in (0, 1)))
