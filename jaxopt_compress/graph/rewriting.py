"""The run of a program with some of its operations replaced, at whatever depth they stand.

A replacement may keep a state: ranges that it reads, or statistics that it gathers. States go around like carries:
through a scan over stacked layers each turn gets its own, through any other loop one state runs from turn to turn.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
from jax import lax

from jaxopt_compress import tree
from jaxopt_compress.graph.maxima import Codes, Early, early, on_codes
from jaxopt_compress.graph.program import Op, Program, Value, bind, closed, program, scan_counts
from jaxopt_compress.graph.sites import Site, sites_of

States = dict[str, Any]
Find = Callable[[Program, Sequence[str]], Sequence[Site]]
Watched = Callable[[Program, Sequence[str]], Mapping[Site, Any]]
Replace = Callable[[Site, Sequence[Any], Any], tuple[Sequence[Any], Any]]
Read = Callable[[Site, Sequence[Any], Sequence[Any]], Any]
Rounds = Callable[[Early, States], Codes | None]


def survey(fn: Callable, names: Iterable[str], read: Callable[[Site, Sequence[Any]], Any]) -> Callable:
    """Return a function that visits the sites of `fn`, each whether or not its branch is taken or its loop turns.

    Args:
      fn: `fn(params, *inputs)`, pure.
      names: which sites.
      read: `(site, arguments) -> arrays`, the same for all turns of a loop that is not over stacked layers.

    Returns:
      `run(params, blank, *inputs) -> states`, by name; `blank` holds arrays like those that are read, with the axes
      `site.stacked` in front.
    """
    run = _rewriter(fn, _named(names), read=lambda site, args, outs: read(site, args), learns=True, runs=EVERYWHERE)
    return lambda params, blank, *inputs: run(params, blank, *inputs)[1]


def watch(fn: Callable, find: Watched, read: Read) -> Callable:
    """Return a function that runs `fn` as it stands, and returns beside its outputs what is read on the way.

    Args:
      fn: `fn(params, *inputs)`, pure.
      find: `(program, paths of the parameters) -> {site: blank}`, operations of any kind that `rewrite` can get at, and
        arrays like those that are read there, with the axes `site.stacked` in front.
      read: `(site, arguments, results) -> arrays`.

    Returns:
      `run(params, *inputs) -> (outputs, states)`, with what was read by the names of sites.
    """

    def run(params: Any, *inputs: Any) -> tuple[Any, States]:
        whole, paths, args, shapes = _traced(fn, params, inputs)
        blank = find(whole, paths)
        watching = _Rewriting(tuple(blank), read=read, learns=True)
        outs, after = watching.run(whole, args, {site.name: arrays for site, arrays in blank.items()})
        return jax.tree.unflatten(shapes, outs), after

    return run


def rewrite(
    fn: Callable, names: Iterable[str], replace: Replace, learns: bool = False, rounds: Rounds | None = None
) -> Callable:
    """Return a function with some contractions, convolutions or lookups of `fn` replaced.

    It is traced anew whenever it is, for whatever shapes it is given, and can be differentiated, batched and compiled
    like `fn`.

    Args:
      fn: `fn(params, *inputs)`, pure.
      names: which sites, by the names that `sites` gives them.
      replace: `(site, arguments, state) -> (results, state)`, instead of the operation.
      learns: whether states change; where they do not, loops do not carry them.
      rounds: `(early, states) -> codes`, where sites take codes for an operand and a maximum in front of them is to
        work on codes; the sites are then given these. None for what is to stay.

    Returns:
      `run(params, states, *inputs) -> (outputs, states)`, with states by name. The states of a site in a scan over
      stacked layers have the axes `site.stacked` in front.

    Raises:
      ValueError: (from the result) a site that the function does not have, or one in a function with a derivative of
        its own, or in another primitive whose inside cannot be rewritten.
    """
    return _rewriter(fn, _named(names), replace=replace, learns=learns, rounds=rounds)


def _named(names: Iterable[str]) -> Find:
    names = tuple(names)

    def find(whole: Program, paths: Sequence[str]) -> list[Site]:
        found = {site.name: site for site in sites_of(whole, paths)}
        absent = [name for name in names if name not in found]
        if absent:
            raise ValueError(f"`graph.rewrite`: {absent[0]!r} is no site of this function; it has {list(found)}.")
        return [found[name] for name in names]

    return find


def _rewriter(fn: Callable, find: Find, **how: Any) -> Callable:
    def run(params: Any, states: States, *inputs: Any) -> tuple[Any, States]:
        whole, paths, args, shapes = _traced(fn, params, inputs)
        outs, after = _Rewriting(find(whole, paths), **how).run(whole, args, states)
        return jax.tree.unflatten(shapes, outs), after

    return run


def _traced(fn: Callable, params: Any, inputs: Any) -> tuple[Program, tuple[str, ...], list[Any], Any]:
    """Return the program, the paths of its parameters, all arguments, and the structure of what it returns."""
    jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(params, *inputs)
    leaves = tree.leaves(params)
    args = [*leaves.values(), *jax.tree.leaves(inputs)]
    return program(jaxpr, len(leaves)), tuple(leaves), args, jax.tree.structure(shapes)


@dataclass(eq=False)
class _Rewriting:
    """What is replaced, and by what.

    Attributes:
      sites: the operations to replace, or to read at.
      replace: `(site, arguments, state) -> (results, state)`; None to run them as they stand.
      read: then `(site, arguments, results) -> state`.
      learns: whether states change; where they do not, loops do not carry them.
      rounds: how what stands in front of sites is rounded already.
      runs: how operations with bodies are run; `TURNS` if it is None.
    """

    sites: Sequence[Site]
    replace: Replace | None = None
    read: Read | None = None
    learns: bool = False
    rounds: Rounds | None = None
    runs: Mapping[str, Callable] | None = None
    _held: dict[Op, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def by_op(self) -> Mapping[Op, Site]:
        """The sites by their operation."""
        return {site.op: site for site in self.sites}

    def run(self, program: Program, args: Sequence[Any], states: States) -> tuple[list[Any], States]:
        """Run a program; return what comes out, and the states of the sites after it."""
        arrays: dict[Value, Any] = dict(zip(program.ins, args, strict=True))
        states = dict(states)

        def read(value: Value) -> Any:
            return arrays.get(value, value.const)

        rounded = self._rounded(program, states)
        for op in program.ops:
            args = [read(value) for value in op.ins]
            with op.eqn.ctx.manager:  # the mesh, the kind of device that it was written for
                found, new = (rounded[op](args), {}) if op in rounded else self._step(op, args, states)
            states.update(new)
            arrays.update(zip(op.outs, found, strict=True))
        return [read(value) for value in program.outs], states

    def _rounded(self, program: Program, states: States) -> dict[Op, Callable]:
        """Return the operations that work on codes, and how."""
        found: dict[Op, Callable] = {}
        if self.rounds is None:
            return found
        for each in early(program, self.by_op):
            if (codes := self.rounds(each, states)) is not None:
                found |= on_codes(each, codes)
        return found

    def _step(self, op: Op, args: Sequence[Any], states: States) -> tuple[Sequence[Any], States]:
        site = self.by_op.get(op)
        if site is not None and self.replace is not None:
            found, new = self.replace(site, args, states.get(site.name))
            return found, {site.name: new} if self.learns else {}
        found, states = self._as_it_stands(op, args, states)
        if site is not None and self.read is not None:
            states = {**states, site.name: self.read(site, args, found)}
        return found, states

    def _as_it_stands(self, op: Op, args: Sequence[Any], states: States) -> tuple[Sequence[Any], States]:
        held = self._inside(op)
        if not held:
            return bind(op, args), {}
        runs = TURNS if self.runs is None else self.runs
        if op.name not in runs:
            raise ValueError(
                f"`graph.rewrite`: {held[0]!r} stands in `{op.name}` ({op.source}), whose inside cannot be rewritten."
            )
        return runs[op.name](self, op, args, {name: states[name] for name in held if name in states})

    def _inside(self, op: Op) -> tuple[str, ...]:
        """Return the names of the sites in the bodies of an operation."""
        if op not in self._held:
            inner = (each for body in op.bodies for each in body.walk())
            self._held[op] = tuple(self.by_op[each].name for each in inner if each in self.by_op)
        return self._held[op]


def _scan(rewriting: _Rewriting, op: Op, args: Sequence[Any], states: States) -> tuple[Sequence[Any], States]:
    consts, carries = scan_counts(op.eqn, closed(op.params["jaxpr"]).jaxpr)
    end, p = consts + carries, op.params
    layered = any(op in site.loops for site in rewriting.sites)  # every turn has states of its own
    stacked, shared = (states, {}) if layered else ({}, states)

    def step(carry, x):
        kept, shared = carry
        rest, own = x
        found, new = rewriting.run(op.bodies[0], [*args[:consts], *kept, *rest], {**shared, **own})
        after = {name: new[name] for name in shared} if rewriting.learns else shared
        return (tuple(found[:carries]), after), (tuple(found[carries:]), {name: new[name] for name in own})

    start, sequences = (tuple(args[consts:end]), shared), (tuple(args[end:]), stacked)
    (last, after), (ys, own) = lax.scan(step, start, sequences, p["length"], reverse=p["reverse"], unroll=p["unroll"])
    return [*last, *ys], {**after, **own}


def _while(rewriting: _Rewriting, op: Op, args: Sequence[Any], states: States) -> tuple[Sequence[Any], States]:
    first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
    test, body = op.bodies

    def go_on(carry):
        return rewriting.run(test, [*args[:first], *carry[0]], carry[1])[0][0]

    def turn(carry):
        found, new = rewriting.run(body, [*args[first : first + second], *carry[0]], carry[1])
        return tuple(found), {name: new[name] for name in carry[1]}

    found, after = lax.while_loop(go_on, turn, (tuple(args[first + second :]), states))
    return list(found), after


def _cond(rewriting: _Rewriting, op: Op, args: Sequence[Any], states: States) -> tuple[Sequence[Any], States]:
    def branch(body: Program):
        def run(held, *rest):
            found, new = rewriting.run(body, rest, held)
            return tuple(found), {name: new[name] for name in held}

        return run

    found, after = lax.switch(args[0], [branch(body) for body in op.bodies], states, *args[1:])
    return list(found), after


def _remat(rewriting: _Rewriting, op: Op, args: Sequence[Any], states: States) -> tuple[Sequence[Any], States]:
    def block(held, *arrays):
        found, new = rewriting.run(op.bodies[0], arrays, held)
        return tuple(found), {name: new[name] for name in held}

    kept = jax.checkpoint(block, policy=op.params["policy"], prevent_cse=op.params["prevent_cse"])
    found, after = kept(states, *args)
    return list(found), after


def _while_once(rewriting: _Rewriting, op: Op, args: Sequence[Any], states: States) -> tuple[Sequence[Any], States]:
    first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
    test, body = op.bodies
    carry = args[first + second :]
    _, states = rewriting.run(test, [*args[:first], *carry], states)
    return rewriting.run(body, [*args[first : first + second], *carry], states)


def _every_branch(rewriting: _Rewriting, op: Op, args: Sequence[Any], states: States) -> tuple[Sequence[Any], States]:
    found: Sequence[Any] = ()
    for body in op.bodies:
        found, states = rewriting.run(body, args[1:], states)
    return found, states


TURNS = {"scan": _scan, "while": _while, "cond": _cond, "remat2": _remat, "checkpoint": _remat}
EVERYWHERE = {**TURNS, "while": _while_once, "cond": _every_branch}
