"""The core: a parameter transform is a few pure functions, which compose.

Nothing here knows pruning from quantization. `init` looks at the parameters once, `apply` says what the forward
pass (and the shipped model) sees, `update` learns between steps, `encode` says how a leaf is stored.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

from jaxopt_compress import encoded, tree

Params = Any  # any pytree whose leaves are arrays or pass through
State = Any  # a pytree of arrays
Step = chex.Numeric  # an integer scalar, traced or not


class UpdateFn(Protocol):
    """The signature of `ParamTransform.update`: extras (`grads`, `stats`, ...) are passed to every link."""

    def __call__(self, params: Params, state: State, *, step: Step, **extra: Any) -> State:
        """Return the new state."""
        ...


def nothing_removed(params: Params, state: State) -> dict[str, jax.Array]:
    """Tell that a transform removes no weight."""
    del params, state
    return {}


class ParamTransform(NamedTuple):
    """Pure functions over any pytree of parameters.

    Attributes:
      init: `(params) -> state`; the state holds arrays only.
      apply: `(params, state) -> params'`; differentiable; training, evaluation and export all call it. Keeps
        structure, shapes, dtypes and sharding.
      update: `(params, state, *, step, **extra) -> state`; runs between steps and is never differentiated. `step`
        (an integer, traced or not) is the caller's clock: no state holds one.
      encode: `(params, state) -> tree`; the stored form. `decode(encode(p, s)) == apply(p, s)`, bit for bit.
      removed: for transforms that remove weights, `(params, state) -> {path: bool array}`, True where `apply` gives
        zero whatever the weight is: the weights that `attach` holds at exact zero, without gradient or moments.
      apply_held: `apply` for parameters whose removed weights are exact zeros already, if that can be had for less:
        the same value and gradient. A mask then costs no copy of the weights.
      frozen: like `removed`, for weights that take no part in training for now but keep their values.
    """

    init: Callable[[Params], State]
    apply: Callable[[Params, State], Params]
    update: UpdateFn
    encode: Callable[[Params, State], Any]
    removed: Callable[[Params, State], dict[str, jax.Array]] = nothing_removed
    apply_held: Callable[[Params, State], Params] | None = None
    frozen: Callable[[Params, State], dict[str, jax.Array]] = nothing_removed

    @property
    def forward(self) -> Callable[[Params, State], Params]:
        """`apply_held` where there is one, else `apply`."""
        return self.apply_held or self.apply


def keep(params: Params, state: State, *, step: Step, **extra: Any) -> State:
    """Return the state as it is: the `update` of a transform that learns nothing."""
    del params, step, extra
    return state


def chain(*links: ParamTransform) -> ParamTransform:
    """Apply transforms from left to right; each link sees what the links before it let through.

    The state is the tuple of the links' states. `chain` is associative and `chain()` is the identity.

    Raises:
      ValueError: (from `encode`) a link rewrites a leaf whose stored form an earlier link has already fixed, as
        pruning after quantizing would. `check` shows this before any training.
    """

    def init(params):
        states = []
        for link in links:
            states.append(link.init(params))
            params = link.apply(params, states[-1])
        return tuple(states)

    def update(params, state, *, step, **extra):
        new = []
        for link, s in zip(links, state, strict=True):
            new.append(link.update(params, s, step=step, **extra))
            params = link.apply(params, new[-1])
        return tuple(new)

    return ParamTransform(
        init=init,
        apply=partial(_fold, [link.apply for link in links]),
        update=update,
        encode=partial(_encode, links),
        removed=partial(_any_of, [link.removed for link in links]),
        apply_held=partial(_fold, [link.forward for link in links]),
        frozen=partial(_any_of, [link.frozen for link in links]),
    )


def _fold(functions: Sequence[Callable], params: Params, state: State) -> Params:
    for function, s in zip(functions, state, strict=True):
        params = function(params, s)
    return params


def _encode(links: Sequence[ParamTransform], params: Params, state: State) -> Any:
    stored = params
    for position, (link, s) in enumerate(zip(links, state, strict=True)):
        after, form = link.apply(params, s), link.encode(params, s)
        stored = _settle(position, params, after, form, stored)
        params = after
    return stored


def _any_of(functions: Sequence[Callable], params: Params, state: State) -> dict[str, jax.Array]:
    gone: dict[str, jax.Array] = {}
    for function, s in zip(functions, state, strict=True):
        for path, mask in function(params, s).items():
            gone[path] = gone[path] | mask if path in gone else mask
    return gone


def _settle(position: int, before, after, form, stored):
    """Take link `position`'s stored form for the leaves it changed, and the older one for the others."""

    def leaf(key_path, old_value, new_value, new_form, old_form):
        if new_value is old_value:
            return old_form
        if encoded.is_encoded(old_form):
            raise ValueError(
                f"`chain`: link {position} rewrites {tree.path_str(key_path)!r}, whose stored form "
                f"{type(old_form).__name__} an earlier link has fixed; put the link that stores last."
            )
        return new_form

    return jax.tree_util.tree_map_with_path(leaf, before, after, form, stored)


