"""Lookups in a table of codes: only the rows that are read are decoded."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_compress.encoded import Quantized
from jaxopt_compress.graph import Site


def read(site: Site, args: Sequence[jax.Array], table: Quantized) -> jax.Array:
    """Look up rows; where the function fills what is out of range, the scale is filled."""
    sizes = site.op.params["slice_sizes"]
    scales = (1,) * len(sizes)  # one for each row
    rows = _gather(site, table.codes, args[1], sizes, None)
    zero = None if table.zero_point is None else _gather(site, table.zero_point, args[1], scales, None)
    filled = jnp.nan if site.op.params["fill_value"] is None else site.op.params["fill_value"]
    scale = _gather(site, table.scale, args[1], scales, filled)
    return Quantized(rows, scale, zero, table.grid, table.dtype).decode().astype(site.op.outs[0].aval.dtype)


def _gather(site: Site, x: jax.Array, indices: Any, sizes: tuple[int, ...], fill: Any) -> jax.Array:
    p = site.op.params
    return lax.gather(
        *(x, indices, p["dimension_numbers"], sizes),
        **{name: p[name] for name in ("indices_are_sorted", "unique_indices", "mode")},
        fill_value=fill,
    )
