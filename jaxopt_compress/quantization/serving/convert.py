"""From a quantized function to one that runs on stored codes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import graph, tree
from jaxopt_compress.graph import Site
from jaxopt_compress.quantization import operands
from jaxopt_compress.quantization.quantize import Quantization
from jaxopt_compress.quantization.serving import lookups, run, weights


class Served(NamedTuple):
    """The parameters of a served function: a pytree without a float copy of what is stored as codes.

    Attributes:
      floats: the parameters that are not rounded, by path.
      weights: by the name of a site, its weight as codes in the layout that its product wants, `(batch, out, in)`; of a
        convolution in its own.
      ranges: of activations where they are static, by the name of a site and the operand: the scale, and a zero point
        if it has one. One for all sites that have the same, as query, key and value do.

    `Served(**jc.export.load(path))` is what `jc.export.save(path, served._asdict())` wrote.
    """

    floats: dict[str, jax.Array]
    weights: dict[str, Any]
    ranges: dict[str, Any]


def convert(
    q: Quantization,
    params: Any,
    ranges: graph.States,
    rounded: Mapping[str, Any] | None = None,
    platform: str | None = None,
) -> tuple[Callable, Served]:
    """Turn a quantized function into one that reads stored codes.

    `int_fn(int_params, *inputs)` computes what `q(params, ranges, *inputs)` does: the same codes, the same sums,
    the same scaling of them. Products of integers take the stored codes as they are; weights of products that are not
    of integers (weight-only schemes, small floats, NF4) are decoded as they are needed.

    Args:
      q: what `quantize` returned.
      params: the trained parameters; leaves may be `Quantized` already, as from `q.weights.encode` or a file: such a
        leaf keeps its codes.
      ranges: of the activations; what `q.init()` returns where all are dynamic.
      rounded: codes that were chosen otherwise, the `weights` of what `post_training.round_weights` returns.
      platform: where it is to run fast, "cpu", "gpu" or "tpu"; the default backend if not given. For TPUs codes of at
        most 4 bits are arrays of that type; elsewhere they share bytes. It runs everywhere all the same.

    Returns:
      `(int_fn, int_params)`. `int_fn` is compiled, takes any inputs that the function takes, and `int_params` can be
      given to it as an argument, donated, put on devices, and saved.

    Raises:
      ValueError: ranges that were never observed; a weight with NaN or infinities; a `Quantized` leaf that a product
        does not take as it is; codes for a site that is not there, or that were chosen in another basis.

    Example:
      >>> from jaxopt_compress.quantization import Scheme, quantize
      >>> mlp = lambda p, x: jnp.maximum(x @ p["up"], 0) @ p["down"]
      >>> params = {"up": jnp.eye(4), "down": jnp.ones((4, 2)) / 3}
      >>> q = quantize(mlp, params, jnp.ones((1, 4)), rules={"**": Scheme()})
      >>> int_fn, int_params = convert(q, params, q.init())
      >>> int_params.weights["up"]["weight"].data.dtype.name, int_params.floats
      ('int8', {})
    """
    _refuse_unset(q, ranges)
    weights.refuse_unknown("convert", "rounded", q, {} if rounded is None else rounded)
    held = weights.prepare(q, params, ranges, rounded or {}, (platform or jax.default_backend()) == "tpu")
    _refuse_broken(held)
    kept, same = _distinct(weights.activations(q, ranges))
    leaves = tree.leaves(params, is_leaf=weights.is_stored)
    template = jax.tree.structure(params, is_leaf=weights.is_stored)
    shapes: dict[str, Any] = {path: graph.struct(_decoded(leaf), path) for path, leaf in leaves.items()}
    body = graph.rewrite(q.fn, q.schemes, _replacing(q), rounds=_rounding(q, same) if q.integers else None)

    def int_fn(served: Served, *inputs: Any) -> Any:
        # What a replaced product no longer reads is filled with zeros, which the compiler drops.
        whole = [served.floats.get(path, graph.unread(like)) for path, like in shapes.items()]
        states = {name: served.weights.get(name, {}) | served.ranges.get(same[name], {}) for name in same}
        return body(jax.tree.unflatten(template, whole), states, *inputs)[0]

    needed = graph.reads(lambda floats, *inputs: int_fn(Served(floats, held, kept), *inputs), shapes, *q.shapes[1:])
    return jax.jit(int_fn), Served({path: _decoded(leaves[path]) for path in needed}, held, kept)


def _distinct(ranges: graph.States) -> tuple[graph.States, dict[str, str]]:
    """Keep one of ranges that are equal, so that what is rounded with them is rounded once; say which sites have it."""
    first, same = dict[Any, str](), dict[str, str]()
    for name, state in ranges.items():
        numbers = tuple((str(key), np.asarray(leaf).tobytes()) for key, leaf in jax.tree.leaves_with_path(state))
        same[name] = first.setdefault(numbers, name)
    return {name: ranges[name] for name in first.values() if ranges[name]}, same


def _replacing(q: Quantization) -> Callable:
    def replace(site: Site, args: Sequence[Any], state: Any) -> tuple[list[Any], Any]:
        scheme = q.schemes[site.name]
        if site.kind == "gather":
            return [lookups.read(site, args, state["weight"])], state
        return [run.product_of(site, args[:2], scheme, state, q.integers)], state

    return replace


def _rounding(q: Quantization, same: Mapping[str, str]) -> Callable:
    """Return what rounds the input of a maximum, where all products behind it round alike."""

    def rounds(each: graph.Early, states: graph.States) -> graph.Codes | None:
        alike = {(same[site.name], side, q.schemes[site.name].activation) for site, side in each.users}
        found = [run.codes_of(site, side, q.schemes[site.name], states[site.name]) for site, side in each.users]
        return found[0] if len(alike) == 1 and all(found) else None

    return rounds


def _refuse_unset(q: Quantization, ranges: graph.States) -> None:
    for site in q.rounded_sites:
        for side in operands.unset(site, q.schemes[site.name], ranges[site.name]):
            raise ValueError(
                f"`convert`: the range of operand {side} of {site.name!r} was never observed, or is NaN; run "
                "`q.observe` on some batches first."
            )


def _refuse_broken(held: graph.States) -> None:
    for name, weight in held.items():
        if not bool(jnp.all(jnp.isfinite(weight["weight"].scale))):
            raise ValueError(f"`convert`: the weight of {name!r} has NaN or infinite entries.")


def _decoded(leaf: Any) -> jax.Array:
    return leaf.decode() if weights.is_stored(leaf) else leaf
