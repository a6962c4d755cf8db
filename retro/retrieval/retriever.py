"""The retriever: search, drop what must not be retrieved, rerank, keep the best. For live use and the offline stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from retro.config.errors import ArtifactMismatchError
from retro.retrieval.filters import Exclusions, OwnKeys, compact
from retro.retrieval.overlap import longest_common_runs
from retro.retrieval.searcher import Scorer, Searcher, WideningSearcher

if TYPE_CHECKING:
    from retro.data.chunk_store import ChunkStore

# Candidates of a row whose overlap is computed at a time: few more than are needed, and a bounded amount of memory.
_WAVE = 32
# By how much more an approximate index is searched each time that it found too little.
_WIDER = 4
# Candidates (rows x fetched) held at a time: over-fetching for a chunk of a very long document asks for many.
_ENTRIES = 1 << 22


class KeyTable(Protocol):
    """uint64 [documents], indexed with document numbers."""

    def __getitem__(self, index: Any) -> Any: ...


class Retriever:
    """Neighbors of query chunks in a database.

    candidates: fetched per query before anything is dropped; where too few remain and the database has more, twice as
    many are fetched for those queries, and more lists of an approximate index are looked at, until enough remain or
    there are no more. Chunks of removed documents are dropped, whatever the index says. reranker: an index of the
    same database (BM25, after a dense search) that orders the remaining candidates; distances are then its negated
    scores.
    max_overlap_tokens: drop candidates whose chunk and continuation share a longer run of tokens with the query.
    exclusion_keys: uint64 [documents of the database], indexed like an array: what exclusions name documents by; None =
    their document keys.
    """

    def __init__(
        self,
        searcher: Searcher,
        database: ChunkStore,
        *,
        candidates: int = 200,
        reranker: Scorer | None = None,
        max_overlap_tokens: int | None = None,
        exclusion_keys: KeyTable | None = None,
    ) -> None:
        for name, part in (("searcher", searcher), ("reranker", reranker)):
            if part is not None and part.num_chunks != database.num_chunks:
                raise ArtifactMismatchError(
                    f"{name}: expected an index of the database's {database.num_chunks} chunks, found {part.num_chunks}"
                )
        self.searcher, self.database, self.reranker = searcher, database, reranker
        self.candidates, self.max_overlap_tokens = candidates, max_overlap_tokens
        self.exclusion_keys = exclusion_keys

    def identity(self) -> dict[str, Any]:
        """What decides the neighbors, JSON-able."""
        return {
            "searcher": self.searcher.identity(),
            "reranker": self.reranker.identity() if self.reranker else None,
            "candidates": self.candidates,
            "max_overlap_tokens": self.max_overlap_tokens,
        }

    def retrieve(
        self,
        token_rows: Sequence[np.ndarray],
        k: int,
        exclude_document_keys: np.ndarray | Exclusions | OwnKeys | None = None,
        encoded: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64 [n, k], -1 = none; distances float32 [n, k] ascending, inf = none) for n rows of token ids.

        exclude_document_keys: uint64 keys of documents that no row may retrieve from, or exclusions by row.
        encoded: the rows as the searcher's `encode` gives them, where the caller has them already.
        """
        n = len(token_rows)
        exclusions: Exclusions | OwnKeys
        if exclude_document_keys is None:
            exclusions = Exclusions.none(n)
        elif isinstance(exclude_document_keys, (Exclusions, OwnKeys)):
            exclusions = exclude_document_keys
        else:
            exclusions = Exclusions.same_for_all(n, exclude_document_keys)
        ids = np.full((n, k), -1, dtype=np.int64)
        distances = np.full((n, k), np.inf, dtype=np.float32)
        if n == 0 or self.database.num_chunks == 0:
            return ids, distances
        encoded = self.searcher.encode(token_rows) if encoded is None else encoded
        reranked: Any = self.reranker.encode(token_rows) if self.reranker else None
        # Rows still to be searched, by (how many are fetched, how many times as many lists are looked at).
        waiting = {(min(max(self.candidates, k), self.database.num_chunks), 1): [np.arange(n)]}
        while waiting:
            fetch, times = next(iter(waiting))
            rows = np.sort(np.concatenate(waiting.pop((fetch, times))))
            more, wider = (min(2 * fetch, self.database.num_chunks), times), (fetch, times * _WIDER)
            for part in np.array_split(rows, -(-len(rows) * fetch // _ENTRIES)):
                found_distances, found, all_seen = self._search(self.searcher.take(encoded, part), fetch, times)
                keep = self._allowed(found, exclusions.take(part))
                if self.max_overlap_tokens is not None:
                    wanted = fetch if self.reranker else k
                    keep = self._without_overlap([token_rows[int(row)] for row in part], found, keep, wanted)
                enough, short = keep.sum(axis=1) >= k, found[:, -1] < 0
                # A row that is not full has all of a search that looked everywhere, and lacks lists otherwise.
                look = ~enough & short & (not all_seen)
                fetch_more = ~enough & ~short & (fetch < self.database.num_chunks)
                for again, where in ((look, wider), (fetch_more, more)):
                    if again.any():
                        waiting.setdefault(where, []).append(part[again])
                done = ~(look | fetch_more)
                kept_ids, kept_distances = compact(found[done], found_distances[done], keep[done])
                if self.reranker is not None:
                    terms = self.reranker.take(reranked, part[done])
                    kept_ids, kept_distances = self._rerank(self.reranker, terms, kept_ids)
                width = min(k, kept_ids.shape[1])
                ids[part[done], :width] = kept_ids[:, :width]
                distances[part[done], :width] = kept_distances[:, :width]
        return ids, distances

    def _search(self, encoded: Any, fetch: int, times: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """(distances, ids, whether a row that is not full has all that there is)."""
        if not isinstance(self.searcher, WideningSearcher):
            return *self.searcher.search_encoded(encoded, fetch), True
        if times == 1:
            return *self.searcher.search_encoded(encoded, fetch), False
        return self.searcher.search_wider(encoded, fetch, times)

    def _allowed(self, found: np.ndarray, exclusions: Exclusions | OwnKeys) -> np.ndarray:
        present = found >= 0
        present[present] = ~self.database.removed(found[present])
        keys = np.zeros(found.shape, dtype=np.uint64)
        if self.exclusion_keys is None:
            keys[present] = self.database.document_keys(found[present])
        else:
            keys[present] = self.exclusion_keys[self.database.documents(found[present])]
        return present & ~exclusions.mask(keys)

    def _without_overlap(
        self, token_rows: Sequence[np.ndarray], found: np.ndarray, keep: np.ndarray, wanted: int
    ) -> np.ndarray:
        """`keep` without candidates of long overlap, decided from the front until `wanted` of a row are through.

        What lies behind is kept out of `keep`: nobody reads it, and overlaps are costly.
        """
        assert self.max_overlap_tokens is not None
        length = max((len(row) for row in token_rows), default=0)
        chunks = np.zeros((len(token_rows), length), dtype=np.int64)
        mask = np.zeros(chunks.shape, dtype=bool)
        for i, row in enumerate(token_rows):
            chunks[i, : len(row)], mask[i, : len(row)] = row, True
        out = np.zeros(keep.shape, dtype=bool)
        order = np.cumsum(keep, axis=1) - 1  # place of each candidate among the row's
        through = np.zeros(len(token_rows), dtype=np.int64)
        start, step, total = 0, min(wanted, _WAVE), keep.sum(axis=1)
        while True:
            active = np.flatnonzero((through < wanted) & (start < total))
            if len(active) == 0:
                return out
            wave = keep[active] & (order[active] >= start) & (order[active] < start + step)
            ids, _ = compact(found[active], np.zeros(wave.shape, np.float32), wave, step)
            tokens, real = self.database.gather_neighbors(ids, pad_id=0)
            runs = longest_common_runs(chunks[active], tokens, mask[active], real)
            good = (runs <= self.max_overlap_tokens) & (ids >= 0)
            rows, columns = np.nonzero(wave)
            accepted = good[rows, order[active][rows, columns] - start]
            out[active[rows[accepted]], columns[accepted]] = True
            through[active] += good.sum(axis=1)
            start += step

    @staticmethod
    def _rerank(reranker: Scorer, terms: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Candidates by descending score; equal scores keep the order of the first search."""
        scores = np.where(ids >= 0, -reranker.score(terms, ids), np.float32(np.inf)).astype(np.float32)
        order = np.argsort(scores, axis=1, kind="stable")
        return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
