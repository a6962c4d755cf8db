"""The interface of all readers: identity of a corpus, a plan of pieces, and the raw records of one piece."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from data_prep.readers.hashing import CorpusFile
from retro.config.prep import HuggingFaceConfig, JsonlConfig, ParquetConfig

FieldNames = JsonlConfig | ParquetConfig | HuggingFaceConfig

# Reasons for which a record or a file is rejected; counted in the manifest, so their spelling is a format.
NO_TEXT = "no text"
EMPTY_TEXT = "empty text"
WRONG_TYPE = "wrong type"
NO_ID = "no id"
NO_GROUP = "no group"
UNKNOWN_SPLIT = "unknown split"
BROKEN_UTF8 = "broken UTF-8"
BROKEN_JSON = "broken JSON"
TOO_LONG = "record too long"
BROKEN_SOURCE = "broken Python source"
EMPTY_FILE = "empty file"
TRUNCATED_FILE = "truncated file"
CORRUPT_FILE = "corrupt file"
UNREADABLE_FILE = "unreadable file"

# These lose an unknown number of records, so they are held against the number of files, not of records.
FILE_REASONS = frozenset({EMPTY_FILE, TRUNCATED_FILE, CORRUPT_FILE, UNREADABLE_FILE})


@dataclasses.dataclass(frozen=True, slots=True)
class RawRecord:
    """One record before it is split and checked. `source` is a relative path, `line` counts from 1 (0: whole file).

    `fields` maps id, text, title, group and split to what the record holds; a missing key is a missing field, and
    values may be of any type: `accept_record` in data_prep/ingest.py judges them alike for all readers. `encoding`: of
    the bytes that were decoded, "" where the format has its own.
    """

    source: str
    line: int
    fields: dict[str, Any]
    encoding: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
    """Something that is not a record, and why."""

    source: str
    line: int
    reason: str


class Reader(ABC):
    """Reads one corpus. Instances are pickled to workers; they hold configuration and paths, nothing open."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON-able identity of the corpus's content: equal if and only if the records are. Part of the fingerprint.

        Raises ArtifactMissingError where the corpus is not there.
        """

    @abstractmethod
    def pieces(self) -> list[dict[str, Any]]:
        """JSON-able pieces that can be read independently, in an order that does not depend on the file system."""

    @abstractmethod
    def read(self, piece: dict[str, Any]) -> Iterator[RawRecord | Reject]:
        """The records of one piece, in order, without holding more than one in memory.

        Raises ArtifactMismatchError if the corpus is not what `pieces` saw.
        """

    def described(self) -> list[CorpusFile]:
        """The files that the identity is made from, by relative path; empty for a corpus that is not files."""
        return []

    @abstractmethod
    def num_files(self) -> int:
        """Number of files (or shards of a data set) in the corpus: what rejected files are held against."""

    def __getstate__(self) -> dict[str, Any]:
        # The list of files and the hash cache grow with the corpus; a worker that reads one piece needs neither.
        return {name: value for name, value in self.__dict__.items() if name not in ("files", "packages", "hasher")}


def pack(items: list[dict[str, Any]], sizes: list[int], target: int) -> list[dict[str, Any]]:
    """Group consecutive items into pieces {"items": [...]} of about `target` bytes each (larger items stay alone)."""
    pieces: list[dict[str, Any]] = []
    room = 0
    for item, size in zip(items, sizes, strict=True):
        if not pieces or size > room:
            pieces.append({"items": []})
            room = target
        pieces[-1]["items"].append(item)
        room -= size
    return pieces


def record_fields(
    record: dict[str, Any], config: FieldNames, split_field: str | None, position_id: str
) -> dict[str, Any]:
    """The fields of a RawRecord from a record of a user's corpus; `position_id` serves where no id field is named."""
    wanted = {
        "text": config.text_field,
        "id": config.id_field,
        "title": config.title_field,
        "group": config.group_field,
        "split": split_field,
    }
    fields = {name: record[key] for name, key in wanted.items() if key is not None and key in record}
    if config.id_field is None:
        fields["id"] = position_id
    return fields
