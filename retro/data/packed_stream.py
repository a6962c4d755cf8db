"""The tokens of a chunk store laid end to end, in the order of use, and where chunks lie among them."""

from __future__ import annotations

import numpy as np

from retro.data.chunk_store import ChunkStore

# Chunks per mark: between two marks the lengths of chunks are added up when a place is looked for.
_STRIDE = 64
_BLOCK = 512 * _STRIDE


class PackedStream:
    """Positions 0 .. num_tokens - 1, the tokens of chunk 0, then those of chunk 1, ... Removed chunks have none.

    Chunks of a document follow each other, so its tokens are one run. Kept in memory: one number for every 64 chunks;
    the lengths of all chunks are read once, by blocks. Cheap to pickle, with what has been read.
    """

    def __init__(self, chunks: ChunkStore) -> None:
        self.chunks = chunks
        sums = [np.zeros(0, dtype=np.int64)]
        for first in range(0, chunks.num_chunks, _BLOCK):
            lengths = chunks.lengths(np.arange(first, min(first + _BLOCK, chunks.num_chunks)))
            sums.append(np.add.reduceat(lengths, np.arange(0, len(lengths), _STRIDE)))
        #: int64: position of the first token of every 64th chunk, and the end of the stream.
        self._marks = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(sums))])
        self.num_tokens = int(self._marks[-1])

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(chunk that holds each of the positions int64 [n], position of the chunk's first token), int64 [n] each.

        Raises IndexError for a position that there is not."""
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < self.num_tokens:
            raise IndexError(
                f"positions: expected 0 to {self.num_tokens - 1}, found {positions.min()} to {positions.max()}"
            )
        mark = np.searchsorted(self._marks, positions, side="right") - 1
        ids = mark[:, None] * _STRIDE + np.arange(_STRIDE)
        lengths = self.chunks.lengths(np.minimum(ids, self.chunks.num_chunks - 1))
        ends = np.cumsum(lengths, axis=1)
        ends += self._marks[mark][:, None]
        column = (ends <= positions[:, None]).sum(axis=1)  # chunks that end before: the next one holds the position
        rows = np.arange(len(positions))
        return mark * _STRIDE + column, ends[rows, column] - lengths[rows, column]
