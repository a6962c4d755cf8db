"""Thresholds below which retrieval is used, fitted per group of questions (Mallen et al. 2023, section 5.1)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

EdgesFrom = Literal["dev", "all"]
#: Differences of accuracy below this are rounding.
_SAME = 1e-9


@dataclasses.dataclass(frozen=True)
class ThresholdFit:
    """How thresholds are fitted.

    bins: candidates are the edges of so many bins of a group's values, besides never and always; spacing: bins of equal
    width, or of equally many questions; edges: of the questions that are fitted on ("dev"), or of all ("all", as the
    paper's code has it: the test questions' values then decide where the candidates lie, though not which is taken).
    """

    bins: int = 10
    spacing: Literal["width", "number"] = "width"
    edges: EdgesFrom = "dev"


def candidates(values: np.ndarray, fit: ThresholdFit) -> np.ndarray:
    """Ascending thresholds float64 [<= bins + 3]: -inf (never), the edges of the finite `values`, inf (always)."""
    finite = values[np.isfinite(values)]
    edges = np.empty(0)
    if len(finite):
        places = np.arange(fit.bins + 1)
        low, high = finite.min(), finite.max()
        even = fit.spacing == "width"
        edges = low + (high - low) * places / fit.bins if even else np.quantile(finite, places / fit.bins)
    return np.unique(np.concatenate([[-np.inf], edges, [np.inf]]))


def best_threshold(values: np.ndarray, gains: np.ndarray, thresholds: np.ndarray) -> float:
    """The threshold t with the largest sum of `gains` over values < t; of equals the least, which retrieves least.

    values, gains: float64 [n], gains = score with retrieval minus score without; thresholds: ascending.
    """
    order = np.argsort(values, kind="stable")
    totals = np.concatenate([[0.0], np.cumsum(gains[order])])
    reached = totals[np.searchsorted(values[order], thresholds, side="left")]
    return float(thresholds[int(np.argmax(reached >= reached.max() - _SAME))])


def fit_thresholds(
    values: np.ndarray,
    gains: np.ndarray,
    groups: np.ndarray,
    num_groups: int,
    chosen: np.ndarray,
    fit: ThresholdFit,
) -> np.ndarray:
    """Thresholds float64 [num_groups], each fitted on the `chosen` questions of its group; without any, never.

    values, gains: float64 [n]; groups: int64 [n]; chosen: bool [n]. On the chosen questions the sum of scores is at
    least that of never and of always, because both are candidates in each group.
    """
    fitted = np.full(num_groups, -np.inf)
    for group in range(num_groups):
        inside = groups == group
        dev = inside & chosen
        if dev.any():
            edges = values[dev if fit.edges == "dev" else inside]
            fitted[group] = best_threshold(values[dev], gains[dev], candidates(edges, fit))
    return fitted
