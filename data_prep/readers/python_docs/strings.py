"""Values of string expressions in a module's source, worked out from the syntax tree: nothing is executed.

Packages with C extensions attach docstrings by calls such as `add_docstr(torch.abs, r"...".format(**common))`; this
evaluates the string operations that such files use, and gives up on anything else.
"""

from __future__ import annotations

import ast
import inspect
import re
import string
from collections.abc import Callable
from typing import Any

_DEPTH = 40

Load = Callable[[str], ast.Module | None]


class UnknownValueError(Exception):
    """The expression is not a string (or mapping of strings) that can be worked out."""


class StaticStrings:
    """Evaluates expressions in the top-level scope of one module.

    `load` gives the syntax tree of another module of the same package, for names that are imported from there.
    """

    def __init__(self, tree: ast.Module, load: Load | None = None) -> None:
        self._assigned: dict[str, ast.expr | None] = {}
        self._imported: dict[str, tuple[str, str]] = {}
        self._load = load
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                for alias in node.names:
                    self._imported[alias.asname or alias.name] = (node.module, alias.name)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                # Assigned twice: which value counts depends on the order, so the name is unknown.
                self._assigned[name] = None if name in self._assigned else node.value
        self._values: dict[str, Any] = {}

    def text(self, node: ast.expr) -> str:
        """The string that `node` stands for. Raises UnknownValueError."""
        value = self._value(node, 0)
        if not isinstance(value, str):
            raise UnknownValueError
        return value

    def _value(self, node: ast.expr, depth: int) -> Any:
        if depth > _DEPTH:
            raise UnknownValueError
        depth += 1
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.Name):
            return self._named(node.id, depth)
        if isinstance(node, ast.BinOp):
            return self._operation(node, depth)
        if isinstance(node, ast.JoinedStr):
            return "".join(self._part(part, depth) for part in node.values)
        if isinstance(node, ast.Dict):
            return self._mapping(node, depth)
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        raise UnknownValueError

    def _part(self, part: ast.expr, depth: int) -> str:
        """Part of an f-string; a value from elsewhere leaves its place empty."""
        try:
            return str(self._value(part.value if isinstance(part, ast.FormattedValue) else part, depth))
        except UnknownValueError:
            return ""

    def _named(self, name: str, depth: int) -> Any:
        if name not in self._values:
            expression = self._assigned.get(name)
            if expression is not None:
                self._values[name] = self._value(expression, depth)
            elif name in self._imported and self._load is not None:
                module, source = self._imported[name]
                tree = self._load(module)
                if tree is None:
                    raise UnknownValueError
                # One module further is enough for what packages do, and cannot run in circles.
                self._values[name] = StaticStrings(tree)._named(source, depth)
            else:
                raise UnknownValueError
        return self._values[name]

    def _operation(self, node: ast.BinOp, depth: int) -> str:
        left, right = self._value(node.left, depth), self._value(node.right, depth)
        if not isinstance(left, str):
            raise UnknownValueError
        if isinstance(node.op, ast.Add) and isinstance(right, str):
            return left + right
        if isinstance(node.op, ast.Mod) and isinstance(right, (str, dict)):
            try:
                return left % right
            except (TypeError, ValueError, KeyError):
                raise UnknownValueError from None
        raise UnknownValueError

    def _mapping(self, node: ast.Dict, depth: int) -> dict[str, str]:
        out: dict[str, str] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                out.update(self._dict(value, depth))
            else:
                out[str(self._value(key, depth))] = self._value(value, depth)
        return out

    def _dict(self, node: ast.expr, depth: int) -> dict[str, str]:
        value = self._value(node, depth)
        if not isinstance(value, dict):
            raise UnknownValueError
        return value

    def _call(self, node: ast.Call, depth: int) -> Any:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in ("dedent", "cleandoc") and len(node.args) == 1:
            return inspect.cleandoc(self._value(node.args[0], depth))
        if name == "parse_kwargs" and len(node.args) == 1:
            return parse_argument_descriptions(self._value(node.args[0], depth))
        if name == "merge_dicts":
            merged: dict[str, str] = {}
            for argument in node.args:
                merged.update(self._dict(argument, depth))
            return merged
        if isinstance(function, ast.Attribute):
            return self._method(self._value(function.value, depth), name, node, depth)
        raise UnknownValueError

    def _method(self, value: Any, name: str, node: ast.Call, depth: int) -> str:
        if not isinstance(value, str):
            raise UnknownValueError
        if name in ("strip", "lstrip", "rstrip") and not node.args:
            return str(getattr(value, name)())
        if name == "replace" and len(node.args) == 2:
            return value.replace(self.text(node.args[0]), self.text(node.args[1]))
        if name == "format":
            return self._format(value, node, depth)
        raise UnknownValueError

    def _format(self, template: str, node: ast.Call, depth: int) -> str:
        values: dict[str, str] = {}
        for keyword in node.keywords:
            try:
                if keyword.arg is None:
                    values.update(self._dict(keyword.value, depth))
                else:
                    values[keyword.arg] = str(self._value(keyword.value, depth))
            except UnknownValueError:
                continue  # a value from elsewhere: its place stays empty, the prose around it is kept
        try:
            return _Lenient().vformat(template, (), values)
        except (ValueError, AttributeError, TypeError, IndexError):
            raise UnknownValueError from None


class _Lenient(string.Formatter):
    """str.format that leaves the place of an unknown name empty."""

    def get_value(self, key: Any, args: Any, kwargs: Any) -> Any:
        return kwargs.get(key, "")

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        try:
            return super().get_field(field_name, args, kwargs)
        except (AttributeError, TypeError, IndexError, KeyError):
            return "", field_name


def parse_argument_descriptions(text: Any) -> dict[str, str]:
    """Mapping from argument name to its description, of entries indented by exactly four blanks (torch's files)."""
    if not isinstance(text, str):
        raise UnknownValueError
    sections = (section.strip() for section in re.split(r"\n\s{4}(?!\s)", text))
    return {section.split(" ")[0]: section for section in sections if section}
