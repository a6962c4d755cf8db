"""Small in-memory stand-ins for the stores: a chunk store over lists of tokens and a word-per-token tokenizer."""

from __future__ import annotations

import numpy as np


class MemoryChunks:
    """Documents (lists of token ids) cut into chunks of `length`; offers what retrieval reads of a ChunkStore."""

    def __init__(self, documents: list[list[int]], length: int, keys: list[int] | None = None) -> None:
        self.chunk_length = length
        self.parts = [d[i : i + length] for d in documents for i in range(0, len(d), length)]
        self.with_next = [d[i : i + 2 * length] for d in documents for i in range(0, len(d), length)]
        self.document = np.array([n for n, d in enumerate(documents) for _ in range(0, len(d), length)], dtype=np.int64)
        self._keys = np.array(keys if keys is not None else [1000 + 7 * n for n in range(len(documents))], np.uint64)

        self.gone: list[int] = []  # chunks of removed documents

    @property
    def num_chunks(self) -> int:
        return len(self.parts)

    def document_keys(self, ids: np.ndarray) -> np.ndarray:
        assert (np.asarray(ids) >= 0).all() and (np.asarray(ids) < self.num_chunks).all()
        return self._keys[self.document[ids]]

    def removed(self, ids: np.ndarray) -> np.ndarray:
        return np.isin(ids, self.gone)

    def rows(self, ids: np.ndarray | None = None) -> list[np.ndarray]:
        return [np.array(self.parts[i]) for i in (range(self.num_chunks) if ids is None else ids)]

    def gather_neighbors(self, ids: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        width = 2 * self.chunk_length
        tokens = np.full((*ids.shape, width), pad_id, dtype=np.int64)
        mask = np.zeros(tokens.shape, dtype=bool)
        for place in np.ndindex(*ids.shape):
            if ids[place] >= 0:
                row = self.with_next[ids[place]]
                tokens[place][: len(row)] = row
                mask[place][: len(row)] = True
        return tokens, mask


class WordTokenizer:
    """Token i >= 3 is the word `w<i>x`, 0 to 2 are pad, bos and eos."""

    pad_id, bos_id, eos_id = 0, 1, 2

    def decode_batch(self, rows: list[list[int]]) -> list[str]:
        return [self.decode(row) for row in rows]

    def decode(self, ids: list[int]) -> str:
        assert min(ids, default=3) >= 3
        return " ".join(f"w{i}x" for i in ids)
