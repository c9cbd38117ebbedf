"""The weights of products as these see them, and the way back to the parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import graph, tree
from jaxopt_compress.graph import Site


def weights_seen(fn: Callable, sites: Sequence[Site], params: Any, inputs: Sequence[Any]) -> dict[str, jax.Array]:
    """Return the weights of some products as these see them, with the layers of a scan in front.

    The function is run on zeros, with every product writing down its weight; nothing else is asked for, so that
    nothing else is computed.

    Args:
      fn: `fn(params, *inputs)`, pure.
      sites: which products.
      params: any pytree of arrays.
      inputs: shapes that `fn` takes.
    """
    return jax.jit(_reader(fn, sites, inputs))(params)


def put_back(
    fn: Callable, sites: Sequence[Site], params: Any, inputs: Sequence[Any], found: Mapping[str, jax.Array]
) -> Any:
    """Return the parameters with other weights in place of those that some products see; the inverse of `weights_seen`.

    Raises:
      ValueError: a weight that is computed from parameters, or one that several of the products see.
    """
    for site in sites:
        if not site.moved:
            raise ValueError(
                f"`put_back`: {site.path!r} is computed with before its product at {site.op.source}, so that no other "
                "weight can be put in its place."
            )
    paths = {site.path for site in sites}
    chosen = {path: leaf for path, leaf in tree.leaves(params).items() if path in paths}
    read = _reader(fn, sites, inputs)

    @jax.jit
    def pulled(chosen, found):
        seen, back = jax.vjp(lambda some: read(tree.replace(params, some)), chosen)
        (values,), (times,) = back(found), back(jax.tree.map(jnp.ones_like, seen))
        return jax.tree.map(lambda t, v, w: jnp.where(t == 0, w, v), times, values, chosen), times

    given = {site.name: found[site.name] for site in sites}
    new, times = pulled(chosen, given)
    several = [path for path, count in times.items() if bool(jnp.any(count > 1))]
    if several:
        raise ValueError(f"`put_back`: {several[0]!r} is seen by several products, which want different weights.")
    return tree.replace(params, new)


def _reader(fn: Callable, sites: Sequence[Site], inputs: Sequence[Any]) -> Callable:
    read = graph.survey(fn, [site.name for site in sites], lambda site, args: args[site.weight or 0])

    def run(params: Any) -> dict[str, jax.Array]:
        zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), tuple(inputs))
        return read(params, {site.name: _blank(site) for site in sites}, *zeros)

    return run


def _blank(site: Site) -> jax.Array:
    like = site.op.ins[site.weight or 0].aval
    return jnp.zeros((*site.stacked, *like.shape), like.dtype)
