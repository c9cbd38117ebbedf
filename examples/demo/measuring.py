"""What the table shows: bytes, sparsity, multiply-adds and the measured latency of the compiled forward."""

import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from examples.demo.training import MLP, forward


class Measured(NamedTuple):
    """One row of the table; lists have one entry a seed."""

    name: str
    accuracy: list[float]
    file_bytes: list[int]
    sparsity: float
    bits: int
    multiply_adds: int
    nonzero_multiply_adds: int
    latency_ms: float


def float_bytes(params: Any) -> int:
    """Return the bytes of all parameters as float32."""
    return sum(4 * leaf.size for leaf in jax.tree.leaves(params))


def kernels(params: Any) -> list[np.ndarray]:
    """Return the kernels of an MLP: each of their entries is one multiply-add."""
    return [np.asarray(leaf) for path, leaf in jc.tree.leaves(params).items() if path.endswith("kernel")]


def bits_of_kernels(stored: Any) -> int:
    """Return the bits of a kernel's entry in the stored form, of the widest one."""
    leaves = jc.tree.leaves(stored, is_leaf=jc.is_encoded)
    forms = [leaf for path, leaf in leaves.items() if path.endswith("kernel")]
    return max(form.bits if jc.is_encoded(form) else 8 * form.dtype.itemsize for form in forms)


def latency_ms(model: MLP, params: Any, image: np.ndarray, repeats: int = 200) -> float:
    """Return the median time of the compiled forward at batch 1, in milliseconds."""
    x = jnp.asarray(image[:1])
    jax.block_until_ready(forward(model.apply, params, x))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(forward(model.apply, params, x))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def measure(
    name: str, model: MLP, params: Any, accuracy: list[float], file_bytes: list[int], bits: int, image: np.ndarray
) -> Measured:
    """Fill one row of the table."""
    weights = kernels(params)
    dense, nonzero = sum(w.size for w in weights), sum(int(np.count_nonzero(w)) for w in weights)
    return Measured(
        name,
        accuracy,
        file_bytes,
        1 - nonzero / dense,
        bits,
        jc.graph.multiply_adds(model.apply, params, jnp.asarray(image[:1])),
        nonzero,
        latency_ms(model, params, image),
    )
