"""Documents added to a finished release: what is retrievable equals a database made from scratch on the union."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.build_index import build_index_stage
from data_prep.chunk import ChunkStage
from data_prep.embed import EmbedStage
from data_prep.runner import run_stage
from data_prep.tokenize_documents import TokenizeStage
from data_prep.update.stored_config import index_config, stored_config
from retro.artifacts.archive import export_release
from retro.artifacts.archive_import import import_release
from retro.artifacts.manifest import input_path, open_manifest
from retro.artifacts.release import Release, open_release
from retro.cli.main import main
from retro.config.prep_embed import EmbedConfig
from retro.config.prep_tokens import ChunkConfig, TokensConfig
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.document import iter_documents
from retro.data.neighbor_table import open_neighbor_table
from retro.data.question_dataset import open_question_sequences
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import open_searcher
from retro.retrieval.vectors import open_vectors
from tests.data_prep.update.releases import CHUNK, chunk_names, database, records, release, vectors, write_corpus

OLD, NEW = 48, 24
KINDS = {
    "bm25": None,
    "exact": vectors(),
    "ivf": vectors("IVF4,Flat", probes=4),
}


def new_records() -> list[dict[str, str]]:
    """New documents, one of which is a copy of an old one under another name."""
    fresh = records(NEW, OLD)
    copy = {**records(1)[0], "id": "copy"}
    assert copy["split"] == "train"
    return [*fresh, copy]


def add_config(place: Path, base: Path, items: list[dict[str, str]], **fields: Any) -> Path:
    corpus = write_corpus(place / "corpus", items)
    settings = {
        "root": str(place / "prep"),
        "workers": 1,
        "base": str(base),
        "ingest": {
            "reader": "jsonl",
            "jsonl": {"folder": str(corpus), "files": ["*.jsonl"], "id_field": "id", "title_field": "title"},
            "split": {"by": "field", "field": "split"},
        },
        **fields,
    }
    path = place / "add.yaml"
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module", params=sorted(KINDS))
def grown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, release with documents added), by kind of index."""
    root = tmp_path_factory.mktemp(request.param)
    base = release(root / "base", records(OLD), KINDS[request.param])
    assert main(["prep", "add", str(add_config(root / "new", base, new_records()))]) == 0
    return base, root / "new" / "prep" / "release.json"


def from_scratch(base: Release, grown: Release, root: Path) -> tuple[ChunkStore, Any]:
    """Chunks and searcher of the union of documents, made by the ordinary stages with the base's tokenizer and
    embedder."""
    layout = stored_config(TokensConfig, base.database_tokens)
    tokens = run_stage(TokenizeStage(layout, grown.documents, base.tokenizer), root, progress=False)
    chunks = run_stage(ChunkStage(ChunkConfig(CHUNK), tokens), root, progress=False)
    assert base.searcher is not None
    config = index_config(base.searcher)
    embeddings = trained = None
    if config.kind == "vectors":
        index = open_manifest(base.searcher)
        old = input_path(base.searcher, index, "embeddings")
        embedder = input_path(old, open_manifest(old), "embedder")
        stored = {k: v for k, v in open_manifest(old).config.items() if k in ("storage", "shard_chunks")}
        embeddings = run_stage(EmbedStage(EmbedConfig(**stored), chunks, embedder), root, progress=False)
        if "trained_index" in index.inputs:
            trained = input_path(base.searcher, index, "trained_index")
    index_folder = run_stage(build_index_stage(config, chunks, embeddings, trained), root, progress=False)
    return open_chunk_store(chunks), open_searcher(index_folder)


def test_chunks_of_the_base_keep_their_numbers(grown: tuple[Path, Path]) -> None:
    old, new = database(grown[0]), database(grown[1])
    new.verify()
    ids = np.arange(old.num_chunks)
    assert new.num_chunks > old.num_chunks
    assert chunk_names(old, ids) == chunk_names(new, ids)
    for one, other in zip(old.gather(ids, 0), new.gather(ids, 0), strict=True):
        np.testing.assert_array_equal(one, other)
    added = {name for name, _ in chunk_names(new, np.arange(old.num_chunks, new.num_chunks))}
    assert added == {r["id"] for r in records(NEW, OLD) if r["split"] == "train"}  # the copy was dropped
    order = new.tokens.document_order
    np.testing.assert_array_equal(order[: old.tokens.num_documents], old.tokens.document_order)
    assert sorted(order.tolist()) == list(range(new.tokens.num_documents))
    new.tokens.verify()


