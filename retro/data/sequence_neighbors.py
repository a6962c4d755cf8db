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
    """Neighbors of chunks within their sequences; what is excluded is what the table excludes: documents or groups."""

    def __init__(self, queries: ChunkStore, database: ChunkStore, table: NeighborTable) -> None:
        self.queries, self.database, self.table = queries, database, table
        self._query_keys: Keys | None = None
        self._database_keys: Keys | None = None
        if table.exclude == "groups":
            self._query_keys, self._database_keys = queries.tokens.group_keys(), database.tokens.group_keys()
        elif queries.tokens.fingerprint != database.tokens.fingerprint:
            self._query_keys, self._database_keys = queries.tokens.document_keys, database.tokens.document_keys
        # Otherwise documents of both have the same numbers, and no key need be looked up.

    def find(self, chunks: np.ndarray, wanted: np.ndarray, k: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Neighbor ids int64 [n, k], -1 = none, of the n chunks of `chunks` where `wanted`.

        chunks: int64 [B, L] query chunks, -1 = padding; wanted: bool [B, L], of real chunks only; rows: int64 [n], the
        table rows to read for them (default: their own). None is of a document (group) of the sequence.
        """
        sequence, column = np.nonzero(wanted)
        return self.find_within(chunks[sequence, column], sequence, self._documents(chunks), k, rows)

    def find_within(
        self, chunks: np.ndarray, sequence: np.ndarray, documents: np.ndarray, k: int, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """The same for chunks int64 [n] that stand in the sequences int64 [n] of B. documents: int64 [B, W], numbers of
        all documents that each sequence has tokens of, in any order and any number of times."""
        own = rows is None
        rows = chunks if rows is None else rows
        keys = documents if self._query_keys is None else np.asarray(self._query_keys[documents])
        width = min(k + _SPARE, self.table.k)
        stored = self.table.rows(rows, width)
        found = stored[:, :k].copy()
        # The chunk's own document is excluded already: a sequence of one document has nothing left to exclude. With
        # rows of other chunks (the shuffled control) nothing is excluded yet.
        check = np.flatnonzero((keys != keys[:, :1]).any(axis=1)[sequence]) if own else np.arange(len(rows))
        if len(check):
            found[check], full = self._allowed(stored[check], keys[sequence[check]], k)
            if width < self.table.k and not full.all():
                rest = check[~full]
                found[rest], _ = self._allowed(self.table.rows(rows[rest]), keys[sequence[rest]], k)
        return found

    def _documents(self, chunks: np.ndarray) -> np.ndarray:
        """[B, L] numbers of the documents of each sequence; padding repeats a real one."""
        filled = chunks
        if chunks.size and int(chunks.min()) < 0:
            filled = np.where(chunks >= 0, chunks, chunks.max(axis=1, keepdims=True))
            if int(filled.min()) < 0:  # sequences of padding only
                filled = np.maximum(filled, 0)
        return self.queries.documents(filled)

    def _allowed(self, stored: np.ndarray, sequence_keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The first k allowed of the stored neighbors: ids [n, k], and which rows have k, or have no more stored.

        stored: int64 [n, c]; sequence_keys: [n, W], of the sequence of each row.
        """
        present = stored >= 0
        documents = (
            self.database.documents(np.maximum(stored, 0)) if self.database.num_chunks else np.zeros_like(stored)
        )
        keys = documents if self._database_keys is None else np.asarray(self._database_keys[documents])
        allowed = present.copy()
        # One key of the sequences at a time: [n, c] is small, [n, c, W] is not.
        for other in range(sequence_keys.shape[1]):
            allowed &= keys != sequence_keys[:, other, None]
        if bool(allowed[:, :k].all()):
            return stored[:, :k], np.ones(len(stored), dtype=bool)
        order = np.cumsum(allowed, axis=1) - 1
        ids = np.full((len(stored), k), -1, dtype=np.int64)
        row, column = np.nonzero(allowed & (order < k))
        ids[row, order[row, column]] = stored[row, column]
        return ids, (ids[:, -1] >= 0) | (stored[:, -1] < 0)
