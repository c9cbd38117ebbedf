"""SmoothQuant and AWQ: for each input a number by which its weights are multiplied and its activations divided.

Both set the state of `bases.diagonal()` in the ranges of a quantized function, before its ranges are observed and its
weights are rounded. Products that multiply the same activation get the same numbers, so that it is divided once.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import graph
from jaxopt_compress.calibration import Gram, Moments, Statistic, calibrate, gram, moments, per_layer, stages
from jaxopt_compress.graph import Site
from jaxopt_compress.products import product
from jaxopt_compress.quantization import bases, numerics, operands
from jaxopt_compress.quantization.post_training.method import quadratic
from jaxopt_compress.quantization.quantize import Quantization
from jaxopt_compress.quantization.schemes import Scheme
from jaxopt_compress.quantization.seen import weights_of

Choose = Callable[[Sequence[Site], Sequence[Scheme], Sequence[jax.Array], Any], jax.Array]


def smoothquant(
    q: Quantization, params: Any, ranges: graph.States, batches: Iterable[Any], strength: float = 0.5, **options: Any
) -> graph.States:
    """Move what is large in activations into the weights: `s = max|x|^strength / max|w|^(1 - strength)`.

    For schemes that round activations; `0.5` is the authors' choice, more is for activations that are harder.

    Args:
      q: what `quantize` returned, with schemes that have `basis=bases.diagonal()`.
      params: the trained parameters.
      ranges: of `q.init()`.
      batches: tuples of inputs, or single inputs.
      strength: from 0, all in the activations, to 1.
      **options: `states`, `progress` of `calibrate`.

    Returns:
      The ranges with these numbers; static ranges are to be observed afterwards.

    Raises:
      ValueError: no scheme has `bases.diagonal()`.

    Reference: Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language models",
    2023. It changes the norm in front of a product; here the product does it, behind any function.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"`smoothquant`: `strength` is from 0 to 1; got {strength}.")

    def choose(sites, schemes, weights, seen: Sequence[Moments]):
        del schemes
        largest = jnp.stack([_features(s, one.largest) for s, one in zip(sites, seen)]).max(0)
        weight = jnp.stack([_features(s, jnp.max(jnp.abs(w), axis=1)) for s, w in zip(sites, weights)]).max(0)
        return _safe(_power(largest, strength) / _power(weight, 1 - strength))

    return _smooth("smoothquant", q, params, ranges, batches, moments(), choose, options)


def awq(
    q: Quantization, params: Any, ranges: graph.States, batches: Iterable[Any], steps: int = 20, **options: Any
) -> graph.States:
    """Protect the weights of large activations: `s = mean|x|^r / mean|w|^(1 - r)`, with the `r` of the least error.

    For schemes that round weights alone, mostly in groups. The error is that of the outputs, over all that was seen,
    with weights rounded to nearest; `s = 1` is tried as well, so that it is never larger than without.

    Args:
      q: what `quantize` returned, with schemes that have `basis=bases.diagonal()`.
      params: the trained parameters.
      ranges: of `q.init()`.
      batches: tuples of inputs, or single inputs.
      steps: how many `r` are tried, from 0 up to 1.
      **options: `states`, `progress` of `calibrate`.

    Returns:
      The ranges with these numbers.

    Raises:
      ValueError: no scheme has `bases.diagonal()`.

    Reference: Lin et al., "AWQ: activation-aware weight quantization for on-device LLM compression and acceleration",
    2024.
    """
    if steps < 1:
        raise ValueError(f"`awq`: `steps` is at least 1; got {steps}.")

    def choose(sites, schemes, weights, seen: Sequence[Gram]):
        size = jnp.stack([_features(s, one.absolute / one.rows) for s, one in zip(sites, seen)]).max(0)
        weight = jnp.stack([_features(s, jnp.mean(jnp.abs(w), axis=1)) for s, w in zip(sites, weights)]).mean(0)

        def attempt(r):
            s = _power(size, r) / (_power(weight, 1 - r) + 1e-4)
            s = s / jnp.sqrt(jnp.max(s) * jnp.min(s))
            return jnp.where(r < 0, jnp.ones_like(s), _safe(s))

        def error(r):
            errors = [_error(*parts, attempt(r)) for parts in zip(sites, schemes, weights, seen)]
            return jnp.sum(jnp.stack(errors))

        tried = jnp.concatenate([jnp.full(1, -1.0), jnp.arange(steps) / steps])
        return attempt(tried[jnp.argmin(jax.lax.map(error, tried))])

    return _smooth("awq", q, params, ranges, batches, gram(), choose, options)


def _smooth(
    call: str,
    q: Quantization,
    params: Any,
    ranges: graph.States,
    batches: Iterable[Any],
    statistic: Statistic,
    choose: Choose,
    options: dict[str, Any],
) -> graph.States:
    sites = [site for site in q.rounded_sites if bases.is_diagonal(operands.basis_of(site, q.schemes[site.name]))]
    if not sites:
        raise ValueError(f"`{call}`: no scheme has `basis=bases.diagonal()`.")
    states = options.pop("states", None) or calibrate(q.fn, params, batches, statistic, **options)
    seen, after = weights_of(q, params), dict(ranges)
    for stage in stages(sites):
        schemes = [q.schemes[site.name] for site in stage]
        matrices = [per_layer(site, partial(_matrix, site))(seen[site.name]) for site in stage]
        # All products of one activation stand in the same scans.
        numbers = per_layer(stage[0], partial(choose, stage, schemes))(matrices, [states[site.name] for site in stage])
        for site in stage:
            shape = jnp.shape(ranges[site.name]["basis"])
            after[site.name] = {**ranges[site.name], "basis": numbers.reshape(shape)}
    return after


def _matrix(site: Site, w: jax.Array) -> jax.Array:
    return product(site).matrix(site.weight or 0, numerics.wide(w))


def _features(site: Site, numbers: jax.Array) -> jax.Array:
    """Take the largest over groups and, of a convolution, over the window: `(groups, ins)` to `(features,)`."""
    features = site.shapes[0][operands.inner_axes(site, 0)[0]] if site.kind == "conv_general_dilated" else None
    largest = numbers.max(0)
    return largest if features is None else largest.reshape(features, -1).max(1)


def _error(site: Site, scheme: Scheme, matrix: jax.Array, seen: Gram, s: jax.Array) -> jax.Array:
    """Return the square error of the outputs, with weights multiplied, rounded and divided again."""
    side, how = site.weight or 0, product(site)
    sizes = [site.shapes[side][axis] for axis in operands.inner_axes(site, side)]
    state = {"basis": s.reshape(sizes)}
    turned = operands.turn(site, scheme, state, side, how.operand(side, matrix, site.shapes[side]))
    grid: Any = scheme.weight
    rounding = operands.fitted(turned, operands.scale_shape_of(site, scheme), grid, scheme)
    back = {"basis": 1 / state["basis"]}
    found = how.matrix(side, operands.turn(site, scheme, back, side, rounding.rounded(turned)))
    return jnp.sum(jax.vmap(quadratic)(found - matrix, seen.second))


def _power(x: jax.Array, exponent: Any) -> jax.Array:
    """Raise to a power; what was never seen to be other than 0 stays out of it."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** exponent, 1)


def _safe(s: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(s) & (s > 0), s, 1)
