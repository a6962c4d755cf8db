"""The documentation in one module's source."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.readers.python_docs.attached import attached_docstrings
from data_prep.readers.python_docs.signature import class_arguments, function_arguments
from data_prep.readers.python_docs.strings import Load

# A line that the package fills in at run time (scipy's "%(before_notes)s") is not prose.
_PLACEHOLDER = re.compile(r"^\s*%\(\w+\)s\s*$")


@dataclass(frozen=True)
class Docstring:
    """One documented object.

    module: dotted name of the module that it belongs to; path: its name in there ("" for the module itself,
    "Class.method"); before, after: what the header has around the dotted name; prose: the cleaned docstring; line:
    where it stands.
    """

    module: str
    path: str
    before: str
    after: str
    prose: str
    line: int

    @property
    def name(self) -> str:
        """Dotted name by the place of the definition."""
        return f"{self.module}.{self.path}" if self.path else self.module

    def text(self, name: str) -> str:
        """The document's text under a public name: one header line, an empty line, the docstring.

        A docstring whose first line is a call signature of the object brings its own header and is kept as it is, but
        for the dotted name.
        """
        first, newline, rest = self.prose.partition("\n")
        written, bracket, arguments = first.partition("(")
        if bracket and written and (name == written or name.endswith("." + written)) and not self.after.startswith("("):
            return f"{name}({arguments}{newline}{rest}"
        return f"{self.before}{name}{self.after}\n\n{self.prose}"


def parse_module(source: bytes) -> ast.Module:
    """Syntax tree of a module's bytes. Raises SyntaxError (also for broken encodings and for null bytes)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like are the package's business
        try:
            return ast.parse(source)
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error)) from None


def module_docstrings(tree: ast.Module, module: str, private: bool, load: Load | None = None) -> Iterator[Docstring]:
    """Docstrings of the module, its classes, functions and methods, and those it attaches by calls, in source order.

    Without `private`, functions and classes whose own name begins with one underscore are left out with all that is
    in them, and so is everything local to a function. `load`: see StaticStrings.
    """
    prose = _docstring(tree)
    if prose:
        yield Docstring(module, "", "module ", "", prose, 1)
    yield from _members(tree.body, module, (), private)
    for found in attached_docstrings(tree, module, load):
        owner, _, path = found.name.partition(".")
        yield Docstring(owner, path, "", "", _clean(found.text), found.line)
    if module == "pydoc_data.topics":
        yield from _topics(tree)


def _members(body: list[ast.stmt], module: str, inside: tuple[str, ...], private: bool) -> Iterator[Docstring]:
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            # Definitions under `if sys.platform` or `try: import`: all branches, the reader keeps the longest.
            branches = [node.body, node.orelse]
            if isinstance(node, ast.Try):
                branches += [*(handler.body for handler in node.handlers), node.finalbody]
            for branch in branches:
                yield from _members(branch, module, inside, private)
            continue
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if _is_private(node.name) and not private:
            continue
        names = (*inside, node.name)
        prose = _docstring(node)
        if isinstance(node, ast.ClassDef):
            if prose:
                yield Docstring(module, ".".join(names), "class ", class_arguments(node), prose, node.lineno)
            yield from _members(node.body, module, names, private)
        elif prose:
            after = function_arguments(node, method=bool(inside))
            yield Docstring(module, ".".join(names), "", after, prose, node.lineno)


def _topics(tree: ast.Module) -> Iterator[Docstring]:
    """The language reference that `help()` prints: one dictionary of texts by topic."""
    for node in tree.body:
        value = getattr(node, "value", None)
        if not (isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(value, ast.Dict)):
            continue
        for key, text in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield Docstring("pydoc_data.topics", str(key.value), "topic ", "", _clean(text.value), text.lineno)


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return _clean(ast.get_docstring(node, clean=False) or "")


def _clean(text: str) -> str:
    lines = inspect.cleandoc(text).split("\n")
    return "\n".join(line.rstrip() for line in lines if not _PLACEHOLDER.match(line)).strip("\n")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))
