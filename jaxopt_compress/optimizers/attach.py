"""A parameter transform on the optimizer's side: derived from the transform, not a second mechanism."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_compress import tree
from jaxopt_compress.core import Params, ParamTransform, State


class AttachState(NamedTuple):
    """The optimizer's state and the transform's, with the clock that an Optax loop does not pass on.

    Attributes:
      step: int32 scalar, how many updates there were.
      inner: the state of the optimizer.
      compress: the state of the transform.
    """

    step: jax.Array
    inner: optax.OptState
    compress: State


class Attached(optax.GradientTransformationExtraArgs):
    """An Optax optimizer that carries a transform; `apply` and `encode` read its state out of any `opt_state`."""

    transform: ParamTransform

    def apply(self, params: Params, opt_state: optax.OptState) -> Params:
        """Return what the forward pass sees: `transform.apply` with the state found in `opt_state`.

        For parameters that come from this optimizer: their removed weights are exact zeros, so that no masked copy is
        made of them. For others use `transform.apply`.
        """
        return self.transform.forward(params, compress_state(opt_state))

    def encode(self, params: Params, opt_state: optax.OptState) -> Any:
        """Return the stored form of the model: `transform.encode` with the state found in `opt_state`."""
        return self.transform.encode(params, compress_state(opt_state))


def attach(tx: optax.GradientTransformation | optax.MultiSteps, t: ParamTransform) -> Attached:
    """Join an optimizer and a transform into one ordinary Optax optimizer.

    In one update: `t.update` runs on the parameters as they came in (extras: `grads`, and what the caller passed).
    Weights that were removed when the gradient was taken have none, and get the moments that `tx.init` gives, so that
    one that comes back starts afresh. Then the inner optimizer takes its step, and those that are removed now get the
    update `-p`, which makes them exact zeros in every dtype. Weights that are frozen are treated alike but get the
    update 0. Under `straight_through` nothing counts as removed: the dense weights go on learning.

    Moments are found by structure, never by the optimizer's type: the parts of a state that mirror the parameters,
    masked nodes in places or not. (`optax.tree_map_params` finds the same parts and fails under `sm3`, `flatten` and
    masks by prefix.)

    Masks are drawn before the step and not after it, as RigL does, and no part of the step but its last sees the new
    ones: they then cost no pass over memory of their own.

    The state is arrays only, to be checkpointed, sharded and donated like any `opt_state`. `attach` may itself stand
    inside `optax.chain`, `MultiSteps`, `partition` or `inject_hyperparams`, as long as nothing after it changes the
    updates: half of `-p` is no removal.

    Args:
      tx: any Optax optimizer; extra arguments of `update` reach it.
      t: the transform.

    Returns:
      An `optax.GradientTransformationExtraArgs` with two methods more: `apply(params, opt_state)` for the forward
      pass, and `encode(params, opt_state)` for the stored form.

    Raises:
      ValueError: (from `update`) `params` is missing; (from `apply`, `encode`) `opt_state` holds no state of
        `attach`, or several.

    Example:
      >>> from jaxopt_compress.pruning import magnitude, prune
      >>> tx = attach(optax.sgd(0.5), prune(magnitude, 0.5))
      >>> params = {"w": jnp.array([3.0, 1.0])}
      >>> updates, state = tx.update({"w": jnp.array([2.0, 0.0])}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([2., 0.], dtype=float32)}
    """
    inner = tx.gradient_transformation() if isinstance(tx, optax.MultiSteps) else tx
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return AttachState(jnp.zeros((), jnp.int32), inner.init(params), t.init(params))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("`attach`: `update(grads, state, params)` needs the parameters; got None.")
        compress = t.update(params, state.compress, step=state.step, **{"grads": updates, **extra})
        absent, gone = (_marks(t.removed, params, s) for s in (state.compress, compress))
        resting, still = (_marks(t.frozen, params, s) for s in (state.compress, compress))
        idle, held = jax.tree.map(_either, absent, resting), _zero(absent, params)
        inner_state = _restart(state.inner, inner.init(held), idle)
        moved, inner_state = inner.update(_zero(idle, updates), inner_state, held, **extra)
        updates = jax.tree.map(_emit, gone, _zero(still, moved), params)
        return updates, AttachState(jnp.asarray(optax.safe_increment(state.step)), inner_state, compress)

    attached = Attached(init, update)
    attached.transform = t
    return attached


def compress_state(opt_state: optax.OptState) -> State:
    """Return the transform's state out of an optimizer state, however deep `attach` stands in it."""
    is_ours = lambda node: isinstance(node, AttachState)  # noqa: E731
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(node)]
    if len(found) != 1:
        raise ValueError(f"`attach`: `opt_state` must hold one state of `attach`; got {len(found)}.")
    return found[0].compress


def _marks(by_path: Callable, params: Params, state: State):
    """Mark weights in the structure of `params`: bool arrays, and `False` for leaves that have none."""
    return tree.replace(params, {**dict.fromkeys(tree.leaves(params), False), **by_path(params, state)})


def _either(a, b):
    return b if a is False else a if b is False else a | b


def _zero(gone, values):
    return jax.tree.map(lambda g, v: v if g is False else jnp.where(g, jnp.zeros((), v.dtype), v), gone, values)


def _emit(gone, update, param):
    if gone is False:
        return update
    wide = max(update.dtype, param.dtype, key=lambda dtype: jnp.finfo(dtype).bits)  # a rounded `-p` would leave a rest
    return jnp.where(gone, -param.astype(wide), update.astype(wide))


def _restart(state: optax.OptState, fresh: optax.OptState, gone) -> optax.OptState:
    """Give the entries of removed weights their `fresh` values wherever a part of the state mirrors the parameters."""

    def restart(now, fresh, mark):
        alike = mark is not False and not _is_masked(now) and jnp.shape(mark) == jnp.shape(now)
        return jnp.where(mark, fresh, now) if alike else now

    def part(now, fresh):
        return jax.tree.map(restart, now, fresh, gone, is_leaf=_is_masked) if mirrors(now) else now

    mirrors = lambda node: _mirrors(node, gone)  # noqa: E731
    return jax.tree.map(part, state, fresh, is_leaf=mirrors)


def _mirrors(node, params) -> bool:
    """Tell whether a part of a state has the structure of the parameters, but for masked nodes in place of subtrees."""
    leaves, structure = jax.tree.flatten(node, is_leaf=_is_masked)
    try:
        subtrees = structure.flatten_up_to(params)
    except ValueError:  # JAX has no other way to ask whether one structure is a prefix of another
        return False
    return all(_is_masked(leaf) or jax.tree_util.all_leaves([sub]) for leaf, sub in zip(leaves, subtrees, strict=True))


def _is_masked(node) -> bool:
    return isinstance(node, optax.MaskedNode)
