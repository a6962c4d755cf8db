"""Fusion of searchers: figures worked out by hand, a slow version of the same rules, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.config.errors import ArtifactMismatchError
from retro.retrieval.hybrid import HybridSearcher
from retro.retrieval.retriever import Retriever
from tests.retrieval.memory_store import MemoryChunks

NONE = float("-inf")


class Scores:
    """A searcher that knows the score of every chunk for query row r: scores[r]; NONE = cannot be scored."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = np.array(scores, dtype=np.float32)
        self.num_chunks = self.scores.shape[1]

    def identity(self) -> dict[str, Any]:
        return {"kind": "scores"}

    def encode(self, token_rows: Any) -> np.ndarray:
        return np.array([int(row[0]) for row in token_rows])

    def take(self, encoded: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return encoded[rows]

    def search(self, token_rows: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.search_encoded(self.encode(token_rows), k)

    def search_encoded(self, encoded: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((len(encoded), k), -1, np.int64)
        distances = np.full((len(encoded), k), np.inf, np.float32)
        for i, row in enumerate(encoded):
            order = sorted(range(self.num_chunks), key=lambda c: (-self.scores[row][c], c))
            found = [c for c in order if self.scores[row][c] > 0][:k]
            ids[i, : len(found)] = found
            distances[i, : len(found)] = -self.scores[row][found]
        return distances, ids

    def score(self, encoded: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return np.where(ids >= 0, np.take_along_axis(self.scores[encoded], np.maximum(ids, 0), 1), NONE)


class Unable(Scores):
    """A searcher that scores nothing it was not asked to find."""

    score = None  # type: ignore[assignment]


QUERY = [np.array([0])]


def test_reciprocal_ranks_by_hand() -> None:
    first = Scores([[9, 8, 7, 0]])  # 0, 1, 2
    second = Scores([[0, 5, 9, 3]])  # 2, 1, 3
    both = HybridSearcher([first, second], depth=3, weights=(1, 1), constant=60)
    distances, ids = both.search(QUERY, 4)
    assert ids.tolist() == [[2, 1, 0, 3]]
    expected = [1 / 63 + 1 / 61, 1 / 62 + 1 / 62, 1 / 61, 1 / 63]
    np.testing.assert_allclose(-distances[0], expected, rtol=1e-6)


def test_weights_and_the_constant_count() -> None:
    first, second = Scores([[9, 8, 0]]), Scores([[0, 8, 9]])
    even = HybridSearcher([first, second], depth=2, weights=(1, 1))
    assert even.search(QUERY, 3)[1].tolist() == [[1, 0, 2]]  # equal scores ascend by id
    uneven = HybridSearcher([first, second], depth=2, weights=(1, 5), constant=1)
    assert uneven.search(QUERY, 3)[1].tolist() == [[2, 1, 0]]
    # With a small constant the first place counts more than two second ones.
    steep = HybridSearcher([Scores([[9, 8, 0]]), Scores([[0, 8, 9]])], depth=2, weights=(1, 1), constant=1)
    np.testing.assert_allclose(-steep.search(QUERY, 1)[0], [[1 / 3 + 1 / 3]], rtol=1e-6)
    assert even.identity() != steep.identity() != uneven.identity()


def test_weighted_scores_by_hand() -> None:
    # Candidates of either: 0, 1, 2. Scaled: first (1, .5, 0), second (0, 1, .75).
    first, second = Scores([[10, 6, 2, 0]]), Scores([[1, 5, 4, 0]])
    both = HybridSearcher([first, second], depth=2, weights=(0.75, 0.25), fusion="weighted")
    distances, ids = both.search(QUERY, 4)
    assert ids.tolist() == [[0, 1, 2, -1]]
    np.testing.assert_allclose(-distances[0, :3], [0.75, 0.75 * 0.5 + 0.25, 0.25 * 0.75], rtol=1e-6)
    assert distances[0, 3] == np.inf


def test_what_a_searcher_cannot_score_counts_as_its_worst() -> None:
    first, second = Scores([[10, 6, 2]]), Scores([[NONE, 5, 4]])
    both = HybridSearcher([first, second], depth=3, weights=(0.5, 0.5), fusion="weighted")
    distances, ids = both.search(QUERY, 3)
    assert ids.tolist() == [[1, 0, 2]] and np.isfinite(distances).all()
    np.testing.assert_allclose(-distances[0], [0.25 + 0.5, 0.5, 0], rtol=1e-6)


def test_equal_scores_of_one_searcher_do_not_divide_by_zero() -> None:
    both = HybridSearcher([Scores([[3, 3]]), Scores([[1, 2]])], depth=2, weights=(0.5, 0.5), fusion="weighted")
    distances, ids = both.search(QUERY, 2)
    assert ids.tolist() == [[1, 0]] and distances.tolist() == [[-0.5, 0]]


def test_nothing_found_is_nothing() -> None:
    for fusion in ("reciprocal_rank", "weighted"):
        both = HybridSearcher([Scores([[0, 0]]), Scores([[0, 0]])], depth=2, weights=(1, 1), fusion=fusion)  # type: ignore[arg-type]
        distances, ids = both.search(QUERY, 2)
        assert ids.tolist() == [[-1, -1]] and np.isinf(distances).all()


scores = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.5]), min_size=6, max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=4), st.integers(1, 6), st.integers(1, 8))
def test_agrees_with_a_slow_version_for_any_batch(rows: list, depth: int, k: int) -> None:
    first, second = Scores([row[0] for row in rows]), Scores([row[1] for row in rows])
    both = HybridSearcher([first, second], depth=depth, weights=(1.0, 0.5))
    queries = [np.array([r]) for r in range(len(rows))]
    distances, ids = both.search(queries, k)
    for r, query in enumerate(queries):
        total: dict[int, float] = {}
        for searcher, weight in ((first, 1.0), (second, 0.5)):
            for rank, chunk in enumerate(searcher.search([query], depth)[1][0].tolist(), start=1):
                if chunk >= 0:
                    total[chunk] = total.get(chunk, 0.0) + weight / (60 + rank)
        expected = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:k]
        assert [c for c in ids[r].tolist() if c >= 0] == [chunk for chunk, _ in expected]
        np.testing.assert_allclose(-distances[r][: len(expected)], [score for _, score in expected], rtol=1e-6)
        alone = both.search([query], k)
        assert alone[1].tolist() == [ids[r].tolist()] and alone[0].tobytes() == distances[r].tobytes()


def test_the_retriever_searches_and_reranks_with_it() -> None:
    database = MemoryChunks([[3] * 4], 1)
    both = HybridSearcher([Scores([[4, 3, 2, 1]]), Scores([[4, 3, 2, 1]])], depth=4, weights=(1, 1))
    assert Retriever(both, database, candidates=2).retrieve(QUERY, 2)[0].tolist() == [[0, 1]]  # type: ignore[arg-type]
    reranked = Retriever(both, database, candidates=3, reranker=Scores([[1, 2, 3, 9]]))  # type: ignore[arg-type]
    ids, distances = reranked.retrieve(QUERY, 3)
    assert ids.tolist() == [[2, 1, 0]] and distances.tolist() == [[-3, -2, -1]]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ArtifactMismatchError, match="one database"):
        HybridSearcher([Scores([[1]]), Scores([[1, 2]])], depth=1, weights=(1, 1))
    with pytest.raises(ValueError, match="a weight for each of 2"):
        HybridSearcher([Scores([[1]]), Scores([[1]])], depth=1, weights=(1,))
    with pytest.raises(TypeError, match="Unable does not score"):
        HybridSearcher([Scores([[1]]), Unable([[1]])], depth=1, weights=(1, 1), fusion="weighted")
