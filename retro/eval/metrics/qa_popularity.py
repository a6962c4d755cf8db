"""Accuracy by popularity: monthly page views of what a question is about (Mallen et al. 2023, sections 3 and 4)."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from retro.eval.metrics.answers import mean_scores
from retro.eval.metrics.bits_per_byte import Row

#: Lower ends of the bins, monthly page views; the first also takes 0, the last has no upper end. The same in every
#: evaluation, so that evaluations can be laid side by side.
EDGES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000)


def popularity_bin(popularity: float) -> int:
    """Number of the bin, from 0."""
    return max(bisect.bisect_right(EDGES, popularity) - 1, 0)


def scores_by_popularity(
    rows_by_arm: Mapping[str, Sequence[Row]], metrics: Sequence[str], primary: str
) -> dict[str, Any] | None:
    """{"edges", "arms": {arm: [{"low", "high" (None = no end), metrics, "n", "missing"}]}, "correlation": {arm: r}}.

    Rows carry `popularity` and their scores. Bins run from the lowest to the highest that holds a question of any arm.
    correlation: Pearson's, of the primary metric and the logarithm of max(popularity, 1), None where either is
    constant. None if no row has a popularity.
    """
    known = {arm: [row for row in rows if row["popularity"] is not None] for arm, rows in rows_by_arm.items()}
    bins = {popularity_bin(row["popularity"]) for rows in known.values() for row in rows}
    if not bins:
        return None
    arms: dict[str, list[dict[str, Any]]] = {}
    for arm, rows in known.items():
        arms[arm] = []
        for number in range(min(bins), max(bins) + 1):
            high = EDGES[number + 1] if number + 1 < len(EDGES) else None
            inside = [row for row in rows if popularity_bin(row["popularity"]) == number]
            arms[arm].append({"low": EDGES[number], "high": high, **mean_scores(inside, metrics)})
    return {
        "edges": list(EDGES),
        "arms": arms,
        "correlation": {arm: _correlation(rows, primary) for arm, rows in known.items()},
    }


def _correlation(rows: Sequence[Row], metric: str) -> float | None:
    pairs = [(math.log(max(row["popularity"], 1.0)), row[metric]) for row in rows if row[metric] is not None]
    if len(pairs) < 2:
        return None
    n = len(pairs)
    mean_x, mean_y = (math.fsum(values) / n for values in zip(*pairs, strict=True))
    spread_x = math.fsum((x - mean_x) ** 2 for x, _ in pairs)
    spread_y = math.fsum((y - mean_y) ** 2 for _, y in pairs)
    if spread_x == 0 or spread_y == 0:
        return None
    return math.fsum((x - mean_x) * (y - mean_y) for x, y in pairs) / math.sqrt(spread_x * spread_y)
