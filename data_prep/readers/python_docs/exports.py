"""Under which public names a package offers what its modules define, worked out from its import statements.

`numpy._core.fromnumeric.sum` is known to everyone as `numpy.sum`, because `numpy/__init__.py` imports it. Only packages
that contain the defining module count, so that an incidental import elsewhere does not rename anything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

_DEPTH = 20


@dataclass
class Scope:
    """Names bound at the top level of one module, by syntax. imported: name -> (module, name in it)."""

    module: str
    package: bool
    defined: set[str] = field(default_factory=set)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    listed: list[str] | None = None  # __all__ where it is made of plain lists only
    computed: bool = False  # __all__ is worked out at run time


def module_scope(tree: ast.Module, module: str, package: bool) -> Scope:
    """The scope of a module's syntax tree."""
    scope = Scope(module, package)
    for node in _statements(tree.body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            scope.defined.add(node.name)
            scope.imported.pop(node.name, None)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, module, package)
            for alias in node.names:
                if alias.name == "*":
                    scope.stars.append(source)
                else:
                    scope.imported[alias.asname or alias.name] = (source, alias.name)
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "__all__":
                _extend_listed(scope, node)
            elif isinstance(target, ast.Name) and isinstance(node.value, ast.Call):
                made_by = node.value.func
                if isinstance(made_by, ast.Name) and made_by.id in scope.defined and target.id not in scope.defined:
                    # `norm = norm_gen(name="norm")`: the public name is an instance, the class has the docstring.
                    scope.imported[target.id] = (module, made_by.id)
    return scope


def public_names(scopes: dict[str, Scope]) -> dict[tuple[str, str], str]:
    """(defining module, object) -> its shortest public dotted name, for objects that a containing package exports."""
    names: dict[tuple[str, str], str] = {}
    for module in sorted(scopes):
        scope = scopes[module]
        if not scope.package or is_private(module):
            continue
        for name in sorted(_exported(scope, scopes, set())):
            if name.startswith("_"):
                continue
            found = _resolve(module, name, scopes, 0)
            if found is None or not found[0].startswith(module + "."):
                continue
            public = f"{module}.{name}"
            known = names.get(found)
            if known is None or (public.count("."), public) < (known.count("."), known):
                names[found] = public
    return names


def is_private(module: str) -> bool:
    """Whether a component after the first begins with an underscore."""
    return any(part.startswith("_") for part in module.split(".")[1:])


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements(node.body)
            yield from _statements(node.orelse)
        elif isinstance(node, ast.Try):
            yield from _statements(node.body)
            for handler in node.handlers:
                yield from _statements(handler.body)
            yield from _statements(node.orelse)
        elif isinstance(node, ast.With):
            yield from _statements(node.body)
        else:
            yield node


def _absolute(node: ast.ImportFrom, module: str, package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    up = node.level - 1 if package else node.level
    base = parts[: len(parts) - up] if up else parts
    return ".".join([*base, *([node.module] if node.module else [])])


def _extend_listed(scope: Scope, node: ast.Assign | ast.AugAssign) -> None:
    value = node.value
    known = isinstance(value, (ast.List, ast.Tuple)) and all(isinstance(e, ast.Constant) for e in value.elts)
    if not known:
        scope.listed, scope.computed = None, True
    elif isinstance(value, (ast.List, ast.Tuple)) and not scope.computed:
        names = [str(e.value) for e in value.elts if isinstance(e, ast.Constant)]
        scope.listed = [*((scope.listed or []) if isinstance(node, ast.AugAssign) else []), *names]


def _exported(scope: Scope, scopes: dict[str, Scope], seen: set[str]) -> set[str]:
    """Public names that the module binds, those of its star imports included."""
    seen.add(scope.module)
    names = {name for name in (*scope.defined, *scope.imported) if not name.startswith("_")}
    for star in scope.stars:
        source = scopes.get(star)
        if source is not None and star not in seen:
            names |= set(source.listed) if source.listed is not None else _exported(source, scopes, seen)
    return names


def _resolve(module: str, name: str, scopes: dict[str, Scope], depth: int) -> tuple[str, str] | None:
    """Where `module.name` is defined, following imports inside the package."""
    scope = scopes.get(module)
    if scope is None or depth > _DEPTH:
        return None
    if name in scope.defined:
        return module, name
    if name in scope.imported:
        return _resolve(*scope.imported[name], scopes, depth + 1)
    for star in reversed(scope.stars):
        source = scopes.get(star)
        if source is not None and (source.listed is None or name in source.listed):
            found = _resolve(star, name, scopes, depth + 1)
            if found is not None:
                return found
    return None