def select(where: tree.Where, t: ParamTransform) -> ParamTransform:
    """Restrict a transform to the leaves that `where` chooses; no other leaf changes by one bit.

    The inner transform sees an ordered dictionary from path to leaf, and so do its criteria; its state is keyed by
    path. An extra of `update` with the structure of `params` (such as `grads`) is restricted alike.

    Args:
      where: a glob such as `"**/kernel"`, several globs, a predicate `(path, leaf) -> bool`, or a tree of bools
        (see `tree.choose`). A choice that matches nothing is an error.
      t: the transform to restrict.

    Example:
      >>> t = select("**/kernel", leafwise(lambda w: jnp.abs(w).max(), lambda w, s: jnp.minimum(w, s)))
      >>> list(t.init({"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}))
      ['dense/kernel']
    """

    def restrict(params, paths):
        found = tree.leaves(params)
        return tree.Selection((path, found[path]) for path in paths)

    def inside(params):
        return restrict(params, tree.choose(params, where))

    def update(params, state, *, step, **extra):
        paths = tree.choose(params, where)
        structure = jax.tree.structure(params)
        alike = {
            name: restrict(value, paths) if jax.tree.structure(value) == structure else value
            for name, value in extra.items()
        }
        return t.update(restrict(params, paths), state, step=step, **alike)

    def lift(fn):
        return lambda params, state: tree.replace(params, fn(inside(params), state))

    return ParamTransform(
        init=lambda params: t.init(inside(params)),
        apply=lift(t.apply),
        update=update,
        encode=lift(t.encode),
        removed=lambda params, state: t.removed(inside(params), state),
        apply_held=lift(t.forward),
        frozen=lambda params, state: t.frozen(inside(params), state),
    )


def leafwise(init: Callable, apply: Callable, encode: Callable | None = None) -> ParamTransform:
    """Lift functions of one array to a transform; `update` fits every leaf again.

    Leaves that cannot be compressed (integers, scalars, `None`) pass through. The state is keyed by path.

    Args:
      init: `(w) -> s`, arrays only.
      apply: `(w, s) -> w'`, with the shape and dtype of `w`.
      encode: `(w, s) -> stored form`; `apply` if left out.

    Example:
      >>> halve = leafwise(lambda w: (), lambda w, s: w / 2)
      >>> halve.apply({"n": 3, "w": jnp.ones(2)}, halve.init({"n": 3, "w": jnp.ones(2)}))
      {'n': 3, 'w': Array([0.5, 0.5], dtype=float32)}
    """

    def fit(params):
        return tree.Selection((path, init(w)) for path, w in tree.weights(params).items())

    def lift(fn):
        def over_tree(params, state):
            return tree.replace(params, {path: fn(w, state[path]) for path, w in tree.weights(params).items()})

        return over_tree

    def update(params, state, *, step, **extra):
        del state, step, extra
        return fit(params)

    return ParamTransform(fit, lift(apply), update, lift(encode or apply))


def check(t: ParamTransform, params: Params) -> None:
    """Refuse a transform that cannot serve these parameters, in a second and without computing anything.

    Args:
      t: the transform.
      params: the parameters, or their `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: what `init`, `apply`, `update` or `encode` refuse, naming the leaf.
    """

    def trace(p):
        state = t.update(p, t.init(p), step=jnp.zeros((), jnp.int32), grads=p)
        return t.encode(p, state)

    jax.eval_shape(trace, params)
