"""Reader of a folder of text files: each file is one document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.readers.base import (
    BROKEN_UTF8,
    EMPTY_FILE,
    TOO_LONG,
    RawRecord,
    Reject,
    pack,
)
from data_prep.readers.encoding import decode_file
from data_prep.readers.files import FilesReader

# Opening a file costs about as much as reading this many bytes, so many tiny files still make several pieces.
_FILE_COST = 16 << 10


class TextFolderReader(FilesReader):
    """id and title: the relative path; group: the first folder of it, "." for files at the top."""

    def pieces(self) -> list[dict[str, Any]]:
        items = [{"file": file.relative, "state": file.state} for file in self.files]
        return pack(items, [file.bytes + _FILE_COST for file in self.files], self.piece_bytes)

    def read(self, piece: dict[str, Any]) -> Iterator[RawRecord | Reject]:
        for item in piece["items"]:
            yield self._read_file(item)

    def _read_file(self, item: dict[str, Any]) -> RawRecord | Reject:
        source = item["file"]
        if item["state"][0] == 0:
            return Reject(source, 0, EMPTY_FILE)
        if item["state"][0] > self.longest:
            return Reject(source, 0, TOO_LONG)
        path = self.folder / source
        try:
            with open(path, "rb") as file:
                data = file.read(item["state"][0] + 1)
        except OSError:
            self.guard.check(path, item["state"])  # says so if the file is not there or not readable any more
            raise
        self.guard.check_content(path, data, item["state"])
        decoded = decode_file(data, self.config.encodings)
        if decoded is None:
            return Reject(source, _line_of_error(data), BROKEN_UTF8)
        text, encoding = decoded
        group = source.split("/")[0] if "/" in source else "."
        fields = {"id": source, "title": source, "text": text.replace("\r\n", "\n"), "group": group}
        return RawRecord(source, 0, fields, encoding)


def _line_of_error(data: bytes) -> int:
    """The line in which the file stops being UTF-8; 1 if it is in another encoding."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    return 1
