"""Neighbors of every query chunk, by memory map: artifact kind "neighbors" (inputs: queries, database, searcher).

Per shard: `ids-00000.npy` int64 [n, k] database chunk ids, nearest first, -1 = none; `distances-00000.npy` float32
[n, k] ascending, inf = none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from retro.data.chunk_store import ChunkStore
from retro.data.sharded_array import ShardedArray, open_sharded

NEIGHBORS_KIND = "neighbors"


class NeighborTable:
    """Read-only view of a neighbors artifact; rows are ids of query chunks.

    num_rows; k neighbors per row; sequence_chunks L: rows [i L, (i + 1) L) form sequence i, and no neighbor is of a
    document of its sequence (None if the artifact does not say); fingerprint. Cheap to pickle.

    Raises ArtifactMismatchError if it was made from other queries or another database than the given ones.
    """

    def __init__(self, folder: str | Path, queries: ChunkStore, database: ChunkStore) -> None:
        self.folder, self.queries, self.database = Path(folder), queries, database
        manifest = open_manifest(self.folder, NEIGHBORS_KIND)
        self.fingerprint = manifest.fingerprint
        for name, store in (("queries", queries), ("database", database)):
            made_from = manifest.inputs.get(name, {}).get("fingerprint")
            if made_from != store.fingerprint:
                raise ArtifactMismatchError(
                    f"{self.folder}: expected neighbors made for the {name} {store.fingerprint} ({store.folder}), "
                    f"found {made_from}; run find_neighbors for these, or open those that it was made for"
                )
        self.num_rows = manifest.rows
        if self.num_rows != queries.num_chunks:
            raise ArtifactCorruptError(
                f"{self.folder}: expected {queries.num_chunks} rows, one per query chunk, found {self.num_rows}; "
                "find the neighbors again"
            )
        try:
            self.k = int(manifest.config["keep"])
            length = manifest.config.get("sequence_chunks")
            self.sequence_chunks: int | None = None if length is None else int(length)
        except (KeyError, TypeError, ValueError):
            raise ArtifactCorruptError(f"{self.folder}: the manifest lacks keep; find the neighbors again") from None
        self._ids = open_sharded(self.folder, "ids", manifest.shards, np.int64, (self.k,))
        self._distances = open_sharded(self.folder, "distances", manifest.shards, np.float32, (self.k,))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.queries, self.database)

    def rows(self, ids: np.ndarray, k: int | None = None) -> np.ndarray:
        """Database chunk ids of query chunks: int64 [...] -> int64 [..., k], -1 = none. k: the first k, default all.

        Raises IndexError for a query chunk that there is not and ArtifactCorruptError if the table names a database
        chunk that there is not.
        """
        found = self._take(self._ids, ids, k)
        if found.size and not -1 <= int(found.min()) <= int(found.max()) < self.database.num_chunks:
            raise ArtifactCorruptError(
                f"{self.folder}/ids-*.npy: expected chunk ids from -1 to {self.database.num_chunks - 1}, found "
                f"{found.min()} to {found.max()}; restore the folder or find the neighbors again"
            )
        return found

    def distances(self, ids: np.ndarray, k: int | None = None) -> np.ndarray:
        """Distances of the same neighbors: float32 [..., k], ascending, inf = none."""
        return self._take(self._distances, ids, k)

    def verify(self) -> None:
        """Check the whole table: ids in range, -1 only at the end of a row, and no neighbor from any document of the
        row's sequence. Raises ArtifactCorruptError."""
        length = self.sequence_chunks or 1
        block = max(1, 65536 // length) * length
        for first in range(0, self.num_rows, block):
            ids = np.arange(first, min(first + block, self.num_rows))
            found = self.rows(ids)
            if bool(((found[:, :-1] < 0) & (found[:, 1:] >= 0)).any()):
                raise ArtifactCorruptError(f"{self.folder}: a neighbor stands behind a missing one; find them again")
            own = same_document(found, ids // length, self.queries.document_keys(ids), ids // length, self.database)
            if own.any():
                row = int(ids[np.flatnonzero(own.any(axis=1))[0]])
                raise ArtifactCorruptError(
                    f"{self.folder}: row {row} has a neighbor from a document of its own sequence; find them again"
                )

    def _take(self, table: ShardedArray, ids: np.ndarray, k: int | None) -> np.ndarray:
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_rows:
            raise IndexError(f"query chunk ids: expected 0 to {self.num_rows - 1}, found {ids.min()} to {ids.max()}")
        k = self.k if k is None else k
        if not 1 <= k <= self.k:
            raise IndexError(f"neighbors: expected 1 to {self.k}, found {k}")
        return table.take(ids, columns=k)


def same_document(
    neighbors: np.ndarray, rows: np.ndarray, keys: np.ndarray, key_rows: np.ndarray, database: ChunkStore
) -> np.ndarray:
    """Which neighbors are of a document of their own sequence: bool, shape of `neighbors`.

    neighbors: int64 [n, k] database chunk ids, -1 = none; rows: int64 [n] sequence of each row; keys, key_rows:
    uint64 [c] and int64 [c], the documents of the sequences as (key, sequence) pairs.
    """
    out = np.zeros(neighbors.shape, dtype=bool)
    present = neighbors >= 0
    found_keys = database.document_keys(neighbors[present])
    found_rows = np.broadcast_to(np.asarray(rows)[:, None], neighbors.shape)[present]
    # Numbers for keys, so that a (sequence, document) pair is one integer.
    known, own = np.unique(keys, return_inverse=True)
    place = np.searchsorted(known, found_keys)
    shared = place < len(known)
    shared[shared] = known[place[shared]] == found_keys[shared]
    pairs = np.asarray(key_rows, dtype=np.int64) * len(known) + own
    hits = np.zeros(len(found_keys), dtype=bool)
    hits[shared] = np.isin(found_rows[shared] * len(known) + place[shared], pairs)
    out[present] = hits
    return out


def open_neighbor_table(folder: str | Path, queries: ChunkStore, database: ChunkStore) -> NeighborTable:
    """The neighbors of a finished artifact, checked to belong to these queries and this database."""
    return NeighborTable(folder, queries, database)
