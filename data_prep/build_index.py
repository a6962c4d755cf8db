"""The stage build_index: BM25 over chunks, or an index over embeddings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.embed import range_shards
from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ConfigError
from retro.config.prep_index import IndexConfig
from retro.config.sections import result_fields
from retro.data.chunk_store import open_chunk_store
from retro.retrieval.bm25 import (
    DOCUMENT_FREQUENCY,
    VOCABULARY,
    merge_vocabulary,
    query_terms,
    segment_arrays,
    segment_file,
    segment_weights,
)
from retro.retrieval.chunk_text import CHUNKS_KIND, chunk_token_rows, open_chunk_tokenizer
from retro.retrieval.exact import ExactIndex
from retro.retrieval.recall import drop_self, recall_at_k
from retro.retrieval.searcher import INDEX_KIND
from retro.retrieval.vector_searcher import FAISS_FILE, ROWS_FILE, open_vector_index
from retro.retrieval.vectors import EMBEDDINGS_KIND, open_vectors

_BLOCK = 8192


def build_index_stage(config: IndexConfig, chunks: Path | None = None, embeddings: Path | None = None) -> Stage:
    """The stage for a configuration: BM25 reads chunks, a vector index reads embeddings."""
    if config.kind == "bm25":
        if chunks is None:
            raise ConfigError("an index of kind bm25 needs chunks")
        return BM25IndexStage(config, chunks)
    if embeddings is None:
        raise ConfigError("an index of kind vectors needs embeddings; add an embed section")
    return VectorIndexStage(config, embeddings)


class BM25IndexStage(Stage):
    """Chunks -> index: one segment of postings per shard; the weights when the frequencies of all are known."""

    name = "build_index"
    kind = INDEX_KIND

    def __init__(self, config: IndexConfig, chunks: Path) -> None:
        super().__init__(result_fields(config), {CHUNKS_KIND: chunks})
        self._bm25 = config.bm25

    def plan(self) -> list[Shard]:
        """Contiguous ranges of chunks."""
        return range_shards(open_manifest(self.inputs[CHUNKS_KIND]).rows, self._bm25.shard_chunks)

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Count terms and invert."""
        start, stop = shard.spec["start"], shard.spec["stop"]
        store = open_chunk_store(self.inputs[CHUNKS_KIND])
        tokenizer = open_chunk_tokenizer(self.inputs[CHUNKS_KIND])
        blocks = []
        for first in range(start, max(stop, start + 1), _BLOCK):
            rows = chunk_token_rows(store, np.arange(first, min(first + _BLOCK, stop)))
            blocks.append(query_terms(rows, tokenizer, self._bm25))
        for part, array in segment_arrays(blocks).items():
            np.save(segment_file(out, part, shard.name), array)
        return ShardResult(stop - start)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Merge the frequencies and weigh the postings."""
        names = [record["name"] for record in records]
        parts = ("terms", "offsets", "chunks", "counts", "lengths")

        def load(part: str, name: str) -> np.ndarray:
            return np.asarray(np.load(segment_file(folder, part, name), mmap_mode="r", allow_pickle=False))

        vocabulary, frequency = merge_vocabulary([(load("terms", n), load("offsets", n)) for n in names])
        chunks = sum(record["rows"] for record in records)
        total = sum(int(load("lengths", name).sum(dtype=np.int64)) for name in names)
        average = total / max(chunks, 1)
        postings = 0
        for name in names:
            arrays = {part: load(part, name) for part in parts}
            weights = segment_weights(arrays, vocabulary, frequency, chunks, average, self._bm25)
            np.save(segment_file(out, "weights", name), weights)
            postings += len(weights)
        np.save(out / VOCABULARY, vocabulary)
        np.save(out / DOCUMENT_FREQUENCY, frequency)
        frequent = int((frequency > self._bm25.max_document_frequency * chunks).sum())
        return {
            "terms": len(vocabulary),
            "terms_too_frequent": frequent,
            "postings": postings,
            "average_length": average,
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"BM25 over {rows:,} chunks, {stats['terms']:,} terms, {stats['postings']:,} postings"


class VectorIndexStage(Stage):
    """Embeddings -> index: exact (no file), or faiss; recall@k against exact search in the manifest."""

    name = "build_index"
    kind = INDEX_KIND

    def __init__(self, config: IndexConfig, embeddings: Path) -> None:
        super().__init__(result_fields(config), {EMBEDDINGS_KIND: embeddings})
        self._vectors = config.vectors

    def plan(self) -> list[Shard]:
        """One shard: training and filling are one piece of work, which faiss spreads over threads."""
        return [Shard("00000", {"rows": open_manifest(self.inputs[EMBEDDINGS_KIND]).rows})]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Train, fill and write the index."""
        stats: dict[str, Any] = {}
        if self._vectors.factory != "exact":
            from retro.retrieval.faiss_index import build_faiss, write_faiss

            store = open_vectors(self.inputs[EMBEDDINGS_KIND])
            index, rows, stats = build_faiss(store, self._metric(), self._vectors)
            write_faiss(index, out / FAISS_FILE.format(shard.name))
            np.save(out / ROWS_FILE.format(shard.name), rows)
        return ShardResult(shard.spec["rows"], stats)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Measure recall@k of the written file on a seeded sample of the vectors, each without itself."""
        stats = dict(records[0]["stats"])
        if self._vectors.factory == "exact":
            return {**stats, "recall": 1.0}
        store = open_vectors(self.inputs[EMBEDDINGS_KIND])
        index = open_vector_index(folder, store, self._metric(), self._vectors, records[0]["name"])
        generator = np.random.Generator(np.random.Philox(self._vectors.seed))
        size = min(self._vectors.recall_queries, len(store))
        own = np.sort(generator.choice(len(store), size=size, replace=False))
        queries, k = store.gather(own), self._vectors.recall_at
        _, found = index.search(queries, k + 1)
        _, exact = ExactIndex(store, self._metric()).search(queries, k + 1)
        recall = recall_at_k(drop_self(found, own, k), drop_self(exact, own, k))
        return {**stats, "recall": None if math.isnan(recall) else recall, "recall_at": k, "recall_queries": size}

    def _metric(self) -> Any:
        embeddings = self.inputs[EMBEDDINGS_KIND]
        recipe = open_manifest(embeddings).config["recipe"]
        return recipe.get("metric", "l2")

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        recall = "not measurable" if stats["recall"] is None else f"{stats['recall']:.3f}"
        at = f"@{stats['recall_at']}" if "recall_at" in stats else ""
        return f"{self._vectors.factory} over {rows:,} vectors, recall{at} {recall}"
