"""Every loss of distillation, ready to be trained with, by the names of the taps that a pair of nets has."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks._distilled import Extra, Method
from jaxopt_compress import distillation as d

EMBEDDED, NEGATIVES = 64, 256


def on_logits(loss: Callable, **more: Any) -> Method:
    """Compare logits: `(student, teacher, labels) -> losses`."""
    return Method(lambda extra, s, t, batch, key: (loss(s["logits"], t["logits"], batch.label), extra.held), **more)


def on_features(loss: Callable, taps: Sequence[str]) -> Method:
    """Compare features at each tap as they are, and add up."""
    taps = tuple(taps)
    return Method(lambda extra, s, t, batch, key: (sum(loss(s[n], t[n]) for n in taps), extra.held), taps)


def projected(loss: Callable, taps: Sequence[str], more: Callable = lambda name, shape, variables: {}) -> Method:
    """Compare features at each tap behind a projector: `(student, teacher, parameters) -> losses`."""
    taps = tuple(taps)

    def extra(key: jax.Array, students: Any, teachers: Any, variables: Any, count: int) -> Extra:
        made = {}
        for number, name in enumerate(taps):
            start = d.projector(jax.random.fold_in(key, number), students[name], teachers[name])
            made[name] = {"projector": start, **more(name, teachers[name], variables)}
        return Extra(made)

    def compare(extra: Extra, s: Any, t: Any, batch: Any, key: jax.Array) -> Any:
        own = extra.trained
        losses = [loss(d.project(own[n]["projector"], s[n], t[n]), t[n], own[n]) for n in taps]
        return sum(losses), extra.held

    return Method(compare, taps, extra)


def likely(taps: Sequence[str]) -> Method:
    """Predict the teacher's features with variances that are trained too (VID)."""
    spread = d.spread_of(5.0)
    start = lambda name, shape, variables: {"spread": jnp.full(shape.shape[-1], spread)}  # noqa: E731
    return projected(lambda s, t, own: d.vid(s, t, own["spread"]), taps, start)


def distances_and_angles(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Add up both losses of RKD, with the authors' weights."""
    return d.rkd_distance(student, teacher) + 2 * d.rkd_angle(student, teacher)


def reviewed(taps: Sequence[str]) -> Method:
    """Fuse the stages (ReviewKD)."""
    taps = tuple(taps)

    def extra(key: jax.Array, students: Any, teachers: Any, variables: Any, count: int) -> Extra:
        return Extra(d.reviewer(key, [students[n] for n in taps], [teachers[n] for n in taps]))

    def compare(extra: Extra, s: Any, t: Any, batch: Any, key: jax.Array) -> Any:
        return d.review(extra.trained, [s[n] for n in taps], [t[n] for n in taps]), extra.held

    return Method(compare, taps, extra)


def contrasted(tap: str) -> Method:
    """Tell each example from others by an embedding of both nets, of their features' mean over positions (CRD)."""
    vector = lambda x: x.reshape(len(x), -1, x.shape[-1]).mean(1)  # noqa: E731

    def extra(key: jax.Array, students: Any, teachers: Any, variables: Any, count: int) -> Extra:
        keys = jax.random.split(key, 3)
        shapes = [jax.eval_shape(vector, features[tap]) for features in (students, teachers)]
        wanted = jax.ShapeDtypeStruct((shapes[0].shape[0], EMBEDDED), jnp.float32)
        embed = [d.projector(k, shape, wanted) for k, shape in zip(keys, shapes)]
        return Extra(embed, d.bank(keys[2], count, EMBEDDED))

    def compare(extra: Extra, s: Any, t: Any, batch: Any, key: jax.Array) -> Any:
        like = jnp.zeros((len(batch.label), EMBEDDED))
        mine, theirs = (d.project(p, vector(x[tap]), like) for p, x in zip(extra.trained, (s, t)))
        others = jax.random.randint(key, (len(batch.label), NEGATIVES), 0, len(extra.held.student))
        losses, held = d.crd(mine, theirs, extra.held, batch.examples, others)
        return losses, d.remember(held, mine, theirs, batch.examples)

    return Method(compare, (tap,), extra)


def soft(temperature: float) -> Callable:
    """Return the loss of soft targets at a temperature."""
    return lambda s, t, y: d.soft_targets(s, t, temperature=temperature)


def of_logits() -> dict[str, Method]:
    """Return what every pair of classifiers can use."""
    return {
        "soft targets": on_logits(soft(4.0)),
        "reverse": on_logits(lambda s, t, y: d.reverse_kl(s, t, temperature=4.0)),
        "jsd": on_logits(lambda s, t, y: d.jsd(s, t, temperature=4.0)),
        "dkd": on_logits(lambda s, t, y: d.dkd(s, t, y)),
        "dist": on_logits(lambda s, t, y: d.dist(s, t)),
        "standardized": on_logits(lambda s, t, y: d.soft_targets(d.standardize(s), d.standardize(t), temperature=2.0)),
        "top 3": on_logits(lambda s, t, y: d.top_k_soft_targets(s, d.top_k(t, 3, temperature=4.0), temperature=4.0)),
    }


def of_pictures(stages: Sequence[str], normed: str, embedding: str, norm: Callable[[Any], Any]) -> dict[str, Method]:
    """Return what a pair of CNNs can use.

    Args:
      stages: taps behind their stages.
      normed: a tap in front of a ReLU.
      embedding: a tap of vectors.
      norm: from the teacher's variables to scale and shift of the norm at `normed`.
    """
    last = stages[-1]

    def margins(name: str, shape: Any, variables: Any) -> dict[str, jax.Array]:
        scale, shift = norm(variables)
        return {"margin": d.negative_mean(shift, scale)}

    return {
        "two momenta": on_logits(soft(4.0), apart=True),
        "hint": projected(lambda s, t, own: d.hint(s, t), [last]),
        "attention": on_features(d.attention_transfer, stages),
        "selectivity": on_features(d.nst, [last]),
        "vid": likely(stages),
        "ofd": projected(lambda s, t, own: d.ofd(s, t, own["margin"]), [normed], margins),
        "review": reviewed(stages),
        "distances, angles": on_features(distances_and_angles, [embedding]),
        "similarity": on_features(d.similarity_preserving, [last]),
        "pkt": on_features(d.pkt, [embedding]),
        "crd": contrasted(embedding),
    }


def of_sequences(hidden: str) -> dict[str, Method]:
    """Return what a pair of language models can use, by a tap of the vectors in front of their last product."""
    return {
        "hint": projected(lambda s, t, own: d.hint(s, t), [hidden]),
        "attention": on_features(d.attention_transfer, [hidden]),
        "selectivity": on_features(d.nst, [hidden]),
        "vid": likely([hidden]),
        "distances, angles": on_features(distances_and_angles, [hidden]),
        "similarity": on_features(d.similarity_preserving, [hidden]),
        "pkt": on_features(d.pkt, [hidden]),
        "crd": contrasted(hidden),
    }
