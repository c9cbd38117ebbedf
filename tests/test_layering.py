"""Who may import whom, and other things that the sources must not do."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jaxopt_compress"
SOURCES = sorted(ROOT.rglob("*.py"))
EVERY_FILE = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))

# What of the library each room may import. A room that is missing here fails the test: decide, then write it down.
MAY_IMPORT = {
    "tree": set(),
    "atomic": set(),
    "grids": set(),
    "layout": set(),
    "subbyte": {"layout"},
    "encoded": {"grids", "layout", "subbyte"},
    "core": {"tree", "encoded"},
    "combinators": {"core", "tree"},
    "products": {"graph"},
    "calibration": {"tree", "graph", "products"},
    "block_sparse": {"tree", "graph", "products", "calibration"},
    "pruning": {"core", "combinators", "tree", "encoded", "layout", "subbyte", "graph", "products", "calibration"},
    "quantization": {
        *("core", "combinators", "tree", "encoded", "grids", "layout", "graph", "products", "calibration"),
    },
    "sharing": {"core", "combinators", "tree", "encoded"},
    "low_rank": {"core", "combinators", "tree", "encoded"},
    "distillation": {"atomic", "tree", "graph"},
    "graph": {"tree"},
    "shrinking": {"tree", "graph"},
    "optimizers": {"core", "combinators", "tree", "encoded", "layout"},
    "export": {"atomic", "tree", "encoded", "graph", "grids"},
    "report": {"core", "tree", "encoded", "graph", "export"},
}
WITHOUT_FLAX = set(MAY_IMPORT) - {"export", "report"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return the dotted names of all that a file imports, inside its functions too."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@EVERY_FILE
def test_rooms_import_downwards(path):
    if path == ROOT / "__init__.py":
        return
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("jaxopt_compress.")}
    assert inside <= MAY_IMPORT[room(path)] | {room(path)}


@EVERY_FILE
def test_the_core_knows_no_flax(path):
    if room(path) in WITHOUT_FLAX:
        assert "flax" not in {name.split(".")[0] for name in imported(path)}


def test_importing_the_library_imports_no_flax_module_of_its_own_accord():
    plots = ROOT / "report" / "plots.py"  # imports matplotlib when it draws
    outside = {name.split(".")[0] for path in SOURCES if path != plots for name in imported(path)}
    assert outside >= {"jax", "optax", "chex"}  # the walk does find imports
    assert not outside & {"flax", "equinox", "orbax", "torch", "tensorflow", "sklearn", "matplotlib", "pickle"}


@EVERY_FILE
def test_sources_are_short_and_silent(path):
    assert len(path.read_text().splitlines()) < 300
    for node in ast.walk(parsed(path)):
        assert not isinstance(node, (ast.Assert, ast.Global)), f"{path}:{node.lineno}"
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        assert called not in ("print", "exec", "eval"), f"{path}: {called}"


@EVERY_FILE
def test_functions_are_short(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or node.lineno) - body[0].lineno + 1 if body else 0
            assert lines < 30, f"{path}: `{node.name}` has {lines} lines"


def test_the_front_door_only_names_things():
    front = parsed(ROOT / "__init__.py").body
    assert isinstance(front[0], ast.Expr)
    assert all(isinstance(node, (ast.ImportFrom, ast.Assign)) for node in front[1:])
