"""Exact search by torch (here on the CPU) against ExactIndex, and which engine is chosen."""

from __future__ import annotations

import types

import numpy as np
import pytest

from retro.config.errors import ConfigError
from retro.retrieval import devices, exact, torch_index
from retro.retrieval.devices import choose_engine
from retro.retrieval.exact import ExactIndex
from retro.retrieval.torch_index import TorchIndex
from retro.retrieval.vectors import VectorStore
from tests.retrieval.faiss_vectors import clustered


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("block", [300, 1 << 18])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_the_same_bits_as_exact_search(
    metric: str, block: int, resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_index, "_VECTORS", block)
    store = clustered(3000)
    queries = store.gather(np.concatenate([np.arange(80, 300), [5]]))
    index = TorchIndex(store, metric, "cpu", resident)  # type: ignore[arg-type]
    for k in (1, 20, 20):
        distances, ids = index.search(queries, k)
        expected_distances, expected = ExactIndex(store, metric).search(queries, k)  # type: ignore[arg-type]
        np.testing.assert_array_equal(ids, expected)
        assert distances.tobytes() == expected_distances.tobytes()
    assert bool(index._held) is resident


def test_many_ties_go_to_the_smallest_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    vectors[::2] = vectors[0]  # a thousand equal vectors: more than the spare candidates
    store = VectorStore([vectors.astype(np.float16)])
    monkeypatch.setattr(torch_index, "_VECTORS", 256)
    distances, ids = TorchIndex(store, "l2", "cpu").search(store.gather(np.array([0, 1])), 30)
    assert ids[0].tolist() == list(range(0, 60, 2)) and (distances[0] == 0).all()
    assert ids[1].tolist() == ExactIndex(store, "l2").search(store.gather(np.array([1])), 30)[1][0].tolist()


def test_fewer_vectors_than_asked_for() -> None:
    store = VectorStore([np.eye(3, dtype=np.float32)])
    distances, ids = TorchIndex(store, "l2", "cpu").search(np.eye(3, dtype=np.float32)[:1], 5)
    assert ids.tolist() == [[0, 1, 2, -1, -1]] and np.isinf(distances[0, 3:]).all()


def test_candidates_within_rounding_are_all_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances that differ by less than a product's rounding error: only exact ones tell the order."""
    generator = np.random.default_rng(0)
    vectors = (1000 + generator.integers(0, 3, (500, 16)) * 2.0**-10).astype(np.float32)
    store = VectorStore([vectors])
    queries = vectors[:20]
    monkeypatch.setattr(torch_index, "_SPARE", 4)
    _, ids = TorchIndex(store, "l2", "cpu").search(queries, 10)
    rows = np.repeat(np.arange(20), 500)
    every = exact.pair_distances(queries, rows, np.tile(np.arange(500), 20), store, "l2").reshape(20, 500)
    np.testing.assert_array_equal(ids, np.argsort(every, axis=1, kind="stable")[:, :10])


@pytest.mark.parametrize(
    ("device", "is_exact", "torch_gpu", "faiss_gpus", "engine"),
    [
        ("auto", True, True, 0, "torch"),
        ("auto", True, False, 1, "cpu"),
        ("auto", False, True, 1, "faiss-gpu"),
        ("auto", False, True, 0, "cpu"),
        ("cpu", False, True, 1, "cpu"),
        ("cpu", True, True, 1, "cpu"),
        ("cuda", False, False, 2, "faiss-gpu"),
        ("cuda", True, True, 0, "torch"),
        ("cuda", False, True, 0, None),
        ("cuda", True, False, 1, None),
    ],
)
def test_the_engine(
    device: str,
    is_exact: bool,
    torch_gpu: bool,
    faiss_gpus: int,
    engine: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "_torch_has_gpu", lambda: torch_gpu)
    monkeypatch.setattr(devices, "_faiss_gpus", lambda: faiss_gpus)
    if engine is None:
        with pytest.raises(ConfigError, match=r"device: cuda, but .* sees no"):
            choose_engine(device, is_exact)
    else:
        assert choose_engine(device, is_exact) == engine


def test_a_build_without_gpu_support_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """faiss-cpu has get_num_gpus too, in some versions."""
    without = types.SimpleNamespace(get_num_gpus=lambda: 3)
    monkeypatch.setattr("retro.retrieval.native.load_faiss", lambda: without)
    assert devices._faiss_gpus() == 0
    monkeypatch.setattr(
        "retro.retrieval.native.load_faiss",
        lambda: types.SimpleNamespace(get_num_gpus=lambda: 3, StandardGpuResources=object),
    )
    assert devices._faiss_gpus() == 3
