"""Neighbors of every query chunk, by memory map: artifact kind "neighbors" (inputs: queries, database, searcher).

Per shard: `ids-00000.npy` int64 [n, k] database chunk ids, nearest first, -1 = none; `distances-00000.npy` float32
[n, k] ascending, inf = none. Rows belong to query chunks, whatever the sequences that they will stand in: none is of
the chunk's own document (or group); retro/data/sequence_neighbors.py excludes the rest of a sequence.
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
_BLOCK = 1 << 16


class NeighborTable:
    """Read-only view of a neighbors artifact; rows are ids of query chunks.

    num_rows; k neighbors per row; exclude: "documents" or "groups", what a chunk has no neighbors from; fingerprint.
    Cheap to pickle.

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
        except (KeyError, TypeError, ValueError):
            raise ArtifactCorruptError(f"{self.folder}: the manifest lacks keep; find the neighbors again") from None
        # Tables from before `exclude` leave it out, and those made for sequences excluded more than is said here.
        self.exclude = str(manifest.config.get("exclude", "documents"))
        if self.exclude not in ("documents", "groups"):
            raise ArtifactMismatchError(
                f"{self.folder}: expected neighbors that exclude 'documents' or 'groups', found {self.exclude!r}; "
                "update this package"
            )
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
        """Check the whole table by blocks: ids in range, -1 only at the end of a row, and no neighbor of the row's own
        document (or group, where the table excludes those). Raises ArtifactCorruptError."""
        grouped = self.exclude == "groups"
        own = self.queries.tokens.group_keys() if grouped else self.queries.tokens.document_keys
        theirs = self.database.tokens.group_keys() if grouped else self.database.tokens.document_keys
        for first in range(0, self.num_rows, _BLOCK):
            ids = np.arange(first, min(first + _BLOCK, self.num_rows))
            found = self.rows(ids)
            if bool(((found[:, :-1] < 0) & (found[:, 1:] >= 0)).any()):
                raise ArtifactCorruptError(f"{self.folder}: a neighbor stands behind a missing one; find them again")
            rows, columns = np.nonzero(found >= 0)
            keys = np.asarray(own[self.queries.documents(ids)])
            same = np.asarray(theirs[self.database.documents(found[rows, columns])]) == keys[rows]
            if same.any():
                raise ArtifactCorruptError(
                    f"{self.folder}: row {int(ids[rows[np.flatnonzero(same)[0]]])} has a neighbor of its own "
                    f"{self.exclude.removesuffix('s')}; find them again"
                )

    def _take(self, table: ShardedArray, ids: np.ndarray, k: int | None) -> np.ndarray:
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_rows:
            raise IndexError(f"query chunk ids: expected 0 to {self.num_rows - 1}, found {ids.min()} to {ids.max()}")
        k = self.k if k is None else k
        if not 1 <= k <= self.k:
            raise IndexError(f"neighbors: expected 1 to {self.k}, found {k}")
        return table.take(ids, columns=k)


def open_neighbor_table(folder: str | Path, queries: ChunkStore, database: ChunkStore) -> NeighborTable:
    """The neighbors of a finished artifact, checked to belong to these queries and this database."""
    return NeighborTable(folder, queries, database)
