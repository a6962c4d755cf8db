"""Parts of a question set that are reported by themselves: seen or not, by group, by relation, by popularity."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
KINDS = ("all", "seen", "group", "relation", "popularity")
_SEEN = {False: "documents never trained on", True: "documents of the training text"}


@dataclasses.dataclass(frozen=True)
class QaSubset:
    """Some of the questions. kind: one of KINDS; questions, units: how many, and how many of what is resampled;
    center: geometric middle of a popularity bin in page views, None for other kinds."""

    key: str
    kind: str
    title: str
    questions: int
    units: int
    center: float | None = None


def subset_masks(rows: Sequence[Row], units_Q: np.ndarray, edges: Sequence[float]) -> list[tuple[QaSubset, np.ndarray]]:
    """The subsets of Q questions with their masks, bool [Q]: all, and of each other kind that tells questions apart.

    units_Q: int64 [Q], number of the unit that each question belongs to; edges: lower ends of popularity bins (the
    first also takes what lies below), [] = no bins.
    """
    found = [_subset("all", "all", "all questions", np.ones(len(rows), bool), units_Q)]
    seen = [row.get("seen") for row in rows]
    for state, title in _SEEN.items():
        mask = np.array([item is state for item in seen], bool)
        if mask.any():
            found.append(_subset(f"seen={str(state).lower()}", "seen", f"About {title}", mask, units_Q))
    for kind in ("group", "relation"):
        values = [str(row.get(kind) or "") for row in rows]
        distinct = sorted(set(values))
        for value in distinct if len(distinct) > 1 else ():
            mask = np.array([item == value for item in values], bool)
            found.append(_subset(f"{kind}={value}", kind, value or f"(no {kind})", mask, units_Q))
    return found + _popularity(rows, units_Q, edges)


def _popularity(rows: Sequence[Row], units_Q: np.ndarray, edges: Sequence[float]) -> list[tuple[QaSubset, np.ndarray]]:
    if not edges:
        return []
    bins = np.array([_bin(row.get("popularity"), edges) for row in rows], np.int64)
    found = []
    for number in sorted(set(bins.tolist()) - {-1}):
        low, high = edges[number], edges[number + 1] if number + 1 < len(edges) else None
        title = f"{low:,.0f} and more" if high is None else f"{low:,.0f} to {high:,.0f}"
        if number == 0 and high is not None:
            title = f"below {high:,.0f}"
        center = math.sqrt(max(low, 1.0) * (high if high is not None else 3 * low))
        made, mask = _subset(f"popularity={number}", "popularity", title, bins == number, units_Q)
        found.append((dataclasses.replace(made, center=center), mask))
    return found if len(found) > 1 else []


def _bin(popularity: Any, edges: Sequence[float]) -> int:
    """-1 where it is unknown."""
    if not isinstance(popularity, int | float) or isinstance(popularity, bool):
        return -1
    return max(bisect.bisect_right(edges, popularity) - 1, 0)


def _subset(key: str, kind: str, title: str, mask: np.ndarray, units_Q: np.ndarray) -> tuple[QaSubset, np.ndarray]:
    return QaSubset(key, kind, title, int(mask.sum()), len(set(units_Q[mask].tolist()))), mask
