"""The reader: one document per docstring, one piece per package or per run of standard library modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache, cached_property
from typing import Any

from data_prep.readers.base import (
    BROKEN_SOURCE,
    TOO_LONG,
    UNREADABLE_FILE,
    RawRecord,
    Reader,
    Reject,
    pack,
)
from data_prep.readers.hashing import CorpusFile, FileHasher, corpus_identity, scan
from data_prep.readers.python_docs.exports import Scope, is_private, module_scope, public_names
from data_prep.readers.python_docs.extract import Docstring, module_docstrings, parse_module
from data_prep.readers.python_docs.locate import (
    SourceFile,
    package_files,
    python_version,
    standard_library_files,
    version_of,
)
from retro.config.errors import ArtifactMismatchError
from retro.config.prep import PIECE_BYTES, PythonDocsConfig

# Reading source code costs about as much as reading so many times the bytes of records.
_COST = 4


class PythonDocsReader(Reader):
    """Documents have the public dotted name of the object as id and title, and the leading components of the module
    that defines it as group. What no public module offers is left out unless the configuration asks for it.

    An object defined several times (platform branches, overloads, stub and source) is one document, the longest text;
    a stub's text is used only where no source documents the object.
    """

    def __init__(
        self,
        config: PythonDocsConfig,
        longest: int = 64 << 20,
        hasher: FileHasher | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.config = config
        self.longest = longest
        self.hasher = hasher or FileHasher()
        self.piece_bytes = piece_bytes

    @cached_property
    def packages(self) -> dict[str, list[SourceFile]]:
        """Source files by top-level module, in the order of the plan: packages by name, then standard library."""
        found = {name: package_files(name) for name in sorted(set(self.config.packages))}
        if self.config.standard_library:
            for name, files in standard_library_files().items():
                found.setdefault(name, files)
        return found

    def identity(self) -> dict[str, Any]:
        versions = {name: version_of(name) for name in sorted(set(self.config.packages))}
        if self.config.standard_library:
            versions["standard library"] = python_version()
        return {**corpus_identity(self.files), "versions": versions}

    @cached_property
    def files(self) -> list[CorpusFile]:
        """All source files, hashed, by relative path."""
        files = [(file.relative, file.path) for files in self.packages.values() for file in files]
        return self.hasher.describe(sorted(files), 1 << 62)

    def described(self) -> list[CorpusFile]:
        return self.files

    def num_files(self) -> int:
        return sum(len(files) for files in self.packages.values())

    def pieces(self) -> list[dict[str, Any]]:
        hashed = {file.relative: file for file in self.files}
        items: dict[str, dict[str, Any]] = {}
        sizes: dict[str, int] = {}
        for name, files in self.packages.items():
            state = corpus_identity(hashed[relative] for relative in sorted(file.relative for file in files))
            items[name], sizes[name] = {"package": name, "sha256": state["sha256"]}, state["bytes"]
        own = sorted(set(self.config.packages))
        library = [name for name in self.packages if name not in own]
        packed = pack([items[name] for name in library], [sizes[name] for name in library], self.piece_bytes // _COST)
        return [{"items": [items[name]]} for name in own] + packed

    def read(self, piece: dict[str, Any]) -> Iterator[RawRecord | Reject]:
        for item in piece["items"]:
            yield from self._read_package(self._files(item["package"]))
            # After reading: what was the same before and is the same now was so meanwhile.
            if self._state(self._files(item["package"])) != item["sha256"]:
                raise ArtifactMismatchError(
                    f"python_docs: the sources of {item['package']} changed while they were read; let what installs it "
                    "finish, then run the command again"
                )

    def _state(self, files: list[SourceFile]) -> str:
        """Hash over all files as they are now; "" if one of them cannot be read any more."""
        try:
            described = [CorpusFile(file.relative, file.path.stat().st_size, 0, scan(file.path)[0]) for file in files]
        except OSError:
            return ""
        return str(corpus_identity(sorted(described, key=lambda file: file.relative))["sha256"])

    def _files(self, package: str) -> list[SourceFile]:
        if "packages" in self.__dict__:
            return self.packages[package]
        # In a worker process: look for this package only.
        return package_files(package) if package in self.config.packages else standard_library_files()[package]

    def _read_package(self, files: list[SourceFile]) -> Iterator[RawRecord | Reject]:
        scopes: dict[str, Scope] = {}
        found: list[tuple[SourceFile, Docstring]] = []
        sources = {file.module: file for file in files if not file.stub}

        @cache
        def load(module: str) -> ast.Module | None:
            tree = self._parse(sources[module]) if module in sources else None
            return None if isinstance(tree, Reject) else tree

        # Sources first, so that a stub only fills in what no source documents.
        for file in sorted(files, key=lambda file: (file.stub, file.relative)):
            tree = self._parse(file)
            if isinstance(tree, Reject):
                yield tree
                continue
            if not file.stub:
                scopes[file.module] = module_scope(tree, file.module, file.package)
            long_enough = self.config.min_characters
            docstrings = module_docstrings(tree, file.module, self.config.private, load)
            found += [(file, docstring) for docstring in docstrings if len(docstring.prose) >= long_enough]
        best: dict[str, tuple[SourceFile, Docstring]] = {}
        public = public_names(scopes)
        for file, docstring in found:
            name = self._public_name(docstring, public)
            if name is None:
                continue
            known = best.get(name)
            if known is None or (known[0].stub == file.stub and len(docstring.prose) > len(known[1].prose)):
                best[name] = (file, docstring)
        modules = {file.module for file in files}
        for name in sorted(best):
            file, docstring = best[name]
            group = self._group(docstring.name, modules)
            fields = {"id": name, "title": name, "text": docstring.text(name), "group": group}
            yield RawRecord(file.relative, docstring.line, fields)

    def _parse(self, file: SourceFile) -> ast.Module | Reject:
        try:
            with open(file.path, "rb") as stream:
                source = stream.read(self.longest + 1)
            if len(source) > self.longest:
                return Reject(file.relative, 0, TOO_LONG)
            return parse_module(source)
        except OSError:
            return Reject(file.relative, 0, UNREADABLE_FILE)
        except SyntaxError as error:
            return Reject(file.relative, error.lineno or 0, BROKEN_SOURCE)

    def _public_name(self, docstring: Docstring, public: dict[tuple[str, str], str]) -> str | None:
        """The name people know the object by; None if it can only be reached through a private module."""
        top, dot, rest = docstring.path.partition(".")
        name = public.get((docstring.module, top))
        if name is not None:
            return f"{name}{dot}{rest}"
        if is_private(docstring.module) and not self.config.private:
            return None
        return docstring.name

    def _group(self, name: str, modules: set[str]) -> str:
        """The leading components of the module that defines the object."""
        parts = name.split(".")
        while len(parts) > 1 and ".".join(parts) not in modules:
            parts.pop()
        depth = self.config.group_depth
        count = depth.get(parts[0], 1) if isinstance(depth, dict) else depth
        return ".".join(parts[:count])
