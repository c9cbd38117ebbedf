"""Reconstruction of a net, block after block."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from jaxopt_compress import graph
from jaxopt_compress.graph import Site
from jaxopt_compress.quantization.post_training.reconstruct import reconstruct
from jaxopt_compress.quantization.post_training.round_weights import Rounded
from jaxopt_compress.quantization.quantize import Quantization
from jaxopt_compress.quantization.serving import convert
from jaxopt_compress.quantization.serving.weights import refuse_unknown


class _Block(NamedTuple):
    """A block as a quantized function, and what the whole net calls its sites, by what it calls them itself."""

    q: Quantization
    names: dict[str, str]

    def own(self, states: dict[str, Any]) -> dict[str, Any]:
        """Pick from what is known by names of the whole net."""
        return {own: states[whole] for own, whole in self.names.items() if whole in states}

    def whole(self, states: dict[str, Any]) -> dict[str, Any]:
        """Rename for the whole net."""
        return {self.names[own]: state for own, state in states.items()}


def reconstruct_blocks(
    q: Quantization,
    params: Any,
    batches: Iterable[Any],
    blocks: Sequence[Callable],
    *,
    ranges: graph.States | None = None,
    start: Rounded | None = None,
    **options: Any,
) -> Rounded:
    """Reconstruct one block after the other, each behind the rounded ones before it.

    A block gets what the rounded blocks before it put out, and is to put out what it does behind the float ones: so it
    makes up for their errors too.

    Args:
      q: what `quantize` returned for the whole net.
      params: the trained parameters.
      batches: inputs of the whole net, tuples or single ones, of one shape.
      blocks: `block(params, *inputs) -> the inputs of the next`, a tuple or a single one; one after the other they do
        what the net does, and every one takes all parameters.
      ranges: of activations.
      start: codes of the whole net to start from.
      **options: of `reconstruct`, but for `outputs`.

    Raises:
      ValueError: no batches; blocks whose products are not, in their order, those of the net.

    Reference: Li et al., "BRECQ: pushing the limit of post-training quantization by block reconstruction", 2021.
    """
    ranges = q.init() if ranges is None else ranges
    rounded = floats = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not rounded:
        raise ValueError("`reconstruct_blocks`: there are no batches.")
    if start is not None:
        refuse_unknown("reconstruct_blocks", "start", q, start.weights)
    done = Rounded({}, {})
    for block in _cut(q, params, rounded[0], blocks):
        run = jax.jit(block.q.fn)
        floats = [run(params, *batch) for batch in floats]
        own, codes = block.own(ranges), dict[str, Any]()
        if any(site.weight is not None and site.kind != "gather" for site in block.q.rounded_sites):
            first = None if start is None else Rounded(block.own(start.weights), {})
            found = reconstruct(block.q, params, rounded, ranges=own, outputs=floats, start=first, **options)
            done = Rounded(done.weights | block.whole(found.weights), done.notes | block.whole(found.notes))
            codes = found.weights
        int_fn, served = convert(block.q, params, own, codes)
        rounded, floats = [_inputs(int_fn(served, *batch)) for batch in rounded], [_inputs(out) for out in floats]
    return done


def _inputs(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def _cut(q: Quantization, params: Any, inputs: tuple[Any, ...], blocks: Sequence[Callable]) -> list[_Block]:
    """Give each block the schemes of its products in the whole net, which has them in the same order."""
    found, left = [], list(q.sites)
    for place, block in enumerate(blocks):
        own = graph.sites(block, params, *inputs)
        whole, left = left[: len(own)], left[len(own) :]
        if [_kind(site) for site in own] != [_kind(site) for site in whole]:
            raise ValueError(
                f"`reconstruct_blocks`: block {place} has the products {[site.name for site in own]}; the next of the "
                f"net are {[site.name for site in whole]}."
            )
        names = {site.name: other.name for site, other in zip(own, whole) if other.name in q.schemes}
        schemes = {name: q.schemes[other] for name, other in names.items()}
        shapes = jax.tree.map(lambda leaf: graph.struct(leaf, "an argument"), (params, *inputs))
        found.append(_Block(Quantization(block, shapes, own, schemes, q.integers), names))
        inputs = _inputs(jax.eval_shape(block, params, *inputs))
    if left:
        raise ValueError(f"`reconstruct_blocks`: {[site.name for site in left]} of the net are in no block.")
    return found


def _kind(site: Site) -> tuple[Any, ...]:
    return site.kind, site.path, site.weight, site.stacked
