"""Two or more searchers of one database as one, and the scores of given chunks by either.

Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): a chunk's score is the sum over the searchers that found it
of weight / (constant + rank), ranks from 1. Weighted fusion (Bruch, Gai and Ingber 2023): the chunks that any searcher
found are scored by all, each searcher's scores are scaled to 0..1 over them, and added by weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from retro.config.errors import ArtifactMismatchError
from retro.retrieval.searcher import Scorer, Searcher

Fusion = Literal["reciprocal_rank", "weighted"]


class HybridSearcher:
    """Searcher over the union of what its searchers find.

    depth: chunks that each of them finds for a query, whatever k: the order of the best does not depend on how many are
    asked for. At most depth x searchers are found. Distance = negated score; equal scores ascend by chunk id.
    """

    def __init__(
        self,
        searchers: Sequence[Searcher],
        *,
        depth: int,
        weights: Sequence[float],
        fusion: Fusion = "reciprocal_rank",
        constant: int = 60,
    ) -> None:
        """Raises ArtifactMismatchError for searchers of different databases, ValueError for weights that do not fit,
        and TypeError for weighted fusion of a searcher that cannot score given chunks."""
        if len(weights) != len(searchers) or not searchers:
            raise ValueError(f"expected a weight for each of {len(searchers)} searchers, found {len(weights)}")
        sizes = {searcher.num_chunks for searcher in searchers}
        if len(sizes) > 1:
            raise ArtifactMismatchError(f"expected indexes of one database, found ones of {sorted(sizes)} chunks")
        self.searchers, self.weights = tuple(searchers), tuple(weights)
        self.depth, self.fusion, self.constant = depth, fusion, constant
        self._scorers: list[Scorer] = []
        for searcher in searchers if fusion == "weighted" else ():
            if not isinstance(searcher, Scorer):
                raise TypeError(f"{type(searcher).__name__} does not score given chunks")
            self._scorers.append(searcher)

    @property
    def num_chunks(self) -> int:
        """Chunks in the database."""
        return self.searchers[0].num_chunks

    def identity(self) -> dict[str, Any]:
        """The searchers and how they are fused."""
        options = {"constant": self.constant} if self.fusion == "reciprocal_rank" else {}
        return {
            "kind": "hybrid",
            "fusion": self.fusion,
            **options,
            "depth": self.depth,
            "searchers": [searcher.identity() for searcher in self.searchers],
            "weights": list(self.weights),
        }

    def encode(self, token_rows: Sequence[np.ndarray]) -> tuple[Any, ...]:
        """The queries in the form of each searcher."""
        return tuple(searcher.encode(token_rows) for searcher in self.searchers)

    def take(self, encoded: tuple[Any, ...], rows: np.ndarray) -> tuple[Any, ...]:
        """Some of the encoded queries."""
        return tuple(searcher.take(part, rows) for searcher, part in zip(self.searchers, encoded, strict=True))

    def search(self, token_rows: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(distances float32 [n, k], ids int64 [n, k]): see retro.retrieval.searcher.Searcher."""
        return self.search_encoded(self.encode(token_rows), k)

    def search_encoded(self, encoded: tuple[Any, ...], k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`."""
        depth = min(self.depth, max(self.num_chunks, 1))
        found = [
            searcher.search_encoded(part, depth)[1] for searcher, part in zip(self.searchers, encoded, strict=True)
        ]
        ids, ranks = _union(found)
        scores = self._reciprocal(ranks) if self.fusion == "reciprocal_rank" else self._weighted(encoded, ids)
        scores[ids < 0] = -np.inf
        order = np.lexsort((ids, -scores), axis=-1)[:, :k]
        out = np.full((len(ids), k), -1, dtype=np.int64)
        distances = np.full((len(ids), k), np.inf, dtype=np.float32)
        width = order.shape[1]
        out[:, :width] = np.take_along_axis(ids, order, 1)
        distances[:, :width] = -np.take_along_axis(scores, order, 1)
        return distances, out

    def _reciprocal(self, ranks: np.ndarray) -> np.ndarray:
        """Scores float64 [n, c] of ranks int64 [searchers, n, c], from 1, 0 = not found."""
        parts = np.where(ranks > 0, 1.0 / (self.constant + ranks), 0.0)
        return np.asarray(np.einsum("s,snc->nc", np.array(self.weights, dtype=np.float64), parts))

    def _weighted(self, encoded: tuple[Any, ...], ids: np.ndarray) -> np.ndarray:
        total = np.zeros(ids.shape, dtype=np.float64)
        for scorer, part, weight in zip(self._scorers, encoded, self.weights, strict=True):
            scores = scorer.score(part, ids).astype(np.float64)
            real = (ids >= 0) & np.isfinite(scores)
            low = np.where(real, scores, np.inf).min(axis=1, initial=np.inf, keepdims=True)
            high = np.where(real, scores, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
            # Where all are equal the scorer does not tell them apart: 0 for each, as for those it cannot score.
            spread = np.where(high > low, high - low, 1.0)
            scaled = (np.where(real, scores, 0.0) - np.where(np.isfinite(low), low, 0.0)) / spread
            total[real] += weight * scaled[real]
        return total


def _union(found: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64 [n, c] ascending, each once, -1 = none, last; ranks int64 [searchers, n, c] from 1, 0 = not found)
    of what each searcher found, int64 [n, depth], -1 = none."""
    rows = [np.unique(np.concatenate([part[i][part[i] >= 0] for part in found])) for i in range(len(found[0]))]
    width = max((len(row) for row in rows), default=0)
    ids = np.full((len(rows), width), -1, dtype=np.int64)
    ranks = np.zeros((len(found), *ids.shape), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        for number, part in enumerate(found):
            real = part[i][part[i] >= 0]
            ranks[number, i, np.searchsorted(row, real)] = np.arange(1, len(real) + 1)
    return ids, ranks
