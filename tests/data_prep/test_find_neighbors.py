"""The retrieval stages on a small corpus: embed, build_index, find_neighbors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.build_index import build_index_stage
from data_prep.embed import EmbedStage, FitEmbedderStage
from data_prep.find_neighbors import FindNeighborsStage
from data_prep.query_vectors import QueryEncoder
from data_prep.runner import Executor, run_stage
from data_prep.stage import Stage
from data_prep.train_index import TrainIndexStage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ConfigError
from retro.config.prep_embed import EmbedConfig, LexicalConfig
from retro.config.prep_index import Bm25Config, IndexConfig, VectorIndexConfig
from retro.config.prep_neighbors import NeighborsConfig
from retro.data.chunk_store import open_chunk_store
from retro.data.neighbor_table import NeighborTable
from retro.retrieval.chunk_text import chunk_token_rows, decode_rows, open_chunk_tokenizer
from retro.retrieval.lexical import LexicalEmbedder
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import open_searcher, searched_chunks
from retro.retrieval.vector_searcher import VectorSearcher
from retro.retrieval.vectors import open_vectors
from tests.data.builders import write_chunks, write_fake_tokenizer, write_tokens
from tests.data_prep.prepared import prepare

LEXICAL = EmbedConfig(lexical=LexicalConfig(dimension=64, buckets=4096), shard_chunks=60)
BM25 = IndexConfig(bm25=Bm25Config(shard_chunks=50))
EXACT = IndexConfig(kind="vectors")


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prepare(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retrieval")


def _run(stage: Stage, root: Path, workers: int = 1) -> Path:
    return run_stage(stage, root, Executor(workers), progress=False)


def _embeddings(config: EmbedConfig, chunks: Path, root: Path, workers: int = 1) -> Path:
    embedder = _run(FitEmbedderStage(config, chunks), root, workers)
    return _run(EmbedStage(config, chunks, embedder), root, workers)


def _index(kind: str, chunks: Path, root: Path) -> Path:
    if kind == "bm25":
        return _run(build_index_stage(BM25, chunks=chunks), root)
    return _run(build_index_stage(EXACT, embeddings=_embeddings(LEXICAL, chunks, root)), root)


def _table(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    shards = [shard["name"] for shard in open_manifest(folder, "neighbors").shards]
    ids = [np.load(folder / f"ids-{name}.npy") for name in shards]
    distances = [np.load(folder / f"distances-{name}.npy") for name in shards]
    return np.concatenate(ids), np.concatenate(distances)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["bm25", "vectors"])
def test_neighbors_are_the_nearest_of_all_other_documents(
    chunks: dict[str, Path], root: Path, kind: str, split: str
) -> None:
    index = _index(kind, chunks["train"], root)
    config = NeighborsConfig(candidates=6, keep=5, shard_chunks=7)
    folder = _run(FindNeighborsStage(config, chunks[split], chunks["train"], index), root)
    ids, distances = _table(folder)
    queries, database = open_chunk_store(chunks[split]), open_chunk_store(chunks["train"])
    assert ids.shape == (queries.num_chunks, 5)
    everything = database.num_chunks
    rows = chunk_token_rows(queries, np.arange(queries.num_chunks))
    far, ranking = open_searcher(index).search(rows, everything)
    query_documents, documents = queries.document_keys(np.arange(len(rows))), {}
    for chunk in range(everything):
        documents[chunk] = int(database.document_keys(np.array([chunk]))[0])
    for row in range(len(rows)):
        allowed = [
            (int(c), d)
            for c, d in zip(ranking[row], far[row], strict=True)
            if c >= 0 and documents[int(c)] != int(query_documents[row])
        ][:5]
        assert ids[row].tolist() == [c for c, _ in allowed] + [-1] * (5 - len(allowed))
        np.testing.assert_array_equal(distances[row, : len(allowed)], [d for _, d in allowed])
        assert np.isinf(distances[row, len(allowed) :]).all()
    assert (ids >= 0).mean() > 0.9
    table = NeighborTable(folder, queries, database)
    assert table.exclude == "documents" and table.k == 5
    table.verify()
    stats = open_manifest(folder).stats
    assert stats["same_document"] == 0
    assert stats["none_share"] == pytest.approx((ids < 0).mean())
    counts = np.bincount(ids[ids >= 0], minlength=everything)
    assert stats["hubs"][0] == {"chunk": int(counts.argmax()), "rows": int(counts.max())}
    assert stats["nearest_distance_quantiles"]["0.5"] == pytest.approx(
        np.median(distances[np.isfinite(distances[:, 0]), 0]), rel=0.04
    )


def test_the_live_retriever_gives_what_the_stage_stored(chunks: dict[str, Path], root: Path) -> None:
    index = _index("vectors", chunks["train"], root)
    config = NeighborsConfig(keep=5)
    folder = _run(FindNeighborsStage(config, chunks["test"], chunks["train"], index), root)
    ids, distances = _table(folder)
    queries = open_chunk_store(chunks["test"])
    retriever = Retriever(open_searcher(index), open_chunk_store(chunks["train"]))
    for row in (0, 5, queries.num_chunks - 1):
        live_ids, live = retriever.retrieve(chunk_token_rows(queries, np.array([row])), 5)
        assert live_ids[0].tolist() == ids[row].tolist()  # test documents are not in the database: nothing is excluded
        assert live[0].tobytes() == distances[row].tobytes()


def test_two_workers_write_the_bytes_of_one(chunks: dict[str, Path], tmp_path: Path) -> None:
    config = NeighborsConfig(keep=5, rerank="bm25", max_overlap_tokens=6, shard_chunks=40)

    def build(root: Path, workers: int) -> list[Path]:
        embedder = _run(FitEmbedderStage(LEXICAL, chunks["train"]), root, workers)
        embeddings = _run(EmbedStage(LEXICAL, chunks["train"], embedder), root, workers)
        bm25 = _run(build_index_stage(BM25, chunks=chunks["train"]), root, workers)
        index = _run(build_index_stage(EXACT, embeddings=embeddings), root, workers)
        stage = FindNeighborsStage(config, chunks["train"], chunks["train"], index, bm25)
        assert len(stage.plan()) > 1 and len(open_manifest(embeddings).shards) > 1 < len(open_manifest(bm25).shards)
        return [embedder, embeddings, bm25, index, _run(stage, root, workers)]

    for one, two in zip(build(tmp_path / "a", 1), build(tmp_path / "b", 2), strict=True):
        assert one.name == two.name
        first, second = open_manifest(one), open_manifest(two)
        assert [(f["name"], f["sha256"]) for f in first.all_files()] == [
            (f["name"], f["sha256"]) for f in second.all_files()
        ]
        assert first.stats == second.stats


def test_only_queries_that_the_database_does_not_have_are_embedded(
    chunks: dict[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = _index("vectors", chunks["train"], root)
    embedded: list[int] = []
    plain = VectorSearcher.encode

    def counting(self: VectorSearcher, token_rows: list[np.ndarray]) -> np.ndarray:
        embedded.append(len(token_rows))
        return plain(self, token_rows)

    monkeypatch.setattr(VectorSearcher, "encode", counting)
    queries, database = open_chunk_store(chunks["train"]), open_chunk_store(chunks["train"])
    rows = np.arange(queries.num_chunks)
    encoder = QueryEncoder(open_searcher(index), queries, database)
    token_rows = chunk_token_rows(queries, rows)
    assert np.array_equal(encoder.find_stored(rows), rows)
    vectors = encoder.encode(rows, token_rows)
    assert embedded == []
    searcher = open_searcher(index)
    np.testing.assert_array_equal(vectors, plain(searcher, token_rows))  # type: ignore[arg-type]
    test = open_chunk_store(chunks["test"])
    everything = np.arange(test.num_chunks)
    QueryEncoder(searcher, test, database).encode(everything, chunk_token_rows(test, everything))
    assert embedded == [test.num_chunks]


def test_the_stage_embeds_each_query_once_and_none_of_the_database(
    chunks: dict[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = _index("vectors", chunks["train"], root)
    texts: list[int] = []
    plain = LexicalEmbedder.embed

    def counting(self: LexicalEmbedder, part: list[str]) -> np.ndarray:
        texts.append(len(part))
        return plain(self, part)

    monkeypatch.setattr(LexicalEmbedder, "embed", counting)
    # Few candidates and a long exclusion: rows are searched again, and are not embedded again.
    config = NeighborsConfig(keep=9, candidates=9, shard_chunks=50, max_overlap_tokens=5)
    _run(FindNeighborsStage(config, chunks["train"], chunks["train"], index), root)
    assert texts == []
    _run(FindNeighborsStage(config, chunks["test"], chunks["train"], index), root)
    assert sum(texts) == open_chunk_store(chunks["test"]).num_chunks


def test_a_document_of_the_same_id_and_another_text_is_embedded(tmp_path: Path) -> None:
    tokenizer = write_fake_tokenizer(tmp_path / "k")
    ours, theirs = [[5] * 20, [6] * 20], [[5] * 20, [6] * 9 + [7] * 11]
    stores = [
        open_chunk_store(write_chunks(tmp_path / f"c{i}", write_tokens(tmp_path / f"t{i}", [texts], tokenizer), 8))
        for i, texts in enumerate((ours, theirs))
    ]
    encoder = QueryEncoder(None, *stores)  # type: ignore[arg-type]
    rows = np.arange(stores[0].num_chunks)
    found = encoder.find_stored(rows)
    tokens = [store.gather(rows, 0)[0] for store in stores]
    for row in rows[found >= 0]:
        assert np.array_equal(tokens[1][found[row]], tokens[0][row])
        assert stores[1].document_keys(found[row : row + 1]) == stores[0].document_keys(rows[row : row + 1])
    assert (found < 0).sum() == 2 and (found >= 0).sum() == len(rows) - 2
    longer = open_chunk_store(write_chunks(tmp_path / "c16", tmp_path / "t0", 16))
    assert (QueryEncoder(None, stores[0], longer).find_stored(rows) == -1).all()  # type: ignore[arg-type]


def test_the_index_of_another_database_is_refused(chunks: dict[str, Path], root: Path) -> None:
    for kind in ("bm25", "vectors"):
        index = _index(kind, chunks["test"], root)
        assert searched_chunks(index) == chunks["test"]
        with pytest.raises(ArtifactMismatchError, match="expected an index of the database"):
            FindNeighborsStage(NeighborsConfig(), chunks["test"], chunks["train"], index)
    index, rerank = _index("vectors", chunks["train"], root), NeighborsConfig(rerank="bm25")
    with pytest.raises(ConfigError, match="rerank: bm25 needs a BM25 index"):
        FindNeighborsStage(rerank, chunks["test"], chunks["train"], index)
    with pytest.raises(ConfigError, match="rerank: none takes none"):
        FindNeighborsStage(NeighborsConfig(), chunks["test"], chunks["train"], index, index)
    with pytest.raises(ArtifactMismatchError, match="expected a BM25 index to rerank with"):
        FindNeighborsStage(rerank, chunks["test"], chunks["train"], index, index)


def test_an_embedder_that_was_tampered_with_is_refused(chunks: dict[str, Path], tmp_path: Path) -> None:
    index = _index("vectors", chunks["train"], tmp_path)
    embedder = next(tmp_path.glob("fit_embedder-*"))
    idf = np.load(embedder / "idf.npy")
    np.save(embedder / "idf.npy", idf * 2)
    with pytest.raises(ArtifactMismatchError, match="idf_sha256"):
        open_searcher(index)


def test_every_field_of_the_neighbors_has_an_effect(chunks: dict[str, Path], root: Path) -> None:
    index, bm25 = _index("vectors", chunks["train"], root), _index("bm25", chunks["train"], root)
    base = {"keep": 5, "candidates": 8}
    changes: list[dict] = [
        {},
        {"keep": 6},
        {"rerank": "bm25"},
        {"rerank": "bm25", "candidates": 30},
        {"max_overlap_tokens": 4},
        {"exclude": "groups"},
    ]
    tables = []
    for change in changes:
        reranker = bm25 if "rerank" in change else None
        stage = FindNeighborsStage(
            NeighborsConfig(**{**base, **change}), chunks["train"], chunks["train"], index, reranker
        )
        tables.append(_table(_run(stage, root))[0].tobytes())
    assert len(set(tables)) == len(tables)


def test_the_chunks_own_group_is_excluded_and_nothing_else(chunks: dict[str, Path], root: Path) -> None:
    index = _index("bm25", chunks["train"], root)
    config = NeighborsConfig(exclude="groups", keep=50, candidates=50)
    ids, _ = _table(_run(FindNeighborsStage(config, chunks["train"], chunks["train"], index), root))
    everything = NeighborsConfig(keep=200, candidates=200)
    nearest, _ = _table(_run(FindNeighborsStage(everything, chunks["train"], chunks["train"], index), root))
    store = open_chunk_store(chunks["train"])
    groups = [store.tokens.document_record(int(d))["group"] for d in store.documents(np.arange(store.num_chunks))]
    excluded_some = False
    for row in range(store.num_chunks):
        expected = [int(i) for i in nearest[row] if i >= 0 and groups[i] != groups[row]][:50]
        assert [int(i) for i in ids[row] if i >= 0] == expected
        excluded_some |= len(expected) < sum(i >= 0 for i in nearest[row])
    assert excluded_some


def test_recall_of_a_faiss_index_is_in_the_manifest(chunks: dict[str, Path], root: Path) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed")
    embeddings = _embeddings(LEXICAL, chunks["train"], root)
    found = {}
    for probes in (1, 16):
        config = IndexConfig(kind="vectors", vectors=VectorIndexConfig(factory="IVF16,Flat", probes=probes))
        trained = _run(TrainIndexStage(config, embeddings), root)
        folder = _run(build_index_stage(config, embeddings=embeddings, trained=trained), root)
        stats = open_manifest(folder, "index").stats
        assert stats["recall_at"] == 10 and stats["recall_queries"] == open_manifest(embeddings).rows
        found[probes] = stats["recall"]
        rows = chunk_token_rows(open_chunk_store(chunks["test"]), np.arange(3))
        assert open_searcher(folder).search(rows, 4)[1].shape == (3, 4)
    assert found[16] == 1.0 > found[1] > 0.2
    assert open_manifest(_index("vectors", chunks["train"], root)).stats["recall"] == 1.0


def test_half_precision_storage_and_empty_chunks(chunks: dict[str, Path], root: Path) -> None:
    full = open_vectors(_embeddings(LEXICAL, chunks["train"], root))
    half_config = EmbedConfig(lexical=LEXICAL.lexical, storage="float16")
    half = open_vectors(_embeddings(half_config, chunks["train"], root))
    assert half.shards[0].dtype == np.float16 and full.shards[0].dtype == np.float32 and len(full.shards) > 1
    ids = np.arange(len(full))
    np.testing.assert_allclose(half.gather(ids), full.gather(ids), atol=1e-3)
    store = open_chunk_store(chunks["train"])
    texts = decode_rows(open_chunk_tokenizer(chunks["train"]), chunk_token_rows(store, ids))
    wordless = np.array([i for i, text in enumerate(texts) if not any(c.isalnum() for c in text)])
    assert len(wordless) and np.flatnonzero(~full.gather(ids).any(axis=1)).tolist() == wordless.tolist()
    assert open_manifest(_embeddings(LEXICAL, chunks["train"], root)).stats["zero_vectors"] == len(wordless)
    # such a chunk is retrieved by nobody and retrieves nothing
    found = open_searcher(_index("vectors", chunks["train"], root)).search(chunk_token_rows(store, ids), len(full))[1]
    assert not np.isin(wordless, found).any() and (found[wordless] == -1).all()


def test_damaged_files_are_corrupt_not_wrong(chunks: dict[str, Path], root: Path, tmp_path: Path) -> None:
    source = _index("bm25", chunks["train"], root)
    index = source.with_name("damaged")
    shutil.copytree(source, index)
    weights = next(index.glob("weights-*.npy"))
    data = weights.read_bytes()
    weights.write_bytes(data[:-4])
    with pytest.raises(ArtifactCorruptError, match=r"weights.*bytes"):
        open_searcher(index)
    weights.write_bytes(b"x" * len(data))
    with pytest.raises(ArtifactCorruptError, match="not a readable array"):
        open_searcher(index)
    weights.write_bytes(data)
    manifest = json.loads((index / "manifest.json").read_text())
    manifest["config"]["kind"] = "tree"
    (index / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactMismatchError, match="'bm25' or 'vectors', found 'tree'"):
        open_searcher(index)


def test_workers_are_given_gpus_for_vectors_only(
    chunks: dict[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seen, kind, device, expected in (
        ([], "vectors", "auto", 0),
        (["0", "1"], "vectors", "auto", 1),
        (["0", "1"], "vectors", "cpu", 0),
        (["0", "1"], "bm25", "auto", 0),
    ):
        monkeypatch.setattr("data_prep.embed.visible_gpus", lambda seen=seen: seen)
        index = _index(kind, chunks["train"], root)
        stage = FindNeighborsStage(NeighborsConfig(), chunks["test"], chunks["train"], index, device=device)
        assert stage.gpus == expected
