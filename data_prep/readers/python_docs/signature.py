"""One-line headers of documented objects, as people write them: names and defaults, no annotations of parameters."""

from __future__ import annotations

import ast

_LONGEST_DEFAULT = 40
_LONGEST_RETURN = 60
_LONGEST_HEADER = 320


def function_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> str:
    """`(a, b=1, *, c=None) -> int`: what follows the name in the header; no brackets for a property."""
    returns = ""
    if node.returns is not None:
        text = _one_line(node.returns)
        returns = f" -> {text}" if len(text) <= _LONGEST_RETURN else ""
    if _is_property(node):
        return returns
    bound = method and not _has_decorator(node, "staticmethod")
    return f"({arguments(node.args, bound)}){returns}"


def class_arguments(node: ast.ClassDef) -> str:
    """`(a, b=1)`, the arguments of the class's own __init__, or its bases where it has none."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return f"({arguments(item.args, bound=True)})"
    bases = ", ".join(_one_line(base) for base in node.bases)
    return f"({bases})" if bases and len(bases) <= _LONGEST_RETURN else ""


def arguments(args: ast.arguments, bound: bool) -> str:
    """The parameter list; `bound` leaves out the first parameter (self or cls). Long lists end in `...`."""
    positional = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    items = [_parameter(arg, default) for arg, default in zip(positional, defaults, strict=True)]
    if args.posonlyargs:
        items.insert(len(args.posonlyargs), "/")
    if bound and items:
        items.pop(0)
        if items[:1] == ["/"]:
            items.pop(0)
    if args.vararg is not None:
        items.append(f"*{args.vararg.arg}")
    elif args.kwonlyargs:
        items.append("*")
    items += [_parameter(arg, d) for arg, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg is not None:
        items.append(f"**{args.kwarg.arg}")
    return _join(items)


def _join(items: list[str]) -> str:
    text = ", ".join(items)
    while len(text) > _LONGEST_HEADER:
        items = items[:-1]
        text = ", ".join([*items, "..."])
    return text


def _parameter(arg: ast.arg, default: ast.expr | None) -> str:
    if default is None:
        return arg.arg
    text = _one_line(default)
    return f"{arg.arg}={text if len(text) <= _LONGEST_DEFAULT else '...'}"


def _one_line(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
        return repr(node.value)
    return " ".join(ast.unparse(node).split())


def _has_decorator(node: ast.FunctionDef | ast.AsyncFunctionDef, *names: str) -> bool:
    for decorator in node.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
        if name in names:
            return True
    return False


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return _has_decorator(node, "property", "cached_property", "setter", "getter", "deleter", "cache_readonly")
