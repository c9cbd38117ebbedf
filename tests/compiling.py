"""Compilation without the optimization of machine code, where neither bits nor time are in question."""

from collections.abc import Callable
from typing import Any

import jax


def unoptimized(fn: Callable) -> Any:
    """Return `fn` under `jit`, for a program that runs once: XLA's own passes run, those of LLVM hardly."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})
