"""A document: one text with a stable id and provenance, and the files of an artifact of kind "documents".

On disk: `documents-*.jsonl.zst`, one JSON object per line with the fields of Document in their order. The order of the
files by name and the order of the lines are part of the artifact. Large shards are several files, so that the stages
that follow have pieces to work on in parallel.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args

from retro.artifacts.manifest import Manifest, open_manifest
from retro.config.errors import ArtifactCorruptError

Split = Literal["train", "valid", "test", "database_only"]
SPLITS: tuple[str, ...] = get_args(Split)
DOCUMENTS_KIND = "documents"
DOCUMENTS_PATTERN = "documents-*.jsonl.zst"

# zstandard's bytes depend on the level, and identical bytes are part of a stage's contract: one level for all.
_ZSTD_LEVEL = 3
FILE_BYTES = 32 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One text.

    id: stable name, unique in a corpus; it survives reordering of the input files. title: for people, may be empty.
    source: where it was read, `relative/path:line`. group: what a split by group keeps together, may be empty.
    split: one of SPLITS; `database_only` documents may be retrieved and are never trained on or scored.
    """

    id: str
    text: str
    title: str
    source: str
    group: str
    split: str


_FIELDS = tuple(field.name for field in dataclasses.fields(Document))


def document_key(document_id: str) -> int:
    """Identity of a document across stores: the first 8 bytes (little endian) of blake2b over its id, as uint64."""
    return int.from_bytes(hashlib.blake2b(document_id.encode("utf-8"), digest_size=8).digest(), "little")


def document_files(folder: str | Path) -> list[Path]:
    """Files of a finished documents artifact, in order. Raises ArtifactError where the folder is not one."""
    return [Path(folder) / name for name in document_names(open_manifest(folder, DOCUMENTS_KIND))]


def document_names(manifest: Manifest) -> list[str]:
    """Names of the files of a documents artifact, in order."""
    return sorted(entry["name"] for entry in manifest.all_files() if fnmatch(entry["name"], DOCUMENTS_PATTERN))


def iter_documents(folder: str | Path) -> Iterator[Document]:
    """All documents of a finished artifact, in the order of the artifact."""
    for path in document_files(folder):
        yield from read_documents(path)


def read_documents(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[Document]:
    """Documents of one file, streamed. Raises ArtifactCorruptError for anything that `DocumentWriter` did not write.

    start, stop: only the lines that begin at these bytes of the uncompressed file, so that ranges that meet give every
    document once (stop None: to the end). What lies before is unpacked and not parsed.
    """
    position = 0
    for number, line in enumerate(_lines(path), start=1):
        if stop is not None and position >= stop:
            return
        if position >= start:
            yield _parse(line, f"{path}:{number}")
        position += len(line) + 1


def _lines(path: str | Path) -> Iterator[bytes]:
    import zstandard

    try:
        with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            for line in io.BufferedReader(reader, 1 << 20):  # type: ignore[arg-type]
                if not line.endswith(b"\n"):
                    raise ArtifactCorruptError(f"{path}: ends in the middle of a line; restore it or make it again")
                yield line[:-1]
    except (zstandard.ZstdError, EOFError) as error:
        raise ArtifactCorruptError(f"{path}: not a readable zstd file ({error}); restore it or make it again") from None


def _parse(line: bytes, where: str) -> Document:
    try:
        record: dict[str, Any] = json.loads(line)
        if tuple(record) != _FIELDS or not all(isinstance(value, str) for value in record.values()):
            raise ValueError(f"expected the text fields {', '.join(_FIELDS)}")
        if record["split"] not in SPLITS:
            raise ValueError(f"split {record['split']!r} is none of {', '.join(SPLITS)}")
    except (ValueError, TypeError, AttributeError) as error:
        raise ArtifactCorruptError(f"{where}: not a document ({error}); restore it or make it again") from None
    return Document(**record)


class DocumentWriter:
    """Writes `<folder>/documents-<name>-00000.jsonl.zst`, and a next file after every `file_bytes` of lines.

    The same documents give the same bytes. Use as a context manager. `count` and `text_bytes` (UTF-8, text field only)
    tell what was written.
    """

    def __init__(self, folder: str | Path, name: str, file_bytes: int = FILE_BYTES) -> None:
        self.folder, self.name, self.file_bytes = Path(folder), name, file_bytes
        self.count = self.text_bytes = 0
        self._parts = self._written = 0
        self._stream: Any = None

    def write(self, document: Document) -> None:
        """Append one document."""
        self.count += 1
        self.text_bytes += len(document.text.encode("utf-8"))
        line = document_line(document)
        if self._stream is None or self._written >= self.file_bytes:
            self._next_file()
        self._stream.write(line + b"\n")
        self._written += len(line) + 1

    def __enter__(self) -> DocumentWriter:
        self._next_file()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _next_file(self) -> None:
        import zstandard

        if self._stream is not None:
            self._stream.close()
        path = self.folder / f"documents-{self.name}-{self._parts:05d}.jsonl.zst"
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
        # The compressor owns the file and closes it with the frame.
        self._stream = compressor.stream_writer(open(path, "wb"), closefd=True)  # noqa: SIM115
        self._parts += 1
        self._written = 0


def document_line(document: Document) -> bytes:
    """The document as one line of JSON, without the line end."""
    record = {name: getattr(document, name) for name in _FIELDS}
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
