"""The stages train_index and build_index for vectors: shards, parts, settings, extension, removal."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from data_prep.build_index import build_index_stage, extend_index_stage, remove_rows_stage
from data_prep.index_quality import draw_sample, measure_recall
from data_prep.runner import Executor, run_stage
from data_prep.train_index import TrainIndexStage
from retro.artifacts.manifest import open_manifest, verify_files
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.config.prep_index import IndexConfig, VectorIndexConfig
from retro.retrieval.exact import ExactIndex
from retro.retrieval.recall import recall_at_k
from retro.retrieval.vector_searcher import open_vector_index
from retro.retrieval.vectors import open_vectors
from tests.data_prep.embeddings import clustered_vectors, write_embeddings

faiss = pytest.importorskip("faiss", reason="faiss is not installed")

ROWS, MORE = 18_000, 4_000
VECTORS = clustered_vectors(ROWS + MORE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def embeddings(root: Path) -> Path:
    return write_embeddings(root / "embeddings", VECTORS[:ROWS])


@pytest.fixture(scope="module")
def more_embeddings(root: Path) -> Path:
    return write_embeddings(root / "more", VECTORS)


def _config(factory: str, **options: object) -> IndexConfig:
    values = {"shard_vectors": 8192, "recall_queries": 100, "train_sample": 4000, **options}
    return IndexConfig(kind="vectors", vectors=VectorIndexConfig(factory=factory, **values))  # type: ignore[arg-type]


def _build(config: IndexConfig, embeddings: Path, root: Path, workers: int = 1) -> Path:
    executor = Executor(workers)
    trained = run_stage(TrainIndexStage(config, embeddings), root, executor, progress=False)
    return run_stage(build_index_stage(config, embeddings=embeddings, trained=trained), root, executor, progress=False)


def _search(folder: Path, embeddings: Path, queries: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return open_vector_index(folder, open_manifest(folder), open_vectors(embeddings), "l2").search(queries, k)


def _files(folder: Path) -> dict[str, str]:
    return {entry["name"]: entry["sha256"] for entry in open_manifest(folder).all_files()}


FACTORIES = ["IVF32_HNSW8,SQ8", "OPQ4_8,IVF16,PQ4", "IVF16,RaBitQ", "HNSW8", "SQ8", "IVF16,RaBitQ,Refine(SQ8)"]


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "HNSW8"])
def test_two_workers_write_the_bytes_of_one(factory: str, embeddings: Path, tmp_path: Path) -> None:
    one, two = (_build(_config(factory), embeddings, tmp_path / str(n), n) for n in (1, 2))
    assert len(open_manifest(one).shards) == 3
    assert _files(one) == _files(two) and open_manifest(one).stats == open_manifest(two).stats


def test_shards_of_any_size_give_the_same_index(embeddings: Path, root: Path) -> None:
    """The file of three shards is that of one: what one process makes."""
    merged = [
        _build(_config("OPQ4_8,IVF16,PQ4", shard_vectors=size), embeddings, root) for size in (8192, 16384, 1 << 20)
    ]
    assert [len(open_manifest(folder).shards) for folder in merged] == [3, 2, 1]
    assert len({_files(folder)["index-00000.faiss"] for folder in merged}) == 1


@pytest.mark.parametrize("factory", FACTORIES)
def test_parts_together_are_the_merged_index(factory: str, embeddings: Path, root: Path) -> None:
    factor = 16 if "Refine" in factory else 4
    whole = _build(_config(factory, k_factor=factor), embeddings, root)
    apart = _build(_config(factory, k_factor=factor, merge=False), embeddings, root)
    assert open_manifest(whole).stats["parts"] == [{"name": "00000", "start": 0, "stop": ROWS}]
    assert [p["stop"] for p in open_manifest(apart).stats["parts"]] == [8192, 16384, ROWS]
    queries = VECTORS[300:400].astype(np.float32)
    distances, ids = _search(whole, embeddings, queries)
    part_distances, part_ids = _search(apart, embeddings, queries)
    # three graphs are not one, and more candidates are refined: more is looked at
    if factory.startswith("HNSW") or "Refine" in factory:
        exact = ExactIndex(open_vectors(embeddings), "l2").search(queries, 10)[1]
        assert recall_at_k(part_ids, exact) >= recall_at_k(ids, exact) > 0.8
    else:
        np.testing.assert_array_equal(part_ids, ids)
        assert part_distances.tobytes() == distances.tobytes()


def test_settings_that_are_not_given_are_measured(embeddings: Path, root: Path) -> None:
    stats = open_manifest(_build(_config("IVF32_HNSW8,RaBitQ"), embeddings, root)).stats
    assert stats["recall"] >= 0.97 and stats["recall_at"] == 10 and stats["recall_queries"] == 100
    assert 1 < stats["search"]["probes"] <= 32 and stats["search"]["k_factor"] > 1
    assert stats["vectors"] == ROWS - 2 and stats["zero_vectors"] == 2
    low = open_manifest(_build(_config("IVF32_HNSW8,RaBitQ", recall_target=0.6), embeddings, root)).stats
    assert (low["search"]["probes"], low["search"]["k_factor"]) < (stats["search"]["probes"], 99)
    assert 0.6 <= low["recall"] < stats["recall"]
    given = open_manifest(_build(_config("IVF32_HNSW8,RaBitQ", probes=2, k_factor=3), embeddings, root)).stats
    assert given["search"] == {"probes": 2, "ef_search": None, "k_factor": 3} and given["recall"] < 0.97
    graph = open_manifest(_build(_config("HNSW8"), embeddings, root)).stats
    assert graph["search"]["ef_search"] >= 16 and graph["recall"] >= 0.97


def test_recall_in_the_manifest_is_what_the_opened_index_has(embeddings: Path, root: Path) -> None:
    config = _config("IVF16,SQ8", recall_target=0.9)
    folder = _build(config, embeddings, root)
    sample = draw_sample(open_vectors(embeddings), "l2", config.vectors)
    index = open_vector_index(folder, open_manifest(folder), open_vectors(embeddings), "l2")
    assert measure_recall(index, sample) == open_manifest(folder).stats["recall"]
    expected = ExactIndex(open_vectors(embeddings), "l2").search(sample.queries, 11)[1]
    for own, exact, found in zip(sample.own, sample.exact, expected, strict=True):
        assert exact.tolist() == [i for i in found if i != own][:10] and not (exact == own).any()


def test_auto_is_resolved_by_the_training_and_said(
    embeddings: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config("auto", train_sample=None)
    exact = _build(config, embeddings, root)
    assert open_manifest(exact).stats["factory"] == "exact" and _files(exact) == {}
    assert _search(exact, embeddings, VECTORS[:1].astype(np.float32))[1][0, 0] == 0
    monkeypatch.setattr("retro.retrieval.index_choice.EXACT_VECTORS", 1000)
    stage = TrainIndexStage(config, embeddings)
    run_stage(stage, root / "small")
    said = capsys.readouterr().err
    assert "IVF512_HNSW32,SQ8 (18,000 vectors of 16: a byte per number" in said and "within the budget of 8 GB" in said
    stats = open_manifest(root / "small" / stage.folder_name()).stats
    assert stats["factory"] == "IVF512_HNSW32,SQ8" and stats["reason"] in said
    assert "note: 17,998 training vectors for 512 lists are fewer than 39" in said


def test_search_settings_and_speed_are_no_part_of_the_training(embeddings: Path) -> None:
    first = TrainIndexStage(_config("IVF16,SQ8"), embeddings)
    same = _config("IVF16,SQ8", probes=7, k_factor=2, recall_target=0.5, merge=False, device="cpu", recall_queries=5)
    assert TrainIndexStage(same, embeddings).fingerprint() == first.fingerprint()
    for change in ({"seed": 1}, {"train_sample": 999}, {"factory": "IVF8,SQ8"}):
        other = dataclasses.replace(_config("IVF16,SQ8").vectors, **change)  # type: ignore[arg-type]
        config = IndexConfig(kind="vectors", vectors=other)
        assert TrainIndexStage(config, embeddings).fingerprint() != first.fingerprint()


def test_device_is_speed_only(embeddings: Path, root: Path) -> None:
    config = _config("IVF16,SQ8")
    trained = run_stage(TrainIndexStage(config, embeddings), root, progress=False)
    stages = [
        build_index_stage(_config("IVF16,SQ8", device=d), embeddings=embeddings, trained=trained)
        for d in ("auto", "cpu")
    ]
    assert stages[0].fingerprint() == stages[1].fingerprint()


def test_an_index_that_a_gpu_cannot_search_is_searched_on_the_cpu(
    embeddings: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU here: the conversion is faked, by one that fails and by one that gives the index itself."""
    folder = _build(_config("IVF16,RaBitQ"), embeddings, root)
    manifest, vectors = open_manifest(folder), open_vectors(embeddings)
    queries = VECTORS[300:400].astype(np.float32)
    expected = open_vector_index(folder, manifest, vectors, "l2", "cpu").search(queries, 5)
    monkeypatch.setattr("retro.retrieval.devices._faiss_gpus", lambda: 1)

    def refuse(index: object) -> object:
        raise ConfigError("device: faiss cannot search this index on a GPU")

    monkeypatch.setattr("retro.retrieval.faiss_index.to_gpu", refuse)
    found = open_vector_index(folder, manifest, vectors, "l2", "auto").search(queries, 5)
    np.testing.assert_array_equal(found[1], expected[1])
    with pytest.raises(ConfigError, match="cannot search this index on a GPU"):
        open_vector_index(folder, manifest, vectors, "l2", "cuda")
    used = []
    monkeypatch.setattr("retro.retrieval.faiss_index.to_gpu", lambda index: used.append(index) or index)
    monkeypatch.setattr("faiss.GpuParameterSpace", faiss.ParameterSpace, raising=False)
    found = open_vector_index(folder, manifest, vectors, "l2", "auto").search(queries, 5)
    assert len(used) == 1
    np.testing.assert_array_equal(found[1], expected[1])


