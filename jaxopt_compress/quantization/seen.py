"""The weights of a quantized function as its products see them."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import graph
from jaxopt_compress.graph import Site
from jaxopt_compress.quantization.quantize import Quantization
from jaxopt_compress.quantization.schemes import Scheme


def weights_of(q: Quantization, params: Any) -> dict[str, jax.Array]:
    """Return the weights of all products as these see them, with the layers of a scan in front.

    The function is run on zeros, with every product writing down its weight; nothing else is asked for, so that
    nothing else is computed.
    """
    sites = {site.name: site for site in q.rounded_sites if _rounds_weight(site, q.schemes[site.name])}
    read = graph.survey(q.fn, sites, lambda site, args: args[site.weight or 0])

    def run(params):
        blank = {name: _blank(site) for name, site in sites.items()}
        inputs = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), q.shapes[1:])
        return read(params, blank, *inputs)

    return jax.jit(run)(params)


def _blank(site: Site) -> jax.Array:
    like = site.op.ins[site.weight or 0].aval
    return jnp.zeros((*site.stacked, *like.shape), like.dtype)


def _rounds_weight(site: Site, scheme: Scheme) -> bool:
    return site.weight is not None and (scheme.weight is not None or site.kind == "gather")
