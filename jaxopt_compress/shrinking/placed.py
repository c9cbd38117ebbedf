"""Arrays whose shards lie on several devices, of one process or of many: read them, set to zero, cut."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxopt_compress.graph.meshes import fitting, parts
from jaxopt_compress.graph.program import is_tracer


def whole(array: Any) -> np.ndarray:
    """Return all numbers of an array, on every process."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def zeroed(array: Any, axis: int, index: np.ndarray) -> jax.Array:
    """Set slices of an axis to zero; the sharding stays."""
    array = jnp.asarray(array)
    gone = np.isin(np.arange(array.shape[axis]), index).reshape([-1 if d == axis else 1 for d in range(array.ndim)])
    return jnp.where(gone, jnp.zeros((), array.dtype), array)


def cut(array: Any, dims: Mapping[int, np.ndarray]) -> jax.Array:
    """Keep the given indices of some axes; an axis that its mesh axes still divide stays split over them."""
    home = _home(array)
    if home is not None:
        open_ = [None if dim in dims else part for dim, part in enumerate(parts(home, array.ndim))]
        array = jax.device_put(array, NamedSharding(home.mesh, P(*open_)))
    for dim, index in dims.items():
        array = jnp.take(array, index, axis=dim)
    return array if home is None else jax.device_put(array, fitting(home, array.shape))


def like(array: np.ndarray, other: Any) -> jax.Array:
    """Place numbers as another array of their shape is placed."""
    home = _home(other)
    return jnp.asarray(array) if home is None else jax.device_put(array, home)


def _home(array: Any) -> NamedSharding | None:
    if not isinstance(array, jax.Array) or is_tracer(array) or not isinstance(array.sharding, NamedSharding):
        return None
    return array.sharding
