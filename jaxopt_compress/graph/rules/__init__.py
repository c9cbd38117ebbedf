"""What each primitive does to axes; a primitive without a rule keeps all of them."""

from jaxopt_compress.graph.program import Op
from jaxopt_compress.graph.rules import arranging, contracting, control, elementwise, indexing, reducing
from jaxopt_compress.graph.rules.rule import Rule as Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **arranging.RULES,
    **indexing.RULES,
    **contracting.RULES,
    **reducing.RULES,
    **control.RULES,
}


def rule(op: Op) -> Rule:
    """Return the rule of an operation."""
    return RULES.get(op.name, contracting.OPAQUE)
