"""Query chunks in the searcher's own form; what the database has as a vector already is not embedded again."""

from __future__ import annotations

from typing import Any

import numpy as np

from retro.data.chunk_store import ChunkStore
from retro.retrieval.searcher import Searcher
from retro.retrieval.vector_searcher import VectorSearcher


class QueryEncoder:
    """Encodes chunks of `queries` for a searcher of `database`.

    With a searcher over vectors, a query that is a chunk of the database (the same document, place and tokens: training
    text that may be retrieved) has its stored vector; the others are embedded. With BM25 every query is analysed.
    """

    def __init__(self, searcher: Searcher, queries: ChunkStore, database: ChunkStore) -> None:
        self._searcher, self._queries, self._database = searcher, queries, database
        self._comparable = (
            queries.chunk_length == database.chunk_length
            and queries.tokens.tokenizer_fingerprint == database.tokens.tokenizer_fingerprint
        )

    def encode(self, rows: np.ndarray, token_rows: list[np.ndarray]) -> Any:
        """The queries int64 [n], whose tokens are given, as `searcher.encode` gives them."""
        if not isinstance(self._searcher, VectorSearcher):
            return self._searcher.encode(token_rows)
        known = self.find_stored(rows)
        vectors = np.zeros((len(rows), self._searcher.embedder.dimension), dtype=np.float32)
        there = known >= 0
        if there.any():
            vectors[there] = self._searcher.stored(known[there])
        if not there.all():
            vectors[~there] = self._searcher.encode([token_rows[i] for i in np.flatnonzero(~there)])
        return vectors

    def find_stored(self, rows: np.ndarray) -> np.ndarray:
        """Database chunk that each query chunk int64 [n] is, -1 = none."""
        if not self._comparable:
            return np.full(len(rows), -1, dtype=np.int64)
        documents = self._queries.documents(rows)
        offsets = self._queries.starts(rows) - self._queries.tokens.document_offsets[documents]
        found = self._database.find(self._queries.document_keys(rows), offsets)
        there = np.flatnonzero(found >= 0)
        # A document id can stand for another text elsewhere, in a database that was prepared from another corpus.
        ours, our_mask = self._queries.gather(rows[there], 0)
        theirs, their_mask = self._database.gather(found[there], 0)
        found[there[((ours != theirs) | (our_mask != their_mask)).any(axis=1)]] = -1
        return found
