"""Scores of given chunks: looked up or added up, the same bits; a large database is not read whole for a few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.config.prep_index import Bm25Config
from retro.retrieval import bm25, candidate_scores
from retro.retrieval.bm25 import BM25Searcher
from retro.retrieval.candidate_scores import find_in_lists, lookup_is_less
from retro.retrieval.terms import token_terms
from tests.retrieval.bm25_index import bm25_index


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> BM25Searcher:
    """900 chunks in three segments; the last has none of the rare tokens."""
    generator = np.random.default_rng(0)
    share = 1 / np.arange(1, 201)
    rows = [generator.choice(200, size=20, p=share / share.sum()) + 3 for _ in range(900)]
    for row in rows[600:]:
        row[row > 100] = 4
    return bm25_index(
        tmp_path_factory.mktemp("bm25") / "index", [rows[:50], rows[50:600], rows[600:]], Bm25Config(terms="tokens")
    )


def _queries(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    # Tokens come more than once, some that the database does not know, and a query without any.
    return [*(generator.integers(3, 230, size=int(generator.integers(1, 60))) for _ in range(count)), np.zeros(0, int)]


def _always(monkeypatch: pytest.MonkeyPatch, lookup: bool) -> None:
    def choose(queries: Any, lengths: Any, candidates: Any, chunks: Any) -> np.ndarray:
        return np.full(len(queries), lookup)

    monkeypatch.setattr(bm25, "lookup_is_less", choose)


@pytest.mark.parametrize("pairs", [1 << 15, 7])
def test_lookup_gives_the_bits_of_adding_up(
    searcher: BM25Searcher, monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    queries = searcher.encode(_queries(25))
    generator = np.random.default_rng(2)
    ids = generator.integers(-1, 900, size=(26, 40))  # with repeats and none
    ids[3] = -1
    everything = np.tile(np.arange(900), (26, 1))
    _always(monkeypatch, lookup=False)
    added, all_added = searcher.score(queries, ids), searcher.score(queries, everything)
    _always(monkeypatch, lookup=True)
    monkeypatch.setattr(candidate_scores, "_PAIRS", pairs)
    assert searcher.score(queries, ids).tobytes() == added.tobytes()
    assert searcher.score(queries, everything).tobytes() == all_added.tobytes()
    monkeypatch.undo()
    assert searcher.score(queries, ids).tobytes() == added.tobytes()
    # And those of the search, which is tested on its own.
    distances, found = searcher.search_encoded(queries, 900)
    scores = np.where(found >= 0, -searcher.score(queries, found), np.float32(np.inf))
    assert scores.astype(np.float32).tobytes() == distances.tobytes() and (found >= 0).sum() > 1000
    assert not added[3].any() and not added[-1].any() and (added[ids < 0] == 0).all()


def test_a_large_segment_is_not_read_for_a_few_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [np.array([3, 4, 5 + i % 50]) for i in range(6000)]  # two tokens are in every chunk
    searcher = bm25_index(tmp_path / "index", [rows[:3000], rows[3000:]], Bm25Config(terms="tokens", max_ngram=1))
    queries = searcher.encode([rows[7], rows[4001]])
    ids = np.array([[7, 57, 8], [4001, 7, -1]])
    expected = searcher.score(queries, np.tile(np.arange(6000), (2, 1)))

    def scan(*_: Any) -> Any:
        raise AssertionError("lists are added up")

    monkeypatch.setattr(bm25._Segment, "scores", lambda self, queries: scan() if len(queries) else iter(()))
    scores = searcher.score(queries, ids)
    assert scores[0].tolist() == expected[0, [7, 57, 8]].tolist()
    assert scores[1].tolist() == [*expected[1, [4001, 7]].tolist(), 0.0]
    with pytest.raises(AssertionError, match="added up"):  # of all chunks that is less work
        searcher.score(queries, np.tile(np.arange(3000), (2, 1)))


def test_the_way_depends_on_each_query_alone() -> None:
    queries = token_terms([np.array([3, 4]), np.array([5]), np.array([6, 7, 8])])
    lengths, candidates = np.array([100, 5000, 3, 40, 900, 70000]), np.array([200, 200, 10])
    together = lookup_is_less(queries, lengths, candidates, 100_000)
    borders = queries.offsets
    for i in range(3):
        part = slice(borders[i], borders[i + 1])
        alone = lookup_is_less(queries.take(np.array([i])), lengths[part], candidates[i : i + 1], 100_000)
        assert alone.tolist() == [together[i]]
    assert lookup_is_less(queries, lengths, np.array([9000] * 3), 100_000).tolist() == [False] * 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_places_in_lists(data: st.DataObject) -> None:
    lists = data.draw(st.lists(st.sets(st.integers(0, 40), min_size=1), min_size=1, max_size=6))
    values = np.concatenate([np.array(sorted(part), np.int32) for part in lists])
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in lists])])
    pairs = [(number, wanted) for number in range(len(lists)) for wanted in range(-1, 43)]
    number, wanted = np.array(pairs).T
    found = find_in_lists(values, offsets[number], offsets[number + 1], wanted)
    for (i, value), place in zip(pairs, found.tolist(), strict=True):
        if value in lists[i]:
            assert offsets[i] <= place < offsets[i + 1] and values[place] == value
        else:
            assert place == -1
    none = np.zeros(0, np.int64)
    assert find_in_lists(values, none, none, none).tolist() == []
