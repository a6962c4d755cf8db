"""Reader of JSON Lines, plain or compressed. Plain files are cut at line ends, so a large one is read in parallel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
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
from data_prep.readers.encoding import LONGEST_MARK, decode, marked_encoding, without_mark
from data_prep.readers.files import FilesReader
from data_prep.readers.hashing import CorpusFile


class JsonlReader(FilesReader):
    """One record per line. Blank lines are not records; line numbers count them."""

    cuts_files = True

    def pieces(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        sizes: list[int] = []
        for file in self.files:
            marks = file.marks if self._can_be_cut(file) else file.marks[:1]
            for i, (offset, lines) in enumerate(marks):
                stop = marks[i + 1][0] if i + 1 < len(marks) else file.bytes
                item = {"file": file.relative, "start": offset, "stop": stop, "line": lines, "state": file.state}
                items.append(item)
                sizes.append(stop - offset)
        return pack(items, sizes, self.piece_bytes)

    def read(self, piece: dict[str, Any]) -> Iterator[RawRecord | Reject]:
        for item in piece["items"]:
            with self.unchanged(item) as path:
                yield from self._read_range(path, item["file"], item["start"], item["stop"], item["line"])

    def _can_be_cut(self, file: CorpusFile) -> bool:
        """Compressed files cannot, nor files of two or four bytes per character, whose line ends look different."""
        if len(file.marks) == 1 or file.relative.endswith(COMPRESSED):
            return False
        with open(self.folder / file.relative, "rb") as stream:
            return marked_encoding(stream.read(LONGEST_MARK))[0] in ("", "utf-8")

    def _read_range(self, path: Path, source: str, start: int, stop: int, line: int) -> Iterator[RawRecord | Reject]:
        empty = start == 0
        try:
            blocks = iter_blocks(path, start, stop)
            marked, blocks = without_mark(blocks) if start == 0 else ("", blocks)
            transcoded = marked if marked != "utf-8" else ""
            for data in iter_lines(blocks, self.longest):
                line += 1
                if data is None:
                    empty = False
                    yield Reject(source, line, TOO_LONG)
                elif data.strip():
                    empty = False
                    yield self._parse(source, line, data, transcoded)
        except BrokenFileError as error:
            yield Reject(source, line + 1, error.reason)
            return
        if empty:
            yield Reject(source, 0, EMPTY_FILE)

    def _parse(self, source: str, line: int, data: bytes, transcoded: str) -> RawRecord | Reject:
        decoded = decode(data, ("utf-8",) if transcoded else self.config.encodings)
        if decoded is None:
            return Reject(source, line, BROKEN_UTF8)
        text, encoding = decoded
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            return Reject(source, line, BROKEN_JSON)
        if not isinstance(record, dict):
            return Reject(source, line, WRONG_TYPE)
        fields = record_fields(record, self.config, self.split_field, f"{source}:{line}")
        return RawRecord(source, line, fields, transcoded or encoding)
