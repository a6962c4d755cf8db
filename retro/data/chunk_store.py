"""Chunks: M consecutive tokens of one document each. Artifact kind "chunks" (input: tokens).

Per shard, one entry per chunk: `starts-00000.npy` int64, position of the first token in the token store;
`documents-00000.npy` int64, number of the document; `spans-00000.npy` int64, tokens from the start to the end of the
document. Chunks of a document follow each other; documents follow in the shuffled order of the token store.

A chunk's neighbor and continuation are the R = 2M tokens from its start, cut at the end of the document. They are
contiguous in the token store, so nothing is stored twice and nothing can cross into another document.

A chunk with span 0 was removed with its document: it keeps its number and has no tokens.

`lookup_keys.npy` uint64 [D], ascending, and `lookup_chunks.npy` int64 [D] are the documents by key and the first chunk
of each (data_prep/chunk_lookup.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactCorruptError
from retro.data.npy_file import NpyReader
from retro.data.sharded_array import ShardedArray, load_array, open_sharded
from retro.data.token_store import TokenStore, open_token_store

CHUNKS_KIND = "chunks"
LOOKUP_KEYS, LOOKUP_CHUNKS = "lookup_keys.npy", "lookup_chunks.npy"
_BLOCK = 1 << 16


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
        self._has_lookup = {LOOKUP_KEYS, LOOKUP_CHUNKS} <= {str(entry["name"]) for entry in manifest.files}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def documents(self, ids: np.ndarray) -> np.ndarray:
        """Number of each chunk's document: int64, shape of `ids`."""
        return self._documents.take(self._checked(ids))

    def document_keys(self, ids: np.ndarray) -> np.ndarray:
        """Key of each chunk's document: uint64, shape of `ids`. Keys compare across stores, numbers do not."""
        documents = self.documents(ids)
        if documents.size and not 0 <= int(documents.min()) <= int(documents.max()) < self.tokens.num_documents:
            raise self._corrupt("documents-")
        return self.tokens.document_keys.take(documents)

    def starts(self, ids: np.ndarray) -> np.ndarray:
        """Position of each chunk's first token in the token store: int64, shape of `ids`."""
        return self._starts.take(self._checked(ids))

    def spans(self, ids: np.ndarray) -> np.ndarray:
        """Tokens from each chunk's start to the end of its document: int64, shape of `ids`.

        More than M: the next chunk id is the same document's.
        """
        return self._spans.take(self._checked(ids))

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        """Tokens of each chunk, 1..M, and 0 of a removed one: int64, shape of `ids`."""
        return np.minimum(self.spans(ids), self.chunk_length)

    def removed(self, ids: np.ndarray) -> np.ndarray:
        """Whether each chunk was removed with its document: bool, shape of `ids`. Such a chunk is all padding."""
        return np.asarray(self.spans(ids) == 0)

    def find(self, document_keys: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Chunk that starts `offset` tokens into a document: int64 [n], -1 = there is none, or it was removed.

        document_keys: uint64 [n] as `document_keys` of any store gives them; offsets: int64 [n]. What is found has the
        same tokens only where both stores have the same tokenizer and the same documents.
        """
        keys = np.asarray(document_keys, dtype=np.uint64)
        offsets = np.asarray(offsets, dtype=np.int64)
        known, first = self._lookup
        found = np.full(keys.shape, -1, dtype=np.int64)
        if not len(known) or not keys.size:
            return found
        order = np.argsort(keys, kind="stable")  # neighbours in the table are neighbours in memory
        place = np.empty(len(keys), dtype=np.int64)
        place[order] = np.searchsorted(known, keys[order])
        there = place < len(known)
        there[there] = known[place[there]] == keys[there]
        there &= (offsets >= 0) & (offsets < self.tokens.num_tokens) & (offsets % self.chunk_length == 0)
        chunks = first[place[there]] + offsets[there] // self.chunk_length
        if chunks.size and int(chunks.min()) < 0:
            raise self._corrupt("lookup_")
        inside = chunks < self.num_chunks
        rows = np.flatnonzero(there)[inside]
        chunks = chunks[inside]
        # Beyond the document's last chunk lies another document, or none.
        own = (self.document_keys(chunks) == keys[rows]) & ~self.removed(chunks)
        found[rows[own]] = chunks[own]
        return found

    @cached_property
    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys uint64 [D] ascending, first chunk int64 [D]) of the documents, by memory map.

        Artifacts without these files, as from before version 2 of the stage: computed, 16 bytes per document.
        """
        if self._has_lookup:
            size = (len(NpyReader(self.folder / LOOKUP_KEYS)),)
            keys = load_array(self.folder / LOOKUP_KEYS, np.uint64, size, map_file=True)
            return keys, load_array(self.folder / LOOKUP_CHUNKS, np.int64, size, map_file=True)
        parts = list(first_chunks(self._documents, self.tokens))
        keys = np.concatenate([np.zeros(0, np.uint64), *(k for k, _ in parts)])
        first = np.concatenate([np.zeros(0, np.int64), *(c for _, c in parts)])
        order = np.argsort(keys, kind="stable")
        return keys[order], first[order]

    def gather(self, ids: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [..., M], mask bool [..., M]) of ids [...]; -1, a removed chunk, and what a short chunk lacks
        is padding."""
        return self.gather_neighbors(ids, pad_id, self.chunk_length)

    def gather_neighbors(
        self, ids: np.ndarray, pad_id: int, retrieved_length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [..., R], mask bool [..., R]): each chunk and its continuation, cut at the document's end.

        ids int64 [...]; -1 and a removed chunk are all padding. R: retrieved_length, 2M by default.
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

    def read(self, ids: np.ndarray, length: int, skip: np.ndarray | int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [n, length] in the stored type, spans int64 [n]) from the start of each chunk of ids int64 [n], or
        from `skip` (int64 [n], at most the span) tokens after it.

        Only the first `span` tokens of a row are the document's; what follows must be masked by the caller. A removed
        chunk has span 0.
        """
        ids = self._checked(ids)
        starts, spans = self._starts.take(ids) + skip, self._spans.take(ids) - skip
        try:
            if spans.all():
                return self.tokens.gather(starts, length), spans
            # Where the tokens of a removed chunk were, there may be nothing left.
            out = np.zeros((len(ids), length), self.tokens.dtype)
            rows = np.flatnonzero(spans)
            out[rows] = self.tokens.gather(starts[rows], length)
            return out, spans
        except IndexError:
            raise self._corrupt("starts-") from None

    def verify(self) -> None:
        """Check every entry against the token store, by blocks; reads the whole table. Raises ArtifactCorruptError.

        Of a removed chunk only the document's number is checked.
        """
        self.tokens.verify_offsets()
        for first in range(0, self.num_chunks, _BLOCK):
            ids = np.arange(first, min(first + _BLOCK, self.num_chunks))
            starts, spans, documents = self.starts(ids), self.spans(ids), self.documents(ids)
            if not 0 <= int(documents.min()) <= int(documents.max()) < self.tokens.num_documents:
                raise self._corrupt("documents-")
            if (spans < 0).any():
                raise self._corrupt("spans-")
            starts, spans, documents = (part[spans > 0] for part in (starts, spans, documents))
            relative = starts - self.tokens.document_offsets[documents]
            if (relative < 0).any() or (relative % self.chunk_length).any():
                raise self._corrupt("starts-")
            if (starts + spans != self.tokens.document_offsets[documents + 1]).any():
                raise self._corrupt("spans-")
        if self._has_lookup:
            self._verify_lookup()

    def _verify_lookup(self) -> None:
        known, _ = self._lookup
        for first in range(0, len(known), _BLOCK):
            if bool(
                (known[first + 1 : first + _BLOCK + 1] <= known[first : first + _BLOCK][: len(known) - 1 - first]).any()
            ):
                raise self._corrupt("lookup_")
        documents = 0
        for keys, chunks in first_chunks(self._documents, self.tokens):
            documents += len(keys)
            place = np.searchsorted(known, keys)
            place[place == len(known)] = 0
            if not len(known) or (known[place] != keys).any() or (self._lookup[1][place] != chunks).any():
                raise self._corrupt("lookup_")
        if documents != len(known):
            raise self._corrupt("lookup_")

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
            f"{self.folder}/{part}*.npy: entries that do not fit the tokens in {self.tokens.folder}; chunk again"
        )


def first_chunks(documents: ShardedArray, tokens: TokenStore) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(document keys uint64 [d], first chunk int64 [d]) of all documents, in the order of the chunks, by blocks.

    documents: int64, the number of the document of every chunk. Raises IndexError for a document that there is not.
    """
    last = -1
    for number, block in enumerate(documents.blocks(_BLOCK)):
        first = np.flatnonzero(np.diff(block, prepend=last))
        last = int(block[-1])
        yield tokens.document_keys[block[first]], first + number * _BLOCK


def open_chunk_store(folder: str | Path) -> ChunkStore:
    """The chunks of a finished artifact and the tokens that they lie in. Raises ArtifactError subclasses."""
    return ChunkStore(folder)
