"""Losses between how the examples of a batch stand to each other: features may have any shape on either side.

An example's loss is the mean over its partners, so that the mean over a batch is that over all pairs or triples. No
gradient reaches the teacher; examples that coincide have no direction, and no slope.
"""

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_compress.distillation.arrays import unit, wide


def rkd_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compare distances within the batch (RKD-D): Huber's loss of `d_s - d_t`, from 1 on linear.

    Distances are Euclidean, over the mean of those that are not 0. The authors weigh it 25 beside the task.

    Args:
      student: `(examples, ...)`.
      teacher: as many examples.

    Returns:
      One loss an example, the mean over all examples, itself among them, float32 or wider.

    Raises:
      ValueError: other numbers of examples.

    Reference: Park et al., "Relational knowledge distillation", 2019.
    """
    s, t = (_distances(*_from_center(x)) for x in _batches("rkd_distance", student, teacher))
    return jnp.mean(optax.huber_loss(_over_mean(s), _over_mean(t)), axis=1)


def rkd_angle(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compare the cosines of the angles at which an example sees two others (RKD-A), by Huber's loss.

    `cos(i; j, k) = <x_j - x_i, x_k - x_i> / (|x_j - x_i| |x_k - x_i|)`, 0 where one of both coincides with the example.
    The authors weigh it 50 beside the task. Memory grows with the cube of the batch.

    Args:
      student: `(examples, ...)`.
      teacher: as many examples.

    Returns:
      One loss an example, the mean over all pairs, float32 or wider.

    Raises:
      ValueError: other numbers of examples.

    Reference: Park et al., "Relational knowledge distillation", 2019.
    """
    s, t = (_cosines(x) for x in _batches("rkd_angle", student, teacher))
    return jnp.mean(optax.huber_loss(s, t), axis=(1, 2))


def similarity_preserving(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compare the Gram matrices of the batch, each row scaled to length 1: the mean squared difference.

    Args:
      student: `(examples, ...)`.
      teacher: as many examples.

    Returns:
      One loss an example, the mean over its row, float32 or wider. The authors' weight is 3000.

    Raises:
      ValueError: other numbers of examples.

    Reference: Tung & Mori, "Similarity-preserving knowledge distillation", 2019.
    """
    s, t = (unit(_gram(x), 1) for x in _batches("similarity_preserving", student, teacher))
    return jnp.mean((s - t) ** 2, axis=1)


def pkt(student: jax.Array, teacher: jax.Array, *, epsilon: float = 1e-7) -> jax.Array:
    """Compare how likely each example picks each other one (PKT): `mean_j t_ij log(t_ij / s_ij)`.

    These probabilities are `(cosine + 1) / 2`, each row scaled to the sum 1; both get `epsilon` more in the logarithm.

    Args:
      student: `(examples, ...)`.
      teacher: as many examples.
      epsilon: positive.

    Returns:
      One loss an example, the mean over its row, float32 or wider. The authors' code has the weight 30000.

    Raises:
      ValueError: other numbers of examples.

    Reference: Passalis & Tefas, "Learning deep representations with probabilistic knowledge transfer", 2018.
    """
    s, t = (_picked(x) for x in _batches("pkt", student, teacher))
    return jnp.mean(t * (jnp.log(t + epsilon) - jnp.log(s + epsilon)), axis=1)


def _batches(call: str, student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
    if not student.ndim or not teacher.ndim or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"`{call}`: features are (examples, ...), as many of student and teacher; got {student.shape} and "
            f"{teacher.shape}."
        )
    rows = lambda x: wide(x).reshape(x.shape[0], -1)  # noqa: E731
    return rows(student), stop_gradient(rows(teacher))


def _gram(x: jax.Array) -> jax.Array:
    return jnp.matmul(x, _everywhere(x).T, precision="highest")


def _everywhere(x: jax.Array) -> jax.Array:
    """Bring a batch that an explicit mesh has split to every device: each example meets all others."""
    mesh, split = jax.typeof(x).sharding.mesh, jax.typeof(x).sharding.spec
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec())) if any(split) else x


def _from_center(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return inner products, and squares, of what is left when the mean is taken off, which sums then do not lose."""
    x = x - jnp.mean(x, axis=0, keepdims=True)
    return _gram(x), jnp.sum(x * x, axis=1)


def _root(square: jax.Array) -> jax.Array:
    """Return the root; of what is not positive 0, without a slope."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _distances(gram: jax.Array, sizes: jax.Array) -> jax.Array:
    both = sizes[:, None] + _everywhere(sizes)[None]
    square = both - 2 * gram
    least = 8 * jnp.finfo(gram.dtype).eps * both  # below it, it is what rounding has left
    return _root(jnp.where((square > least) & ~jnp.eye(len(gram), dtype=bool), square, 0))


def _over_mean(distances: jax.Array) -> jax.Array:
    count = jnp.sum(distances > 0).astype(distances.dtype)
    mean = jnp.sum(distances) / jnp.maximum(count, 1)
    return distances / jnp.where(count > 0, mean, 1)


def _cosines(x: jax.Array) -> jax.Array:
    gram, sizes = _from_center(x)
    distances = _distances(gram, sizes)
    inner = _everywhere(gram)[None] - gram[:, :, None] - gram[:, None, :] + sizes[:, None, None]
    lengths = distances[:, :, None] * distances[:, None, :]
    return jnp.where(lengths > 0, inner / jnp.where(lengths > 0, lengths, 1), 0)


def _picked(x: jax.Array) -> jax.Array:
    near = (_gram(unit(x, 1)) + 1) / 2
    return near / jnp.sum(near, axis=1, keepdims=True)
