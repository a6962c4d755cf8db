"""Coverage of a table: against the obvious way, however it is cut into shards; bounded counters."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep import neighbor_statistics
from data_prep.neighbor_statistics import ChunkSet, HubCounter, coverage_lines, shard_statistics, table_statistics


def _table(rows: int, k: int, chunks: int, seed: int, sign: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    ids = (generator.random((rows, k)) ** 3 * chunks).astype(np.int64)
    distances = np.sort(sign * generator.lognormal(size=(rows, k)), axis=1).astype(np.float32)
    short = np.arange(k) >= generator.integers(0, k + 3, size=(rows, 1))
    ids[short], distances[short] = -1, np.inf
    return ids, distances


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_figures_are_those_of_the_whole_table(sign: float) -> None:
    ids, distances = _table(900, 6, 400, 0, sign)
    for cuts in ([], [300], [1, 500, 899]):
        parts = list(zip(np.split(ids, cuts), np.split(distances, cuts), strict=True))
        stats = table_statistics([shard_statistics(*part) for part in parts], 900, [i for i, _ in parts], 400)
        assert stats["none_share"] == pytest.approx((ids < 0).mean())
        assert stats["none_share_by_rank"] == pytest.approx((ids < 0).mean(axis=0).tolist())
        assert stats["rows_without_neighbors"] == (ids[:, 0] < 0).sum() > 0
        counts = np.bincount(ids[ids >= 0], minlength=400)
        assert stats["retrieved_chunks"] == (counts > 0).sum()
        order = np.argsort(-counts, kind="stable")[:20]
        assert stats["hubs"] == [{"chunk": int(c), "rows": int(counts[c])} for c in order if counts[c]]
        assert stats["hub_count_error"] == 0
        for name, column in (("nearest", 0), ("last", -1)):
            finite = distances[:, column][np.isfinite(distances[:, column])]
            quantiles = stats[f"{name}_distance_quantiles"]
            assert quantiles["0"] == finite.min() and quantiles["1"] == finite.max()
            for q in (0.05, 0.25, 0.5, 0.75, 0.95):
                assert quantiles[f"{q:g}"] == pytest.approx(np.quantile(finite, q), rel=0.04)
            histogram = stats[f"{name}_distance_histogram"]
            for entry in histogram:
                inside = (finite >= entry["from"] * (1 - 1e-9 * sign)) & (finite < entry["to"])
                if sign < 0:
                    inside = (finite > entry["from"]) & (finite <= entry["to"])
                assert entry["rows"] == inside.sum()
            assert sum(entry["rows"] for entry in histogram) == len(finite)


def test_distances_of_zero_and_a_table_without_neighbors() -> None:
    ids, distances = np.array([[3], [4]]), np.array([[0.0], [0.0]], np.float32)
    stats = table_statistics([shard_statistics(ids, distances)], 2, [ids], 9)
    assert set(stats["nearest_distance_quantiles"].values()) == {0.0}
    assert [entry["rows"] for entry in stats["nearest_distance_histogram"]] == [2]
    none = np.full((2, 3), -1), np.full((2, 3), np.inf, np.float32)
    stats = table_statistics([shard_statistics(*none)], 2, [none[0]], 0)
    assert stats["none_share"] == 1.0 and stats["hubs"] == [] and stats["nearest_distance_quantiles"] == {}
    assert coverage_lines(stats)[0] == "missing: 100.00% of all neighbors, all of them in 2 rows"
    empty = np.zeros((0, 3), np.int64), np.zeros((0, 3), np.float32)
    assert table_statistics([shard_statistics(*empty)], 0, [empty[0]], 5)["none_share"] == 0.0


def test_a_bounded_counter_names_the_hubs_with_a_bounded_error() -> None:
    generator = np.random.default_rng(0)
    stream = np.concatenate([np.repeat([7, 8, 9], [900, 700, 500]), generator.integers(100, 5000, size=6000)])
    generator.shuffle(stream)
    counter, exact = HubCounter(64), np.bincount(stream)
    for block in np.split(stream, 90):
        counter.add(*np.unique(block, return_counts=True))
    ids, counts = counter.most(3)
    assert ids.tolist() == [7, 8, 9] and 0 < counter.error <= len(stream) / 64
    assert all(exact[i] - counter.error <= c <= exact[i] for i, c in zip(ids, counts, strict=True))
    assert len(counter._ids) <= 64


def test_a_set_of_chunks_has_one_bit_each() -> None:
    generator = np.random.default_rng(1)
    chosen = generator.choice(5000, size=1234, replace=False)
    found = ChunkSet(5000)
    for part in np.array_split(chosen, 7):
        found.add(np.sort(part))
        found.add(np.sort(part))
    assert len(found) == 1234 and found._bits.nbytes == 625


def test_lines_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbor_statistics, "HUB_LIMIT", 4)
    ids, distances = _table(200, 3, 50, 3, 1.0)
    stats = table_statistics([shard_statistics(ids, distances)], 200, [ids], 50)
    lines = coverage_lines(stats)
    assert any(line.startswith("missing by rank: 1: ") for line in lines)
    assert any("of the database)" in line for line in lines) and "fall short by at most" in lines[-1]
    assert coverage_lines({"removed": 3}) == []
