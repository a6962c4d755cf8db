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
from retro.retrieval.vectors import VectorStore


def _vectors(n: int = 2000, d: int = 16) -> VectorStore:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(30, d)) * 2
    vectors = (centres[generator.integers(0, 30, n)] + generator.normal(size=(n, d))).astype(np.float32)
    vectors[[5, 90]] = 0
    return VectorStore([vectors[:700], vectors[700:]])


def _index(store: VectorStore, config: VectorIndexConfig, folder: Path, metric: str = "l2"):
    from retro.retrieval.faiss_index import FaissIndex, build_faiss, read_faiss, write_faiss

    index, rows, _ = build_faiss(store, metric, config)  # type: ignore[arg-type]
    write_faiss(index, folder / "index.faiss")
    return FaissIndex(read_faiss(folder / "index.faiss"), rows, store, metric, config)  # type: ignore[arg-type]


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
    store = _vectors()
    index = _index(store, VectorIndexConfig(factory=factory, **options), tmp_path, metric)  # type: ignore[arg-type]
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
    store = _vectors(200)
    few = _index(store, VectorIndexConfig(factory="IVF32,Flat", probes=1), tmp_path)
    distances, ids = few.search(store.gather(np.arange(50)), 100)
    assert (ids == -1).any() and np.isinf(distances[ids == -1]).all() and np.isfinite(distances[ids >= 0]).all()
    many = _index(store, VectorIndexConfig(factory="IVF32,Flat", probes=32), tmp_path)
    assert (many.search(store.gather(np.arange(1)), 100)[1] >= 0).all()


@pytest.mark.usefixtures("faiss")
def test_the_training_sample_is_seeded(tmp_path: Path) -> None:
    from retro.retrieval.faiss_index import build_faiss, write_faiss

    store, files = _vectors(), []
    for seed in (0, 0, 1):
        config = VectorIndexConfig(factory="IVF8,Flat", train_sample=400, seed=seed)
        index, _, stats = build_faiss(store, "l2", config)
        assert stats == {"vectors": 1998, "zero_vectors": 2, "training_vectors": 400}
        files.append(tmp_path / f"{len(files)}.faiss")
        write_faiss(index, files[-1])
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


@pytest.mark.usefixtures("faiss")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "IVF4096,Flat"}, "4096 centroids need at least as many training vectors"),
        ({"factory": "IVF64,Flat", "train_sample": 40}, "found 40"),
        ({"factory": "PQ4x10np"}, "cannot be trained on 500 vectors"),
        ({"factory": "NoSuchIndex"}, "not a faiss factory string"),
        ({"factory": "Flat", "probes": 4}, "probes: an index of factory 'Flat' has no nprobe"),
        ({"factory": "IVF8,Flat", "ef_search": 4}, "ef_search: an index of factory 'IVF8,Flat' has no efSearch"),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, object], message: str) -> None:
    from retro.retrieval.faiss_index import build_faiss

    with pytest.raises(ConfigError, match=message) as caught:
        build_faiss(_vectors(502), "l2", VectorIndexConfig(**options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("faiss")
def test_a_truncated_file_is_corrupt(tmp_path: Path) -> None:
    from retro.retrieval.faiss_index import read_faiss

    _index(_vectors(), VectorIndexConfig(factory="Flat"), tmp_path)
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
