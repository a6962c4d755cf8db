"""Finds the source files of installed packages and of the standard library, without importing anything."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from retro.config.errors import ConfigError

# Folders and modules that hold tests, generated code, or copies of other people's packages.
_TESTS = ("test", "tests", "_tests", "testing_tests", "testdata", "test_data")
_COPIES = ("_vendor", "vendor", "vendored", "_vendored", "extern", "_extern", "externals", "_externals", "third_party")
_OTHERS = ("_internal", "_bundled", "node_modules", "__pycache__", "site-packages", "dist-packages", "lib-dynload")
_PROGRAMS = ("idlelib", "lib2to3", "turtledemo", "ensurepip")  # parts of the standard library that are no library
SKIPPED_FOLDERS = frozenset((*_TESTS, *_COPIES, *_OTHERS, *_PROGRAMS))
SKIPPED_MODULES = frozenset(("conftest", "setup", "versioneer", "_version", "this", "antigravity"))


@dataclass(frozen=True)
class SourceFile:
    """One module: dotted name, path, path relative to the folder that is on sys.path, whether it is a package's
    __init__, and whether it is a stub (.pyi)."""

    module: str
    path: Path
    relative: str
    package: bool
    stub: bool


def package_files(name: str) -> list[SourceFile]:
    """Source files of the installed top-level package or module `name`, sorted by relative path.

    Raises ConfigError naming the package if it is not installed or has no Python source.
    """
    try:
        spec = importlib.util.find_spec(name)  # a top-level name: found, not imported
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ConfigError(
            f"python_docs.packages: {name!r} is not installed; install it, or remove it from the list "
            "(import names are expected, which may differ from distribution names)"
        )
    files: list[SourceFile] = []
    for location in sorted(spec.submodule_search_locations or ()):
        files += _walk(Path(location), name)
    if not spec.submodule_search_locations and spec.origin and spec.origin.endswith(".py"):
        files.append(SourceFile(name, Path(spec.origin), Path(spec.origin).name, False, False))
    if not files:
        raise ConfigError(f"python_docs.packages: {name!r} has no Python source to read; remove it from the list")
    return sorted(files, key=lambda file: file.relative)


def standard_library_files() -> dict[str, list[SourceFile]]:
    """Source files of the running Python's standard library by top-level module."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[SourceFile]] = {}
    for path in sorted(root.iterdir()):
        if path.is_dir() and _wanted_folder(path.name) and (path / "__init__.py").is_file():
            files = _walk(path, path.name)
        elif path.suffix == ".py" and _wanted_module(path.stem):
            files = [SourceFile(path.stem, path, path.name, False, False)]
        else:
            continue
        if files:
            found[path.stem] = sorted(files, key=lambda file: file.relative)
    return found


def version_of(name: str) -> str:
    """`distribution version` of what provides the import name, or "unknown" for a package without metadata."""
    distributions = _distributions().get(name, [])
    return ", ".join(f"{d} {importlib.metadata.version(d)}" for d in sorted(set(distributions))) or "unknown"


def python_version() -> str:
    """Version of the running Python, to which the standard library belongs."""
    return f"{platform.python_implementation()} {platform.python_version()}"


@lru_cache(maxsize=1)
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _walk(root: Path, package: str) -> list[SourceFile]:
    files = []
    for folder, names, entries in os.walk(root):
        names[:] = sorted(name for name in names if _wanted_folder(name))
        inner = Path(folder).relative_to(root).parts
        for entry in sorted(entries):
            stem, suffix = os.path.splitext(entry)
            if suffix not in (".py", ".pyi") or not _wanted_module(stem):
                continue
            is_package = stem == "__init__"
            parts = (package, *inner) if is_package else (package, *inner, stem)
            relative = "/".join((package, *inner, entry))
            files.append(SourceFile(".".join(parts), Path(folder) / entry, relative, is_package, suffix == ".pyi"))
    return files


def _wanted_folder(name: str) -> bool:
    return name.isidentifier() and name not in SKIPPED_FOLDERS and not name.startswith("test_")


def _wanted_module(stem: str) -> bool:
    if not stem.isidentifier() or stem in SKIPPED_MODULES or stem.startswith("_sysconfigdata"):
        return False
    return not (stem.startswith("test_") or stem.endswith(("_test", "_tests", "_pb2")) or stem in SKIPPED_FOLDERS)
