"""Reader of a folder of text files: each file is one document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.readers.base import (
    BROKEN_UTF8,
    EMPTY_FILE,
    TOO_LONG,
    UNREADABLE_FILE,
    RawRecord,
    Reject,
    pack,
)
from data_prep.readers.files import FileHasher, FilesReader
from retro.config.prep import TextFolderConfig

PIECE_BYTES = 16 << 20
# Opening a file costs about as much as reading this many bytes, so many tiny files still make several pieces.
_FILE_COST = 16 << 10


class TextFolderReader(FilesReader):
    """id and title: the relative path; group: the first folder of it, "." for files at the top."""

    def __init__(
        self,
        config: TextFolderConfig,
        longest: int = 64 << 20,
        hasher: FileHasher | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        super().__init__(config.folder, config.files, hasher)
        self.config = config
        self.longest = longest
        self.piece_bytes = piece_bytes

    def pieces(self) -> list[dict[str, Any]]:
        items = [{"file": file.relative} for file in self.files]
        return pack(items, [file.bytes + _FILE_COST for file in self.files], self.piece_bytes)

    def read(self, piece: dict[str, Any]) -> Iterator[RawRecord | Reject]:
        for item in piece["items"]:
            yield self._read_file(item["file"])

    def _read_file(self, source: str) -> RawRecord | Reject:
        try:
            with open(self.folder / source, "rb") as file:
                data = file.read(self.longest + 1)
        except OSError:
            return Reject(source, 0, UNREADABLE_FILE)
        if not data:
            return Reject(source, 0, EMPTY_FILE)
        if len(data) > self.longest:
            return Reject(source, 0, TOO_LONG)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return Reject(source, data.count(b"\n", 0, error.start) + 1, BROKEN_UTF8)
        group = source.split("/")[0] if "/" in source else "."
        text = text.replace("\r\n", "\n")
        return RawRecord(source, 0, {"id": source, "title": source, "text": text, "group": group})
