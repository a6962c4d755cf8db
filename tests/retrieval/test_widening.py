"""Queries that an approximate index found too little for: more lists are probed, until there is no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retro.config.prep_index import Bm25Config, VectorIndexConfig
from retro.retrieval import faiss_index
from retro.retrieval.exact import ExactIndex
from retro.retrieval.filters import OwnKeys
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import WideningSearcher
from retro.retrieval.vectors import VectorStore
from tests.retrieval.bm25_index import bm25_index
from tests.retrieval.faiss_vectors import build
from tests.retrieval.memory_store import MemoryChunks

CLUSTERS, EACH, DIMENSION = 8, 60, 8


class Vectors:
    """A searcher of vectors whose queries are the vectors of chunks."""

    def __init__(self, index: object, store: VectorStore) -> None:
        self.index, self.store = index, store
        self.num_chunks = len(store)

    def encode(self, token_rows: object) -> np.ndarray:
        raise AssertionError("the vectors are given")

    def identity(self) -> dict[str, object]:
        return {}

    def take(self, encoded: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return encoded[rows]

    def search(self, token_rows: object, k: int) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("the vectors are given")

    def search_encoded(self, encoded: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(encoded, k)  # type: ignore[attr-defined,no-any-return]

    def search_wider(self, encoded: np.ndarray, k: int, times: int) -> tuple[np.ndarray, np.ndarray, bool]:
        return self.index.search_wider(encoded, k, times)  # type: ignore[attr-defined,no-any-return]


@pytest.fixture(scope="module")
def own_clusters() -> tuple[VectorStore, MemoryChunks]:
    """Every document is a cluster: the lists that are probed for a chunk hold its own document and nothing else."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CLUSTERS, DIMENSION)) * 20
    vectors = (np.repeat(centres, EACH, axis=0) + generator.normal(size=(CLUSTERS * EACH, DIMENSION))).astype(
        np.float32
    )
    return VectorStore([vectors]), MemoryChunks([[3] * EACH for _ in range(CLUSTERS)], 1)


@pytest.mark.parametrize("factory", ["IVF8,Flat", "IVF16_HNSW8,SQ8", "HNSW4"])
@pytest.mark.parametrize("candidates", [20, 300])
def test_no_neighbor_is_missing_although_the_own_document_fills_the_lists(
    own_clusters: tuple[VectorStore, MemoryChunks], tmp_path: Path, factory: str, candidates: int
) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed")
    store, database = own_clusters
    index = build(store, VectorIndexConfig(factory=factory), tmp_path)
    searcher = Vectors(index, store)
    assert isinstance(searcher, WideningSearcher)
    rows = np.arange(0, len(store), 7)
    keys = database.document_keys(rows)
    token_rows = [np.array([3])] * len(rows)
    retriever = Retriever(searcher, database, candidates=candidates)  # type: ignore[arg-type]
    queries = store.gather(rows)
    ids, distances = retriever.retrieve(token_rows, 10, OwnKeys(keys), queries)
    assert (ids >= 0).all()  # 420 chunks of other documents exist
    assert (database.document_keys(ids.ravel()).reshape(ids.shape) != keys[:, None]).all()
    assert (np.diff(distances, axis=1) >= 0).all()
    # Each query by itself, in any order and after others were widened, finds the same.
    for row in (3, 0, 40):
        alone, far = retriever.retrieve(token_rows[:1], 10, OwnKeys(keys[row : row + 1]), queries[row : row + 1])
        assert np.array_equal(alone[0], ids[row]) and np.array_equal(far[0], distances[row])


def test_all_lists_give_the_exact_neighbors_and_the_settings_return(
    own_clusters: tuple[VectorStore, MemoryChunks], tmp_path: Path
) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed")
    store, _ = own_clusters
    index = build(store, VectorIndexConfig(factory="IVF8,Flat"), tmp_path)
    queries = store.gather(np.arange(0, 480, 37))
    before = index.search(queries, 100)
    assert (before[1][:, -1] < 0).any()
    distances, ids, everything = index.search_wider(queries, 100, 2)
    assert not everything and (ids >= 0).sum() > (before[1] >= 0).sum()
    distances, ids, everything = index.search_wider(queries, 100, 64)
    exact = ExactIndex(store, "l2").search(queries, 100)
    assert everything and np.array_equal(ids, exact[1]) and np.array_equal(distances, exact[0])
    after = index.search(queries, 100)
    assert np.array_equal(after[0], before[0]) and np.array_equal(after[1], before[1])


def test_more_lists_than_a_gpu_looks_at_are_searched_on_the_cpu(
    own_clusters: tuple[VectorStore, MemoryChunks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed")
    store, _ = own_clusters
    index = build(store, VectorIndexConfig(factory="IVF8,Flat", probes=2), tmp_path)
    searched: list[tuple[int, int | None]] = []

    class Gpu:
        def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            searched.append((k, index.settings.probes))
            return index.parts[0].index.search(queries, k)  # type: ignore[no-any-return]

    queries = store.gather(np.arange(0, 480, 37))
    usual = index.search(queries, 3)
    set_parameters = faiss_index.set_parameters
    monkeypatch.setattr(
        faiss_index, "set_parameters", lambda part, *rest, gpu=False: None if gpu else set_parameters(part, *rest)
    )
    monkeypatch.setattr(faiss_index, "_GPU_LIMIT", 4)
    index._gpu = [Gpu()]
    assert np.array_equal(index.search(queries, 3)[1], usual[1]) and searched
    _, ids, everything = index.search_wider(queries, 4, 4)
    assert everything and np.array_equal(ids, ExactIndex(store, "l2").search(queries, 4)[1])
    index.search(queries, 5)
    assert set(searched) == {(3, 2)}


def test_a_search_that_is_complete_is_not_repeated(tmp_path: Path) -> None:
    searcher = bm25_index(tmp_path / "index", [MemoryChunks([[3, 4], [5, 6]], 2).rows()], Bm25Config())
    assert not isinstance(searcher, WideningSearcher)


def test_removed_chunks_are_never_given_whatever_the_index_says(
    own_clusters: tuple[VectorStore, MemoryChunks], tmp_path: Path
) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed")
    store, database = own_clusters
    gone = MemoryChunks([[3] * EACH for _ in range(CLUSTERS)], 1)
    gone.gone = list(range(60, 120))
    index = build(store, VectorIndexConfig(factory="HNSW8"), tmp_path)
    rows = np.arange(50, 130, 3)
    token_rows = [np.array([3])] * len(rows)
    searcher = Vectors(index, store)
    with_them, _ = Retriever(searcher, database, candidates=15).retrieve(token_rows, 12, None, store.gather(rows))  # type: ignore[arg-type]
    without, _ = Retriever(searcher, gone, candidates=15).retrieve(token_rows, 12, None, store.gather(rows))  # type: ignore[arg-type]
    assert np.isin(with_them, gone.gone).any()
    assert not np.isin(without, gone.gone).any() and (without >= 0).all()
