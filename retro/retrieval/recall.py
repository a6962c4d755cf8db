"""recall@k of an index against exact search."""

from __future__ import annotations

import numpy as np


def recall_at_k(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact neighbors that were found: over both int64 [n, k], -1 = none.

    Padding is no neighbor: it counts neither as due nor as found. NaN where no neighbor was due at all.
    """
    if found.shape[0] != exact.shape[0]:
        raise ValueError(f"expected as many rows found as exact, found {found.shape} and {exact.shape}")
    due = int((exact >= 0).sum())
    if due == 0:
        return float("nan")
    hit = (exact[:, :, None] == found[:, None, :]).any(axis=2) & (exact >= 0)
    return float(hit.sum()) / due


def drop_self(ids: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """Results [n, >= k + 1] without each query's own id [n], cut to k columns and padded with -1."""
    keep = (ids != own[:, None]) & (ids >= 0)
    place = np.cumsum(keep, axis=1) - 1
    out = np.full((len(ids), k), -1, dtype=np.int64)
    rows, columns = np.nonzero(keep & (place < k))
    out[rows, place[rows, columns]] = ids[rows, columns]
    return out
