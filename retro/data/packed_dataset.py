"""Sequences without padding: documents laid end to end and cut every N tokens, none of which sees another."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from retro.config.errors import ConfigError
from retro.data.batch import RetroBatch
from retro.data.packed_layout import PackedLayout, lay_out
from retro.data.packed_stream import PackedStream
from retro.data.text_dataset import TextDataset


class PackedDataset(TextDataset):
    """Sequence i = the tokens [i N, (i + 1) N) of the split's documents, laid end to end in the order of use.

    Only the last sequence is filled up with padding. A document goes on in the next sequence at whatever token it was
    cut; there it is a document that begins at position 0. document_starts_BN keeps the documents of a sequence apart.
    N is any number. L = ceil(N / M) rows of neighbors; B N L M K R as in RetroBatch; options and errors as in
    TextDataset.

    Targets: the token at p + 1 of the same document, also across the end of the sequence. Scored (loss_mask_BN): every
    token of every document but its first, once; with score_last_position=False not the one that the last position of a
    sequence predicts.

    A row of neighbors belongs to a chunk of M tokens whose last token, at chunk_ends_BL, lies in the sequence and
    predicts a scored one. They are those of the whole chunk, of which the sequence before may hold the begin. Rows come
    in the order of the chunks; the rest of the L is not used.
    """

    def _check_sequence_length(self) -> None:
        if self.sequence_length < 1:
            raise ConfigError(f"sequence_length: expected 1 or more, found {self.sequence_length}")

    @property
    def num_rows(self) -> int:
        """L: the most chunks of M tokens that can end in a sequence."""
        return -(-self.sequence_length // self.chunk_length)

    @cached_property
    def _stream(self) -> PackedStream:
        return PackedStream(self.queries)

    def __len__(self) -> int:
        """Number of sequences."""
        return (self._stream.num_tokens + self.sequence_length - 1) // self.sequence_length

    def _batch(self, sample_ids: np.ndarray) -> RetroBatch:
        layout = lay_out(self._stream, sample_ids, self.sequence_length)
        tokens, targets, starts = self._read_tokens(layout)
        scored = self._scored(layout)
        retrieving = self._retrieving(layout, scored)
        chunks, ends, place = self._rows(layout, retrieving)
        neighbors, mask = None, None
        if self.retrieval != "off":
            assert self.database is not None
            ids = np.full((*chunks.shape, self.num_neighbors), -1, dtype=np.int64)
            ids.reshape(-1, self.num_neighbors)[place] = self._find(layout, retrieving)
            neighbors, mask = self.database.gather_neighbors(ids, self.pad_id, self.retrieved_length)
        return RetroBatch(
            tokens_BN=tokens,
            targets_BN=targets,
            loss_mask_BN=scored,
            neighbors_BLKR=neighbors,
            neighbor_mask_BLKR=mask,
            chunk_ids_BL=chunks,
            sample_ids_B=sample_ids,
            document_starts_BN=starts,
            chunk_ends_BL=ends,
        )

    def _read_tokens(self, layout: PackedLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens, targets int32 [B, N]; int32 [B, N]: position of each document's first token."""
        shape = (len(layout.padding), self.sequence_length)
        # One token more than the chunk: the target of its last position lies right behind it in the token store.
        windows, _ = self.queries.read(layout.chunk, self.chunk_length + 1, layout.skip)
        total = int(layout.length.sum())
        packed = np.cumsum(layout.length) - layout.length  # where each piece begins when no padding lies in between
        row = np.arange(len(packed)) * (self.chunk_length + 1)
        source = np.arange(total) + np.repeat(row - packed, layout.length)
        flat = windows.reshape(-1)
        begin = layout.document_begin - layout.sequence * self.sequence_length
        parts = flat[source], flat[source + 1], np.repeat(begin, layout.length)
        if layout.is_full:
            tokens, targets, starts = (part.astype(np.int32).reshape(shape) for part in parts)
            return tokens, targets, starts
        tokens, targets = (np.full(shape, self.pad_id, dtype=np.int32) for _ in range(2))
        # The padding is a document by itself.
        padding = layout.padding - np.arange(len(layout.padding)) * self.sequence_length
        starts = np.repeat(padding.astype(np.int32), self.sequence_length).reshape(shape)
        where = np.arange(total) + np.repeat(layout.begin - packed, layout.length)
        for out, part in zip((tokens, targets, starts), parts, strict=True):
            out.reshape(-1)[where] = part
        return tokens, targets, starts

    def _scored(self, layout: PackedLayout) -> np.ndarray:
        """bool [B, N]: all but the last token of each document and padding."""
        length = self.sequence_length
        scored = np.ones((len(layout.padding), length), dtype=bool)
        ends = layout.begin + layout.length - 1
        scored.reshape(-1)[ends[layout.span == layout.length]] = False
        if not layout.is_full:
            scored &= np.arange(scored.size).reshape(scored.shape) < layout.padding[:, None]
        if not self.score_last_position:
            scored[:, -1] = False
        return scored

    def _retrieving(self, layout: PackedLayout, scored: np.ndarray) -> np.ndarray:
        """int64 [n]: pieces that end a chunk of M tokens, the last of which predicts a scored token."""
        complete = np.flatnonzero(layout.skip + layout.length == self.chunk_length)
        ends = layout.begin[complete] + layout.length[complete] - 1
        return complete[scored.reshape(-1)[ends]]

    def _rows(self, layout: PackedLayout, retrieving: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(chunk ids int64 [B, L], positions of their last tokens int64 [B, L], -1 = none; place of each retrieving
        piece in B L, int64 [n])."""
        sequence = layout.sequence[retrieving]
        counts = np.bincount(sequence, minlength=len(layout.padding))
        place = (
            np.arange(len(retrieving)) + (np.arange(len(counts)) * self.num_rows - np.cumsum(counts) + counts)[sequence]
        )
        chunks, ends = (np.full((len(counts), self.num_rows), -1, dtype=np.int64) for _ in range(2))
        chunks.reshape(-1)[place] = layout.chunk[retrieving]
        last = layout.begin[retrieving] + layout.length[retrieving] - 1
        ends.reshape(-1)[place] = last - sequence * self.sequence_length
        return chunks, ends, place

    def _find(self, layout: PackedLayout, retrieving: np.ndarray) -> np.ndarray:
        """Neighbor ids int64 [n, K] of the retrieving pieces, -1 = none."""
        chunks = layout.chunk[retrieving]
        if self._sequence_neighbors is None or not len(chunks):
            return np.full((len(chunks), self.num_neighbors), -1, dtype=np.int64)
        return self._sequence_neighbors.find_within(
            chunks, layout.sequence[retrieving], layout.documents(), self.num_neighbors, self._table_rows(chunks)
        )

    def _retrieving_chunks(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those whose neighbors are read."""
        layout = lay_out(self._stream, sample_ids, self.sequence_length)
        retrieving = self._retrieving(layout, self._scored(layout))
        return layout.chunk[retrieving], self._find(layout, retrieving)

    def padding_share(self, sequences: int = 1024) -> float:
        """See TextDataset; of all sequences: only the end of the split is padding."""
        return 1 - self._stream.num_tokens / max(len(self) * self.sequence_length, 1)
