"""Quantization of a function: weights and activations of its products, as a transformation of the function itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import graph, tree
from jaxopt_compress.core import ParamTransform
from jaxopt_compress.graph import Site
from jaxopt_compress.products import Conv, product
from jaxopt_compress.quantization import operands, report, storage
from jaxopt_compress.quantization.rounded import multiply
from jaxopt_compress.quantization.schemes import Scheme

Rules = Mapping[Any, Scheme | None]


@dataclass(frozen=True, eq=False)
class Quantization:
    """A function whose products are rounded.

    Attributes:
      fn: the function as it was.
      shapes: of the parameters and the inputs that it was read with.
      sites: its products and lookups.
      schemes: how they are rounded, by name; those that are not listed stay in floats.
      integers: whether products are done in integers wherever they can be.
    """

    fn: Callable
    shapes: tuple[Any, ...]
    sites: tuple[Site, ...]
    schemes: Mapping[str, Scheme]
    integers: bool = True

    def init(self) -> graph.States:
        """Return the state of the ranges: of nothing seen. Arrays by site, empty where ranges are not static."""
        return {site.name: operands.init(site, self.schemes[site.name]) for site in self.rounded_sites}

    def __call__(self, params: Any, ranges: graph.States, *inputs: Any) -> Any:
        """Run the function with rounded products, in training and afterwards; the gradient is straight through."""
        return self._run(params, ranges, *inputs)[0]

    def observe(self, params: Any, ranges: graph.States, *inputs: Any) -> graph.States:
        """Run the function as it was, and fold what its activations are into the ranges."""
        return self._observe(params, ranges, *inputs)[1]

    @cached_property
    def weights(self) -> ParamTransform:
        """The same rounding of the weights as a transform of the parameters, to store them and to chain it with others.

        What it decodes to is what the products see, bit for bit; where a fit adds (`mse`, `mean_absolute`), up to the
        order in which it does.

        Raises:
          ValueError: a parameter that is computed with before its product, or one whose products round it differently.
        """
        return storage.transform(graph.trace(self.fn, *self.shapes), self.schemes)

    @property
    def rounded_sites(self) -> tuple[Site, ...]:
        """The sites that have a scheme."""
        return tuple(site for site in self.sites if site.name in self.schemes)

    @cached_property
    def _run(self) -> Callable:
        return graph.rewrite(self.fn, self.schemes, self._rounded)

    @cached_property
    def _observe(self) -> Callable:
        return graph.rewrite(self.fn, self.schemes, self._observed, learns=True)

    def _rounded(self, site: Site, args: Sequence[Any], state: Any) -> tuple[list[Any], Any]:
        scheme, dtype = self.schemes[site.name], site.op.outs[0].aval.dtype
        if site.kind == "gather":
            return [operands.looked_up(site, args, scheme)], state
        how = product(site)
        a, b = operands.turned(site, scheme, state, args[:2])
        roundings = operands.roundings(site, how, (a, b), scheme, state)
        return [multiply(how, a, b, roundings, dtype, self.integers, scheme.compute)], state

    def _observed(self, site: Site, args: Sequence[Any], state: Any) -> tuple[list[Any], Any]:
        return graph.bind(site.op, args), operands.observe(site, args, self.schemes[site.name], state)

    def __str__(self) -> str:
        return report.table(self.sites, self.schemes)


def quantize(fn: Callable, params: Any, *inputs: Any, rules: Rules, integers: bool = True) -> Quantization:
    """Round the products of a function: matrix products, einsums, convolutions, lookups in tables.

    Works for any function of JAX, through `jit`, `scan`, `remat` and `cond`: no module is edited, nothing is patched.
    Print the result for a table of what is rounded, and what is not.

    Args:
      fn: `fn(params, *inputs)`, pure.
      params: any pytree of arrays or shapes.
      *inputs: examples, arrays or shapes; the result takes any others that `fn` takes.
      rules: how sites are rounded, by a glob over their names, or by a predicate of a `Site`; the first that matches
        counts, and `None` leaves what it matches in floats. A site has the path of its parameter for a name; a product
        of two activations is "dot_general[0]" and so on.
      integers: whether to multiply in integers where both operands are. Without, they are rounded and multiplied as
        floats; the sums then differ where float32 rounds them.

    Returns:
      A `Quantization`: `ranges = q.init()`, `q(params, ranges, *inputs)`, `q.observe(params, ranges, *inputs)`.

    Raises:
      ValueError: a rule that no site matches, or one that matches a product that cannot be rewritten.

    Example:
      >>> mlp = lambda p, x: jnp.maximum(x @ p["up"], 0) @ p["down"]
      >>> params = {"up": jnp.eye(4), "down": jnp.ones((4, 2)) / 3}
      >>> q = quantize(mlp, params, jnp.ones((1, 4)), rules={"**": Scheme()})
      >>> [round(y, 3) for y in q(params, q.init(), jnp.array([[1.0, 0.5, -1.0, 0.25]]))[0].tolist()]
      [0.585, 0.585]
    """
    found = graph.sites(fn, params, *inputs)
    schemes = _match(found, rules)
    for site in found:
        if site.name in schemes:
            _check(site, schemes[site.name])
    shapes = jax.tree.map(lambda leaf: graph.struct(leaf, "an argument"), (params, *inputs))
    return Quantization(fn, shapes, found, schemes, integers)


def _match(sites: Sequence[Site], rules: Rules) -> dict[str, Scheme]:
    names = {site.name: site for site in sites}
    left, schemes = dict(names), dict[str, Scheme]()
    for rule, scheme in rules.items():
        hits = [name for name, site in names.items() if _hits(rule, site)]
        if not hits:
            raise ValueError(f"`quantize`: the rule {_word(rule)} matches none of the sites {list(names)}.")
        for name in hits:
            if left.pop(name, None) is not None and scheme is not None:
                schemes[name] = scheme
    return schemes


def _hits(rule: Any, site: Site) -> bool:
    if callable(rule):
        return bool(rule(site))
    return tree.matches(rule, site.name) or (site.path != "" and tree.matches(rule, site.path))


def _word(rule: Any) -> str:
    return getattr(rule, "__name__", repr(rule))


def _check(site: Site, scheme: Scheme) -> None:
    """Refuse what cannot be rewritten, before anything runs."""
    if site.closed_in:
        raise ValueError(
            f"`quantize`: {site.name!r} stands in a function with a derivative of its own ({site.closed_in}), "
            "which rounding would change; leave it out with a rule of `None`."
        )
    if site.kind != "gather":
        how = product(site)
        if operands.basis_of(site, scheme) is not None and isinstance(how, Conv) and how.groups > 1:
            raise ValueError(
                f"`quantize`: {site.name!r} is a convolution in groups, whose inputs have no common basis."
            )
    if site.kind == "gather" and scheme.weight is None:
        raise ValueError(f"`quantize`: {site.name!r} is a lookup in a table, and the scheme rounds no weights.")
    if not all(jnp.issubdtype(value.aval.dtype, jnp.floating) for value in site.op.ins[: 1 + (site.kind != "gather")]):
        raise ValueError(f"`quantize`: {site.name!r} does not multiply real floating-point numbers.")
