"""Constants of removed channels go into the bias that follows."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxopt_compress.graph.coupling import Coupling
from jaxopt_compress.graph.program import Op, Value, bind

ARRANGING = ("convert_element_type", "reshape", "broadcast_in_dim", "transpose", "squeeze")


class Bias(NamedTuple):
    """A parameter that is added to what a contraction gives.

    Attributes:
      leaf: its position among the parameters.
      sign: 1 where it is added, -1 where it is subtracted (a mean).
      through: what happens to the contraction's result before.
      arrange: what happens to the parameter before.
    """

    leaf: int
    sign: int
    through: Callable[[Any], Any]
    arrange: Callable[[Any], Any]


def bias_after(coupling: Coupling, op: Op) -> Bias | None:
    """Find the parameter that is added to the result of an operation and to nothing else, if there is one."""
    value, path = op.outs[0], []
    while True:
        users = coupling.users.get(value, [])
        if len(users) != 1:
            return None
        user = users[0]
        if user.name in ("add", "add_any", "sub"):
            return _bias(coupling, user, value, path)
        if user.name not in ARRANGING or user.name == "broadcast_in_dim":
            return None
        path += [] if user.name == "convert_element_type" else [user]
        value = user.outs[0]


def _bias(coupling: Coupling, user: Op, value: Value, path: list[Op]) -> Bias | None:
    other = user.ins[1] if user.ins[0] is value else user.ins[0]
    if other is value or (user.name == "sub" and user.ins[0] is not value):
        return None
    steps: list[Op] = []
    while other.op is not None and other.op.name in ARRANGING and len(coupling.users[other]) == 1:
        steps = steps if other.op.name == "convert_element_type" else [other.op, *steps]
        other = other.op.ins[0]
    if other.leaf is None or len(coupling.users[other]) != 1:
        return None
    return Bias(other.leaf, -1 if user.name == "sub" else 1, lambda x: _through(path, x), lambda x: _through(steps, x))


def _through(ops: list[Op], array: Any) -> Any:
    for op in ops:
        (array,) = bind(op, [array])
    return array
