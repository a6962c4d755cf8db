"""Reader of JSON Lines, plain or compressed. Plain files are cut at line ends, so a large one is read in parallel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from data_prep.readers.base import (
    BROKEN_JSON,
    BROKEN_UTF8,
    EMPTY_FILE,
    TOO_LONG,
    WRONG_TYPE,
    RawRecord,
    Reject,
    pack,
    record_fields,
)
from data_prep.readers.compressed import COMPRESSED, BrokenFileError, iter_blocks, iter_lines
from data_prep.readers.files import FileHasher, FilesReader
from retro.config.prep import JsonlConfig

PIECE_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"


class JsonlReader(FilesReader):
    """One record per line. Blank lines are not records; line numbers count them."""

    def __init__(
        self,
        config: JsonlConfig,
        split_field: str | None = None,
        longest: int = 64 << 20,
        hasher: FileHasher | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        super().__init__(config.folder, config.files, hasher)
        self.config = config
        self.split_field = split_field
        self.longest = longest
        self.piece_bytes = piece_bytes
        self.spacing = piece_bytes

    def pieces(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        sizes: list[int] = []
        for file in self.files:
            marks = file.marks[:1] if file.path.suffix in COMPRESSED else file.marks
            for i, (offset, lines) in enumerate(marks):
                stop = marks[i + 1][0] if i + 1 < len(marks) else file.bytes
                items.append({"file": file.relative, "start": offset, "stop": stop, "line": lines})
                sizes.append(stop - offset)
        return pack(items, sizes, self.piece_bytes)

    def read(self, piece: dict[str, Any]) -> Iterator[RawRecord | Reject]:
        for item in piece["items"]:
            yield from self._read_range(item["file"], item["start"], item["stop"], item["line"])

    def _read_range(self, source: str, start: int, stop: int, line: int) -> Iterator[RawRecord | Reject]:
        path = self.folder / source
        empty = start == 0
        try:
            for data in iter_lines(iter_blocks(path, start, stop), self.longest):
                line += 1
                if data is None:
                    empty = False
                    yield Reject(source, line, TOO_LONG)
                    continue
                data = data.removeprefix(_BOM) if line == 1 else data
                if data.strip():
                    empty = False
                    yield self._parse(source, line, data)
        except BrokenFileError as error:
            yield Reject(source, line + 1, error.reason)
            return
        if empty:
            yield Reject(source, 0, EMPTY_FILE)

    def _parse(self, source: str, line: int, data: bytes) -> RawRecord | Reject:
        try:
            record = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError:
            return Reject(source, line, BROKEN_UTF8)
        except (ValueError, RecursionError):
            return Reject(source, line, BROKEN_JSON)
        if not isinstance(record, dict):
            return Reject(source, line, WRONG_TYPE)
        config = self.config
        fields = record_fields(
            record,
            config.text_field,
            config.id_field,
            config.title_field,
            config.group_field,
            self.split_field,
            f"{source}:{line}",
        )
        return RawRecord(source, line, fields)
