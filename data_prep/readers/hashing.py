"""Hashes of corpus files: computed once, remembered between runs, and checked while the corpus is read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from retro.config.errors import ArtifactError, ArtifactMismatchError

_BLOCK = 1 << 20
_THREADS, _AT_ONCE = 8, 4096


class CorpusFile:
    """One file.

    relative: posix path below the corpus folder. bytes, modified (ns), sha256 (hexadecimal): its state when it was
    hashed. marks: [(byte offset, lines before it)], about every `spacing` bytes and always just after a line end, so
    that a plain text file can be read from there.
    """

    __slots__ = ("bytes", "marks", "modified", "relative", "sha256")

    def __init__(
        self, relative: str, size: int, modified: int, sha256: str, marks: tuple[tuple[int, int], ...] = ((0, 0),)
    ) -> None:
        self.relative, self.bytes, self.modified, self.sha256, self.marks = relative, size, modified, sha256, marks

    @property
    def state(self) -> list[Any]:
        """[bytes, modified, sha256]: what `FileGuard` compares, JSON-able."""
        return [self.bytes, self.modified, self.sha256]


class FileHasher:
    """SHA-256 and line marks of files, streamed, remembered by (path, size, modification time in ns).

    `cache` is an optional JSON Lines file that keeps what was computed between runs; every file is added when it is
    done, so that a killed run need not hash it again. A file altered without a change of size and time is not noticed
    while the cache holds it; deleting the cache file is always safe.
    """

    def __init__(self, cache: str | Path | None = None) -> None:
        self.cache = None if cache is None else Path(cache)
        self._known: dict[str, list[Any]] | None = None
        self._lock = threading.Lock()

    def describe(self, files: list[tuple[str, Path]], spacing: int) -> list[CorpusFile]:
        """Every file with its hash and its marks about every `spacing` bytes. Raises ArtifactError if one cannot be
        read, or is written to at that time."""
        self._known = self._load() if self._known is None else self._known
        log = self._open_log()
        try:
            described: list[CorpusFile] = []
            with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
                for start in range(0, len(files), _AT_ONCE):  # the pool keeps a record of everything it is handed
                    part = files[start : start + _AT_ONCE]
                    described += pool.map(lambda file: self._describe(file[0], file[1], spacing, log), part)
            return described
        finally:
            if log is not None:
                log.close()

    def _describe(self, relative: str, path: Path, spacing: int, log: TextIO | None) -> CorpusFile:
        assert self._known is not None
        try:
            status = path.stat()
            key = os.path.realpath(path)
            stamp = [status.st_size, status.st_mtime_ns, spacing]
            known = self._known.get(key)
            if known is None or known[0] != stamp:
                sha256, marks = scan(path, spacing)
                after = path.stat()
                if [after.st_size, after.st_mtime_ns, spacing] != stamp:
                    raise ArtifactError(
                        f"{path}: changed while it was hashed; let what writes it finish, then run again"
                    )
                known = self._known[key] = [stamp, sha256, marks]
                self._remember(log, key, known)
        except OSError as error:
            raise ArtifactError(
                f"{path}: cannot be read ({error.strerror}); mend its permissions, or leave it out of the corpus"
            ) from None
        # The one mark that most files have is shared: a corpus may have millions of them.
        marks = known[2]
        shared = tuple((int(offset), int(lines)) for offset, lines in marks) if len(marks) > 1 else ((0, 0),)
        return CorpusFile(relative, status.st_size, status.st_mtime_ns, known[1], shared)

    def _load(self) -> dict[str, list[Any]]:
        known: dict[str, list[Any]] = {}
        if self.cache is None:
            return known
        try:
            with open(self.cache, encoding="utf-8") as lines:
                for line in lines:
                    try:
                        key, stamp, sha256, marks = json.loads(line)
                        if isinstance(key, str) and isinstance(sha256, str) and len(marks) >= 1:
                            known[key] = [stamp, sha256, marks]
                    except (ValueError, TypeError):
                        continue  # a cache, not an artifact: what is broken is computed again without a word
        except (OSError, ValueError):
            return {}
        return known

    def _open_log(self) -> TextIO | None:
        if self.cache is None:
            return None
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            # By lines: another process may append at the same time, and a killed one leaves all but its last line.
            log = open(self.cache, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by describe()
            log.write("\n")  # after a line that a killed process left without an end
            return log
        except OSError:
            return None  # what cannot be remembered is computed again

    def _remember(self, log: TextIO | None, key: str, known: list[Any]) -> None:
        if log is None:
            return
        # Without success on a full disk, and for a name that is no text, of which the reader tells.
        with self._lock, contextlib.suppress(OSError, ValueError):
            log.write(json.dumps([key, *known]) + "\n")


class FileGuard:
    """Notices a corpus file that is not what it was when the corpus was hashed. One per process."""

    def __init__(self) -> None:
        self._equal: dict[str, tuple[int, int]] = {}

    def check(self, path: Path, state: list[Any]) -> None:
        """Raise ArtifactMismatchError unless the file has the recorded state (`CorpusFile.state`).

        Only where size or time differ are all bytes read: a file that was copied or touched has the same content.
        """
        size, modified, sha256 = state
        try:
            status = path.stat()
            found = (status.st_size, status.st_mtime_ns)
            if found in ((size, modified), self._equal.get(str(path))):
                return
            if found[0] == size and scan(path)[0] == sha256:
                self._equal[str(path)] = found
                return
        except OSError as error:
            raise self._changed(path, f"{size:,} bytes", str(error.strerror)) from None
        raise self._changed(path, f"{size:,} bytes of SHA-256 {sha256[:16]}", f"{found[0]:,} bytes and another content")

    def check_content(self, path: Path, data: bytes, state: list[Any]) -> None:
        """The same for a file of which all bytes were read."""
        if len(data) != state[0] or hashlib.sha256(data).hexdigest() != state[2]:
            expected = f"{state[0]:,} bytes of SHA-256 {state[2][:16]}"
            raise self._changed(path, expected, f"{len(data):,} bytes and another content")

    def _changed(self, path: Path, expected: str, found: str) -> ArtifactMismatchError:
        return ArtifactMismatchError(
            f"{path}: the corpus changed while it was read (expected {expected}, found {found}); nothing of this piece "
            "is kept; let what writes the corpus finish, then run the command again"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_equal": {}}


def corpus_identity(files: Iterable[CorpusFile]) -> dict[str, Any]:
    """Number, bytes and one hash over relative path, size and hash of all files."""
    digest = hashlib.sha256()
    count = size = 0
    for file in files:
        digest.update(json.dumps([file.relative, file.bytes, file.sha256]).encode() + b"\n")
        count, size = count + 1, size + file.bytes
    return {"files": count, "bytes": size, "sha256": digest.hexdigest()}


def scan(path: Path, spacing: int = 1 << 62) -> tuple[str, list[list[int]]]:
    """Hash of the file, and marks [offset, lines before] from [0, 0] on."""
    digest = hashlib.sha256()
    marks = [[0, 0]]
    offset = lines = 0
    counted = path.stat().st_size > spacing  # a file in one piece needs no count of lines
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if counted:
                # A mark lies just after the first line end that is `spacing` bytes or more after the mark before.
                while (start := max(0, marks[-1][0] + spacing - offset)) < len(block):
                    end = block.find(b"\n", start)
                    if end < 0:
                        break
                    marks.append([offset + end + 1, lines + block.count(b"\n", 0, end + 1)])
                lines += block.count(b"\n")
            offset += len(block)
    if len(marks) > 1 and marks[-1][0] == offset:
        marks.pop()  # the file ends there: nothing to read from it
    return digest.hexdigest(), marks
