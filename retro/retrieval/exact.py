"""Exact nearest vectors by blocked matrix products: the reference that every other index is measured against.

Matrix products round differently with the number of threads, the batch and the place in the matrix. So they only select
candidates, generously by the bound of their rounding error; the candidates' distances are then computed one by one in
float64. Results are therefore the same bits for any batching, and equal vectors are at equal distances.
"""

from __future__ import annotations

import numpy as np

from retro.retrieval.embedder import Metric
from retro.retrieval.top_k import candidates_within
from retro.retrieval.vectors import VectorStore

_QUERIES, _VECTORS = 128, 65536


class ExactIndex:
    """Exact search over stored vectors. Zero vectors are never retrieved, and retrieve nothing."""

    def __init__(self, vectors: VectorStore, metric: Metric) -> None:
        self.vectors = vectors
        self.metric: Metric = metric

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(distances float32 [n, k] ascending, ids int64 [n, k]) of queries float32 [n, d]; ties ascend by id."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        found: list[list[np.ndarray]] = [[] for _ in queries]
        scores: list[list[np.ndarray]] = [[] for _ in queries]
        slack = np.zeros(len(queries))
        query_norms = np.linalg.norm(queries, axis=1)
        for first, block in self.vectors.blocks(_VECTORS):
            squares = np.einsum("nd,nd->n", block, block)
            largest = float(np.sqrt(squares.max(initial=0.0)))
            # |error of a dot product| <= d u |q| |v| for unit roundoff u = 2^-24, doubled for the factor 2 below
            bound = 4.0 * block.shape[1] * 2.0**-24 * (query_norms * largest + largest**2)
            slack = np.maximum(slack, 2.0 * bound)
            for start in range(0, len(queries), _QUERIES):
                part = queries[start : start + _QUERIES]
                near = part @ block.T
                if self.metric == "l2":
                    near *= 2.0
                    near -= squares  # |q|^2 - distance
                near[:, squares == 0] = -np.inf
                for i in range(len(part)):
                    row = start + i
                    if query_norms[row] > 0:
                        chosen = candidates_within(near[i], k, float(slack[row]))
                        found[row].append(chosen + first)
                        scores[row].append(near[i, chosen])
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        for row in range(len(queries)):
            if not found[row]:
                continue
            candidates = np.concatenate(found[row])
            candidates = candidates[candidates_within(np.concatenate(scores[row]), k, float(slack[row]))]
            exact = exact_distances(queries[row], self.vectors.gather(candidates), self.metric)
            order = np.argsort(exact, kind="stable")[:k]
            distances[row, : len(order)], ids[row, : len(order)] = exact[order], candidates[order]
        return distances, ids


def exact_distances(query: np.ndarray, vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """float32 [n] distances of vectors [n, d] to one query [d], summed in float64 in a fixed order."""
    if metric == "l2":
        terms = (vectors.astype(np.float64) - query) ** 2
        return terms.sum(axis=1).astype(np.float32)
    return -(vectors.astype(np.float64) * query).sum(axis=1).astype(np.float32)


def rescore(
    queries: np.ndarray, ids: np.ndarray, vectors: VectorStore, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """(distances, ids) [n, k] with exact distances, sorted by (distance, id); -1 stays last with inf."""
    out_distances = np.full(ids.shape, np.inf, dtype=np.float32)
    out_ids = np.full(ids.shape, -1, dtype=np.int64)
    for row in range(len(ids)):
        found = np.sort(ids[row][ids[row] >= 0])
        if len(found):
            exact = exact_distances(queries[row], vectors.gather(found), metric)
            order = np.argsort(exact, kind="stable")
            out_distances[row, : len(found)], out_ids[row, : len(found)] = exact[order], found[order]
    return out_distances, out_ids
