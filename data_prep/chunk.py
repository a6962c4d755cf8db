"""Stage chunk: cuts every document into chunks of M tokens, in the order in which documents are used."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.chunk_lookup import write_lookup
from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import read_manifest
from retro.config.errors import ArtifactCorruptError
from retro.config.loader import to_dict
from retro.config.prep_tokens import ChunkConfig
from retro.data.chunk_store import CHUNKS_KIND
from retro.data.npy_file import NpyWriter
from retro.data.sharded_array import open_sharded
from retro.data.token_store import TOKENS_KIND, TokenStore, open_token_store

# Shards of a corpus of which the configuration does not say how many documents make one.
_SHARDS, _FEWEST, _MOST = 64, 1 << 12, 1 << 20
_BLOCK = 1 << 14


class ChunkStage(Stage):
    """Tokens -> chunks (files: retro/data/chunk_store.py): positions only, no token is copied."""

    name = "chunk"
    version = 2
    kind = CHUNKS_KIND

    def __init__(self, config: ChunkConfig, tokens: Path) -> None:
        self.chunk = config
        super().__init__(to_dict(config), {"tokens": tokens})

    @cached_property
    def _store(self) -> TokenStore:
        return open_token_store(self.inputs["tokens"])

    def plan(self) -> list[Shard]:
        """Ranges of documents, in the order of use."""
        documents = read_manifest(self.inputs["tokens"], TOKENS_KIND).rows
        size = self.chunk.shard_documents or min(max(-(-documents // _SHARDS), _FEWEST), _MOST)
        starts = range(0, max(documents, 1), size)
        return [Shard(f"{i:05d}", {"start": s, "stop": min(s + size, documents)}) for i, s in enumerate(starts)]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Cut the shard's documents, block by block: memory is that of a block's chunks."""
        short = 0
        with ExitStack() as stack:
            starts, owners, spans = (
                stack.enter_context(NpyWriter(out / f"{part}-{shard.name}.npy", np.int64))
                for part in ("starts", "documents", "spans")
            )
            for begin in range(shard.spec["start"], shard.spec["stop"], _BLOCK):
                documents = self._store.read_order(begin, min(begin + _BLOCK, shard.spec["stop"]))
                first, last = self._store.document_offsets[documents], self._store.document_offsets[documents + 1]
                if (last <= first).any():
                    raise ArtifactCorruptError(f"{self.inputs['tokens']}: offsets that do not rise; make it again")
                cut = cut_documents(documents, first, last, self.chunk.chunk_length)
                for writer, array in zip((starts, owners, spans), cut, strict=True):
                    writer.append(array)
                short += int((cut[2] < self.chunk.chunk_length).sum())
            rows = starts.rows
        return ShardResult(rows, {"short": short})

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The documents by key (sorted on disk), and figures."""
        write_lookup(open_sharded(folder, "documents", records, np.int64), self._store, out)
        return {
            "chunks": sum(record["rows"] for record in records),
            "short": sum(record["stats"]["short"] for record in records),
            "documents": self._store.num_documents,
            "tokens": self._store.num_tokens,
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        filled = stats["tokens"] / max(rows * self.chunk.chunk_length, 1)
        return f"{rows:,} chunks of {self.chunk.chunk_length} tokens, {filled:.0%} filled"


def cut_documents(
    documents: np.ndarray, first: np.ndarray, last: np.ndarray, chunk_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks of the given documents, one after the other.

    documents: int64 [d] numbers; first, last: int64 [d] position of each one's first token, and the end of its last.
    Returns per chunk: start int64 (token position), document int64, span int64 (tokens from the start to the end of
    the document).
    """
    counts = -((first - last) // chunk_length)
    row = np.repeat(np.arange(len(documents)), counts)
    number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = first[row] + number * chunk_length
    return starts, documents[row].astype(np.int64), last[row] - starts
