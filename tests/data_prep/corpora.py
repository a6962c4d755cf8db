"""Small corpora on disk, made in code."""

import gzip
import json
import lzma
from pathlib import Path

import zstandard

from data_prep.readers.base import RawRecord, Reader, Reject

COMPRESSIONS = ("", ".gz", ".zst", ".xz")


def compress(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data, mtime=0)
    if suffix == ".zst":
        return zstandard.ZstdCompressor().compress(data)
    if suffix == ".xz":
        return lzma.compress(data)
    return data


def write_lines(path: Path, records: list, suffix: str = "") -> Path:
    """Write records (objects, or raw bytes for bad lines) as JSON Lines; `suffix` compresses."""
    path = path.with_name(path.name + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in records]
    path.write_bytes(compress(b"\n".join(lines) + b"\n", suffix))
    return path


def read_all(reader: Reader) -> tuple[list[RawRecord], list[Reject]]:
    """All records and rejects of a reader, through its plan."""
    items = [item for piece in reader.pieces() for item in reader.read(piece)]
    return [i for i in items if isinstance(i, RawRecord)], [i for i in items if isinstance(i, Reject)]


def ids(reader: Reader) -> dict[str, str]:
    """id -> text of every record."""
    return {record.fields["id"]: record.fields["text"] for record in read_all(reader)[0]}