def test_the_base_is_untouched_and_its_shards_are_shared(grown: tuple[Path, Path]) -> None:
    base, new = (open_release(path) for path in grown)
    assert set(new.splits) == set(base.splits) and new.tokenizer == base.tokenizer
    for before, after, part in (
        (base.database_tokens, new.database_tokens, "tokens"),
        (base.database_chunks, new.database_chunks, "starts"),
        (base.documents, new.documents, "documents"),
    ):
        for file in sorted(before.glob(f"{part}-00000*")):
            assert os.path.samefile(file, after / file.name)
    assert [d.id for d in iter_documents(new.documents)] == [r["id"] for r in records(OLD + NEW)]


def test_neighbors_are_those_of_a_database_made_from_scratch(grown: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = (open_release(path) for path in grown)
    union, searcher = from_scratch(base, new, tmp_path)
    extended = open_chunk_store(new.database_chunks)
    everything = [set(chunk_names(store, np.arange(store.num_chunks))) for store in (union, extended)]
    assert everything[0] == everything[1]
    assert new.searcher is not None
    for split in ("train", "test"):
        queries = open_chunk_store(new.split(split).chunks)
        assert new.split(split).neighbors is not None
        table = open_neighbor_table(new.split(split).neighbors, queries, extended)
        table.verify()
        rows = np.arange(queries.num_chunks)
        tokens, mask = queries.gather(rows, 0)
        token_rows = [row[real].astype(np.int64) for row, real in zip(tokens, mask, strict=True)]
        # The table is what a live search in the extended database gives, and that is what one in the union gives.
        if split == "test":
            live, _ = Retriever(open_searcher(new.searcher), extended, candidates=30).retrieve(token_rows, table.k)
            np.testing.assert_array_equal(live, table.rows(rows))
            expected, distances = Retriever(searcher, union, candidates=30).retrieve(token_rows, table.k)
            np.testing.assert_allclose(table.distances(rows), distances, rtol=1e-5, atol=1e-6)
            for row in rows.tolist():
                # Chunks at equal distances stand in the order of their numbers, which differ; the last may be cut off.
                nearer = distances[row] < np.nextafter(distances[row][-1], -np.inf) - 1e-5
                found = set(chunk_names(extended, table.rows(np.array([row]))[0][nearer]))
                assert found == set(chunk_names(union, expected[row][nearer]))
    used = table.rows(rows)
    assert (used >= database(grown[0]).num_chunks).any()  # new chunks are retrieved


def test_vectors_and_training_of_the_base_are_used_again(grown: tuple[Path, Path]) -> None:
    base, new = (open_release(path) for path in grown)
    assert base.searcher is not None and new.searcher is not None
    old_index, new_index = open_manifest(base.searcher), open_manifest(new.searcher)
    if "embeddings" not in old_index.inputs:
        pytest.skip("an index without vectors")
    folders = [
        input_path(folder, manifest, "embeddings")
        for folder, manifest in ((base.searcher, old_index), (new.searcher, new_index))
    ]
    before, after = (open_vectors(folder) for folder in folders)
    np.testing.assert_array_equal(after.gather(np.arange(len(before))), before.gather(np.arange(len(before))))
    assert os.path.samefile(folders[0] / "vectors-00000.npy", folders[1] / "vectors-00000.npy")
    embedders = {open_manifest(folder).inputs["embedder"]["fingerprint"] for folder in folders}
    assert len(embedders) == 1
    if "trained_index" in old_index.inputs:
        assert old_index.inputs["trained_index"]["fingerprint"] == new_index.inputs["trained_index"]["fingerprint"]


def test_questions_are_the_base_s_with_neighbors_of_the_extended_database(grown: tuple[Path, Path]) -> None:
    base, new = (open_release(path) for path in grown)
    before, after = (open_question_sequences(r.questions["docs"], "test") for r in (base, new))
    assert [q.id for q in before.questions] == [q.id for q in after.questions] and len(before) > 0
    assert after.database == open_chunk_store(new.database_chunks).fingerprint != before.database


def test_adding_again_does_nothing_and_inspection_knows_it(
    grown: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    config = str(grown[1].parent.parent / "add.yaml")
    before = {path: path.stat().st_mtime_ns for path in grown[1].parent.rglob("*.npy")}
    assert main(["prep", "add", config]) == 0
    assert main(["prep", "run", config]) == 0  # the same steps
    assert {path: path.stat().st_mtime_ns for path in grown[1].parent.rglob("*.npy")} == before
    capsys.readouterr()
    assert main(["prep", "status", config]) == 0
    assert "extend tokens train" in capsys.readouterr().out
    assert main(["prep", "verify", config, "--fraction", "1"]) == 0, capsys.readouterr().err


def test_documents_are_added_to_what_was_added_to(grown: tuple[Path, Path], tmp_path: Path) -> None:
    more = [*records(9, OLD + NEW), {**new_records()[0], "id": "again"}]
    assert main(["prep", "add", str(add_config(tmp_path / "more", grown[1], more))]) == 0
    twice = tmp_path / "more" / "prep" / "release.json"
    store = database(twice)
    store.verify()
    before = database(grown[1])
    assert chunk_names(before, np.arange(before.num_chunks)) == chunk_names(store, np.arange(before.num_chunks))
    ids = [d.id for d in iter_documents(open_release(twice).documents)]
    assert ids == [r["id"] for r in records(OLD + NEW + 9)]  # "again" duplicates an added one
    # One archive holds it, without the releases that it was made from.
    export_release(twice, tmp_path / "a.tar", progress=False)
    path = import_release(tmp_path / "a.tar", tmp_path / "imported", progress=False)
    stages = {folder.name.rpartition("-")[0] for folder in path.parent.iterdir() if folder.is_dir()}
    assert "extend_tokens" in stages and not stages & {"tokenize", "tokenize_added", "ingest", "deduplicate", "chunk"}
    found = open_release(path)
    assert found.searcher is not None
    open_searcher(found.searcher)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("plain"), records(20), deduplicate=None, questions=None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk": {"chunk_length": 8}}, "chunk.chunk_length: expected 16, as the base"),
        ({"index": {"kind": "vectors"}}, "index.kind: expected 'bm25', as the base"),
        ({"index": {"bm25": {"k1": 2.0}}}, "index.bm25.k1: expected 0.9, as the base"),
        ({"tokenizer": {"train": {"vocab_size": 300}}}, "tokenizer: is that of the base"),
        ({"questions": {}}, "questions: is that of the base"),
        ({"deduplicate": {"near": False}}, "deduplicate: found a section, but the base"),
        ({"token_order_seed": 3}, "token_order_seed: expected 0, as the base"),
        ({"database_splits": ["database_only"]}, "database_splits: expected ['train']"),
        ({"query_splits": ["train"]}, "query_splits: expected ['test', 'train', 'valid']"),
        ({"chunks": {}}, "did you mean 'chunk'"),
    ],
)
def test_what_the_base_decides_cannot_be_changed(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture, fields: dict, message: str
) -> None:
    config = add_config(tmp_path / "new", plain, records(3, 20), **fields)
    assert main(["prep", "add", str(config)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "new" / "prep").exists()


def test_what_the_base_decides_may_be_repeated_and_neighbors_changed(plain: Path, tmp_path: Path) -> None:
    fields = {"chunk": {"chunk_length": 16}, "neighbors": {"keep": 3}, "database_splits": ["train", "database_only"]}
    new = [{**r, "split": "database_only"} for r in records(5, 20)]
    assert main(["prep", "add", str(add_config(tmp_path / "new", plain, new, **fields))]) == 0
    opened = open_release(tmp_path / "new" / "prep")
    split = opened.split("train")
    assert split.neighbors is not None
    manifest = open_manifest(split.neighbors)
    assert manifest.config["keep"] == 3 and manifest.config["candidates"] == 30
    # Retrievable, and not trained on.
    names = {name for name, _ in chunk_names(database(opened.path), np.arange(database(opened.path).num_chunks))}
    assert {r["id"] for r in new} <= names
    trained = open_chunk_store(split.chunks)
    assert not {r["id"] for r in new} & {name for name, _ in chunk_names(trained, np.arange(trained.num_chunks))}


def test_mistakes_are_one_line(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def run(name: str, items: list[dict[str, str]], base: Path, **fields: Any) -> tuple[int, str]:
        code = main(["prep", "add", str(add_config(tmp_path / name, base, items, **fields))])
        lines = capsys.readouterr().err.splitlines()
        return code, next(line for line in lines if line.startswith("error"))

    code, error = run("ids", [{**records(1, 30)[0], "id": records(1)[0]["id"]}], plain)
    assert code == 3 and "has documents of the same ids as new ones: 'pkg.rows.sum_0'" in error
    code, error = run("nowhere", records(1, 30), tmp_path / "no.json")
    assert code == 3 and "release not found" in error
    code, error = run("inside", records(1, 30), plain, root=str(plain.parent))
    assert code == 2 and "is the folder of the base" in error
    config = tmp_path / "none.yaml"
    config.write_text(json.dumps({"root": str(tmp_path / "x"), "ingest": {}}))
    assert main(["prep", "add", str(config)]) == 2
    assert "base is required" in capsys.readouterr().err


def test_copies_of_what_is_there_are_nothing_to_add(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = release(tmp_path / "base", records(20), questions=None)
    copies = [{**r, "id": f"copy of {r['id']}"} for r in records(3)]
    assert main(["prep", "add", str(add_config(tmp_path / "new", base, copies))]) == 2
    assert "nothing to add: every new document duplicates one of the base" in capsys.readouterr().err
