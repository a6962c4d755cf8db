"""Docstrings that a package attaches to objects of its C extensions: `add_docstr(torch.abs, "...")` and
`add_newdoc("numpy", "array", "...")`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.readers.python_docs.strings import Load, StaticStrings, UnknownValueError

_FUNCTIONS = frozenset({"add_docstr", "add_docstr_all", "add_newdoc", "add_newdoc_for_scalar_type"})
# Names under which the public sees what an extension module defines.
_PUBLIC = {"torch._C.TensorBase": "torch.Tensor", "torch._C.Size": "torch.Size"}


@dataclass(frozen=True)
class Attached:
    """Public dotted name, raw docstring and line of the call."""

    name: str
    text: str
    line: int


def attached_docstrings(tree: ast.Module, module: str, load: Load | None = None) -> Iterator[Attached]:
    """Docstrings attached by calls at the top level of the module, in source order. `load`: see StaticStrings."""
    strings: StaticStrings | None = None
    owner: str | None = None
    for node in tree.body:
        call = getattr(node, "value", None)
        if not (isinstance(node, (ast.Expr, ast.Assign, ast.AnnAssign)) and isinstance(call, ast.Call)):
            continue
        function = _called(call)
        if function not in _FUNCTIONS:
            continue
        if strings is None:
            strings, owner = StaticStrings(tree, load), _owner_of_methods(tree)
        assigned = _assigned_name(node)
        for name, expression in _targets(function, call, module, assigned, owner):
            try:
                text = strings.text(expression)
            except UnknownValueError:
                continue
            yield Attached(name, text, node.lineno)


def _targets(
    function: str, call: ast.Call, module: str, assigned: str | None, owner: str | None
) -> Iterator[tuple[str, ast.expr]]:
    """(public name, expression of the docstring) of one call."""
    args = call.args
    if function == "add_docstr" and len(args) >= 2:
        name = f"{module}.{assigned}" if assigned else _dotted(args[0])
        if name:
            yield _public_name(name), args[1]
    elif function == "add_docstr_all" and len(args) == 2 and owner and _constant(args[0]):
        yield f"{owner}.{_constant(args[0])}", args[1]
    elif function == "add_newdoc_for_scalar_type" and len(args) == 3 and _constant(args[0]):
        yield f"{_public_module(module)}.{_constant(args[0])}", args[2]
    elif function == "add_newdoc" and len(args) == 2 and _constant(args[0]):
        yield f"{_public_module(module)}.{_constant(args[0])}", args[1]
    elif function == "add_newdoc" and len(args) >= 3 and _constant(args[0]) and _constant(args[1]):
        name = f"{_public_module(_constant(args[0]))}.{_constant(args[1])}"
        entries = args[2].elts if isinstance(args[2], ast.List) else [args[2]]
        for entry in entries:
            if isinstance(entry, ast.Tuple) and len(entry.elts) == 2 and _constant(entry.elts[0]):
                yield f"{name}.{_constant(entry.elts[0])}", entry.elts[1]
            else:
                yield name, entry


def _called(call: ast.Call) -> str:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name.lstrip("_")


def _assigned_name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


def _owner_of_methods(tree: ast.Module) -> str | None:
    """The class that the file's own `add_docstr_all(method, text)` documents: X of `getattr(X, method)` in it."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "add_docstr_all":
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call) and _called(inner) == "getattr" and inner.args:
                    dotted = _dotted(inner.args[0])
                    return _public_name(dotted) if dotted and "." in dotted else None
    return None


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _public_name(name: str) -> str:
    for inner, public in _PUBLIC.items():
        if name == inner or name.startswith(inner + "."):
            return public + name[len(inner) :]
    return name


def _public_module(module: str) -> str:
    """The part of a dotted module name before its first private component: `numpy._core.multiarray` is `numpy`."""
    parts = module.split(".")
    public = next((i for i, part in enumerate(parts) if part.startswith("_")), len(parts))
    return ".".join(parts[: max(1, public)])


def _constant(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
