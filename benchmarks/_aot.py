"""Compile for TPUs that are not here: the real TPU compiler on abstract shapes, and what it says. Nothing runs.

`pip install "jaxopt_compress[tpu]"` brings libtpu. See https://docs.jax.dev/en/latest/aot.html.
"""

import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_compress as jc

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not look for a metadata server
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is opened, so that processes do not disturb each other
}
KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
SHAPE = re.compile(r"\w+\[([\d,]*)\]")
PREFETCH = re.compile(r"= \([a-z]+(\d+)\[([\d,]*)\]\{[^}]*S\(1\)\}, \S+ \S+ copy-start\(")


class Program(NamedTuple):
    """What the compiler says of one program, for each chip.

    Attributes:
      seconds: how long it took to compile.
      bytes: bytes accessed; the body of a loop counts once, of two branches the dearer one counts.
      prefetched: bytes of arrays that are copied to on-chip memory ahead of their use; in `bytes` they are in four
        times for that, and once for the use.
      temporaries: bytes beside arguments and results.
      memory: bytes in all; a result that takes the place of an argument counts once.
      collectives: how often each `(kind, shape of the result)` stands in the program.
    """

    seconds: float
    bytes: float
    prefetched: int
    temporaries: int
    memory: int
    collectives: Counter


def missing() -> str | None:
    """Return why nothing can be compiled for TPUs, or `None`."""
    return None if find_spec("libtpu") else 'libtpu is not installed: pip install "jaxopt_compress[tpu]"'


def mesh(chips: str, shape: tuple[int, int] = (1, 1)) -> Mesh:
    """Return a mesh ("data", "model") over chips named like "v5e:2x2"; the first chip alone by default."""
    os.environ.update(ENVIRONMENT)
    devices = topologies.get_topology_desc(chips, platform="tpu").devices[: math.prod(shape)]
    return jax.make_mesh(shape, ("data", "model"), devices=devices, axis_types=(AxisType.Auto,) * 2)


def abstract(on: Mesh, tree: Any, specs: Any = None) -> Any:
    """Give the shapes of a tree a sharding; `specs` is a tree of them, one for all, or `None` for copies."""
    if specs is None or isinstance(specs, P):
        whole = specs or P()
        specs = jax.tree.map(lambda _: whole, tree)
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(on, spec)), tree, specs
    )


def state_specs(on: Mesh, state: Any, specs: Any) -> Any:
    """Lay an optimizer's state out like the parameters whose paths its own end with, as far as their shapes allow.

    Args:
      on: the mesh.
      state: shapes, as from `jax.eval_shape(tx.init, params)`.
      specs: a `PartitionSpec` for each parameter.
    """
    known = {
        jc.tree.path_str(path): spec
        for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, P))
    }

    def lay(path, leaf):
        spec = next((known[name] for name in known if jc.tree.path_str(path).endswith(name)), P())
        return P(*(axis if axis and size % on.shape[axis] == 0 else None for axis, size in zip(spec, leaf.shape)))

    return jax.tree_util.tree_map_with_path(lay, state)


def program(on: Mesh, fn: Callable, *args: Any, donate: tuple[int, ...] = ()) -> Program:
    """Compile a function of abstract arguments for the chips of a mesh; donated arguments keep their sharding."""
    start = time.perf_counter()
    with jax.set_mesh(on):
        compiled = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
    seconds = time.perf_counter() - start
    m: Any = compiled.memory_analysis()
    memory = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    cost: Any = compiled.cost_analysis()
    text = compiled.as_text()
    return Program(seconds, cost["bytes accessed"], prefetched(text), m.temp_size_in_bytes, memory, collectives(text))


def prefetched(text: str) -> int:
    """Sum the bytes that a compiled program copies to on-chip memory (`S(1)`) ahead of their use."""
    found = PREFETCH.findall(text)
    return sum(int(bits) * math.prod(map(int, filter(None, shape.split(",")))) // 8 for bits, shape in found)


def collectives(text: str) -> Counter:
    """Count the collectives of a compiled program by kind and shape of the result, axes of size one left out."""
    found: Counter = Counter()
    for shapes, kind in re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", text):
        for shape in SHAPE.findall(shapes):
            found[kind, tuple(int(n) for n in shape.split(",") if n not in ("", "1"))] += 1
    return found


def lowers_for_cuda(fn: Callable, *args: Any) -> int:
    """Lower a function for an NVIDIA GPU and return the length of the module; raises where it does not lower."""
    return len(jax.export.export(jax.jit(fn), platforms=["cuda"])(*args).mlir_module_serialized)
