"""Finding the files of a corpus, and hashing them once: the hash is the identity of the corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.readers.base import Reader
from retro.artifacts.atomic import write_json_atomic
from retro.config.errors import ArtifactError, ArtifactMissingError

_BLOCK = 1 << 20


@dataclass(frozen=True)
class CorpusFile:
    """One file. relative: posix path below the corpus folder. marks: [(byte offset, lines before it)], about every
    `spacing` bytes and always just after a line end, so that a plain text file can be read from there."""

    relative: str
    path: Path
    bytes: int
    sha256: str
    marks: tuple[tuple[int, int], ...]


def find_files(folder: str | Path, patterns: Iterable[str]) -> list[tuple[str, Path]]:
    """(relative posix path, path) of the files that match any pattern, sorted by relative path.

    Hidden files and folders are left out unless a pattern names them with a dot. Raises ArtifactMissingError if the
    folder is not there or a pattern set matches nothing.
    """
    folder = Path(folder)
    patterns = tuple(patterns)
    if not folder.is_dir():
        raise ArtifactMissingError(f"{folder}: corpus folder not found; correct the path in the configuration")
    found: dict[str, Path] = {}
    for pattern in patterns:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ArtifactError(f"files: pattern {pattern!r} must be relative to the folder {folder} and stay in it")
        hidden = any(part.startswith(".") for part in Path(pattern).parts)
        for path in folder.glob(pattern):
            relative = path.relative_to(folder)
            if path.is_file() and (hidden or not any(part.startswith(".") for part in relative.parts)):
                found[relative.as_posix()] = path
    if not found:
        raise ArtifactMissingError(f"{folder}: no file matches {', '.join(patterns)}; correct folder or files")
    for name in found:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise ArtifactError(f"{folder}: file name {name!r} is not valid UTF-8; rename the file") from None
    return sorted(found.items())


class FilesReader(Reader):
    """What the readers of file corpora share: the list of files, its hash as identity. Subclasses read them."""

    spacing: int = 1 << 62  # bytes between the line marks of a file; the default makes none but the first

    def __init__(self, folder: str, patterns: tuple[str, ...], hasher: FileHasher | None) -> None:
        self.folder = Path(folder)
        self.patterns = patterns
        self.hasher = hasher or FileHasher()

    @cached_property
    def files(self) -> list[CorpusFile]:
        """The files of the corpus, hashed, by relative path."""
        return self.hasher.describe(find_files(self.folder, self.patterns), self.spacing)

    def identity(self) -> dict[str, Any]:
        return corpus_identity(self.files)

    def num_files(self) -> int:
        return len(self.files)


class FileHasher:
    """SHA-256 and line marks of files, streamed, remembered by (path, size, modification time in ns).

    `cache` is an optional JSON file that keeps what was computed between runs. A file altered without a change of
    size and time is not noticed while the cache holds it; deleting the cache file is always safe.
    """

    def __init__(self, cache: str | Path | None = None) -> None:
        self.cache = None if cache is None else Path(cache)
        self._known: dict[str, dict[str, Any]] = {}
        if self.cache is not None and self.cache.is_file():
            try:
                known = json.loads(self.cache.read_text(encoding="utf-8"))
                self._known = known if isinstance(known, dict) else {}
            except (OSError, ValueError):
                self._known = {}  # a cache, not an artifact: rebuilt without a word

    def describe(self, files: list[tuple[str, Path]], spacing: int) -> list[CorpusFile]:
        """Every file with its hash and its marks about every `spacing` bytes."""
        described, changed = [], False
        for relative, path in files:
            status = path.stat()
            key = str(path.resolve())
            stamp = [status.st_size, status.st_mtime_ns, spacing]
            entry = self._known.get(key)
            if not (isinstance(entry, dict) and entry.get("stamp") == stamp):
                sha256, marks = _scan(path, spacing)
                entry = self._known[key] = {"stamp": stamp, "sha256": sha256, "marks": marks}
                changed = True
            marks_tuple = tuple((int(offset), int(lines)) for offset, lines in entry["marks"])
            described.append(CorpusFile(relative, path, status.st_size, entry["sha256"], marks_tuple))
        if changed and self.cache is not None:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self.cache, self._known)
        return described


def corpus_identity(files: list[CorpusFile]) -> dict[str, Any]:
    """Number, bytes and one hash over relative path, size and hash of all files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(json.dumps([file.relative, file.bytes, file.sha256]).encode() + b"\n")
    return {"files": len(files), "bytes": sum(file.bytes for file in files), "sha256": digest.hexdigest()}


def _scan(path: Path, spacing: int) -> tuple[str, list[list[int]]]:
    """Hash of the file, and marks [offset, lines before] from [0, 0] on."""
    digest = hashlib.sha256()
    marks = [[0, 0]]
    offset = lines = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            # A mark lies just after the first line end that is `spacing` bytes or more after the mark before.
            while (start := max(0, marks[-1][0] + spacing - offset)) < len(block):
                end = block.find(b"\n", start)
                if end < 0:
                    break
                marks.append([offset + end + 1, lines + block.count(b"\n", 0, end + 1)])
            offset += len(block)
            lines += block.count(b"\n")
    if len(marks) > 1 and marks[-1][0] == offset:
        marks.pop()  # the file ends there: nothing to read from it
    return digest.hexdigest(), marks
