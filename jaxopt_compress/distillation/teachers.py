"""Teachers: one in bfloat16, several as one, peers that teach each other, one generation after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxopt_compress import graph, tree
from jaxopt_compress.distillation.arrays import labelled, positive, wide
from jaxopt_compress.distillation.logits import cross_entropy, soft_targets
from jaxopt_compress.graph import Site

PRODUCTS = ("dot_general", "conv_general_dilated")


def in_bfloat16(fn: Callable, params: Any, *inputs: Any) -> tuple[Callable, Any]:
    """Let a teacher multiply bfloat16 and add up float32; all between the products stays as it is.

    Half the bytes of the weights, and the fast kernels of CPUs, GPUs and TPUs. Softmax and norms lose nothing.

    Args:
      fn: `fn(params, *inputs)`, pure.
      params: any pytree of arrays.
      *inputs: arrays or shapes.

    Returns:
      `(fn, params)` to use instead; what only products read is stored in bfloat16.

    Example:
      >>> fn, held = in_bfloat16(lambda p, x: jnp.tanh(x @ p["w"]), {"w": jnp.ones((4, 3))}, jnp.ones((2, 4)))
      >>> held["w"].dtype.name, fn(held, jnp.ones((2, 4))).dtype.name
      ('bfloat16', 'float32')
    """
    sites = [site for site in graph.sites(fn, params, *inputs) if _is_rounded(site)]
    names, leaves = [site.name for site in sites], tree.leaves(params)
    blind = graph.rewrite(fn, names, _without_weight)
    read = graph.reads(lambda held, *rest: blind(tree.replace(params, held), {}, *rest)[0], leaves, *inputs)
    halved = {site.path for site in sites if site.moved}.difference(read, (s.path for s in sites if not s.moved))
    run, wanted = graph.rewrite(fn, names, _in_bfloat16), {path: jnp.asarray(leaves[path]).dtype for path in halved}

    def teacher(held: Any, *inputs: Any) -> Any:
        stored = tree.leaves(held)
        return run(tree.replace(held, {path: stored[path].astype(wanted[path]) for path in wanted}), {}, *inputs)[0]

    return teacher, tree.replace(params, {path: jnp.asarray(leaves[path], jnp.bfloat16) for path in wanted})


def _is_rounded(site: Site) -> bool:
    wide_ = all(value.aval.dtype == jnp.float32 for value in site.op.ins[:2])
    return site.kind in PRODUCTS and not site.closed_in and wide_


def _in_bfloat16(site: Site, args: Sequence[Any], state: Any) -> tuple[Sequence[Any], Any]:
    more = {**site.op.params, "precision": None, "preferred_element_type": jnp.dtype(jnp.float32)}
    return [site.op.eqn.primitive.bind(*(x.astype(jnp.bfloat16) for x in args), **more)], state


def _without_weight(site: Site, args: Sequence[Any], state: Any) -> tuple[Sequence[Any], Any]:
    args = [jnp.zeros_like(x) if side == site.weight else x for side, x in enumerate(args)]
    return graph.bind(site.op, args), state


def ensemble(logits: jax.Array, weights: jax.Array | None = None, *, temperature: float | jax.Array = 1.0) -> jax.Array:
    """Make one teacher of several: the logits whose softened probabilities are the mean of theirs.

        z = T log sum_k w_k softmax(z_k / T)

    Args:
      logits: `(teachers, ..., classes)`.
      weights: `(teachers,)`, or `(teachers, ...)` for every example its own, as from `confidences`; they are scaled to
        the sum 1. Alike if None.
      temperature: the one of the loss behind.

    Returns:
      `(..., classes)`, float32 or wider, without a gradient.

    Raises:
      ValueError: no teachers; weights of another shape.

    Reference: Hinton et al., "Distilling the knowledge in a neural network", 2015 (the arithmetic mean).
    """
    _several("ensemble", logits, 1)
    positive("ensemble", "temperature", temperature)
    z = stop_gradient(wide(logits))
    w = jnp.ones(z.shape[:1], z.dtype) if weights is None else stop_gradient(weights).astype(z.dtype)
    if w.shape not in (z.shape[:1], z.shape[:-1]):
        raise ValueError(
            f"`ensemble`: weights are {z.shape[:1]} or {z.shape[:-1]} for logits {z.shape}; got {w.shape}."
        )
    w = w.reshape(w.shape + (1,) * (z.ndim - w.ndim))
    shares = jnp.log(w) - jnp.log(jnp.sum(w, axis=0, keepdims=True))
    return temperature * jax.nn.logsumexp(jax.nn.log_softmax(z / temperature) + shares, axis=0)


def confidences(logits: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    """Weigh teachers example by example: the surer one is of the label, or at all, the more it counts.

        with labels     w_k = (1 - exp(l_k) / sum_j exp(l_j)) / (teachers - 1),   l the cross-entropies
        without         w_k = exp(-h_k) / sum_j exp(-h_j),                       h the entropies

    Args:
      logits: `(teachers, ..., classes)`.
      labels: integers `(...)`.

    Returns:
      `(teachers, ...)`, of the sum 1 over teachers.

    Raises:
      ValueError: fewer than two teachers; labels of another shape or no integers.

    Reference: Zhang et al., "Confidence-aware multi-teacher knowledge distillation", 2022; Kwon et al., "Adaptive
    knowledge distillation based on entropy", 2020.
    """
    _several("confidences", logits, 2)
    z = stop_gradient(wide(logits))
    if labels is None:
        log_p = jax.nn.log_softmax(z)
        entropies = -jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0), axis=-1)
        return jax.nn.softmax(-entropies, axis=0)
    labelled("confidences", z[0], labels)
    losses = jnp.stack([cross_entropy(each, labels) for each in z])
    return (1 - jax.nn.softmax(losses, axis=0)) / (z.shape[0] - 1)


def mutual(logits: jax.Array, *, temperature: float | jax.Array = 1.0) -> jax.Array:
    """Let peers teach each other while all of them learn (deep mutual learning).

        l_k = mean over j != k of T^2 KL(j || k)

    Add the loss of the labels to each; what a peer says as a teacher gets no gradient.

    Args:
      logits: `(peers, ..., classes)`, of peers under `jax.vmap` or stacked.
      temperature: positive.

    Returns:
      `(peers, ...)`, float32 or wider.

    Raises:
      ValueError: fewer than two peers.

    Reference: Zhang et al., "Deep mutual learning", 2018 (with T = 1).
    """
    _several("mutual", logits, 2)
    peers = range(logits.shape[0])
    pairs = [[soft_targets(logits[k], logits[j], temperature=temperature) for j in peers if j != k] for k in peers]
    return jnp.stack([jnp.stack(losses).mean(0) for losses in pairs])


def generations(train: Callable[[Any, Any], Any], students: Iterable[Any], teacher: Any) -> Iterator[Any]:
    """Train one student after the other, each with the one before as its teacher.

    Students of one size are born-again nets, and of falling size, with the wanted one last, teacher assistants.

    Args:
      train: `(student, teacher) -> trained`; a student is whatever you make of it: a seed, a width, parameters.
      students: in order.
      teacher: of the first.

    Yields:
      What `train` returns, each when it is done; `ensemble` of all of them is often better than the last.

    Example:
      >>> list(generations(lambda width, teacher: f"{width} taught by {teacher}", [8, 4], "16"))
      ['8 taught by 16', '4 taught by 8 taught by 16']

    Reference: Furlanello et al., "Born-again neural networks", 2018; Mirzadeh et al., "Improved knowledge distillation
    via teacher assistant", 2020.
    """
    for student in students:
        teacher = train(student, teacher)
        yield teacher


def _several(call: str, logits: jax.Array, least: int) -> None:
    if logits.ndim < 2 or logits.shape[0] < least:
        raise ValueError(
            f"`{call}`: logits are (teachers, ..., classes) of {least} teachers or more; got {logits.shape}."
        )
