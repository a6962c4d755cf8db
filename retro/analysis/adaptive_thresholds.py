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
    margin: a threshold is taken instead of the better fixed arm (of all questions that are fitted on) only if it is
    better by more than so many standard errors of the paired difference; 0 = by anything, as in the paper. With few
    questions the best of a dozen candidates is otherwise often the luckiest.
    """

    bins: int = 10
    spacing: Literal["width", "number"] = "width"
    edges: EdgesFrom = "dev"
    margin: float = 2.0


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


def best_threshold(
    values: np.ndarray, gains: np.ndarray, thresholds: np.ndarray, fixed: float = -np.inf, margin: float = 0.0
) -> float:
    """The threshold t with the largest sum of `gains` over values < t; of equals the least, which retrieves least.

    values, gains: float64 [n], gains = score with retrieval minus score without; thresholds: ascending. fixed: -inf
    (never) or inf (always), which is taken where the best is not better by more than `margin` standard errors.
    """
    order = np.argsort(values, kind="stable")
    totals = np.concatenate([[0.0], np.cumsum(gains[order])])
    reached = totals[np.searchsorted(values[order], thresholds, side="left")]
    best = float(thresholds[int(np.argmax(reached >= reached.max() - _SAME))])
    if margin == 0.0 or len(gains) == 0:
        return best
    # What the best changes, question by question: the others stay as the fixed arm has them.
    changes = gains * ((values < best).astype(np.float64) - (values < fixed))
    error = float(changes.std()) * len(changes) ** 0.5
    return best if changes.sum() > margin * error + _SAME else fixed


def better_fixed(gains: np.ndarray) -> float:
    """inf (always) if retrieval gains on the whole, else -inf (never)."""
    return np.inf if gains.sum() > _SAME else -np.inf


def fit_thresholds(
    values: np.ndarray,
    gains: np.ndarray,
    groups: np.ndarray,
    num_groups: int,
    chosen: np.ndarray,
    fit: ThresholdFit,
) -> np.ndarray:
    """Thresholds float64 [num_groups], each fitted on the `chosen` questions of its group; without any, the better
    fixed arm.

    values, gains: float64 [n]; groups: int64 [n]; chosen: bool [n]. On the chosen questions the sum of scores is at
    least that of never and of always: a group departs from the better of the two only where that gains.
    """
    fixed = better_fixed(gains[chosen])
    fitted = np.full(num_groups, fixed)
    for group in range(num_groups):
        inside = groups == group
        dev = inside & chosen
        if dev.any():
            edges = values[dev if fit.edges == "dev" else inside]
            fitted[group] = best_threshold(values[dev], gains[dev], candidates(edges, fit), fixed, fit.margin)
    return fitted
