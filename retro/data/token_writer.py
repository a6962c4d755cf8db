"""Writes the files of one shard of a tokens artifact (retro/data/token_store.py), batch by batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from retro.data.document import Document, document_key
from retro.data.npy_file import NpyWriter
from retro.data.token_store import DTYPES


class ShardWriter:
    """`tokens-`, `offsets-`, `keys-`, `groups-`, `ranks-`, `docs-` and `lines-<name>` in a folder.

    Memory is that of a batch. Use as a context manager. `documents` and `tokens` tell what was written.
    """

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        """dtype: a name in DTYPES."""
        self.documents = self.tokens = 0
        self._dtype = DTYPES[dtype]
        self._records_bytes = 0
        self._group = ("", 0)
        self._tokens = open(folder / f"tokens-{name}.bin", "wb")  # noqa: SIM115 - closed on leaving
        self._records = open(folder / f"docs-{name}.jsonl", "wb")  # noqa: SIM115
        types = {"offsets": np.int64, "keys": np.uint64, "groups": np.uint64, "ranks": np.uint64, "lines": np.int64}
        self._arrays = {part: NpyWriter(folder / f"{part}-{name}.npy", dtype) for part, dtype in types.items()}
        self._arrays["offsets"].append(np.zeros(1, np.int64))

    def write(
        self, batch: Sequence[Document], ids: Sequence[Sequence[int]], bos_id: int, eos_id: int, ranks: np.ndarray
    ) -> None:
        """Append documents with the ids of their texts; ranks: uint64 [n], their places in the shuffle."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids)) + 2
        ends = np.cumsum(lengths)
        flat: list[int] = []
        for row in ids:
            flat.append(bos_id)
            flat += row
            flat.append(eos_id)
        self._tokens.write(np.array(flat, dtype=self._dtype).data)
        lines = [_record(document) for document in batch]
        self._records.write(b"".join(lines))
        line_ends = np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines))) + self._records_bytes
        arrays = {
            "offsets": ends + self.tokens,
            "keys": np.fromiter((document_key(d.id) for d in batch), np.uint64, len(batch)),
            "groups": np.fromiter((self._group_key(d.group) for d in batch), np.uint64, len(batch)),
            "ranks": ranks,
            "lines": line_ends,
        }
        for part, array in arrays.items():
            self._arrays[part].append(array)
        if len(batch):
            self.documents += len(batch)
            self.tokens += int(ends[-1])
            self._records_bytes = int(line_ends[-1])

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._tokens, self._records):
            file.close()
        for array in self._arrays.values():
            array.__exit__(kind, error, trace)

    def _group_key(self, group: str) -> int:
        """0 for none. Documents of a group often follow each other."""
        if not group:
            return 0
        if self._group[0] != group:
            self._group = (group, document_key(group))
        return self._group[1]


def _record(document: Document) -> bytes:
    """What json.dumps(..., ensure_ascii=False, separators=(",", ":")) gives, at a third of its cost."""
    quote = json.encoder.encode_basestring
    return (
        f'{{"id":{quote(document.id)},"title":{quote(document.title)},'
        f'"source":{quote(document.source)},"group":{quote(document.group)}}}\n'
    ).encode()
