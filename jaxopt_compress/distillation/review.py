"""Knowledge review: each stage of a teacher taught to the student's stages up to the deepest, fused on the way."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_compress.distillation.arrays import wide
from jaxopt_compress.distillation.features import hcl
from jaxopt_compress.distillation.projectors import uniform

WIDEST = 512


def reviewer(key: jax.Array, students: Sequence[Any], teachers: Sequence[Any], width: int | None = None) -> list[Any]:
    """Make the fusion modules (ABF) of ReviewKD, one a stage.

    Args:
      key: for the kernels.
      students: features `(examples, height, width, channels)` of each stage, or their shapes and dtypes, the shallowest
        first.
      teachers: of the same stages, likewise.
      width: channels of the fused features; those of the deepest student stage, at most 512, if None.

    Returns:
      Parameters for `review`; they are trained, then dropped.

    Raises:
      ValueError: no stages, unlike numbers of them, features that are no pictures.
    """
    _check("reviewer", students, teachers)
    fused = min(students[-1].shape[-1], WIDEST) if width is None else width
    stages = []
    for number, (student, teacher) in enumerate(zip(students, teachers)):
        keys = jax.random.split(jax.random.fold_in(key, number), 3)
        ins, outs = student.shape[-1], teacher.shape[-1]
        stage = {
            "inner": _normalized(keys[0], (1, 1, ins, fused)),
            "outer": _normalized(keys[1], (3, 3, fused, outs)),
        }
        if number < len(students) - 1:
            stage["fuse"] = {"kernel": uniform(keys[2], (2 * fused, 2), 2 * fused), "bias": jnp.zeros(2)}
        stages.append(stage)
    return stages


def review(params: Sequence[Any], students: Sequence[jax.Array], teachers: Sequence[jax.Array]) -> jax.Array:
    """Teach each stage, from the deepest to the shallowest, with what the deeper ones have fused (ReviewKD).

        x_i = norm(conv1(s_i));   z = sigmoid(fuse(x_i, y_{i+1}));   y_i = z_0 x_i + z_1 y_{i+1}
        loss = sum_i hcl(norm(conv3(y_i)), t_i)

    with `y_{i+1}` repeated to the size of `s_i`, and `y_i` to that of `t_i`. The norms are over the batch.

    Args:
      params: of `reviewer`.
      students: features `(examples, height, width, channels)`, the shallowest first.
      teachers: of the same stages.

    Returns:
      One loss an example, float32 or wider. Batch normalization makes it depend on the others.

    Raises:
      ValueError: unlike numbers of stages, features that are no pictures.

    Reference: Chen et al., "Distilling knowledge via knowledge review", 2021.
    """
    _check("review", students, teachers)
    if len(params) != len(students):
        raise ValueError(f"`review`: a fusion module a stage, {len(students)}; got {len(params)}.")
    fused, losses = None, []
    for stage, student, teacher in reversed(list(zip(params, students, teachers))):
        x = _apply(stage["inner"], wide(student))
        fused = x if fused is None else _fuse(stage["fuse"], x, _resized(fused, x.shape))
        losses.append(hcl(_apply(stage["outer"], _resized(fused, teacher.shape)), teacher))
    return jnp.sum(jnp.stack(losses), axis=0)


def _normalized(key: jax.Array, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    fan_in = shape[0] * shape[1] * shape[2]
    return {"kernel": 3**0.5 * uniform(key, shape, fan_in), "scale": jnp.ones(shape[-1]), "shift": jnp.zeros(shape[-1])}


def _apply(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    axes = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, params["kernel"].astype(x.dtype), (1, 1), "SAME", dimension_numbers=axes)
    center = x.mean((0, 1, 2), keepdims=True)
    spread = jnp.mean((x - center) ** 2, (0, 1, 2), keepdims=True)
    scale, shift = (params[name].astype(x.dtype).reshape(1, 1, 1, -1) for name in ("scale", "shift"))
    return (x - center) * lax.rsqrt(spread + 1e-5) * scale + shift


def _fuse(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    both = jnp.concatenate([x, y], axis=-1) @ params["kernel"].astype(x.dtype)
    z = jax.nn.sigmoid(both + params["bias"].astype(x.dtype).reshape(1, 1, 1, 2))
    return x * z[..., :1] + y * z[..., 1:]


def _resized(x: jax.Array, like: tuple[int, ...]) -> jax.Array:
    """Repeat or leave out positions, the nearest ones as PyTorch takes them."""
    for axis in (1, 2):
        if x.shape[axis] != like[axis]:
            x = jnp.take(x, jnp.arange(like[axis]) * x.shape[axis] // like[axis], axis=axis)
    return x


def _check(call: str, students: Sequence[Any], teachers: Sequence[Any]) -> None:
    shapes = [tuple(f.shape) for f in (*students, *teachers)]
    if not students or len(students) != len(teachers) or any(len(shape) != 4 or 0 in shape for shape in shapes):
        raise ValueError(
            f"`{call}`: features of as many stages, (examples, height, width, channels) each; got {shapes}."
        )
