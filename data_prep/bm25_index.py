"""The stage build_index for BM25: from scratch, over a base that is extended, or over one with rows removed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.base_artifact import check_same_rows, link_or_copy, sample_rows
from data_prep.embed import range_shards
from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import Manifest, input_path, open_manifest
from retro.config.errors import ArtifactMismatchError
from retro.config.prep_index import IndexConfig
from retro.config.sections import result_fields
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.tokenizer import Tokenizer
from retro.retrieval.bm25 import (
    DOCUMENT_FREQUENCY,
    VOCABULARY,
    merge_vocabulary,
    query_terms,
    segment_arrays,
    segment_file,
    segment_weights,
    without_chunks,
)
from retro.retrieval.chunk_text import CHUNKS_KIND, chunk_token_rows, open_chunk_tokenizer
from retro.retrieval.searcher import INDEX_KIND
from retro.retrieval.terms import TermCounts

_BLOCK = 8192
_PARTS = ("terms", "offsets", "chunks", "counts", "lengths")


class BM25IndexStage(Stage):
    """Chunks -> index: one segment of postings per shard; the weights when the frequencies of all are known.

    base: a finished index with the same options. Without `remove` it covers the first rows of `chunks`: its segments
    are hard-linked, and only the chunks after them are read. With `remove` it covers the same rows before some
    documents were removed: the postings of removed chunks (span 0) are dropped, and nothing is read again. Either way
    the weights are computed anew, and the files are those of an index made from scratch with the same segments.
    """

    name = "build_index"
    kind = INDEX_KIND

    def __init__(self, config: IndexConfig, chunks: Path, base: Path | None = None, remove: bool = False) -> None:
        inputs = {CHUNKS_KIND: Path(chunks)}
        fields = result_fields(config)
        if base is not None:
            inputs["base"] = Path(base)
            fields["base"] = "remove" if remove else "extend"
        super().__init__(fields, inputs)
        self._bm25, self._remove = config.bm25, remove
        if base is not None:
            self._check_base(Path(base))

    def _check_base(self, base: Path) -> None:
        manifest = open_manifest(base, INDEX_KIND)
        for name in ("kind", "bm25"):
            if manifest.config.get(name) != self.config[name]:
                raise ArtifactMismatchError(
                    f"{base}: expected a base index of {name} {self.config[name]}, found {manifest.config.get(name)}; "
                    "a base must have the same options, else build the index from scratch"
                )
        rows = open_manifest(self.inputs[CHUNKS_KIND], CHUNKS_KIND).rows
        if manifest.rows > rows or (self._remove and manifest.rows != rows):
            raise ArtifactMismatchError(
                f"{base}: expected an index of {'' if self._remove else 'at most '}{rows} chunks, found "
                f"{manifest.rows}; it is not the index of the database that was changed"
            )

    @cached_property
    def _base(self) -> Manifest:
        return open_manifest(self.inputs["base"], INDEX_KIND)

    @cached_property
    def _chunks(self) -> ChunkStore:
        return open_chunk_store(self.inputs[CHUNKS_KIND])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_chunk_tokenizer(self.inputs[CHUNKS_KIND])

    def plan(self) -> list[Shard]:
        """The segments of the base, then contiguous ranges of chunks."""
        rows = open_manifest(self.inputs[CHUNKS_KIND]).rows
        shards, start = [], 0
        if "base" in self.inputs:
            for record in self._base.shards:
                stop = start + int(record["rows"])
                shards.append(Shard(record["name"], {"start": start, "stop": stop, "base": True}))
                start = stop
            if start == rows:
                return shards
        for shard in range_shards(rows - start, self._bm25.shard_chunks):
            spec = {"start": shard.spec["start"] + start, "stop": shard.spec["stop"] + start}
            shards.append(Shard(f"{len(shards):05d}", spec))
        return shards

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Count terms and invert; or take a segment of the base over."""
        start, stop = shard.spec["start"], shard.spec["stop"]
        if shard.spec.get("base"):
            self._take_over(shard, out)
            return ShardResult(stop - start)
        blocks = [
            self.block_terms(first, min(first + _BLOCK, stop)) for first in range(start, max(stop, start + 1), _BLOCK)
        ]
        for part, array in segment_arrays(blocks).items():
            np.save(segment_file(out, part, shard.name), array)
        return ShardResult(stop - start)

    def block_terms(self, first: int, stop: int) -> TermCounts:
        """Terms of chunks first..stop-1."""
        rows = chunk_token_rows(self._chunks, np.arange(first, stop))
        return query_terms(rows, self._tokenizer, self._bm25)

    def _take_over(self, shard: Shard, out: Path) -> None:
        start, stop = shard.spec["start"], shard.spec["stop"]
        base = self.inputs["base"]
        removed = self._chunks.removed(np.arange(start, stop))
        rows = sample_rows(start, stop)
        before = open_chunk_store(input_path(base, self._base, CHUNKS_KIND))
        check_same_rows(
            base,
            self.inputs[CHUNKS_KIND],
            rows[~removed[rows - start] | before.removed(rows)],
            lambda ids: before.gather(ids, pad_id=-1)[0],
            lambda ids: self._chunks.gather(ids, pad_id=-1)[0],
        )
        if not (removed & ~before.removed(np.arange(start, stop))).any():
            for part in _PARTS:
                link_or_copy(segment_file(base, part, shard.name), segment_file(out, part, shard.name))
            return
        if not self._remove:
            raise ArtifactMismatchError(f"{base}: chunks of it were removed since; remove them from the index first")
        for part, array in without_chunks(_load_segment(base, shard.name), removed).items():
            np.save(segment_file(out, part, shard.name), array)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Merge the frequencies and weigh the postings."""
        names = [record["name"] for record in records]
        pairs = []
        total = 0
        for name in names:
            arrays = _load_segment(folder, name)
            pairs.append((arrays["terms"], arrays["offsets"]))
            total += int(arrays["lengths"].sum(dtype=np.int64))
        vocabulary, frequency = merge_vocabulary(pairs)
        chunks = sum(record["rows"] for record in records)
        average = total / max(chunks, 1)
        postings = 0
        for name in names:
            weights = segment_weights(_load_segment(folder, name), vocabulary, frequency, chunks, average, self._bm25)
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


def _load_segment(folder: Path, name: str) -> dict[str, np.ndarray]:
    return {
        part: np.asarray(np.load(segment_file(folder, part, name), mmap_mode="r", allow_pickle=False))
        for part in _PARTS
    }
