"""Coverage of a neighbor table in bounded memory: what is missing, how far neighbors are, which chunks are hubs.

Distances are counted in bins of a fixed logarithmic scale, so that shards can be added up: 64 bins per decade, hence
quantiles within 2 %. Chunks that are retrieved are noted in a bitmap (one bit per chunk of the database). How often is
counted exactly while no more than `HUB_LIMIT` chunks are retrieved; beyond, by the summary of Misra and Gries (1982),
whose counts fall short by at most the recorded error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

HUB_LIMIT = 1 << 22
_HUBS = 20
_PER_DECADE, _COARSE, _SMALLEST = 64, 8, 1e-6
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BLOCK = 1 << 20


def shard_statistics(ids: np.ndarray, distances: np.ndarray) -> dict[str, Any]:
    """Figures of one shard that add up. ids int64 [n, k], -1 = none; distances float32 [n, k], inf = none.

    {"none": missing entries, "none_by_rank": [k], "rows_without_neighbors", "nearest", "last": {"minimum", "maximum",
    "bins": [[bin, rows]]} over the rows that have such a neighbor}.
    """
    absent = ids < 0
    return {
        "none": int(absent.sum()),
        "none_by_rank": absent.sum(axis=0).tolist(),
        "rows_without_neighbors": int(absent[:, 0].sum()),
        "nearest": _count_distances(distances[:, 0]),
        "last": _count_distances(distances[:, -1]),
    }


def table_statistics(
    shards: list[dict[str, Any]], rows: int, tables: Iterable[np.ndarray], chunks: int
) -> dict[str, Any]:
    """Figures of a table. shards: `shard_statistics` of each; tables: its ids int64 [n, k], by memory map; chunks: of
    the database."""
    by_rank = np.asarray(np.sum([shard["none_by_rank"] for shard in shards], axis=0, dtype=np.int64))
    retrieved, hubs = ChunkSet(chunks), HubCounter(HUB_LIMIT)
    for table in tables:
        for start in range(0, len(table), max(1, _BLOCK // max(table.shape[1], 1))):
            block = np.asarray(table[start : start + max(1, _BLOCK // max(table.shape[1], 1))])
            found, counts = np.unique(block[block >= 0], return_counts=True)
            retrieved.add(found)
            hubs.add(found, counts)
    return {
        "none_share": float(by_rank.sum() / max(rows * len(by_rank), 1)),
        "none_share_by_rank": [float(missing / max(rows, 1)) for missing in by_rank],
        "rows_without_neighbors": sum(shard["rows_without_neighbors"] for shard in shards),
        **_distances([shard["nearest"] for shard in shards], "nearest"),
        **_distances([shard["last"] for shard in shards], "last"),
        "retrieved_chunks": len(retrieved),
        "database_chunks": chunks,
        "hubs": [{"chunk": int(chunk), "rows": int(count)} for chunk, count in zip(*hubs.most(_HUBS), strict=True)],
        "hub_count_error": hubs.error,
    }


def coverage_lines(stats: dict[str, Any]) -> list[str]:
    """The figures of a table for people; nothing for a table that does not have them."""
    if "none_share" not in stats:
        return []
    lines = [
        f"missing: {stats['none_share']:.2%} of all neighbors, all of them in {stats['rows_without_neighbors']:,} rows"
    ]
    by_rank = stats.get("none_share_by_rank", [])
    shown = [rank for rank in (1, 2, 5, 10, 20) if rank <= len(by_rank)]
    if shown:
        lines.append("missing by rank: " + ", ".join(f"{rank}: {by_rank[rank - 1]:.2%}" for rank in shown))
    for name in ("nearest", "last"):
        quantiles = stats.get(f"{name}_distance_quantiles") or {}
        if quantiles:
            values = ", ".join(f"{float(q):.0%}: {value:.4g}" for q, value in quantiles.items())
            lines.append(f"distance of the {name} neighbor: {values}")
    if "retrieved_chunks" in stats and stats.get("database_chunks"):
        share = stats["retrieved_chunks"] / stats["database_chunks"]
        lines.append(f"retrieved at least once: {stats['retrieved_chunks']:,} chunks ({share:.1%} of the database)")
    hubs = stats.get("hubs") or []
    if hubs:
        error = stats.get("hub_count_error", 0)
        more = f" (counts fall short by at most {error:,})" if error else ""
        lines.append("hubs: " + ", ".join(f"chunk {hub['chunk']} in {hub['rows']:,} rows" for hub in hubs[:5]) + more)
    return lines


class ChunkSet:
    """Chunk numbers below `size`, one bit each."""

    def __init__(self, size: int) -> None:
        self._bits = np.zeros((size + 7) // 8, dtype=np.uint8)

    def add(self, ids: np.ndarray) -> None:
        """Add int64 [n]."""
        np.bitwise_or.at(self._bits, ids >> 3, np.left_shift(1, ids & 7).astype(np.uint8))

    def __len__(self) -> int:
        parts = range(0, len(self._bits), _BLOCK)
        return sum(int(np.unpackbits(self._bits[start : start + _BLOCK]).sum()) for start in parts)


class HubCounter:
    """Counts of the most frequent numbers. error: by how much a count may fall short (0 = all counts are exact)."""

    def __init__(self, limit: int) -> None:
        self.limit, self.error = limit, 0
        self._ids, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def add(self, ids: np.ndarray, counts: np.ndarray) -> None:
        """Add int64 [n] numbers, ascending without repeats, and how often each came."""
        if not len(ids):
            return
        both = np.concatenate([self._ids, ids])
        order = np.argsort(both, kind="stable")  # merges the two ascending parts: they are not sorted again
        both = both[order]
        first = np.flatnonzero(np.diff(both, prepend=-1))
        merged = np.add.reduceat(np.concatenate([self._counts, counts])[order], first)
        self._ids, self._counts = both[first], merged
        if len(merged) > self.limit:
            # Misra and Gries, for many at a time (Agarwal et al. 2012): take the largest count that is to go off all.
            cut = int(np.partition(merged, len(merged) - self.limit - 1)[len(merged) - self.limit - 1])
            kept = merged > cut
            self._ids, self._counts, self.error = self._ids[kept], merged[kept] - cut, self.error + cut

    def most(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The most frequent numbers and their counts, descending; equal counts by number."""
        order = np.argsort(-self._counts, kind="stable")[:count]
        return self._ids[order], self._counts[order]


