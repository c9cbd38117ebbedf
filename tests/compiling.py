"""Compilation without the optimization of machine code, for programs that run once or twice and are not timed."""

from collections.abc import Callable
from typing import Any

import jax


def unoptimized(fn: Callable) -> Any:
    """Return `fn` under `jit`; XLA's own passes run, those of the code generator, half of the time, do not."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})
