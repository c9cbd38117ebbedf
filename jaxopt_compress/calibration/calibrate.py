"""The fold of a statistic over the products of a function, batch by batch."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.progress import track

from jaxopt_compress import graph, tree
from jaxopt_compress.calibration.statistics import Statistic
from jaxopt_compress.graph import Site
from jaxopt_compress.products import product

Where = str | Callable[[Site], bool]
PRODUCTS = ("dot_general", "conv_general_dilated")
Run = Callable[[Site, Sequence[jax.Array], Any], tuple[Sequence[jax.Array], Sequence[jax.Array]]]


def calibrate(
    fn: Callable,
    params: Any,
    batches: Iterable[Any],
    statistic: Statistic,
    *,
    where: Where = "**",
    states: graph.States | None = None,
    progress: bool = False,
    run: Run | None = None,
    extra: graph.States | None = None,
) -> graph.States:
    """Run a function on batches, and sum up what its weights are multiplied with.

    Every product of an activation and a weight is looked at: matrix products, einsums and convolutions, in scans,
    branches and loops too. The step is compiled once for batches of one shape; nothing is kept of a batch but its sums.
    Batches that are sharded over devices are summed where they are.

    Args:
      fn: `fn(params, *inputs)`, pure.
      params: any pytree of arrays.
      batches: tuples of the other arguments; what is no tuple is the one other argument.
      statistic: one of `gram()`, `moments()`, or your own.
      where: which sites, by a glob over their names (the paths of their parameters) or a predicate of a `Site`.
      states: of an earlier call, to go on from.
      progress: whether to show a bar.
      run: `(site, operands, extra) -> (operands as they are to be seen, results)`, in place of every product with a
        weight; for methods that go on behind layers that are compressed already.
      extra: arrays for `run`, by the name of the site, with the axes `site.stacked` in front.

    Returns:
      States by the name of the site, with the axes `site.stacked` in front for layers of a scan.

    Raises:
      ValueError: no batches; no such sites.
    """
    step, found = None, states
    for batch in track(batches, description="calibrating", disable=not progress, transient=True):
        inputs = batch if isinstance(batch, tuple) else (batch,)
        if step is None:
            sites = weighted(graph.sites(fn, params, *inputs))
            started = {site.name: _unseen(site, statistic) for site in chosen(sites, where)} if found is None else found
            found = jax.tree.map(jnp.copy, started)  # what is donated is ours
            step = jax.jit(_step(fn, sites, statistic, run), donate_argnums=1)
        found = step(params, found, extra, *inputs)
    if step is None or found is None:
        raise ValueError("`calibrate`: there are no batches.")
    return found


def weighted(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Return the products of an activation and a weight."""
    return tuple(site for site in sites if site.weight is not None and site.kind in PRODUCTS and _is_plain(site))


def chosen(sites: Sequence[Site], where: Where) -> tuple[Site, ...]:
    """Return the sites that a glob or a predicate hits.

    Raises:
      ValueError: there are none.
    """
    hits = (lambda site: tree.matches(where, site.name)) if isinstance(where, str) else where
    found = tuple(site for site in sites if hits(site))
    if not found:
        raise ValueError(f"`calibrate`: {where!r} is none of {[site.name for site in sites]}.")
    return found


def stages(sites: Sequence[Site]) -> list[list[Site]]:
    """Put those together that multiply the same activation, in the order of the program."""
    found: dict[Any, list[Site]] = {}
    for site in sites:
        found.setdefault(site.op.ins[1 - (site.weight or 0)], []).append(site)
    return list(found.values())


def per_layer(site: Site, fn: Callable) -> Callable:
    """Map a function of arrays of a site over the layers of the scans around it."""
    for _ in site.stacked:
        fn = jax.vmap(fn)
    return fn


def weight_shape(site: Site) -> tuple[int, int, int]:
    """Return the shape of the weight of a site as matrices, `(groups, outs, ins)`."""
    side = site.weight or 0
    like = jax.ShapeDtypeStruct(site.shapes[side], jnp.float32)
    groups, outs, ins = jax.eval_shape(lambda w: product(site).matrix(side, w), like).shape
    return groups, outs, ins


def _is_plain(site: Site) -> bool:
    return not site.closed_in and site.op.params.get("batch_group_count", 1) == 1


def _unseen(site: Site, statistic: Statistic) -> Any:
    groups, _, ins = weight_shape(site)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*site.stacked, *x.shape)), statistic.init(groups, ins))


def _step(fn: Callable, sites: Sequence[Site], statistic: Statistic, run: Run | None) -> Callable:
    def fold(params: Any, states: graph.States, extra: Any, *inputs: Any) -> graph.States:
        def replace(site: Site, args: Sequence[Any], state: Any) -> tuple[Sequence[Any], Any]:
            measured, more = state
            seen, found = (args, graph.bind(site.op, args)) if run is None else run(site, args, more)
            if site.name not in states:
                return found, state
            side = site.weight or 0
            rows = product(site).rows(1 - side, seen[1 - side], site.shapes[side])
            return found, (statistic.update(measured, rows), more)

        names = [site.name for site in sites]
        given = {name: (states.get(name), (extra or {}).get(name)) for name in names}
        after = graph.rewrite(fn, names, replace, learns=True)(params, given, *inputs)[1]
        return {name: after[name][0] for name in states}

    return fold
