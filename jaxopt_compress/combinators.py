"""Combinators: adverbs that change when a transform learns, what gradient it has, or over which axis it works."""

from functools import partial

import jax
import jax.core
import jax.numpy as jnp

from jaxopt_compress import tree
from jaxopt_compress.core import ParamTransform, State, keep, nothing_removed


def periodic(t: ParamTransform, every: int, start: int = 0) -> ParamTransform:
    """Run `t.update` only at steps `start`, `start + every`, ...; between them the state stays as it is.

    The refresh is a loop of one turn or none: one compilation for the whole run, and a step without refresh costs
    filling and copying a state. (A `lax.cond` does the same, but the TPU compiler then moves gradients out of the
    on-chip memory in every step.)

    Args:
      t: the transform to slow down.
      every: the period in steps, at least 1.
      start: the first step at which `t.update` runs.
    """
    if every < 1 or start < 0:
        raise ValueError(f"`periodic`: `every` is at least 1 and `start` at least 0; got {every}, {start}.")

    def update(params, state, *, step, **extra):
        since = jnp.asarray(step) - start
        due = (since >= 0) & (since % every == 0)
        if not isinstance(due, jax.core.Tracer):  # an eager caller need not compile a branch at every call
            return t.update(params, state, step=step, **extra) if due else state
        seen, old, more = jax.tree.map(_without_gradient, (params, state, extra))
        turn = lambda _: (jnp.zeros_like(due), t.update(seen, old, step=step, **more))  # noqa: E731
        # The loop starts from zeros: given a donated state to overwrite while the step still reads it, the TPU
        # compiler may order its copies in a circle, and give up.
        new = jax.lax.while_loop(lambda carry: carry[0], turn, (due, jax.tree.map(jnp.zeros_like, old)))[1]
        return jax.tree.map(partial(jnp.where, due), new, old)

    return t._replace(update=update)


def _without_gradient(leaf):
    """Stop the gradient, of which a loop has none; `update` is never differentiated."""
    return jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf


@jax.custom_jvp
def passthrough(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return `y` with the tangent of `x`: a straight-through estimator that is exact in floats.

    `x + stop_gradient(y - x)` is not `y`: it rounds twice.
    """
    del x
    return y


@passthrough.defjvp
def _passthrough_jvp(primals, tangents):
    return primals[1], tangents[0]


def straight_through(t: ParamTransform) -> ParamTransform:
    """Give `t.apply` the gradient of the identity, so that what `t` removes can learn and come back.

    With `prune` this is dynamic network surgery (Guo et al., 2016): the dense weights receive the gradient of the
    pruned ones. Draw masks often, every ten steps or so: a weight that the forward pass does not see gets a gradient
    that does not depend on it, and runs away. Leaves without a gradient pass through.
    """
    return t._replace(apply=_identity_gradient(t), removed=nothing_removed, apply_held=None, frozen=nothing_removed)


def dense_backward(t: ParamTransform) -> ParamTransform:
    """Let `t.update` see the gradient of removed weights too; under `attach` the optimizer still does not.

    The gradient of `apply` becomes that of the identity, as under `straight_through`, but what is removed stays so
    until `t.update` brings it back. For methods that grow weights by their gradient, such as RigL.
    """
    held = None if t.apply_held is None else _identity_gradient(t._replace(apply=t.apply_held))
    return t._replace(apply=_identity_gradient(t), apply_held=held)


def freezing(t: ParamTransform) -> ParamTransform:
    """Freeze what `t` removes instead of zeroing it: the weights keep their values, and come back with them.

    `apply` masks as before, at the cost of a masked copy of the weights in every step.
    """
    return t._replace(removed=nothing_removed, apply_held=None, frozen=t.removed)


def held(t: ParamTransform, state: State) -> ParamTransform:
    """Start `t` with a state that is known already, and keep it: masks that were found before training, for good.

    Start the parameters from `t.apply(params, state)`, so that what is removed is zero from the first step.
    """
    return t._replace(init=lambda params: jax.tree.map(jnp.copy, state), update=keep)  # a copy: states are donated


def _identity_gradient(t: ParamTransform):
    def estimate(before, after):
        return after if after is before or not tree.is_weight(before) else passthrough(before, after)

    return lambda params, state: jax.tree.map(estimate, params, t.apply(params, state))


LAYERS = "stacked layers"


def stacked(t: ParamTransform) -> ParamTransform:
    """Treat the first axis of every leaf as a stack of layers, each transformed on its own.

    For models that `lax.scan` (or `nn.scan`) over their layers, whose leaves are `(layers, ...)`: per-layer
    thresholds and per-layer scales. Inside the scan use `t` itself on a slice of parameters and state.
    """
    each = partial(jax.vmap, axis_name=LAYERS)

    def update(params, state, *, step, **extra):
        structure = jax.tree.structure(params)
        alike = {k: v for k, v in extra.items() if jax.tree.structure(v) == structure}
        other = {k: v for k, v in extra.items() if k not in alike}
        return each(lambda p, s, e: t.update(p, s, step=step, **e, **other))(params, state, alike)

    return ParamTransform(
        init=each(t.init),
        apply=each(t.apply),
        update=update,
        encode=each(t.encode),
        removed=each(t.removed),
        apply_held=each(t.forward),
        frozen=each(t.frozen),
    )


def layer_number() -> int | jax.Array:
    """Return which layer of a stack this is, and 0 outside `stacked`: for what has to differ from layer to layer."""
    try:
        return jax.lax.axis_index(LAYERS)
    except NameError:
        return 0
