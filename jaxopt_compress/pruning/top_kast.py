"""Top-KAST: sparse forward, a little less sparse backward."""

from typing import Any, NamedTuple

import jax

from jaxopt_compress.combinators import passthrough
from jaxopt_compress.core import ParamTransform, State, nothing_removed
from jaxopt_compress.pruning.criteria import magnitude
from jaxopt_compress.pruning.prune import prune


class TopKastState(NamedTuple):
    """The state of `top_kast`: masks by path, as in `prune`.

    Attributes:
      forward: of the weights that the forward pass sees.
      backward: of those that learn, the forward ones among them.
    """

    forward: State
    backward: State


def top_kast(sparsity: float, backward_sparsity: float, **how: Any) -> ParamTransform:
    """Use the largest weights in the forward pass, and train some more of them (Top-KAST; Jayakumar et al., 2020).

    Weights outside both sets are frozen under `attach`: they keep their values and may come back by magnitude. What the
    paper calls exploration comes from a penalty on all weights that learn, stronger by `1 / (1 - sparsity)` on those
    that the forward pass does not see; `distance` gives the latter part. To be updated every 100 steps or so.

    Args:
      sparsity: the fraction of zeros in the forward pass.
      backward_sparsity: the fraction of weights that do not learn, at most `sparsity`.
      **how: `scope`, `allocation`, `pattern`, `packed`, as for `prune`.

    Raises:
      ValueError: `backward_sparsity` above `sparsity`; what `prune` refuses.
    """
    if backward_sparsity > sparsity:
        raise ValueError(f"`top_kast`: what the forward pass sees learns; got {backward_sparsity=} above {sparsity=}.")
    forward, backward = prune(magnitude, sparsity, **how), prune(magnitude, backward_sparsity, **how)

    def apply(params, state):
        learning = backward.apply(params, state.backward)  # gives the gradient
        seen = forward.apply(params, state.forward)  # gives the value
        return jax.tree.map(lambda w, x, y: w if y is w else passthrough(x, y), params, learning, seen)

    def update(params, state, *, step, **extra):
        return TopKastState(*(t.update(params, s, step=step, **extra) for t, s in zip((forward, backward), state)))

    return ParamTransform(
        init=lambda params: TopKastState(forward.init(params), backward.init(params)),
        apply=apply,
        update=update,
        encode=lambda params, state: forward.encode(params, state.forward),
        removed=nothing_removed,
        frozen=lambda params, state: backward.removed(params, state.backward),
    )
