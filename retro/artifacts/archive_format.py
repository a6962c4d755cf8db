"""What an archive of a release looks like: a tar file of regular files in a fixed order, the index of them first.

`index.json` is {"format", "kind": "retro-release", "release": fingerprint, "files": [{"name", "bytes", "sha256"}]},
then follow exactly these files in this order: `release.json`, and `<stage>-<fingerprint>/<file>` of every artifact. No
member carries a time, an owner or a mode of its own, so equal releases give equal bytes. Any tar program can unpack
one; reading is strict: every header must be byte for byte the one that is expected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tarfile
from typing import Any, Protocol

from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ConfigError

FORMAT = 1
KIND = "retro-release"
INDEX_NAME = "index.json"
RELEASE_NAME = "release.json"
SUFFIXES = (".tar", ".tar.zst")
BLOCK = tarfile.BLOCKSIZE
_INDEX_LIMIT = 1 << 30
_NAME_LIMIT = 100  # of one header block
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TYPES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file of the archive: name with forward slashes, size in bytes, SHA-256 in hexadecimal digits."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Index:
    """Content of index.json. release: fingerprint of the release."""

    release: str
    files: tuple[Entry, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.bytes for entry in self.files)

    def dump(self) -> bytes:
        """As index.json."""
        files = [dataclasses.asdict(entry) for entry in self.files]
        content = {"format": FORMAT, "kind": KIND, "release": self.release, "files": files}
        return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def archive_size(index: Index) -> int:
    """Bytes of the whole archive, uncompressed."""
    blocks = sum(1 + -(-size // BLOCK) for size in [len(index.dump()), *(entry.bytes for entry in index.files)])
    return (blocks + 2) * BLOCK


def check_suffix(path: Any) -> bool:
    """Whether the archive is compressed. Raises ConfigError for a name with another suffix."""
    name = str(path)
    if not name.endswith(SUFFIXES):
        raise ConfigError(f"{path}: expected the name of an archive, {' or '.join('*' + s for s in SUFFIXES)}")
    return name.endswith(".zst")


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is `release.json` or `<folder>/<file>` of plain characters."""
    parts = name.split("/")
    plain = all(_PART.fullmatch(part) and not part.endswith(".") for part in parts)
    if not plain or len(name) > _NAME_LIMIT or (len(parts) != 2 and name != RELEASE_NAME):
        raise ValueError(f"file name {name!r} is not allowed in an archive")


def header(name: str, size: int) -> bytes:
    """The header block of a regular file: no time, no owner, read by everybody."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime, info.type = size, 0o644, 0, tarfile.REGTYPE
    block = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
    if len(block) != BLOCK:
        raise ValueError(f"file name {name!r} is too long for an archive")
    return block


def padding(size: int) -> int:
    """Zero bytes behind a file of that size."""
    return -size % BLOCK


class Readable(Protocol):
    """A file, or what is decompressed out of one. `read` gives b"" at the end and raises OSError where it cannot."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""


class ArchiveReader:
    """Reads an archive from front to back; `where` names it in errors, which are ArtifactCorruptError."""

    def __init__(self, stream: Readable, where: str) -> None:
        self._stream, self._where = stream, where

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        parts = []
        while size > 0:
            part = self._read_some(size)
            if not part:
                raise ArtifactCorruptError(f"{self._where}: ends too early (truncated); copy or export it again")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def read_index(self) -> Index:
        """The first member."""
        block = self.read(BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise ArtifactCorruptError(f"{self._where}: not an archive of `retro prep export` ({error})") from None
        if info.name != INDEX_NAME or info.type != tarfile.REGTYPE or not 0 < info.size <= _INDEX_LIMIT:
            raise ArtifactCorruptError(
                f"{self._where}: expected {INDEX_NAME} as the first member, found {info.name!r}; this is not an "
                "archive of `retro prep export`"
            )
        data = self.read(info.size)
        self.skip_padding(info.size)
        return parse_index(data, self._where)

    def expect(self, entry: Entry) -> None:
        """Read the header of this file. Anything else is refused and named."""
        block = self.read(BLOCK)
        if block == header(entry.name, entry.bytes):
            return
        found = "something else"
        if not any(block):
            found = "the end of the archive"
        else:
            with contextlib.suppress(tarfile.HeaderError, UnicodeDecodeError):
                info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
                found = f"{_TYPES.get(info.type, 'a file')} {info.name!r} of {info.size} bytes"
        raise ArtifactCorruptError(
            f"{self._where}: expected the file {entry.name!r} of {entry.bytes} bytes as in its index, found {found}; "
            "the archive was altered, copy or export it again"
        )

    def skip_padding(self, size: int) -> None:
        """Read the zero bytes behind a file of that size."""
        if any(self.read(padding(size))):
            raise self._altered()

    def expect_end(self) -> None:
        """Two zero blocks and nothing behind them but zeros."""
        if any(self.read(2 * BLOCK)):
            raise ArtifactCorruptError(f"{self._where}: holds more than its index lists; it was altered, export again")
        while part := self._read_some(1 << 20):
            if any(part):
                raise self._altered()

    def _read_some(self, size: int) -> bytes:
        try:
            return self._stream.read(min(size, 1 << 20))
        except OSError as error:
            raise ArtifactCorruptError(
                f"{self._where}: cannot be read: {error.strerror or error}; copy or export it again"
            ) from None

    def _altered(self) -> ArtifactCorruptError:
        return ArtifactCorruptError(f"{self._where}: altered between two files; copy or export it again")


def parse_index(data: bytes, where: str) -> Index:
    """The index, every name checked. Raises ArtifactCorruptError, or ArtifactMismatchError for another version."""
    try:
        content = json.loads(data)
        if content["kind"] != KIND:
            raise ValueError(f"kind {content['kind']!r}")
        if content["format"] != FORMAT:
            raise ArtifactMismatchError(
                f"{where}: expected archive format {FORMAT}, found {content['format']!r}; update this package"
            )
        files = tuple(Entry(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in content["files"])
        for entry in files:
            check_name(entry.name)
            if entry.bytes < 0 or not _SHA256.fullmatch(entry.sha256):
                raise ValueError(f"entry of {entry.name!r}")
        if len({entry.name for entry in files}) != len(files) or files[0].name != RELEASE_NAME:
            raise ValueError("a file is listed twice, or release.json is not the first")
        return Index(str(content["release"]), files)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ArtifactCorruptError(
            f"{where}: {INDEX_NAME} is not one of `retro prep export` ({error}); copy or export it again"
        ) from None