def _count_distances(distances: np.ndarray) -> dict[str, Any]:
    finite = distances[np.isfinite(distances)].astype(np.float64)
    if not len(finite):
        return {"minimum": None, "maximum": None, "bins": []}
    bins, counts = np.unique(_bin_of(finite), return_counts=True)
    pairs = [[int(b), int(c)] for b, c in zip(bins, counts, strict=True)]
    return {"minimum": float(finite.min()), "maximum": float(finite.max()), "bins": pairs}


def _bin_of(values: np.ndarray) -> np.ndarray:
    """Bin 0 is what is smaller than `_SMALLEST` in size; bins beyond have the sign of their values."""
    size = np.maximum(np.abs(values) / _SMALLEST, 1.0)
    return (np.sign(values) * np.where(size > 1.0, 1 + np.floor(_PER_DECADE * np.log10(size)), 0)).astype(np.int64)


def _edge(position: float) -> float:
    return float(_SMALLEST * 10.0 ** (position / _PER_DECADE))


def _middle(number: int) -> float:
    return 0.0 if number == 0 else float(np.sign(number)) * _edge(abs(number) - 0.5)


def _distances(parts: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Quantiles {share: distance} and histogram [{"from", "to", "rows"}] of what shards counted."""
    counts: dict[int, int] = {}
    for part in parts:
        for number, rows in part["bins"]:
            counts[number] = counts.get(number, 0) + rows
    if not counts:
        return {f"{name}_distance_quantiles": {}, f"{name}_distance_histogram": []}
    lowest = min(part["minimum"] for part in parts if part["minimum"] is not None)
    highest = max(part["maximum"] for part in parts if part["maximum"] is not None)
    numbers = sorted(counts)
    reached = np.cumsum([counts[number] for number in numbers])
    places = np.searchsorted(reached, np.array(_QUANTILES) * (reached[-1] - 1), side="right")
    values = [float(np.clip(_middle(numbers[place]), lowest, highest)) for place in places]
    values[0], values[-1] = lowest, highest
    step = _PER_DECADE // _COARSE
    coarse: dict[int, int] = {}
    for number in numbers:
        group = int(np.sign(number)) * (1 + (abs(number) - 1) // step) if number else 0
        coarse[group] = coarse.get(group, 0) + counts[number]
    histogram = []
    for group in sorted(coarse):
        near, far = (_edge((abs(group) - 1) * step), _edge(abs(group) * step)) if group else (0.0, _SMALLEST)
        low, high = (near, far) if group > 0 else (-far, -near) if group < 0 else (-_SMALLEST, _SMALLEST)
        histogram.append({"from": low, "to": high, "rows": coarse[group]})
    return {
        f"{name}_distance_quantiles": {f"{q:g}": value for q, value in zip(_QUANTILES, values, strict=True)},
        f"{name}_distance_histogram": histogram,
    }
