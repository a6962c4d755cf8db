"""The exact index against loops, and independence of batching."""

import numpy as np
import pytest

from retro.retrieval import exact
from retro.retrieval.exact import ExactIndex
from retro.retrieval.recall import drop_self, recall_at_k
from retro.retrieval.vectors import VectorStore


def _slow(query: np.ndarray, vectors: np.ndarray, metric: str, k: int) -> list[int]:
    found = []
    for i, vector in enumerate(vectors):
        if not vector.any():
            continue
        if metric == "l2":
            distance = sum((float(a) - float(b)) ** 2 for a, b in zip(query, vector, strict=True))
        else:
            distance = -sum(float(a) * float(b) for a, b in zip(query, vector, strict=True))
        found.append((np.float32(distance), i))
    return [i for _, i in sorted(found)[:k]]


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("block", [7, 65536])
def test_matches_brute_force_with_ties_and_zero_vectors(
    metric: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "_VECTORS", block)
    generator = np.random.default_rng(1)
    vectors = generator.integers(-1, 2, (60, 4)).astype(np.float32)  # few distinct vectors: many exact ties
    vectors[[3, 40]] = 0
    queries = generator.integers(-1, 2, (15, 4)).astype(np.float32)
    queries[5] = 0
    store = VectorStore([vectors[:25], vectors[25:]])
    distances, ids = ExactIndex(store, metric).search(queries, 9)  # type: ignore[arg-type]
    for i, query in enumerate(queries):
        assert ids[i].tolist() == ([-1] * 9 if i == 5 else _slow(query, vectors, metric, 9))
    assert np.isinf(distances[5]).all()
    assert (np.diff(np.delete(distances, 5, axis=0), axis=1) >= 0).all()


def test_no_vector_is_read_for_zero_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks without a word have none; searching wider for them must not cost a pass over the database."""
    store = VectorStore([np.ones((5, 3), np.float32)])
    monkeypatch.setattr(VectorStore, "blocks", lambda self, rows: pytest.fail("the database is read"))
    distances, ids = ExactIndex(store, "l2").search(np.zeros((2, 3), np.float32), 4)
    assert (ids == -1).all() and np.isinf(distances).all() and ids.shape == (2, 4)


def test_the_same_bits_for_any_batching() -> None:
    generator = np.random.default_rng(2)
    vectors = generator.normal(size=(3000, 48)).astype(np.float32)
    vectors[100:1500] = vectors[100]  # more equal vectors than k
    index = ExactIndex(VectorStore([vectors]), "l2")
    queries = np.concatenate([vectors[90:110], generator.normal(size=(150, 48)).astype(np.float32)])
    distances, ids = index.search(queries, 20)
    assert ids[15].tolist() == list(range(100, 120)) and (distances[15] == 0).all()
    for i in (0, 15, 40, 169):
        alone_distances, alone_ids = index.search(queries[i : i + 1], 20)
        assert alone_ids[0].tolist() == ids[i].tolist()
        assert alone_distances[0].tobytes() == distances[i].tobytes()


def test_fewer_vectors_than_asked_for() -> None:
    vectors = np.eye(3, dtype=np.float32)
    distances, ids = ExactIndex(VectorStore([vectors]), "l2").search(vectors[:1], 5)
    assert ids.tolist() == [[0, 1, 2, -1, -1]] and np.isinf(distances[0, 3:]).all()


def test_recall_never_counts_padding() -> None:
    exact_ids = np.array([[1, 2, -1, -1], [3, -1, -1, -1]])
    assert recall_at_k(exact_ids, exact_ids) == 1.0
    assert recall_at_k(np.array([[2, -1, -1, -1], [-1, -1, -1, -1]]), exact_ids) == pytest.approx(1 / 3)
    assert recall_at_k(np.full((2, 4), -1), exact_ids) == 0.0
    assert np.isnan(recall_at_k(exact_ids, np.full((2, 4), -1)))
    with pytest.raises(ValueError, match="rows"):
        recall_at_k(exact_ids[:1], exact_ids)


def test_drop_self() -> None:
    ids = np.array([[7, 1, 2], [1, 8, 2], [1, 2, 3], [1, -1, -1]])
    assert drop_self(ids, np.array([7, 8, 9, 1]), 2).tolist() == [[1, 2], [1, 2], [1, 2], [-1, -1]]


def test_vector_store_reads_across_shards() -> None:
    vectors = np.arange(20, dtype=np.float16).reshape(10, 2)
    store = VectorStore([vectors[:3], vectors[3:4], vectors[4:]])
    ids = np.array([9, 0, 3, 2, 9])
    assert store.gather(ids).tolist() == vectors[ids].tolist() and store.gather(ids).dtype == np.float32
    assert np.concatenate([block for _, block in store.blocks(2)]).tolist() == vectors.tolist()
    for bad in (-1, 10):
        with pytest.raises(IndexError, match="expected 0 to 9"):
            store.gather(np.array([bad]))
