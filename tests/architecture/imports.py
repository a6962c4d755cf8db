"""Who imports whom, read from the sources with `ast` (nothing is imported)."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("retro", "data_prep", "launch")


@dataclass(frozen=True)
class Import:
    """`module` imports `target` (both dotted module names; `target` may be of another distribution) in `line`.

    lazy: inside a function; typing: under `if TYPE_CHECKING`, so never at run time.
    """

    module: str
    target: str
    line: int
    lazy: bool
    typing: bool


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the project; a package is its __init__.py."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path, known: set[str]) -> list[Import]:
    """Every import in the file. `from a import b` is an import of `a.b` where that is a module, else of `a`."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool, typing: bool) -> None:
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            targets = [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
        found.extend(Import(module, target, node.lineno, lazy, typing) for target in dict.fromkeys(targets))
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                visit(child, lazy, True)
            for child in node.orelse:
                visit(child, lazy, typing)
            return
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside, typing)

    visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), False, False)
    return found


def all_imports() -> list[Import]:
    """Every import of every module of the project."""
    files = modules()
    known = set(files)
    return [item for module, path in files.items() for item in imports_of(module, path, known)]


def package_of(module: str) -> str:
    """`retro.data` of `retro.data.loader`, `data_prep` of `data_prep.runner`, else the first name."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "retro" else parts[0]


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of the graph as a path whose first and last nodes are equal, or an empty list."""
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(node: str) -> list[str]:
        state[node] = 1
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if state.get(other) == 1:
                return [*path[path.index(other) :], other]
            if other not in state and (cycle := visit(other)):
                return cycle
        path.pop()
        state[node] = 2
        return []

    for node in sorted(graph):
        if node not in state and (cycle := visit(node)):
            return cycle
    return []
