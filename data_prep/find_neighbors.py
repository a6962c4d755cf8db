"""The stage find_neighbors: for each query chunk the nearest database chunks of other documents.

Source: Borgeaud et al. 2022, section 2.3.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactMismatchError, ConfigError, RetroError
from retro.config.prep_neighbors import NeighborsConfig
from retro.config.sections import result_fields
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.retrieval.chunk_text import CHUNKS_KIND, chunk_token_rows
from retro.retrieval.embedder import check_recipe
from retro.retrieval.filters import Exclusions
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import INDEX_KIND, open_searcher, searched_chunks
from retro.retrieval.vectors import VectorStore, open_vectors

if TYPE_CHECKING:
    from retro.retrieval.bm25 import BM25Searcher

NEIGHBORS_KIND = "neighbors"
_BLOCK = 1024
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_HUBS = 20


class FindNeighborsStage(Stage):
    """Queries, database, searcher -> neighbors: ids-<shard>.npy int64 [n, keep], distances-<shard>.npy float32.

    queries, database: chunks; searcher: an index of the database; reranker: a BM25 index of it, where the config asks
    for reranking; query_embeddings: vectors of the queries where they exist already, made by the searcher's embedder.
    device: of a transformer embedder (speed only).
    """

    name = "find_neighbors"
    kind = NEIGHBORS_KIND

    def __init__(
        self,
        config: NeighborsConfig,
        queries: Path,
        database: Path,
        searcher: Path,
        reranker: Path | None = None,
        query_embeddings: Path | None = None,
        device: str = "auto",
    ) -> None:
        inputs = {"queries": queries, "database": database, "searcher": searcher}
        if (config.rerank == "bm25") != (reranker is not None):
            raise ConfigError(
                "rerank: bm25 needs a BM25 index of the database, and rerank: none takes none; "
                f"found rerank: {config.rerank} and reranker {reranker}"
            )
        if reranker is not None:
            inputs["reranker"] = reranker
        if query_embeddings is not None:
            inputs["query_embeddings"] = query_embeddings
        super().__init__(result_fields(config), inputs)
        self._neighbors, self._device = config, device
        self._check_inputs()

    def _check_inputs(self) -> None:
        database = open_manifest(self.inputs["database"], CHUNKS_KIND)
        for name in ("searcher", "reranker"):
            if name not in self.inputs:
                continue
            index = self.inputs[name]
            found = open_manifest(searched_chunks(index)).fingerprint
            if found != database.fingerprint:
                raise ArtifactMismatchError(
                    f"{index}: expected an index of the database {database.fingerprint}, found one of {found}; "
                    "build the index of this database"
                )
        kinds = {n: open_manifest(self.inputs[n], INDEX_KIND).config["kind"] for n in self.inputs if n.endswith("er")}
        if kinds.get("reranker", "bm25") != "bm25":
            raise ArtifactMismatchError(f"{self.inputs['reranker']}: expected a BM25 index to rerank with")
        if "query_embeddings" in self.inputs:
            self._check_query_embeddings(kinds["searcher"])

    def _check_query_embeddings(self, searcher_kind: str) -> None:
        folder, searcher = self.inputs["query_embeddings"], self.inputs["searcher"]
        if searcher_kind != "vectors":
            raise ConfigError("query_embeddings: a BM25 index reads no vectors; leave them out")
        embedded = input_path(searcher, open_manifest(searcher), "embeddings")
        check_recipe(open_manifest(embedded).config["recipe"], open_manifest(folder).config["recipe"], str(folder))
        found = open_manifest(input_path(folder, open_manifest(folder), CHUNKS_KIND)).fingerprint
        queries = open_manifest(self.inputs["queries"]).fingerprint
        if found != queries:
            raise ArtifactMismatchError(f"{folder}: expected vectors of the queries {queries}, found those of {found}")

    @cached_property
    def _queries(self) -> ChunkStore:
        return open_chunk_store(self.inputs["queries"])

    @cached_property
    def _retriever(self) -> Retriever:
        reranker: BM25Searcher | None = None
        if "reranker" in self.inputs:
            from retro.retrieval.bm25 import BM25Searcher

            reranker = BM25Searcher(self.inputs["reranker"])
        return Retriever(
            open_searcher(self.inputs["searcher"], self._device),
            open_chunk_store(self.inputs["database"]),
            candidates=self._neighbors.candidates,
            reranker=reranker,
            max_overlap_tokens=self._neighbors.max_overlap_tokens,
            exclusion_keys=self._database_groups,
        )

    @cached_property
    def _database_groups(self) -> np.ndarray | None:
        """Group key of every database document, where groups are excluded."""
        if self._neighbors.exclude != "groups":
            return None
        return open_chunk_store(self.inputs["database"]).tokens.group_keys()

    @cached_property
    def _query_groups(self) -> np.ndarray:
        return self._queries.tokens.group_keys()

    def _exclusion_keys(self, rows: np.ndarray) -> np.ndarray:
        """What the sequences of these rows exclude, one key per row: its document, or its document's group."""
        if self._neighbors.exclude == "groups":
            return self._query_groups[self._queries.documents(rows)]
        return self._queries.document_keys(rows)

    @cached_property
    def _query_vectors(self) -> VectorStore | None:
        return open_vectors(self.inputs["query_embeddings"]) if "query_embeddings" in self.inputs else None

    def plan(self) -> list[Shard]:
        """Contiguous ranges of query rows of whole sequences."""
        rows = open_manifest(self.inputs["queries"], CHUNKS_KIND).rows
        size = self._neighbors.shard_sequences * self._neighbors.sequence_chunks
        starts = range(0, max(rows, 1), size)
        return [Shard(f"{i:05d}", {"start": s, "stop": min(s + size, rows)}) for i, s in enumerate(starts)]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Search for each row of the shard, by blocks of whole sequences."""
        start, stop = shard.spec["start"], shard.spec["stop"]
        length = self._neighbors.sequence_chunks
        ids = np.full((stop - start, self._neighbors.keep), -1, dtype=np.int64)
        distances = np.full(ids.shape, np.inf, dtype=np.float32)
        block = max(1, _BLOCK // length) * length
        same_document = 0
        for first in range(start, stop, block):
            rows = np.arange(first, min(first + block, stop))
            keys = self._queries.document_keys(rows)
            exclusions = Exclusions(rows // length, rows // length, self._exclusion_keys(rows))
            vectors = None if self._query_vectors is None else self._query_vectors.gather(rows)
            token_rows = chunk_token_rows(self._queries, rows)
            found, far = self._retriever.retrieve(token_rows, self._neighbors.keep, exclusions, vectors)
            same_document += self._count_same_document(found, keys)
            ids[rows - start], distances[rows - start] = found, far
        if same_document:
            raise RetroError(f"{same_document} neighbors are of the query's own document; please report this")
        np.save(out / f"ids-{shard.name}.npy", ids)
        np.save(out / f"distances-{shard.name}.npy", distances)
        return ShardResult(stop - start, {"none": int((ids < 0).sum()), "same_document": same_document})

    def _count_same_document(self, ids: np.ndarray, keys: np.ndarray) -> int:
        """Neighbors of the query chunk's own document: counted on the result, independently of the filter."""
        present = ids >= 0
        own = np.broadcast_to(keys[:, None], ids.shape)[present]
        return int((self._retriever.database.document_keys(ids[present]) == own).sum())

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Share of missing neighbors, quantiles of the distances of the nearest and of the last, hubs."""
        uses = np.zeros(open_manifest(self.inputs["database"]).rows, dtype=np.int64)
        ids, distances = [], []
        for record in records:
            ids.append(np.load(folder / f"ids-{record['name']}.npy", mmap_mode="r", allow_pickle=False))
            distances.append(np.load(folder / f"distances-{record['name']}.npy", mmap_mode="r", allow_pickle=False))
            present = ids[-1][ids[-1] >= 0]
            uses += np.bincount(present, minlength=len(uses))
        rows = sum(len(part) for part in ids)
        order = np.argsort(-uses, kind="stable")[:_HUBS]
        nearest = np.concatenate([part[:, 0] for part in distances])
        last = np.concatenate([part[:, -1] for part in distances])
        return {
            "none_share": float(sum(r["stats"]["none"] for r in records) / max(rows * self._neighbors.keep, 1)),
            "rows_without_neighbors": int(np.isinf(nearest).sum()),
            "same_document": sum(r["stats"]["same_document"] for r in records),
            "nearest_distance_quantiles": _quantiles(nearest),
            "last_distance_quantiles": _quantiles(last),
            "retrieved_chunks": int((uses > 0).sum()),
            "hubs": [{"chunk": int(i), "rows": int(uses[i])} for i in order if uses[i] > 0],
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{rows:,} rows of {self._neighbors.keep} neighbors, {stats['none_share']:.2%} missing"


def _quantiles(distances: np.ndarray) -> dict[str, float]:
    """Quantiles of the finite distances, by share; empty where there are none."""
    finite = distances[np.isfinite(distances)]
    if len(finite) == 0:
        return {}
    return {f"{q:g}": float(v) for q, v in zip(_QUANTILES, np.quantile(finite, _QUANTILES), strict=True)}
