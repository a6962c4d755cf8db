"""Largest entries of a long score row, exactly, with ties broken by the smaller index."""

from __future__ import annotations

import numpy as np

_SET = 128


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest entries above 0, descending; equal entries ascend by index. May be fewer than k."""
    bound = _bound(scores, k)
    found = np.flatnonzero(scores >= bound) if bound > 0 else np.flatnonzero(scores > 0)
    values = scores[found]
    if len(found) > 4 * k:
        keep = values >= np.partition(values, len(values) - k)[len(values) - k]
        found, values = found[keep], values[keep]
    return found[np.argsort(-values, kind="stable")[:k]]


def candidates_within(scores: np.ndarray, k: int, slack: float) -> np.ndarray:
    """Ascending indices of all entries no more than `slack` below the k-th largest; -inf is never returned.

    With slack twice the error bound of approximate scores, the k truly largest entries are among them.
    """
    bound = _bound(scores, k) - slack
    found = np.flatnonzero(scores >= bound) if bound > -np.inf else np.flatnonzero(scores > -np.inf)
    if len(found) > k:
        values = scores[found]
        found = found[values >= np.partition(values, len(values) - k)[len(values) - k] - slack]
    return found


def _bound(scores: np.ndarray, k: int) -> float:
    """A lower bound of the k-th largest entry, -inf for a short row.

    The k-th largest of the maxima of disjoint sets is one (each of those k sets holds an entry as large). It takes one
    pass; partitioning the whole row is slow where most entries are equal, as zero scores are. The sets are strided:
    neighboring chunks, often of one document and alike, fall into different sets, which makes the bound tighter.
    """
    width = min(_SET, len(scores) // (2 * k))
    if width < 8:
        return -np.inf
    sets = len(scores) // width
    maxima = scores[: sets * width].reshape(width, sets).max(axis=0)
    return float(np.partition(maxima, sets - k)[sets - k])
