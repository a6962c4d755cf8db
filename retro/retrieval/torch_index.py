"""Exact nearest vectors by torch, for a GPU: what faiss-gpu would do where it has no build. Runs on a CPU as well.

As in exact.py, products only select candidates, and the stored vectors decide: the result is that of ExactIndex.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from retro.retrieval.embedder import Metric
from retro.retrieval.exact import ExactIndex, rank_candidates, rounding_slack
from retro.retrieval.vectors import VectorStore

if TYPE_CHECKING:
    import torch

_QUERIES, _VECTORS = 1024, 1 << 18
# Candidates kept beyond k, for what products round.
_SPARE = 32


class TorchIndex:
    """Exact search on a torch device. The vectors are sent block by block, or stay there where `resident`.

    resident: keep the vectors on the device, float32; None = where they take at most half of a GPU's free memory.
    """

    def __init__(
        self, vectors: VectorStore, metric: Metric, device: str = "cuda", resident: bool | None = None
    ) -> None:
        import torch

        self.vectors, self.metric = vectors, metric
        self._device = torch.device("cuda" if device == "auto" else device)
        size = 4 * len(vectors) * vectors.dimension
        if resident is None:
            resident = self._device.type == "cuda" and size <= torch.cuda.mem_get_info(self._device)[0] // 2
        self._resident = resident
        self._held: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        # Of the products, twice the exact rule: TensorFloat-32 is off below, so float32 rounds as float32.
        self._fallback = ExactIndex(vectors, metric)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(distances float32 [n, k] ascending, ids int64 [n, k]) of queries float32 [n, d]; ties ascend by id."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        real = np.flatnonzero((queries != 0).any(axis=1))
        for start in range(0, len(real), _QUERIES):
            rows = real[start : start + _QUERIES]
            distances[rows], ids[rows] = self._search_block(queries[rows], k)
        return distances, ids

    def _search_block(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        ours = torch.from_numpy(queries).to(self._device)
        scores = torch.full((len(queries), 0), -torch.inf, device=self._device)
        found = torch.zeros((len(queries), 0), dtype=torch.int64, device=self._device)
        norms, slack = np.linalg.norm(queries, axis=1), np.zeros(len(queries))
        with _full_precision(), torch.no_grad():
            for first, block, squares in self._blocks():
                largest = np.asarray(squares.max().cpu().numpy(), dtype=np.float64)[None]
                slack = np.maximum(slack, rounding_slack(norms, largest, queries.shape[1]))
                near = ours @ block.T
                if self.metric == "l2":
                    near = near.mul_(2.0).sub_(squares)
                near[:, squares == 0] = -torch.inf
                best, place = near.topk(min(k + _SPARE, near.shape[1]), dim=1)
                scores, found = torch.cat([scores, best], 1), torch.cat([found, place + first], 1)
                width = min(k + _SPARE, scores.shape[1])
                scores, order = scores.topk(width, dim=1)
                found = found.gather(1, order)
        return self._decide(queries, scores.cpu().numpy(), found.cpu().numpy(), slack, k)

    def _decide(
        self, queries: np.ndarray, scores: np.ndarray, found: np.ndarray, slack: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact distances of the candidates; rows with more ties than spare candidates are searched by ExactIndex."""
        kept = [found[row][np.isfinite(scores[row])] for row in range(len(found))]
        distances, ids = rank_candidates(queries, kept, self.vectors, self.metric, k)
        if scores.shape[1] >= k + _SPARE:
            unsure = np.flatnonzero(scores[:, -1] >= scores[:, k - 1] - slack)
            unsure = unsure[np.isfinite(scores[unsure, -1])]
            if len(unsure):
                distances[unsure], ids[unsure] = self._fallback.search(queries[unsure], k)
        return distances, ids

    def _blocks(self) -> Any:
        import torch

        if self._held:
            yield from self._held
            return
        for first, block in self.vectors.blocks(_VECTORS):
            values = torch.from_numpy(block).to(self._device)
            squares = (values * values).sum(1)
            if self._resident:
                self._held.append((first, values, squares))
            yield first, values, squares


class _full_precision:
    """Products of float32 in float32, not in TensorFloat-32, whatever the process has set."""

    def __enter__(self) -> None:
        import torch

        self._before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False

    def __exit__(self, *_: Any) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = self._before
