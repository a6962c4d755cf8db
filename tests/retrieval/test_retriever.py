"""The retriever: exclusion, over-fetch, reranking, overlap; against a slow version of the same rules."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.config.errors import ArtifactMismatchError
from retro.config.prep_index import Bm25Config
from retro.retrieval.filters import Exclusions
from retro.retrieval.retriever import Retriever
from tests.retrieval.bm25_index import bm25_index
from tests.retrieval.memory_store import MemoryChunks


class RankSearcher:
    """Query row r prefers the chunks in the order of `ranking[r]`; the first token of a row says which it is."""

    def __init__(self, ranking: list[list[int]], num_chunks: int) -> None:
        self.ranking, self.num_chunks = ranking, num_chunks
        self.calls: list[tuple[int, int]] = []

    def identity(self) -> dict[str, Any]:
        return {"kind": "ranks"}

    def encode(self, token_rows: Any) -> np.ndarray:
        return np.array([int(row[0]) for row in token_rows])

    def take(self, encoded: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return encoded[rows]

    def search(self, token_rows: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.search_encoded(self.encode(token_rows), k)

    def search_encoded(self, encoded: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append((len(encoded), k))
        ids = np.full((len(encoded), k), -1, np.int64)
        distances = np.full((len(encoded), k), np.inf, np.float32)
        for i, row in enumerate(encoded):
            found = self.ranking[row][:k]
            ids[i, : len(found)] = found
            distances[i, : len(found)] = np.arange(len(found))
        return distances, ids


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_document_of_the_sequence_appears_and_nothing_is_dropped_needlessly(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    database = MemoryChunks([[3] * n for n in sizes], 1)
    n = data.draw(st.integers(1, 6))
    ranking = [data.draw(st.permutations(range(database.num_chunks))) for _ in range(n)]
    ranking = [r[: data.draw(st.integers(0, len(r)))] for r in ranking]
    sequences = np.sort(np.array([data.draw(st.integers(0, 2)) for _ in range(n)]))
    documents = np.array([data.draw(st.integers(0, len(sizes) + 1)) for _ in range(n)])  # some not in the database
    keys = (1000 + 7 * documents).astype(np.uint64)
    k, candidates = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    retriever = Retriever(RankSearcher(ranking, database.num_chunks), database, candidates=candidates)  # type: ignore[arg-type]
    rows = [np.array([i]) for i in range(n)]
    ids, distances = retriever.retrieve(rows, k, Exclusions(sequences, sequences, keys))
    for i in range(n):
        touched = {int(documents[j]) for j in range(n) if sequences[j] == sequences[i]}
        expected = [c for c in ranking[i] if int(database.document[c]) not in touched][:k]
        assert ids[i].tolist() == expected + [-1] * (k - len(expected))
        assert [ranking[i].index(c) for c in expected] == distances[i, : len(expected)].tolist()
        assert np.isinf(distances[i, len(expected) :]).all()


def test_over_fetch_searches_again_only_for_rows_that_lack_neighbors() -> None:
    database = MemoryChunks([[3] * 90, [3] * 10], 1)
    ranking = [list(range(100)), list(range(99, -1, -1))]
    searcher = RankSearcher(ranking, 100)
    ids, _ = Retriever(searcher, database, candidates=20).retrieve(  # type: ignore[arg-type]
        [np.array([0]), np.array([1])], 5, np.array([1000], np.uint64)
    )
    assert ids.tolist() == [[90, 91, 92, 93, 94], [99, 98, 97, 96, 95]]
    assert searcher.calls == [(2, 20), (1, 40), (1, 80), (1, 100)]


def test_over_fetch_ends_when_the_searcher_has_no_more() -> None:
    database = MemoryChunks([[3] * 100], 1)
    searcher = RankSearcher([list(range(7))], 100)
    ids, _ = Retriever(searcher, database, candidates=4).retrieve([np.array([0])], 8)  # type: ignore[arg-type]
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, -1]]
    assert searcher.calls == [(1, 8)]


def test_rerank_orders_all_candidates_by_bm25(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    database = MemoryChunks([generator.integers(3, 20, 12).tolist() for _ in range(12)], 4)
    bm25 = bm25_index(tmp_path / "index", [database.rows()], Bm25Config(terms="tokens"))
    ranking = [generator.permutation(database.num_chunks).tolist() for _ in range(5)]
    searcher = RankSearcher(ranking, database.num_chunks)
    rows = [np.array([i, 5, 9, 11, 15]) for i in range(5)]
    excluded = np.array([1000, 1021], np.uint64)
    retriever = Retriever(searcher, database, candidates=16, reranker=bm25)  # type: ignore[arg-type]
    ids, distances = retriever.retrieve(rows, 6, excluded)
    scores = bm25.score(bm25.encode(rows), np.tile(np.arange(database.num_chunks), (5, 1)))
    for i in range(5):
        allowed = [c for c in ranking[i][:16] if database.document[c] not in (0, 3)]
        assert len(allowed) >= 6
        best = sorted(allowed, key=lambda c: (-scores[i, c], ranking[i].index(c)))[:6]
        assert ids[i].tolist() == best
        assert distances[i].tolist() == [-scores[i, c] for c in best]


@pytest.mark.parametrize("rerank", [False, True])
def test_near_duplicates_are_dropped_by_their_overlap(rerank: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    query = generator.integers(3, 1000, 8)
    documents = []
    for shared in list(range(9)) * 8:  # documents that share a run of 0..8 tokens, some of it in the continuation
        text = generator.integers(1000, 2000, 8)
        start = int(generator.integers(0, 8 - shared + 1))
        text[start : start + shared] = query[:shared]
        documents.append(text.tolist())
    database = MemoryChunks(documents, 4)
    ranking = [generator.permutation(database.num_chunks).tolist()]
    bm25 = bm25_index(tmp_path / "i", [database.rows()], Bm25Config(terms="tokens")) if rerank else None
    retriever = Retriever(
        RankSearcher(ranking, database.num_chunks),  # type: ignore[arg-type]
        database,  # type: ignore[arg-type]
        candidates=50,
        reranker=bm25,
        max_overlap_tokens=3,
    )
    row = query.copy()
    retriever.searcher.encode = lambda rows: np.zeros(len(rows), int)  # type: ignore[method-assign]
    ids, _ = retriever.retrieve([row], 40)

    def run(chunk: int) -> int:
        text, best = database.with_next[chunk], 0
        for i in range(8):
            for j in range(i + 1, 9):
                wanted = row[i:j].tolist()
                if any(text[s : s + len(wanted)] == wanted for s in range(len(text))):
                    best = max(best, j - i)
        return best

    # 50 candidates are too few for 40 neighbors: the second search takes 100
    expected = [c for c in ranking[0][:100] if run(c) <= 3]
    assert len([c for c in ranking[0][:50] if run(c) <= 3]) < 40 < len(expected)
    if rerank:
        assert {run(c) for c in ids[0].tolist()} <= {0, 1, 2, 3} and (ids >= 0).all()
        scores = bm25.score(bm25.encode([row]), np.array([expected]))[0]  # type: ignore[union-attr]
        order = np.argsort(-scores, kind="stable")[:40]
        assert ids[0].tolist() == [expected[i] for i in order]
    else:
        assert ids[0].tolist() == expected[:40]


def test_the_index_of_another_database_is_refused(tmp_path: Path) -> None:
    database = MemoryChunks([[3] * 10], 1)
    with pytest.raises(ArtifactMismatchError, match="searcher: expected an index of the database's 10 chunks, found 9"):
        Retriever(RankSearcher([], 9), database)  # type: ignore[arg-type]
    bm25 = bm25_index(tmp_path / "i", [[np.array([3])]], Bm25Config(terms="tokens"))
    with pytest.raises(ArtifactMismatchError, match="reranker"):
        Retriever(RankSearcher([], 10), database, reranker=bm25)  # type: ignore[arg-type]


def test_no_query_and_more_neighbors_than_chunks() -> None:
    database = MemoryChunks([[3] * 3], 1)
    retriever = Retriever(RankSearcher([[2, 0, 1]], 3), database)  # type: ignore[arg-type]
    assert retriever.retrieve([], 4)[0].shape == (0, 4)
    assert retriever.retrieve([np.array([0])], 5)[0].tolist() == [[2, 0, 1, -1, -1]]


def test_rows_are_searched_in_parts_where_many_candidates_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    database = MemoryChunks([[3] * 40], 1)
    generator = np.random.default_rng(0)
    ranking = [generator.permutation(40).tolist() for _ in range(9)]
    rows = [np.array([i]) for i in range(9)]
    whole = Retriever(RankSearcher(ranking, 40), database, candidates=10).retrieve(rows, 7)  # type: ignore[arg-type]
    monkeypatch.setattr("retro.retrieval.retriever._ENTRIES", 25)
    searcher = RankSearcher(ranking, 40)
    parts = Retriever(searcher, database, candidates=10).retrieve(rows, 7)  # type: ignore[arg-type]
    assert parts[0].tolist() == whole[0].tolist() and parts[1].tolist() == whole[1].tolist()
    assert len(searcher.calls) == 4 and all(n * k <= 30 for n, k in searcher.calls)
