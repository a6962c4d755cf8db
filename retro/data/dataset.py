"""Sequences of whole chunks with their neighbors: targets, masks and padding of the chunk layout."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from retro.config.errors import ConfigError
from retro.data.batch import RetroBatch
from retro.data.chunk_store import ChunkStore
from retro.data.neighbor_table import NeighborTable
from retro.data.text_dataset import Options, TextDataset


class RetroDataset(TextDataset):
    """Sequence i = the query chunks [i L, (i + 1) L), each padded on the right to M tokens; L = N / M.

    The last sequence is filled up with padding. B N L M K R as in RetroBatch; options and errors as in TextDataset.

    Targets: the token at p + 1 of the same document, also across the end of the sequence. Scored (loss_mask_BN): every
    token of every document but its first, once; with score_last_position=False not the one that the last position of a
    full sequence predicts, so that the neighbors of the last chunk serve nothing and cost nothing.

    Neighbors of chunk u serve the positions (u + 1) M - 1 .. (u + 2) M - 2, which predict chunk u + 1. They are masked
    where chunk u + 1 is not of the same document (they would tell one document about another) and where no position
    that they serve is scored.

    isolate_documents: the batch tells where documents begin (document_starts_BN), so that attention stays within them.
    """

    def __init__(
        self,
        queries: ChunkStore,
        database: ChunkStore | None,
        neighbors: NeighborTable | None,
        *,
        isolate_documents: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """options: those of TextDataset."""
        super().__init__(queries, database, neighbors, **options)
        self.isolate_documents = isolate_documents
        self.sequence_chunks = self.sequence_length // self.chunk_length

    def _check_sequence_length(self) -> None:
        length, chunk = self.sequence_length, self.chunk_length
        if length < 1 or length % chunk:
            raise ConfigError(
                f"sequence_length: expected a multiple of the chunk length {chunk}, found {length}; use for instance "
                f"{max(1, length // chunk) * chunk}"
            )

    def __len__(self) -> int:
        """Number of sequences."""
        return (self.queries.num_chunks + self.sequence_chunks - 1) // self.sequence_chunks

    def _batch(self, sample_ids: np.ndarray) -> RetroBatch:
        length = self.chunk_length
        chunks = self._chunks(sample_ids)
        tokens, targets, scored = self._read_sequences(chunks)
        if not self.score_last_position:
            scored[:, -1] = False
        neighbors, mask = None, None
        if self.retrieval != "off":
            # The first position that a chunk's neighbors serve is the chunk's own last one, and its target is the next
            # chunk's first token. It is scored exactly where the next chunk is of the same document and is served.
            useful = scored[:, length - 1 :: length]
            neighbors, mask = self._read_neighbors(chunks, useful)
        starts = self._document_starts(chunks) if self.isolate_documents else None
        return RetroBatch(tokens, targets, scored, neighbors, mask, chunks, sample_ids, document_starts_BN=starts)

    def _chunks(self, sample_ids: np.ndarray) -> np.ndarray:
        """Query chunks int64 [B, L] of the sequences int64 [B], -1 = padding."""
        chunks = sample_ids[:, None] * self.sequence_chunks + np.arange(self.sequence_chunks)
        chunks[chunks >= self.queries.num_chunks] = -1
        return chunks

    def _read_sequences(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """chunks int64 [B, L], -1 = padding -> tokens, targets int32 [B, N], bool [B, N]: where targets are real."""
        # One token more than the chunk: the target of its last position lies right behind it in the token store.
        tokens, real = self.queries.gather_neighbors(chunks.reshape(-1), self.pad_id, self.chunk_length + 1)
        shape = (len(chunks), chunks.shape[1] * self.chunk_length)
        return tokens[:, :-1].reshape(shape), tokens[:, 1:].reshape(shape), real[:, 1:].reshape(shape)

    def _document_starts(self, chunks: np.ndarray) -> np.ndarray:
        """int32 [B, N]: position of the first token of each position's document; padding chunks are one by
        themselves."""
        documents = np.full(chunks.shape, -1, dtype=np.int64)
        real = chunks >= 0
        documents[real] = self.queries.documents(chunks[real])
        begins = np.zeros(chunks.shape, dtype=np.int32)
        begins[:, 1:] = np.where(documents[:, 1:] != documents[:, :-1], np.arange(1, chunks.shape[1]), 0)
        begins = np.maximum.accumulate(begins, axis=1) * np.int32(self.chunk_length)
        return np.repeat(begins, self.chunk_length, axis=1)

    def _read_neighbors(self, chunks: np.ndarray, useful: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Neighbor tokens int32 [B, L, K, R] and mask, without the last row where it serves nothing by construction;
        nothing is read for chunks that are not useful [B, L]."""
        assert self.database is not None
        ids = self.neighbor_ids(chunks, self.num_neighbors, useful)
        if not self.score_last_position:
            # Never useful: left out, for whoever computes all rows that there are (compiled models).
            ids = ids[:, : max(1, self.sequence_chunks - 1)]
        return self.database.gather_neighbors(ids, self.pad_id, self.retrieved_length)

    def neighbor_ids(self, chunks: np.ndarray, k: int, useful: np.ndarray | None = None) -> np.ndarray:
        """Database chunks that each chunk of these sequences retrieves: int64 [B, L, k], nearest first, -1 = none.

        chunks: int64 [B, L], -1 = padding; useful: bool [B, L], the chunks that are looked up (default: all real ones).
        No neighbor is of a document of the sequence (or of a group, where the table excludes those).
        """
        useful = chunks >= 0 if useful is None else useful
        ids = np.full((*chunks.shape, k), -1, dtype=np.int64)
        if self._sequence_neighbors is not None:
            ids[useful] = self._sequence_neighbors.find(chunks, useful, k, self._table_rows(chunks[useful]))
        return ids

    def _retrieving_chunks(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All real chunks, whether their neighbors serve a scored position or not."""
        chunks = self._chunks(sample_ids)
        real = chunks >= 0
        return chunks[real], self.neighbor_ids(chunks, self.num_neighbors)[real]

    def padding_share(self, sequences: int = 1024) -> float:
        """See TextDataset: chunks that are shorter than M, and the end of the split."""
        chunks = self._chunks(self._sample(sequences))
        tokens = int(self.queries.lengths(chunks[chunks >= 0]).sum())
        return 1 - tokens / max(chunks.size * self.chunk_length, 1)
