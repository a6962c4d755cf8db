"""faiss indexes: recall against exact search, parameters, errors; and import order."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.config.prep_index import VectorIndexConfig
from retro.retrieval.exact import ExactIndex
from retro.retrieval.recall import recall_at_k
from tests.retrieval.faiss_vectors import build, clustered


@pytest.fixture
def faiss():
    pytest.importorskip("faiss", reason="faiss is not installed")


@pytest.mark.usefixtures("faiss")
@pytest.mark.parametrize(
    ("factory", "options", "least"),
    [
        ("Flat", {}, 1.0),
        ("IVF16,Flat", {"probes": 16}, 1.0),
        ("IVF16,Flat", {"probes": 4}, 0.8),
        ("IVF16,SQ8", {"probes": 16}, 0.9),
        ("HNSW16", {"ef_search": 64}, 0.9),
        ("IVF16_HNSW8,Flat", {"probes": 16, "ef_search": 32}, 0.99),
    ],
)
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_recall_against_exact_search(
    factory: str, options: dict[str, int], least: float, metric: str, tmp_path: Path
) -> None:
    store = clustered()
    index = build(store, VectorIndexConfig(factory=factory, **options), tmp_path, metric)  # type: ignore[arg-type]
    queries = np.concatenate([store.gather(np.arange(100, 200)), np.zeros((1, 16), np.float32)])
    distances, ids = index.search(queries, 10)
    exact_distances, exact = ExactIndex(store, metric).search(queries, 10)  # type: ignore[arg-type]
    assert recall_at_k(ids, exact) >= (least if metric == "l2" else least - 0.15)
    assert (ids[100] == -1).all() and not np.isin([5, 90], ids).any()
    assert (np.diff(distances[:100], axis=1) >= 0).all()
    same = ids[:100] == exact[:100]  # where both agree the distances are the same bits, compressed or not
    np.testing.assert_array_equal(distances[:100][same], exact_distances[:100][same])


@pytest.mark.usefixtures("faiss")
def test_probes_matter_and_missing_results_are_padding(tmp_path: Path) -> None:
    store = clustered(200)
    few = build(store, VectorIndexConfig(factory="IVF32,Flat", probes=1), tmp_path)
    distances, ids = few.search(store.gather(np.arange(50)), 100)
    assert (ids == -1).any() and np.isinf(distances[ids == -1]).all() and np.isfinite(distances[ids >= 0]).all()
    many = build(store, VectorIndexConfig(factory="IVF32,Flat", probes=32), tmp_path)
    assert (many.search(store.gather(np.arange(1)), 100)[1] >= 0).all()


# every family of index, with parameters that leave something to find or to miss
FAMILIES = [
    ("Flat", {}),
    ("SQ8", {}),
    ("PQ8", {"k_factor": 4}),
    ("IVF16,Flat", {"probes": 4}),
    ("IVF16_HNSW8,SQ8", {"probes": 4}),
    ("OPQ4_8,IVF16,PQ4", {"probes": 4, "k_factor": 4}),
    ("IVF16_HNSW8,RaBitQ", {"probes": 4, "k_factor": 8}),
    ("IVF16,RaBitQ,Refine(SQ8)", {"probes": 4, "k_factor": 4}),
    ("HNSW8", {"ef_search": 20}),
]


@pytest.mark.usefixtures("faiss")
@pytest.mark.parametrize(("factory", "options"), FAMILIES)
def test_the_same_bits_for_any_threads_and_batching(factory: str, options: dict[str, int], tmp_path: Path) -> None:
    store = clustered(3000, 32)
    config = VectorIndexConfig(factory=factory, **options)  # type: ignore[arg-type]
    queries = store.gather(np.arange(600, 1200)) + np.float32(0.1)
    one = build(store, config, tmp_path, threads=1)
    distances, ids = one.search(queries, 7)
    assert (ids >= 0).mean() > 0.9
    many_distances, many_ids = build(store, config, tmp_path, threads=4).search(queries, 7)
    assert many_ids.tobytes() == ids.tobytes() and many_distances.tobytes() == distances.tobytes()
    for first, last in ((0, 1), (3, 20), (250, 600), (599, 600)):
        some_distances, some = one.search(queries[first:last], 7)
        assert some.tobytes() == ids[first:last].tobytes()
        assert some_distances.tobytes() == distances[first:last].tobytes()


@pytest.mark.usefixtures("faiss")
def test_a_k_factor_lets_exact_distances_decide(tmp_path: Path) -> None:
    store = clustered(3000, 32)
    queries = store.gather(np.arange(100))
    _, exact = ExactIndex(store, "l2").search(queries, 10)
    recalls = []
    for factor in (1, 4, 16):
        config = VectorIndexConfig(factory="IVF16,RaBitQ", probes=16, k_factor=factor)
        recalls.append(recall_at_k(build(store, config, tmp_path).search(queries, 10)[1], exact))
    assert recalls[0] < 0.9 and recalls == sorted(recalls) and recalls[2] > 0.97


@pytest.mark.usefixtures("faiss")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "Flat", "probes": 4}, "probes: an index of factory 'Flat' has no nprobe"),
        ({"factory": "IVF8,Flat", "ef_search": 4}, "ef_search: an index of factory 'IVF8,Flat' has no efSearch"),
    ],
)
def test_parameters_that_an_index_lacks_are_one_clear_line(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(clustered(502), VectorIndexConfig(**options), tmp_path)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("faiss")
def test_a_truncated_file_is_corrupt(tmp_path: Path) -> None:
    from retro.retrieval.faiss_index import read_faiss

    build(clustered(), VectorIndexConfig(factory="Flat"), tmp_path)
    data = (tmp_path / "index.faiss").read_bytes()
    (tmp_path / "index.faiss").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactCorruptError, match="not a readable faiss index"):
        read_faiss(tmp_path / "index.faiss")


def test_without_faiss_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from retro.retrieval.native import load_faiss

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install 'retro-pretraining\[faiss\]'.*factory: exact"):
        load_faiss()


def test_the_package_is_light_and_torch_comes_before_faiss() -> None:
    code = """
import sys
import retro.retrieval.retriever, retro.retrieval.searcher, retro.retrieval.bm25, retro.retrieval.lexical
import retro.retrieval.exact, retro.retrieval.faiss_index, retro.retrieval.transformer, retro.retrieval.vector_searcher
heavy = sorted({"torch", "faiss", "scipy", "transformers"} & set(sys.modules))
assert not heavy, heavy
import os
os.environ.pop("GOMP_SPINCOUNT", None)
from retro.retrieval.native import load_faiss
try:
    load_faiss()
except Exception as error:
    print(type(error).__name__)
names = list(sys.modules)
assert os.environ["GOMP_SPINCOUNT"] == "1000"
assert "faiss" not in names or names.index("torch") < names.index("faiss")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
