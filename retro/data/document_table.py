"""What a token store knows of its documents, one entry per document, over the files of its shards and by memory map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from retro.config.errors import ArtifactCorruptError
from retro.data.document import document_key
from retro.data.sharded_array import ShardedArray, load_array, read_bytes


class DocumentOffsets:
    """int64 [D + 1]: position of the first token of each document in the store, and the end of the store.

    Indexed like an array: with an int, a range or an int64 array of any shape.
    """

    dtype = np.dtype(np.int64)

    def __init__(self, parts: list[np.ndarray], first_token: np.ndarray) -> None:
        """parts: of every shard int64 [n + 1], from 0; first_token: int64 [S + 1], position of every shard."""
        self._own = ShardedArray([part[:-1] for part in parts], np.int64)
        self._first_document = np.cumsum([0] + [len(part) - 1 for part in parts])
        self._first_token = first_token

    def __len__(self) -> int:
        return len(self._own) + 1

    @property
    def shape(self) -> tuple[int]:
        """[D + 1]"""
        return (len(self),)

    def __getitem__(self, index: Any) -> Any:
        """Copies of entries. Raises IndexError for an entry that there is not (negative ones included)."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise IndexError(f"documents: expected a range without gaps, found step {step}")
            index = np.arange(start, stop)
        ids = np.asarray(index, dtype=np.int64)
        last = len(self) - 1
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= last:
            raise IndexError(f"documents: expected 0 to {last}, found {ids.min()} to {ids.max()}")
        if last == 0:
            return np.zeros(ids.shape, np.int64)[()]
        inside = np.minimum(ids, last - 1)
        shards = np.searchsorted(self._first_document, inside, side="right") - 1
        found = self._own.take(inside) + self._first_token[shards]
        return np.where(ids == last, self._first_token[-1], found)[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole in memory."""
        if copy is False:
            raise ValueError("an array over several files is always copied")
        return np.asarray(self[:], dtype=dtype)


class GroupKeys:
    """uint64 [D]: key of every document's group; a document without a group is one of its own, under its own key.

    Indexed like an array: with an int, a range or an int64 array of any shape.
    """

    dtype = np.dtype(np.uint64)

    def __init__(self, groups: ShardedArray, keys: ShardedArray) -> None:
        """groups: uint64 [D], 0 = none; keys: uint64 [D] of the documents."""
        self._groups, self._keys = groups, keys

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def shape(self) -> tuple[int]:
        """[D]"""
        return (len(self),)

    def __getitem__(self, index: Any) -> Any:
        """Copies of entries. Raises IndexError for a document that there is not (negative ones included)."""
        groups = self._groups[index]
        if np.all(groups):
            return groups
        return np.where(groups == 0, self._keys[index], groups)[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole in memory."""
        if copy is False:
            raise ValueError("an array over several files is always copied")
        return np.asarray(self[:], dtype=dtype)


class DocumentRecords:
    """{"id", "title", "source", "group"} of every document: lines of `docs-<shard>.jsonl`, found by number.

    `lines-<shard>.npy` int64 [n] has the end of each line. Artifacts from before version 2 of the stage have none: the
    lines of one shard at a time are counted.
    """

    def __init__(self, folder: Path, shards: list[dict[str, Any]]) -> None:
        self._folder, self._shards = folder, shards
        self._first = np.cumsum([0] + [int(shard["rows"]) for shard in shards])
        self._open: tuple[int, np.ndarray, np.ndarray] = (-1, np.zeros(0, np.uint8), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, document: int) -> dict[str, str]:
        if not 0 <= document < len(self):
            raise IndexError(f"document: expected 0 to {len(self) - 1}, found {document}")
        shard = int(np.searchsorted(self._first, document, side="right")) - 1
        row = document - int(self._first[shard])
        data, ends = self._lines(shard)
        line = data[int(ends[row - 1]) if row else 0 : int(ends[row])].tobytes()
        try:
            record: dict[str, str] = json.loads(line)
            _ = record["id"], record["title"], record["source"], record["group"]
        except (ValueError, KeyError, TypeError):
            raise ArtifactCorruptError(
                f"{self._path(shard)}:{row + 1}: not a document record; make the tokens again"
            ) from None
        return record

    def groups(self, shard: int) -> np.ndarray:
        """uint64 [n]: keys of the groups of a shard's documents, 0 = none, read from the records."""
        first, last = int(self._first[shard]), int(self._first[shard + 1])
        groups = [self[document]["group"] for document in range(first, last)]
        keys = {group: document_key(group) if group else 0 for group in set(groups)}
        return np.array([keys[group] for group in groups], dtype=np.uint64)

    def _path(self, shard: int) -> Path:
        return self._folder / f"docs-{self._shards[shard]['name']}.jsonl"

    def _lines(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """(bytes of the shard's records, end of each line), by memory map where the ends are stored."""
        opened = self._open  # read once: another thread may open another shard meanwhile
        if opened[0] != shard:
            entry = self._shards[shard]
            path, name = self._path(shard), f"lines-{entry['name']}.npy"
            data = read_bytes(path)
            if any(file["name"] == name for file in entry["files"]):
                ends = load_array(self._folder / name, np.int64, (int(entry["rows"]),), map_file=True)
            else:
                ends = np.flatnonzero(data == ord("\n")) + 1
                if len(ends) != int(entry["rows"]):
                    raise ArtifactCorruptError(f"{path}: expected {entry['rows']} lines, found {len(ends)}; restore it")
            opened = self._open = (shard, data, ends)
        return opened[1], opened[2]
