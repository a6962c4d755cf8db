"""Stages that take removed documents out of chunks, vectors, neighbors and questions."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.base_artifact import link_or_copy
from data_prep.chunk_lookup import write_lookup
from data_prep.neighbor_statistics import shard_statistics, table_statistics
from data_prep.stage import Shard, ShardResult
from data_prep.update.redact_text import RedactStage
from data_prep.update.taken_over import find_shard, take_over
from retro.artifacts.manifest import input_path, open_manifest
from retro.data.chunk_store import CHUNKS_KIND, ChunkStore, open_chunk_store
from retro.data.neighbor_table import NEIGHBORS_KIND
from retro.data.question_dataset import QUESTION_SEQUENCES_KIND
from retro.data.questions import QUESTION_SPLITS, QUESTIONS_KIND, Question, read_questions, write_questions
from retro.data.sharded_array import load_array, open_sharded
from retro.data.token_store import open_token_store
from retro.retrieval.filters import compact
from retro.retrieval.vectors import EMBEDDINGS_KIND

_ROWS = 1 << 16


class RedactChunksStage(RedactStage):
    """Chunks of which those of removed documents have span 0; `tokens`: the redacted ones. Numbers stay."""

    name = "redact_chunks"
    kind = CHUNKS_KIND

    def __init__(self, folder: Path, tokens: Path, numbers: np.ndarray) -> None:
        """numbers: int64, of the removed documents in the token store."""
        self._numbers = numbers
        super().__init__(folder, {"tokens": tokens}, [numbers])

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Link all but the spans that change."""
        record = find_shard(self._folder, shard.name)
        rows = (int(record["rows"]),)
        documents = load_array(self._folder / f"documents-{shard.name}.npy", np.int64, rows, map_file=True)
        gone = np.isin(documents, self._numbers)
        if not gone.any():
            return take_over(self._folder, shard, out)
        for part in ("starts", "documents"):
            link_or_copy(self._folder / f"{part}-{shard.name}.npy", out / f"{part}-{shard.name}.npy")
        spans = load_array(self._folder / f"spans-{shard.name}.npy", np.int64, rows).copy()
        spans[gone] = 0
        np.save(out / f"spans-{shard.name}.npy", spans, allow_pickle=False)
        short = int(((spans > 0) & (spans < int(self.config["chunk_length"]))).sum())
        return ShardResult(len(spans), {**record["stats"], "short": short, "removed": int((spans == 0).sum())})

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The documents by their new keys, and figures."""
        write_lookup(open_sharded(folder, "documents", records, np.int64), open_token_store(self.inputs["tokens"]), out)
        stats = [record["stats"] for record in records]
        return {
            **self._manifest.stats,
            "short": sum(int(entry.get("short", 0)) for entry in stats),
            "removed": sum(int(entry.get("removed", 0)) for entry in stats),
        }


class RedactEmbeddingsStage(RedactStage):
    """Vectors of which those of removed chunks are zero, and so never retrieved; `chunks`: the redacted ones."""

    name = "redact_embeddings"
    kind = EMBEDDINGS_KIND

    def __init__(self, folder: Path, chunks: Path) -> None:
        embedder = input_path(folder, open_manifest(folder, EMBEDDINGS_KIND), "embedder")
        super().__init__(folder, {CHUNKS_KIND: chunks, "embedder": embedder}, [])

    @cached_property
    def _chunks(self) -> ChunkStore:
        return open_chunk_store(self.inputs[CHUNKS_KIND])

    @cached_property
    def _first(self) -> dict[str, int]:
        starts = np.cumsum([0] + [int(record["rows"]) for record in self._manifest.shards])
        return {record["name"]: int(start) for record, start in zip(self._manifest.shards, starts, strict=False)}

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Link the vectors, or write them with some erased."""
        record = find_shard(self._folder, shard.name)
        name, rows = f"vectors-{shard.name}.npy", int(record["rows"])
        first = self._first[shard.name]
        removed = self._chunks.removed(np.arange(first, first + rows))
        vectors = np.load(self._folder / name, mmap_mode="r" if rows else None, allow_pickle=False)
        if not any(bool(vectors[part][removed[part]].any()) for part in _parts(rows)):
            return take_over(self._folder, shard, out)
        changed = np.array(vectors)
        changed[removed] = 0
        np.save(out / name, changed, allow_pickle=False)
        return ShardResult(rows, {**record["stats"], "zero_vectors": int((~changed.any(axis=1)).sum())})

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures only."""
        zero = sum(int(record["stats"]["zero_vectors"]) for record in records)
        return {**self._manifest.stats, "zero_vectors": zero}


class RedactNeighborsStage(RedactStage):
    """Neighbors without removed chunks: those behind move up, and a row of a removed query chunk has none.

    queries, database: redacted chunks (or the ones that the table was made for); searcher, reranker: their indexes.
    """

    name = "redact_neighbors"
    kind = NEIGHBORS_KIND

    def __init__(self, folder: Path, queries: Path, database: Path, searcher: Path, reranker: Path | None) -> None:
        inputs = {"queries": queries, "database": database, "searcher": searcher}
        super().__init__(folder, inputs | ({} if reranker is None else {"reranker": reranker}), [])

    @cached_property
    def _stores(self) -> tuple[ChunkStore, ChunkStore]:
        return open_chunk_store(self.inputs["queries"]), open_chunk_store(self.inputs["database"])

    @cached_property
    def _first(self) -> dict[str, int]:
        starts = np.cumsum([0] + [int(record["rows"]) for record in self._manifest.shards])
        return {record["name"]: int(start) for record, start in zip(self._manifest.shards, starts, strict=False)}

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Link the shard, or write it with some neighbors dropped."""
        queries, database = self._stores
        ids, distances = load_neighbors(self._folder, shard.name)
        first = self._first[shard.name]
        dropped = removed_neighbors(database, ids)
        dropped[queries.removed(np.arange(first, first + len(ids)))] = True
        dropped &= ids >= 0
        same_document = find_shard(self._folder, shard.name)["stats"].get("same_document", 0)
        figures = {"same_document": same_document, "removed": int(dropped.sum())}
        if not dropped.any():
            taken = take_over(self._folder, shard, out)
            return ShardResult(taken.rows, shard_statistics(ids, distances) | figures)
        kept, far = compact(ids, distances, (ids >= 0) & ~dropped)
        np.save(out / f"ids-{shard.name}.npy", kept, allow_pickle=False)
        np.save(out / f"distances-{shard.name}.npy", far, allow_pickle=False)
        return ShardResult(len(ids), shard_statistics(kept, far) | figures)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Coverage, as of a table that was searched for."""
        tables = (load_neighbors(folder, record["name"])[0] for record in records)
        rows, chunks = sum(int(record["rows"]) for record in records), self._stores[1].num_chunks
        stats = [record["stats"] for record in records]
        figures = {name: sum(int(entry[name]) for entry in stats) for name in ("same_document", "removed")}
        return table_statistics(stats, rows, tables, chunks) | figures

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{rows:,} rows, {stats['removed']:,} neighbors dropped, {stats['none_share']:.2%} missing"


class RedactQuestionsStage(RedactStage):
    """Questions without those about removed documents: their answers and evidence are text of these."""

    name = "redact_questions"
    kind = QUESTIONS_KIND

    def __init__(self, folder: Path, ids: frozenset[str]) -> None:
        self._ids = ids
        names = [f"candidates-{record['name']}" for record in open_manifest(folder, QUESTIONS_KIND).shards]
        places = question_places(folder, [f"{QUESTIONS_KIND}-{split}" for split in QUESTION_SPLITS] + names, ids)
        #: Whether there is any question about the documents.
        self.changes = any(len(part) for part in places)
        super().__init__(folder, {}, places)

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """The candidates of one shard."""
        name = f"candidates-{shard.name}.jsonl"
        kept = [q for q in read_questions(self._folder / name) if q.document not in self._ids]
        write_questions(out / name, kept)
        return ShardResult(len(kept))

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The questions of both splits."""
        stats: dict[str, Any] = {"candidates": sum(int(record["rows"]) for record in records)}
        for split in QUESTION_SPLITS:
            before = read_questions(self._folder / f"{QUESTIONS_KIND}-{split}.jsonl")
            kept = [question for question in before if question.document not in self._ids]
            write_questions(out / f"{QUESTIONS_KIND}-{split}.jsonl", kept)
            documents = len({question.document for question in kept})
            stats[split] = {"questions": len(kept), "documents": documents, "removed": len(before) - len(kept)}
        stats["removed"] = sum(stats[split]["removed"] for split in QUESTION_SPLITS)
        return stats


