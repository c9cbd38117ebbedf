"""Running statistics of batch normalization, anew, for a function whose weights have changed since."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from rich.progress import track


def reestimate(update: Callable[..., Any], stats: Any, batches: Iterable[Any], *, progress: bool = False) -> Any:
    """Return the mean over batches of the statistics of each, in place of running ones.

    Statistics that were gathered in training are those of other activations once weights are rounded, pruned or
    averaged; a few unlabelled batches put that right. Running statistics are a moving average, `new = m old + (1 - m)
    seen`; from what `update` makes of zeros and of other numbers follows `seen`, whatever `m` is, and nothing of the
    old statistics stays.

    Args:
      update: `(stats, *inputs) -> stats`, what a training step does to the statistics.
      stats: a pytree of arrays; leaves that are not floating-point stay.
      batches: tuples of inputs, or single inputs.
      progress: whether to show a bar.

    Raises:
      ValueError: no batches; statistics that do not move, as of a momentum of 1.

    Example:
      >>> update = lambda stats, x: {"mean": 0.9 * stats["mean"] + 0.1 * x.mean(0)}
      >>> found = reestimate(update, {"mean": jnp.full(1, 99.0)}, [jnp.ones((4, 1)), 3 * jnp.ones((4, 1))])
      >>> round(found["mean"].item(), 4)
      2.0
    """
    total, count = None, 0
    step = jax.jit(lambda stats, inputs: _seen(update, stats, inputs))
    for batch in track(batches, description="re-estimating", disable=not progress, transient=True):
        seen = step(stats, batch if isinstance(batch, tuple) else (batch,))
        total = seen if total is None else jax.tree.map(jnp.add, total, seen)
        count += 1
    if total is None:
        raise ValueError("`reestimate`: there are no batches.")
    found = jax.tree.map(lambda old, x: (x / count).astype(old.dtype) if _floating(old) else old, stats, total)
    broken = [leaf for leaf in jax.tree.leaves(found) if _floating(leaf) and not bool(jnp.all(jnp.isfinite(leaf)))]
    if broken:
        raise ValueError(f"`reestimate`: {len(broken)} statistics are not finite, or do not move (a momentum of 1).")
    return found


def _seen(update: Callable[..., Any], stats: Any, inputs: tuple[Any, ...]) -> Any:
    """Return the statistics of one batch: where zeros become `a`, and `old` becomes `b`, that is `a / (1 - m)`."""
    zeros = update(jax.tree.map(lambda x: jnp.zeros_like(x) if _floating(x) else x, stats), *inputs)
    old = jax.tree.map(lambda x, a: 1 + jnp.abs(a) if _floating(x) else x, stats, zeros)  # as large, for precision
    after = update(old, *inputs)
    return jax.tree.map(lambda a, b, o: a / (1 - (b - a) / o) if _floating(a) else a, zeros, after, old)


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
