"""Which stored neighbors a chunk may have in the sequence that it stands in.

The table keeps neighbors by chunk, without those of the chunk's own document (or group). The other documents (groups)
of a sequence are excluded here, when a batch is made, and the next stored neighbors move up.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from retro.data.chunk_store import ChunkStore
from retro.data.neighbor_table import NeighborTable

# Stored neighbors looked at before all of a row: nearly always enough, and less to read.
_SPARE = 2


class Keys(Protocol):
    """uint64 [documents], indexed by document numbers."""

    def __getitem__(self, index: Any) -> Any: ...


class SequenceNeighbors:
    """Neighbors of chunks within their sequences. exclude: "documents" or "groups", as the table was made."""

    def __init__(self, queries: ChunkStore, database: ChunkStore, table: NeighborTable) -> None:
        self.queries, self.database, self.table = queries, database, table
        grouped = table.exclude == "groups"
        self._query_keys: Keys = queries.tokens.group_keys() if grouped else queries.tokens.document_keys
        self._database_keys: Keys = database.tokens.group_keys() if grouped else database.tokens.document_keys

    def find(self, chunks: np.ndarray, wanted: np.ndarray, k: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Neighbor ids int64 [n, k], -1 = none, of the n chunks of `chunks` where `wanted`.

        chunks: int64 [B, L] query chunks, -1 = padding; wanted: bool [B, L], of real chunks only; rows: int64 [n], the
        table rows to read for them (default: their own). None is of a document (group) of the sequence.
        """
        place = np.nonzero(wanted)
        own, rows = rows is None, chunks[place] if rows is None else rows
        keys = self._sequence_keys(chunks)
        mixed = (keys != keys[:, :1]).any(axis=1)
        found = self.table.rows(rows, k)
        # The chunk's own document is excluded already: a sequence of one document has nothing left to exclude. With
        # rows of other chunks (the shuffled control) nothing is excluded yet.
        check = np.flatnonzero(mixed[place[0]]) if own else np.arange(len(rows))
        if not len(check):
            return found
        some = min(k + _SPARE, self.table.k)
        ids, full = self._allowed(rows[check], keys[place[0][check]], some, k)
        found[check] = ids
        if some < self.table.k and not full.all():
            rest = check[~full]
            found[rest], _ = self._allowed(rows[rest], keys[place[0][rest]], self.table.k, k)
        return found

    def _sequence_keys(self, chunks: np.ndarray) -> np.ndarray:
        """uint64 [B, L] keys of the documents (groups) of each sequence; padding repeats a real one."""
        real = chunks >= 0
        filled = np.where(real, chunks, chunks.max(axis=1, keepdims=True))
        keys = np.zeros(chunks.shape, dtype=np.uint64)
        there = filled >= 0
        keys[there] = self._query_keys[self.queries.documents(filled[there])]
        return keys

    def _allowed(
        self, rows: np.ndarray, sequence_keys: np.ndarray, width: int, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first k allowed of the first `width` stored neighbors [n, k], and which rows have k, or have no more."""
        stored = self.table.rows(rows, width)
        present = stored >= 0
        keys = np.zeros(stored.shape, dtype=np.uint64)
        keys[present] = self._database_keys[self.database.documents(stored[present])]
        # One key of the sequences at a time: [n, width] is small, [n, width, L] is not.
        for other in range(sequence_keys.shape[1]):
            present &= keys != sequence_keys[:, other, None]
        order = np.cumsum(present, axis=1) - 1
        ids = np.full((len(rows), k), -1, dtype=np.int64)
        where, column = np.nonzero(present & (order < k))
        ids[where, order[where, column]] = stored[where, column]
        return ids, (ids[:, -1] >= 0) | (stored[:, -1] < 0)