class RedactQuestionSequencesStage(RedactStage):
    """Sequences without questions about removed documents, and without neighbors out of them."""

    name = "redact_question_sequences"
    kind = QUESTION_SEQUENCES_KIND

    def __init__(
        self,
        folder: Path,
        ids: frozenset[str],
        *,
        questions: Path,
        database: Path,
        searcher: Path,
        reranker: Path | None,
        tokenizer: Path | None,
    ) -> None:
        """tokenizer: where the sequences name another artifact than the database's."""
        self._ids = ids
        inputs = {"questions": questions, "database": database, "searcher": searcher}
        inputs |= {name: path for name, path in (("reranker", reranker), ("tokenizer", tokenizer)) if path is not None}
        shards = [record["name"] for record in open_manifest(folder, self.kind).shards]
        super().__init__(folder, inputs, question_places(folder, [f"questions-{name}" for name in shards], ids))

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Drop rows, then neighbors."""
        questions = read_questions(self._folder / f"questions-{shard.name}.jsonl")
        keep = np.array([question.document not in self._ids for question in questions], dtype=bool)
        for part in ("tokens", "answer_lengths"):
            array = np.load(self._folder / f"{part}-{shard.name}.npy", allow_pickle=False)
            np.save(out / f"{part}-{shard.name}.npy", array[keep], allow_pickle=False)
        ids, distances = (array[keep] for array in load_neighbors(self._folder, shard.name))
        dropped = removed_neighbors(open_chunk_store(self.inputs["database"]), ids)
        ids, distances = compact(ids, distances, (ids >= 0) & ~dropped)
        np.save(out / f"ids-{shard.name}.npy", ids, allow_pickle=False)
        np.save(out / f"distances-{shard.name}.npy", distances, allow_pickle=False)
        write_questions(out / f"questions-{shard.name}.jsonl", [q for q, k in zip(questions, keep, strict=True) if k])
        stats = find_shard(self._folder, shard.name)["stats"]
        return ShardResult(int(keep.sum()), {**stats, "removed": int((~keep).sum())})

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The layout stays."""
        return {
            **self._manifest.stats,
            "questions": {
                split: sum(int(r["rows"]) for r in records if str(r["name"]).startswith(f"{split}-"))
                for split in QUESTION_SPLITS
            },
            "removed": sum(int(record["stats"]["removed"]) for record in records),
        }


def removed_neighbors(database: ChunkStore, ids: np.ndarray) -> np.ndarray:
    """bool, shape of ids (int64, -1 = none): which of them are removed chunks of the database."""
    out = np.zeros(ids.shape, dtype=bool)
    present = ids >= 0
    out[present] = database.removed(ids[present])
    return out


def load_neighbors(folder: Path, shard: str) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64 [n, k], distances float32 [n, k]) of one shard."""
    ids = np.load(folder / f"ids-{shard}.npy", allow_pickle=False)
    return ids, np.load(folder / f"distances-{shard}.npy", allow_pickle=False)


def question_places(folder: Path, names: list[str], ids: frozenset[str]) -> list[np.ndarray]:
    """Lines of the files `<name>.jsonl` that are about the documents `ids`: int64 per file."""
    places = []
    for name in names:
        questions: list[Question] = read_questions(folder / f"{name}.jsonl")
        places.append(np.array([i for i, q in enumerate(questions) if q.document in ids], dtype=np.int64))
    return places


def _parts(rows: int) -> list[slice]:
    return [slice(first, min(first + _ROWS, rows)) for first in range(0, rows, _ROWS)]
