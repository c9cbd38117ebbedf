"""Time compiled functions side by side in a process of its own, once nothing else runs: one core, or an accelerator."""

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from benchmarks import harness


class Program(NamedTuple):
    """A function that can go to another process: its code for each batch size, and its parameters."""

    code: dict[int, bytes]
    variables: Any


def program(apply: Callable, variables: Any, images: Any, batches: Sequence[int]) -> Program:
    """Export `apply(variables, images)` for the CPU and for what JAX runs on here."""
    platforms = sorted({"cpu", "cuda" if jax.default_backend() == "gpu" else jax.default_backend()})
    exporter = export.export(jax.jit(apply), platforms=platforms)
    code = {n: bytes(exporter(variables, images[:n]).serialize()) for n in batches}
    return Program(code, jax.device_get(variables))


def measure(
    programs: Mapping[str, Program], images: np.ndarray, platform: str, batches: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Return by name, platform and batch size the median of ratios to the program named "dense"."""
    with alone(1, pinned=platform == "cpu") as pool:
        return pool.submit(_measure, dict(programs), images, platform, batches, rounds).result()


def alone(jobs: int, pinned: bool = False) -> ProcessPoolExecutor:
    """Return a pool of fresh processes, each of which keeps to one core if `pinned`."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, initializer=_pin if pinned else None)


def _pin() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _measure(
    programs: dict[str, Program], images: np.ndarray, platform: str, batches: Sequence[int], rounds: int
) -> dict[str, Any]:
    device = jax.devices(platform)[0]
    ratios: dict[str, Any] = {name: {} for name in programs}
    for batch in batches:
        runs = {name: _runner(found, images[:batch], device) for name, found in programs.items()}
        times = harness.interleaved(runs, rounds)
        for name in programs:
            ratios[name][f"{platform}_{batch}"] = harness.ratio(times, name, "dense")
    return ratios


def _runner(found: Program, images: np.ndarray, device: Any) -> Callable[[], Any]:
    variables, images = jax.device_put((found.variables, images), device)
    compiled = jax.jit(export.deserialize(bytearray(found.code[len(images)])).call).lower(variables, images).compile()
    return lambda: compiled(variables, images)
