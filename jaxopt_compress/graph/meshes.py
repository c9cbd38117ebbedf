"""What the type of an array says of the mesh that it lies on."""

from math import prod
from typing import Any

from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def on_mesh(aval: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return how explicit axes split an array and along which manual ones it varies, for `jax.ShapeDtypeStruct`.

    Args:
      aval: its type.
      shape: another shape that the array is to have; an axis that its devices do not divide is not split.
    """
    sharding, manual = getattr(aval, "sharding", None), getattr(aval, "manual_axis_type", None)
    if not isinstance(sharding, NamedSharding):
        return {}
    varies = manual is not None and manual.varying
    return {"sharding": fitting(sharding, shape), "manual_axis_type": manual} if varies or any(sharding.spec) else {}


def fitting(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """Return the sharding for another shape; an axis that its devices do not divide is on each of them."""
    spec = (
        part if size % ways(sharding, part) == 0 else None for part, size in zip(parts(sharding, len(shape)), shape)
    )
    return NamedSharding(sharding.mesh, P(*spec))


def parts(sharding: NamedSharding, ndim: int) -> list[Any]:
    """Return for each axis of an array over which axes of the mesh it is split."""
    return [*sharding.spec, *[None] * (ndim - len(sharding.spec))]


def ways(sharding: NamedSharding, part: Any) -> int:
    """Return into how many shards an axis of an array is split."""
    names = part if isinstance(part, tuple) else () if part is None else (part,)
    return prod(sharding.mesh.shape[name] for name in names)
