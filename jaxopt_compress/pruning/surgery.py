"""Dynamic network surgery: pruned weights go on learning, and return when they have grown."""

from typing import Any

import jax
import optax

from jaxopt_compress.combinators import straight_through
from jaxopt_compress.core import ParamTransform
from jaxopt_compress.pruning.prune import prune
from jaxopt_compress.pruning.scoring import Criterion


def surgery(
    criterion: Criterion, sparsity: float | optax.Schedule, *, margin: float = 0.1, **how: Any
) -> ParamTransform:
    """Prune below one threshold and restore above a higher one; between them masks stay (DNS; Guo et al., 2016).

    The dense weights receive the gradient of the pruned ones, as under `straight_through`. Weights among the best
    `(1 - margin)` of the number that stays are kept, those beyond the best `(1 + margin)` of it are pruned, and what
    lies between keeps its mask, so that masks do not flicker. The paper takes both thresholds from the mean and the
    deviation of a layer; here they are ranks, so that the sparsity is known, to within the margin.

    Args:
      criterion: as for `prune`; the paper's is `magnitude`.
      sparsity: the fraction of zeros, about; or a schedule of it.
      margin: the width of the band, in [0, 1); 0 is `straight_through(prune(...))`.
      **how: `scope`, `allocation`, `pattern`, `minimum`, `packed`, as for `prune`.

    Returns:
      A transform whose state is masks by path, all ones at first.

    Raises:
      ValueError: a margin outside [0, 1); what `prune` refuses.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"`surgery`: `margin` is in [0, 1); got {margin}.")
    sure, possible = (prune(criterion, _scaled(sparsity, part), **how) for part in (1 - margin, 1 + margin))

    def update(params, state, *, step, **extra):
        best, fair = (t.update(params, state, step=step, **extra) for t in (sure, possible))
        return jax.tree.map(lambda keep, may, was: keep | (may & was), best, fair, state)  # packed or not

    return straight_through(sure._replace(update=update))


def _scaled(sparsity: Any, part: float) -> Any:
    """Return the sparsity at which `part` times as many weights stay; what is out of range is left for `prune`."""
    if callable(sparsity):
        schedule: Any = sparsity
        return lambda step: 1 - (1 - schedule(step)) * part
    return max(1 - (1 - sparsity) * part, 0.0) if 0 <= sparsity <= 1 else sparsity
