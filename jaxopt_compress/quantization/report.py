"""What is rounded, and how, as a table."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from jaxopt_compress.graph import Site
from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.quantization.schemes import Scheme


def table(sites: Sequence[Site], schemes: Mapping[str, Scheme]) -> str:
    """Write all sites with their grids; "float" where nothing is rounded."""
    shown = Table("site", "primitive", "shapes", "weight", "activation", "range", "at", title="what is rounded")
    for site in sites:
        scheme = schemes.get(site.name)
        shapes = " * ".join("x".join(map(str, shape)) or "()" for shape in site.shapes)
        weight = _word(scheme.weight if scheme and site.weight is not None else None)
        activation = _word(scheme.activation if scheme and site.kind != "gather" else None)
        range_ = "" if activation == "float" or not scheme else "static" if scheme.static else "per token"
        groups = f", groups of {scheme.group_size}" if scheme and scheme.group_size else ""
        shown.add_row(site.name, site.kind, shapes, weight + groups, activation, range_, site.op.source)
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def _word(grid: Grid | None) -> str:
    if grid is None:
        return "float"
    return f"int{grid.bits}" if isinstance(grid, Integers) else f"{type(grid).__name__.lower()} of {grid.bits} bits"
