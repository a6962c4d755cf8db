"""Reader of Parquet files: a piece is a run of row groups, read in batches of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.readers.base import (
    BROKEN_UTF8,
    CORRUPT_FILE,
    EMPTY_FILE,
    TOO_LONG,
    RawRecord,
    Reject,
    pack,
    record_fields,
)
from data_prep.readers.files import FilesReader
from retro.config.errors import ArtifactError

# Rows in memory at once: of about so many bytes by the average of the row group, and never more than so many.
_BATCH_BYTES, _BATCH_ROWS = 1 << 20, 1024
# Pages are read through a buffer of so many bytes; without it a column's whole part of the row group is in memory.
_BUFFER_BYTES = 1 << 20


class ParquetReader(FilesReader):
    """One record per row; `line` is the row's number in the file, from 1."""

    def pieces(self) -> list[dict[str, Any]]:
        """Row groups {"file", "group", "row"}; a file without a readable footer or without rows is {"file"} alone.

        Raises ArtifactError if a file lacks a column that the configuration names.
        """
        import pyarrow
        import pyarrow.parquet

        items: list[dict[str, Any]] = []
        sizes: list[int] = []
        for file in self.files:
            try:
                with pyarrow.parquet.ParquetFile(self.folder / file.relative) as opened:
                    metadata = opened.metadata
                    names = set(opened.schema_arrow.names)
            except (pyarrow.ArrowException, OSError):
                items.append({"file": file.relative, "reason": CORRUPT_FILE if file.bytes else EMPTY_FILE})
                sizes.append(0)
                continue
            missing = [name for name in self._columns() if name not in names]
            if missing:
                raise ArtifactError(
                    f"{self.folder / file.relative}: column {missing[0]!r} not found; the file has "
                    f"{', '.join(sorted(names))}; correct the field names in the configuration"
                )
            if metadata.num_rows == 0:
                items.append({"file": file.relative, "reason": EMPTY_FILE})
                sizes.append(0)
            row = 0
            for group in range(metadata.num_row_groups):
                items.append({"file": file.relative, "group": group, "row": row, "state": file.state})
                sizes.append(metadata.row_group(group).total_byte_size)
                row += metadata.row_group(group).num_rows
        return pack(items, sizes, self.piece_bytes)

    def read(self, piece: dict[str, Any]) -> Iterator[RawRecord | Reject]:
        for item in piece["items"]:
            if "reason" in item:
                yield Reject(item["file"], 0, item["reason"])
            else:
                with self.unchanged(item) as path:
                    yield from self._read_group(path, item["file"], item["group"], item["row"])

    def _columns(self) -> list[str]:
        config = self.config
        fields = (config.text_field, config.id_field, config.title_field, config.group_field, self.split_field)
        return [name for name in fields if name is not None]

    def _read_group(self, path: Path, source: str, group: int, row: int) -> Iterator[RawRecord | Reject]:
        import pyarrow
        import pyarrow.parquet

        columns = list(dict.fromkeys(self._columns()))
        try:
            with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as opened:
                described = opened.metadata.row_group(group)
                per_row = max(1, described.total_byte_size // max(1, described.num_rows))
                rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // per_row))
                for batch in opened.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                    for i in range(batch.num_rows):
                        row += 1
                        yield self._record(source, row, {name: batch.column(name)[i] for name in columns})
        except (pyarrow.ArrowException, OSError):
            yield Reject(source, row + 1, CORRUPT_FILE)

    def _record(self, source: str, row: int, cells: dict[str, Any]) -> RawRecord | Reject:
        text = cells[self.config.text_field]
        if text.is_valid and hasattr(text, "as_buffer") and text.as_buffer().size > self.longest:
            return Reject(source, row, TOO_LONG)
        try:
            record = {name: cell.as_py() for name, cell in cells.items() if cell.is_valid}
        except UnicodeDecodeError:
            return Reject(source, row, BROKEN_UTF8)
        return RawRecord(source, row, record_fields(record, self.config, self.split_field, f"{source}:{row}"))
