"""The stage find_neighbors: for each query chunk the nearest database chunks of other documents.

Source: Borgeaud et al. 2022, section 2.3. A row belongs to a chunk and to no sequence: only what is of the chunk's own
document (or group) is excluded here, the other documents of a sequence when the batch is made.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.embed import gpus_of_embedder, range_shards
from data_prep.neighbor_statistics import shard_statistics, table_statistics
from data_prep.query_vectors import QueryEncoder
from data_prep.search_inputs import open_reranker, search_inputs
from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import RetroError
from retro.config.prep_neighbors import NeighborsConfig
from retro.config.sections import result_fields
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.neighbor_table import NEIGHBORS_KIND
from retro.retrieval.chunk_text import CHUNKS_KIND, chunk_token_rows
from retro.retrieval.filters import OwnKeys
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import Searcher, open_searcher

_BLOCK = 1024


class FindNeighborsStage(Stage):
    """Queries, database, searcher -> neighbors: ids-<shard>.npy int64 [n, keep], distances-<shard>.npy float32.

    queries, database: chunks; searcher: an index of the database; reranker: a BM25 index of it, where the config asks
    for reranking. Queries that are chunks of the database are not embedded again (QueryEncoder). device: of the
    embedder and the index (speed only).
    """

    name = "find_neighbors"
    version = 2
    kind = NEIGHBORS_KIND

    def __init__(
        self,
        config: NeighborsConfig,
        queries: Path,
        database: Path,
        searcher: Path,
        reranker: Path | None = None,
        device: str = "auto",
    ) -> None:
        inputs = {"queries": queries, **search_inputs(config.rerank, database, searcher, reranker)}
        super().__init__(result_fields(config), inputs)
        self._neighbors, self._device = config, device

    @property
    def gpus(self) -> int:
        """GPUs that a worker is to be given: an embedder or an index over vectors runs there where there is one."""
        vectors = open_manifest(self.inputs["searcher"]).config.get("kind") == "vectors"
        return gpus_of_embedder("transformer", self._device) if vectors else 0

    @cached_property
    def _queries(self) -> ChunkStore:
        return open_chunk_store(self.inputs["queries"])

    @cached_property
    def _database(self) -> ChunkStore:
        return open_chunk_store(self.inputs["database"])

    @cached_property
    def _searcher(self) -> Searcher:
        return open_searcher(self.inputs["searcher"], self._device)

    @cached_property
    def _encoder(self) -> QueryEncoder:
        return QueryEncoder(self._searcher, self._queries, self._database)

    @cached_property
    def _retriever(self) -> Retriever:
        return Retriever(
            self._searcher,
            self._database,
            candidates=self._neighbors.candidates,
            reranker=open_reranker(self.inputs),
            max_overlap_tokens=self._neighbors.max_overlap_tokens,
            exclusion_keys=self._database.tokens.group_keys() if self._neighbors.exclude == "groups" else None,
        )

    def _own_keys(self, rows: np.ndarray) -> OwnKeys:
        """What these query chunks exclude: their document, or its group."""
        if self._neighbors.exclude == "groups":
            return OwnKeys(np.asarray(self._queries.tokens.group_keys()[self._queries.documents(rows)]))
        return OwnKeys(self._queries.document_keys(rows))

    def plan(self) -> list[Shard]:
        """Contiguous ranges of query chunks."""
        return range_shards(open_manifest(self.inputs["queries"], CHUNKS_KIND).rows, self._neighbors.shard_chunks)

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Search for each row of the shard, by blocks."""
        start, stop = shard.spec["start"], shard.spec["stop"]
        ids = np.full((stop - start, self._neighbors.keep), -1, dtype=np.int64)
        distances = np.full(ids.shape, np.inf, dtype=np.float32)
        same_document = 0
        for first in range(start, stop, _BLOCK):
            rows = np.arange(first, min(first + _BLOCK, stop))
            token_rows = chunk_token_rows(self._queries, rows)
            found, far = self._retriever.retrieve(
                token_rows, self._neighbors.keep, self._own_keys(rows), self._encoder.encode(rows, token_rows)
            )
            same_document += self._count_same_document(found, rows)
            ids[rows - start], distances[rows - start] = found, far
        if same_document:
            raise RetroError(f"{same_document} neighbors are of the query's own document; please report this")
        np.save(out / f"ids-{shard.name}.npy", ids)
        np.save(out / f"distances-{shard.name}.npy", distances)
        return ShardResult(stop - start, shard_statistics(ids, distances) | {"same_document": same_document})

    def _count_same_document(self, ids: np.ndarray, rows: np.ndarray) -> int:
        """Neighbors of the query chunk's own document: counted on the result, independently of the filter."""
        where, column = np.nonzero(ids >= 0)
        own = self._queries.document_keys(rows)[where]
        return int((self._database.document_keys(ids[where, column]) == own).sum())

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Coverage: what is missing, distances, hubs."""
        tables = (
            np.load(folder / f"ids-{record['name']}.npy", mmap_mode="r" if record["rows"] else None, allow_pickle=False)
            for record in records
        )
        rows = sum(int(record["rows"]) for record in records)
        chunks = open_manifest(self.inputs["database"]).rows
        stats = table_statistics([record["stats"] for record in records], rows, tables, chunks)
        return stats | {"same_document": sum(int(record["stats"]["same_document"]) for record in records)}

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{rows:,} rows of {self._neighbors.keep} neighbors, {stats['none_share']:.2%} missing"