def test_without_training_the_message_says_so(embeddings: Path) -> None:
    with pytest.raises(ConfigError, match="expected a trained index; run train_index first"):
        build_index_stage(_config("IVF16,SQ8"), embeddings=embeddings)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("factory", ["IVF16,SQ8", "HNSW8", "SQ8"])
def test_an_extended_index_shares_files_and_finds_old_and_new(
    factory: str, merge: bool, embeddings: Path, more_embeddings: Path, root: Path
) -> None:
    config = _config(factory, merge=merge)
    base = _build(config, embeddings, root)
    before = json.dumps(_files(base))
    folder = run_stage(extend_index_stage(base, more_embeddings), root, progress=False)
    manifest = open_manifest(folder)
    assert manifest.rows == ROWS + MORE and manifest.stats["vectors"] == ROWS + MORE - 2
    assert [p["stop"] for p in manifest.stats["parts"]][-1] == ROWS + MORE and manifest.stats["recall"] >= 0.95
    for name in _files(base):
        assert os.path.samefile(base / name, folder / name)
    assert json.dumps(_files(base)) == before and verify_files(folder, manifest) == []
    if factory != "HNSW8":  # the same lists and codes as of one index over everything with this training
        whole_stage = build_index_stage(
            config,
            embeddings=more_embeddings,
            trained=Path(os.path.normpath(base / open_manifest(base).inputs["trained_index"]["path"])),
        )
        whole = run_stage(whole_stage, root, progress=False)
        settings = manifest.stats["search"]
        assert open_manifest(whole).stats["search"] == settings
        queries = VECTORS[ROWS - 50 : ROWS + 50].astype(np.float32)
        for one, other in zip(
            _search(folder, more_embeddings, queries), _search(whole, more_embeddings, queries), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    twice = run_stage(extend_index_stage(folder, more_embeddings), root, progress=False)  # nothing to add
    assert open_manifest(twice).stats == manifest.stats


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("factory", ["IVF16,SQ8", "OPQ4_8,IVF16,PQ4", "HNSW8", "SQ8"])
def test_removing_rows_leaves_the_index_of_what_is_left(
    factory: str, merge: bool, embeddings: Path, root: Path, tmp_path: Path
) -> None:
    base = _build(_config(factory, merge=merge), embeddings, root)
    removed = np.r_[100:300, 8190:8200, ROWS - 1]
    vectors = VECTORS[:ROWS].copy()
    vectors[removed] = 0
    redacted = write_embeddings(tmp_path / "redacted", vectors)
    folder = run_stage(remove_rows_stage(base, redacted), tmp_path, progress=False)
    manifest = open_manifest(folder)
    assert manifest.stats["vectors"] == ROWS - 2 - len(removed) and manifest.rows == ROWS
    queries = VECTORS[removed].astype(np.float32)
    _, ids = _search(folder, redacted, queries)
    assert not np.isin(ids, removed).any() and (ids >= 0).all()
    assert np.isin(_search(base, embeddings, queries)[1], removed).any()
    # the same files as an index made from scratch with this training
    trained = Path(os.path.normpath(base / open_manifest(base).inputs["trained_index"]["path"]))
    scratch = run_stage(
        build_index_stage(_config(factory, merge=merge), embeddings=redacted, trained=trained), tmp_path, progress=False
    )
    assert _files(scratch) == _files(folder)


def test_removing_from_an_extended_index(embeddings: Path, more_embeddings: Path, root: Path, tmp_path: Path) -> None:
    base = _build(_config("IVF16,SQ8"), embeddings, root)
    extended = run_stage(extend_index_stage(base, more_embeddings), root, progress=False)
    vectors = VECTORS.copy()
    vectors[[7, ROWS + 7]] = 0
    redacted = write_embeddings(tmp_path / "redacted", vectors)
    folder = run_stage(remove_rows_stage(extended, redacted), tmp_path, progress=False)
    assert open_manifest(folder).stats["vectors"] == ROWS + MORE - 4
    assert not np.isin(_search(folder, redacted, VECTORS[[7, ROWS + 7]].astype(np.float32))[1], [7, ROWS + 7]).any()


def test_a_base_of_something_else_is_refused(embeddings: Path, root: Path, tmp_path: Path) -> None:
    base = _build(_config("IVF16,SQ8"), embeddings, root)
    other = VECTORS.copy()
    other[: ROWS // 2] = other[ROWS // 2 : ROWS]
    stranger = write_embeddings(tmp_path / "stranger", other)
    with pytest.raises(ArtifactMismatchError, match="expected an index over the first rows of"):
        run_stage(extend_index_stage(base, stranger), tmp_path, progress=False)
    shorter = write_embeddings(tmp_path / "shorter", VECTORS[: ROWS - 1])
    with pytest.raises(ArtifactMismatchError, match=f"at most {ROWS - 1} vectors, found {ROWS}"):
        extend_index_stage(base, shorter)
    with pytest.raises(ArtifactMismatchError, match=f"expected an index of {ROWS - 1} vectors"):
        remove_rows_stage(base, shorter)


def test_exact_search_is_extended_and_redacted_by_its_embeddings(
    embeddings: Path, more_embeddings: Path, root: Path
) -> None:
    config = _config("exact", train_sample=None)
    base = run_stage(build_index_stage(config, embeddings=embeddings), root, progress=False)
    folder = run_stage(extend_index_stage(base, more_embeddings), root, progress=False)
    assert _search(folder, more_embeddings, VECTORS[ROWS : ROWS + 1].astype(np.float32))[1][0, 0] == ROWS


def test_an_empty_database(root: Path, tmp_path: Path) -> None:
    empty = write_embeddings(tmp_path / "empty", np.zeros((4, 16), np.float16))
    folder = _build(_config("Flat", train_sample=None), empty, tmp_path)
    assert open_manifest(folder).stats["recall"] is None
    assert (_search(folder, empty, VECTORS[:2].astype(np.float32))[1] == -1).all()
