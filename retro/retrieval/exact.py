"""Exact nearest vectors by blocked matrix products: the reference that every other index is measured against.

Matrix products round differently with the number of threads, the batch and the place in the matrix. So they only select
candidates, generously by the bound of their rounding error; the candidates' distances are then computed one by one, in
a fixed order of operations (`pair_distances`). Results are therefore the same bits for any batching, and equal vectors
are at equal distances.
"""

from __future__ import annotations

import numpy as np

from retro.retrieval.embedder import Metric
from retro.retrieval.top_k import candidates_within
from retro.retrieval.vectors import VectorStore

_QUERIES, _VECTORS = 128, 65536
# Blocks whose candidates are held before the worse ones are dropped: memory does not grow with the database.
_HELD = 32
# Pairs whose differences are held at a time: what fits in the second level of cache.
_PAIRS = 512


class ExactIndex:
    """Exact search over stored vectors. Zero vectors are never retrieved, and retrieve nothing."""

    def __init__(self, vectors: VectorStore, metric: Metric) -> None:
        self.vectors = vectors
        self.metric: Metric = metric

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(distances float32 [n, k] ascending, ids int64 [n, k]) of queries float32 [n, d]; ties ascend by id."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        real = np.flatnonzero((queries != 0).any(axis=1))
        if len(real):  # for zero queries alone no vector is read
            distances[real], ids[real] = self._search(queries[real], k)
        return distances, ids

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found: list[list[np.ndarray]] = [[] for _ in queries]
        scores: list[list[np.ndarray]] = [[] for _ in queries]
        slack = np.zeros(len(queries))
        query_norms = np.linalg.norm(queries, axis=1)
        for first, block in self.vectors.blocks(_VECTORS):
            squares = np.einsum("nd,nd->n", block, block)
            slack = np.maximum(slack, rounding_slack(query_norms, squares, block.shape[1]))
            for start in range(0, len(queries), _QUERIES):
                part = queries[start : start + _QUERIES]
                near = part @ block.T
                if self.metric == "l2":
                    near *= 2.0
                    near -= squares  # |q|^2 - distance
                near[:, squares == 0] = -np.inf
                for i in range(len(part)):
                    row = start + i
                    chosen = candidates_within(near[i], k, float(slack[row]))
                    found[row].append(chosen + first)
                    scores[row].append(near[i, chosen])
                    if len(found[row]) == _HELD:
                        _prune(found[row], scores[row], k, float(slack[row]))
        for row in range(len(queries)):
            _prune(found[row], scores[row], k, float(slack[row]))
        candidates = [ids[0] if ids else np.zeros(0, np.int64) for ids in found]
        return rank_candidates(queries, candidates, self.vectors, self.metric, k)


def _prune(found: list[np.ndarray], scores: list[np.ndarray], k: int, slack: float) -> None:
    """Of the candidates of several blocks those that are among the nearest of all."""
    if len(found) > 1:
        ids, values = np.concatenate(found), np.concatenate(scores)
        kept = candidates_within(values, k, slack)
        found[:], scores[:] = [ids[kept]], [values[kept]]


def rounding_slack(query_norms: np.ndarray, squares: np.ndarray, dimension: int) -> np.ndarray:
    """Float64 [n]: by how much the fp32 score 2 q.v - |v|^2 of a true neighbor can fall below that of another vector.

    |error of a dot product| <= d u |q| |v| for unit roundoff u = 2^-24, doubled for the factor 2, and again because
    either of two compared scores can be wrong.
    """
    largest = float(np.sqrt(squares.max(initial=0.0)))
    return np.asarray(8.0 * dimension * 2.0**-24 * (query_norms * largest + largest**2))


def rank_candidates(
    queries: np.ndarray, candidates: list[np.ndarray], vectors: VectorStore, metric: Metric, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the candidates (ids, without repeats) of each query, by exact distance."""
    distances = np.full((len(queries), k), np.inf, dtype=np.float32)
    ids = np.full((len(queries), k), -1, dtype=np.int64)
    for start in range(0, len(queries), _QUERIES):
        part = candidates[start : start + _QUERIES]
        width = max((len(found) for found in part), default=0)
        table = np.full((len(part), width), -1, dtype=np.int64)
        for row, found in enumerate(part):
            table[row, : len(found)] = found
        stop = start + len(part)
        far, near = rescore(queries[start:stop], table, vectors, metric, k)
        distances[start:stop, : far.shape[1]], ids[start:stop, : near.shape[1]] = far, near
    return distances, ids


def rescore(
    queries: np.ndarray, ids: np.ndarray, vectors: VectorStore, metric: Metric, k: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(distances, ids) [n, <= k] with exact distances of ids [n, c], sorted by (distance, id); -1 stays last with inf.

    k: how many are kept, all by default.
    """
    rows, columns = np.nonzero(ids >= 0)
    exact = np.full(ids.shape, np.inf, dtype=np.float32)
    exact[rows, columns] = pair_distances(queries, rows, ids[rows, columns], vectors, metric)
    return sort_by_distance(exact, ids, k)


def sort_by_distance(distances: np.ndarray, ids: np.ndarray, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of float32 [n, c] and int64 [n, c] by (distance, id), -1 last whatever its number; cut to k columns."""
    order = np.argsort(distances, axis=1)
    far = np.take_along_axis(distances, order, 1)
    # Sorting by two keys takes five times as long, and few rows have equal distances.
    tied = np.flatnonzero(((far[:, 1:] == far[:, :-1]) & np.isfinite(far[:, 1:])).any(axis=1))
    if len(tied):
        order[tied] = np.lexsort((ids[tied], distances[tied]), axis=-1)
    near = np.take_along_axis(ids, order, 1)
    return (far, near) if k is None else (far[:, :k], near[:, :k])


def pair_distances(
    queries: np.ndarray, rows: np.ndarray, ids: np.ndarray, vectors: VectorStore, metric: Metric
) -> np.ndarray:
    """float32 [n] distances of queries[rows[i]] and vector ids[i]: the one definition of a distance.

    Each pair is summed alone, by numpy's einsum in its fixed order: not by a matrix product (whose order depends on the
    shape, the threads and the processor), and with the registers of numpy's baseline rather than the processor's.
    """
    out = np.empty(len(ids), dtype=np.float32)
    order = np.argsort(ids)  # rows that lie together are read together
    held, asked = np.empty((2, min(_PAIRS, len(ids)), vectors.dimension), dtype=np.float32)
    for start in range(0, len(ids), _PAIRS):
        pairs = order[start : start + _PAIRS]
        found, query = held[: len(pairs)], asked[: len(pairs)]
        vectors.read_ascending(ids[pairs], found)
        np.take(queries, rows[pairs], axis=0, out=query, mode="clip")
        if metric == "l2":
            found -= query
            query = found
        out[pairs] = np.einsum("nd,nd->n", found, query)
    return out if metric == "l2" else np.negative(out, out=out)
