"""Longest common token run of a chunk with its neighbors: r(C) of the leakage-filtered evaluation.

Source: Borgeaud et al. 2022, section 2.6: s = length of the longest contiguous token substring that the
chunk shares with any neighbor (neighbor + continuation); r(C) = s / length of the chunk.
"""

from __future__ import annotations

import numpy as np

# Pairs per block: block x R cells of three small arrays stay in a core's cache.
_PAIRS = 1024


def longest_common_runs(
    chunks: np.ndarray,
    neighbors: np.ndarray,
    chunk_mask: np.ndarray | None = None,
    neighbor_mask: np.ndarray | None = None,
) -> np.ndarray:
    """Length in tokens of the longest common contiguous run of each pair: int64 [..., K].

    chunks [..., M] and neighbors [..., K, R] are integer tokens; positions whose mask (same shapes, bool) is False
    match nothing. Exact: dynamic programming over the diagonals, in blocks of pairs.
    """
    *lead, m = chunks.shape
    *lead2, k, r = neighbors.shape
    if lead != lead2:
        raise ValueError(f"chunks {chunks.shape} and neighbors {neighbors.shape} differ in their leading axes")
    # Different negative tokens where masked: equal to no token and not to each other.
    a = chunks.reshape(-1, m).astype(np.int32)
    b = neighbors.reshape(-1, k, r).astype(np.int32)
    if chunk_mask is not None:
        a = np.where(chunk_mask.reshape(-1, m), a, np.int32(-1))
    if neighbor_mask is not None:
        b = np.where(neighbor_mask.reshape(-1, k, r), b, np.int32(-2))
    out = np.zeros((len(a), k), dtype=np.int64)
    step = max(1, _PAIRS // max(k, 1))
    dtype = np.uint8 if min(m, r) < 256 else np.int32
    for start in range(0, len(a), step):
        part_a, part_b = a[start : start + step], b[start : start + step]
        run = np.zeros((len(part_a), k, r + 1), dtype=dtype)  # run[..., j+1]: common run that ends at (i, j)
        best = np.zeros((len(part_a), k, r), dtype=dtype)
        equal = np.empty((len(part_a), k, r), dtype=bool)
        for i in range(m):
            np.equal(part_b, part_a[:, i, None, None], out=equal)
            # The right side is evaluated in full before it is stored, so `run` still holds row i-1 there.
            run[..., 1:] = (run[..., :-1] + dtype(1)) * equal
            np.maximum(best, run[..., 1:], out=best)
        out[start : start + step] = best.max(axis=-1, initial=0)
    return out.reshape(*lead, k)


def overlap_ratio(
    chunks: np.ndarray, neighbors: np.ndarray, chunk_mask: np.ndarray, neighbor_mask: np.ndarray
) -> np.ndarray:
    """r(C) of each chunk: float64 [...], the longest run shared with any of its K neighbors / real tokens of the chunk.

    Shapes as in `longest_common_runs`; 0 where a chunk has no token or no neighbor.
    """
    runs = longest_common_runs(chunks, neighbors, chunk_mask, neighbor_mask).max(axis=-1, initial=0)
    return runs / np.maximum(chunk_mask.sum(axis=-1), 1)
