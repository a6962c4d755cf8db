"""Chunks: M consecutive tokens of one document each. Artifact kind "chunks" (input: tokens).

Per shard, one entry per chunk: `starts-00000.npy` int64, position of the first token in the token store;
`documents-00000.npy` int64, number of the document; `spans-00000.npy` int64, tokens from the start to the end of the
document. Chunks of a document follow each other; documents follow in the shuffled order of the token store.

A chunk's neighbor and continuation are the R = 2M tokens from its start, cut at the end of the document. They are
contiguous in the token store, so nothing is stored twice and nothing can cross into another document.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactCorruptError
from retro.data.sharded_array import open_sharded
from retro.data.token_store import TokenStore, open_token_store

CHUNKS_KIND = "chunks"


class ChunkStore:
    """Read-only view of a chunks artifact. Cheap to pickle: it travels as its path.

    num_chunks; chunk_length M; tokens: the TokenStore that they lie in; fingerprint.
    Ids are int64 arrays of any shape; -1 is "none" where a method says so and an error elsewhere; an id outside the
    store is an IndexError.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = open_manifest(self.folder, CHUNKS_KIND)
        self.fingerprint = manifest.fingerprint
        try:
            self.chunk_length = int(manifest.config["chunk_length"])
        except (KeyError, TypeError, ValueError):
            raise ArtifactCorruptError(
                f"{self.folder}: the manifest lacks chunk_length; make the chunks again"
            ) from None
        self.tokens: TokenStore = open_token_store(input_path(self.folder, manifest, "tokens"))
        self._starts = open_sharded(self.folder, "starts", manifest.shards, np.int64)
        self._documents = open_sharded(self.folder, "documents", manifest.shards, np.int64)
        self._spans = open_sharded(self.folder, "spans", manifest.shards, np.int64)
        self.num_chunks = manifest.rows

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def documents(self, ids: np.ndarray) -> np.ndarray:
        """Number of each chunk's document: int64, shape of `ids`."""
        return self._documents.take(self._checked(ids))

    def document_keys(self, ids: np.ndarray) -> np.ndarray:
        """Key of each chunk's document: uint64, shape of `ids`. Keys compare across stores, numbers do not."""
        documents = self.documents(ids)
        if documents.size and not 0 <= int(documents.min()) <= int(documents.max()) < self.tokens.num_documents:
            raise self._corrupt("documents")
        return self.tokens.document_keys[documents]

    def starts(self, ids: np.ndarray) -> np.ndarray:
        """Position of each chunk's first token in the token store: int64, shape of `ids`."""
        return self._starts.take(self._checked(ids))

    def spans(self, ids: np.ndarray) -> np.ndarray:
        """Tokens from each chunk's start to the end of its document: int64, shape of `ids`.

        More than M: the next chunk id is the same document's.
        """
        return self._spans.take(self._checked(ids))

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        """Tokens of each chunk, 1..M: int64, shape of `ids`."""
        return np.minimum(self.spans(ids), self.chunk_length)

    def gather(self, ids: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [..., M], mask bool [..., M]) of ids [...]; -1 and what a short chunk lacks is padding."""
        return self.gather_neighbors(ids, pad_id, self.chunk_length)

    def gather_neighbors(
        self, ids: np.ndarray, pad_id: int, retrieved_length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [..., R], mask bool [..., R]): each chunk and its continuation, cut at the document's end.

        ids int64 [...]; -1 is all padding. R: retrieved_length, 2M by default.
        """
        length = 2 * self.chunk_length if retrieved_length is None else retrieved_length
        ids = np.asarray(ids, dtype=np.int64)
        flat = ids.reshape(-1)
        self._check(flat, lowest=-1)
        tokens = np.full((len(flat), length), pad_id, dtype=np.int32)
        present = flat >= 0
        if present.all():
            mask = self._fill(tokens, flat)
        else:
            mask = np.zeros(tokens.shape, dtype=bool)
            rows = np.flatnonzero(present)
            some = np.full((len(rows), length), pad_id, dtype=np.int32)
            mask[rows] = self._fill(some, flat[rows])
            tokens[rows] = some
        return tokens.reshape(*ids.shape, length), mask.reshape(*ids.shape, length)

    def _fill(self, tokens: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Write the tokens of ids [n] over the padding in `tokens` [n, length]; returns where they are."""
        windows, spans = self.read(ids, tokens.shape[1])
        mask = np.arange(tokens.shape[1]) < spans[:, None]
        np.copyto(tokens, windows, where=mask, casting="unsafe")
        return mask

    def read(self, ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [n, length] in the stored type, spans int64 [n]) from the start of each chunk of ids int64 [n].

        Only the first `span` tokens of a row are the document's; what follows must be masked by the caller.
        """
        ids = self._checked(ids)
        try:
            return self.tokens.gather(self._starts.take(ids), length), self._spans.take(ids)
        except IndexError:
            raise self._corrupt("starts") from None

    def verify(self) -> None:
        """Check every entry against the token store; reads the whole table. Raises ArtifactCorruptError."""
        for first in range(0, self.num_chunks, 1 << 20):
            ids = np.arange(first, min(first + (1 << 20), self.num_chunks))
            starts, spans, documents = self.starts(ids), self.spans(ids), self.documents(ids)
            if not 0 <= int(documents.min()) <= int(documents.max()) < self.tokens.num_documents:
                raise self._corrupt("documents")
            offsets = self.tokens.document_offsets
            relative = starts - offsets[documents]
            if (relative < 0).any() or (relative % self.chunk_length).any():
                raise self._corrupt("starts")
            if (spans < 1).any() or (starts + spans != offsets[documents + 1]).any():
                raise self._corrupt("spans")

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids, dtype=np.int64)
        self._check(ids, lowest=0)
        return ids

    def _check(self, ids: np.ndarray, lowest: int) -> None:
        """Negative numbers would count from the end without a word."""
        if ids.size and (int(ids.min()) < lowest or int(ids.max()) >= self.num_chunks):
            raise IndexError(f"chunk ids: expected {lowest} to {self.num_chunks - 1}, found {ids.min()} to {ids.max()}")

    def _corrupt(self, part: str) -> ArtifactCorruptError:
        return ArtifactCorruptError(
            f"{self.folder}/{part}-*.npy: entries that do not fit the tokens in {self.tokens.folder}; chunk again"
        )


def open_chunk_store(folder: str | Path) -> ChunkStore:
    """The chunks of a finished artifact and the tokens that they lie in. Raises ArtifactError subclasses."""
    return ChunkStore(folder)
