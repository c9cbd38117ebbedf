"""The weights of a quantized function as its products see them."""

from typing import Any

import jax

from jaxopt_compress.calibration import weights_seen
from jaxopt_compress.graph import Site
from jaxopt_compress.quantization.quantize import Quantization
from jaxopt_compress.quantization.schemes import Scheme


def weights_of(q: Quantization, params: Any) -> dict[str, jax.Array]:
    """Return the weights of all products that are to be rounded, by the name of the site."""
    sites = [site for site in q.rounded_sites if _rounds_weight(site, q.schemes[site.name])]
    return weights_seen(q.fn, sites, params, q.shapes[1:])


def _rounds_weight(site: Site, scheme: Scheme) -> bool:
    return site.weight is not None and (scheme.weight is not None or site.kind == "gather")
