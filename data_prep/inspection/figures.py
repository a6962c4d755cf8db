"""Further lines about a finished artifact, from the figures of its manifest."""

from __future__ import annotations

from typing import Any

from data_prep.neighbor_statistics import coverage_lines
from retro.data.neighbor_table import NEIGHBORS_KIND
from retro.retrieval.searcher import INDEX_KIND

_AS_CONFIGURED = "as configured"  # what an index says of a factory that the configuration names


def figures(kind: str, stats: dict[str, Any]) -> list[str]:
    """Lines for people; [] for kinds whose one line says it all."""
    found = coverage_lines(stats) if kind == NEIGHBORS_KIND else []
    if kind == INDEX_KIND:
        recall = stats.get("recall")
        if isinstance(recall, (int, float)) and "recall_at" in stats:
            found.append(f"recall measured on {stats.get('recall_queries', '?')} queries against exact search")
            if isinstance(stats.get("recall_among"), int) and stats["recall_among"] < stats.get("vectors", 0):
                found[-1] += f", among {stats['recall_among']:,} sampled vectors"
        if isinstance(stats.get("reason"), str) and stats["reason"] != _AS_CONFIGURED:
            found.append(f"chosen by auto: {stats['reason']}")
    return found
