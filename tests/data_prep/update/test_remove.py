"""Documents removed from a release: nothing returns them any more, and no byte of the new release knows them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from data_prep.build_index import build_index_stage
from data_prep.chunk import ChunkStage
from data_prep.runner import run_stage
from data_prep.tokenize_documents import TokenizeStage
from data_prep.update.stored_config import index_config, stored_config
from retro.artifacts.archive import export_release
from retro.artifacts.archive_import import import_release
from retro.artifacts.closure import iter_closure
from retro.artifacts.manifest import input_path, open_manifest
from retro.artifacts.release import open_release
from retro.cli.main import main
from retro.config.prep_tokens import ChunkConfig, TokensConfig
from retro.data.chunk_store import open_chunk_store
from retro.data.dataset import RetroDataset
from retro.data.document import document_key, iter_documents
from retro.data.neighbor_table import open_neighbor_table
from retro.data.question_dataset import open_question_sequences
from retro.data.questions import open_questions
from retro.data.tokenizer import open_tokenizer
from retro.inference.evidence import open_retriever
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import open_searcher
from retro.retrieval.vectors import open_vectors
from tests.data_prep.update.releases import (
    BM25,
    CHUNK,
    chunk_names,
    database,
    records,
    release,
    vectors,
)
from tests.data_prep.update.test_add import add_config
from tests.eval.workspace import write_run

SECRET = "zyxvunwq klopfmeister"
GONE = "private.person"
RERANKED: dict[str, Any] = {"neighbors": {"candidates": 30, "keep": 6, "rerank": "bm25"}}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bm25": (BM25, {}),
    "exact": (vectors(), {}),
    "ivf": (vectors("IVF4,SQ8", probes=4, shard_vectors=8192), RERANKED),
    "hnsw": (vectors("HNSW8", ef_search=64), {}),
}


def corpus() -> list[dict[str, str]]:
    """Documents, of which one is to be removed; others resemble it, so that it is everybody's neighbor."""
    secret = {
        "id": GONE,
        "title": f"Title of {GONE}",
        "text": "\n".join(
            [
                f"{GONE}(data, axis=0, fill='{SECRET}') -> int",
                "",
                f"Return the sum of all rows of the {SECRET} in the data, in the order of the index.",
                "",
                "Parameters",
                "----------",
                f"limit : int, default 4711{SECRET.split()[0]}",
                f"    Stop after so many rows of the {SECRET}.",
            ]
        ),
        "split": "train",
    }
    items = records(48)
    return [*items[:20], secret, *items[20:]]


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(release, release without the document), by kind of index."""
    root = tmp_path_factory.mktemp(request.param)
    index, changes = KINDS[request.param]
    before = release(root / "before", corpus(), index, **changes)
    ids = root / "ids.txt"
    ids.write_text(f"{GONE}\n\n")
    command = ["prep", "remove", str(before), "--ids", str(ids), "--out", str(root / "after"), "--workers", "1"]
    assert main(command) == 0
    return before, root / "after" / "release.json"


def secret_chunks(path: Path) -> np.ndarray:
    store = database(path)
    keys = store.document_keys(np.arange(store.num_chunks))
    return np.flatnonzero(keys == np.uint64(document_key(GONE)))


def all_bytes(folder: Path) -> dict[Path, bytes]:
    """Content of every file, compressed ones unpacked."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".zst":
                data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
            found[path] = data
    return found


def traces(path: Path) -> dict[str, list[bytes]]:
    """Byte strings that only the removed document gives: text, ids, keys, tokens, vectors, hashes of terms."""
    opened = open_release(path)
    store = open_chunk_store(opened.database_chunks)
    chunks = secret_chunks(path)
    assert len(chunks) > 2
    tokens = store.tokens
    number = int(store.documents(chunks[:1])[0])
    span = tokens.document_offsets[number : number + 2]
    ids = tokens.tokens(int(span[0]), int(span[1]))
    # Eight tokens in a row that no other document has.
    others = [tokens.tokens(0, int(span[0])).tobytes(), tokens.tokens(int(span[1]), tokens.num_tokens).tobytes()]
    for name in ("valid", "test"):
        store = open_chunk_store(opened.split(name).chunks)
        others.append(store.tokens.tokens(0, store.tokens.num_tokens).tobytes())
    runs = [ids[i : i + 8].tobytes() for i in range(len(ids) - 8)]
    runs = [run for run in runs if not any(run in other for other in others)]
    assert len(runs) > 20
    text = [SECRET, SECRET.split()[0], SECRET.split()[1], GONE]
    found = {
        "text": [word.encode() for word in text],
        "key": [np.uint64(document_key(GONE)).tobytes()],
        "tokens": runs,
    }
    assert opened.searcher is not None
    index = open_manifest(opened.searcher)
    if "embeddings" in index.inputs:
        rows = open_vectors(input_path(opened.searcher, index, "embeddings")).gather(chunks)
        found["vectors"] = [row.tobytes() for row in rows]
    return found


def occurrences(files: dict[Path, bytes], needles: list[bytes]) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path, data in files.items() if any(n in data for n in needles)]


def test_no_byte_of_the_new_release_knows_the_document(pair: tuple[Path, Path]) -> None:
    before, after = pair
    needles = traces(before)
    old_files = all_bytes(before.parent)
    # Every kind of trace is there before, so that the search for it is one.
    assert all(occurrences(old_files, group) for group in needles.values())
    assert any("tokens-" in name for name in occurrences(old_files, needles["tokens"]))
    new_files = all_bytes(after.parent)
    for folder, _ in iter_closure(open_release(after)):  # also what was taken over unchanged
        if open_manifest(folder).kind not in ("tokenizer", "embedder"):
            new_files |= all_bytes(folder)
    assert {kind: occurrences(new_files, group) for kind, group in needles.items()} == {kind: [] for kind in needles}


def test_everything_else_is_as_it_was(pair: tuple[Path, Path]) -> None:
    old, new = (database(path) for path in pair)
    gone = secret_chunks(pair[0])
    ids = np.arange(old.num_chunks)
    assert new.num_chunks == old.num_chunks and new.tokens.num_tokens == old.tokens.num_tokens
    np.testing.assert_array_equal(np.flatnonzero(new.removed(ids)), gone)
    rest = np.setdiff1d(ids, gone)
    assert chunk_names(old, rest) == chunk_names(new, rest)
    for one, other in zip(old.gather_neighbors(rest, 0), new.gather_neighbors(rest, 0), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not new.gather_neighbors(gone, 3)[1].any() and (new.gather_neighbors(gone, 3)[0] == 3).all()
    new.verify()
    new.tokens.verify()
    before, after = (open_release(path) for path in pair)
    assert [d for d in iter_documents(before.documents) if d.id != GONE] == list(iter_documents(after.documents))
    assert open_manifest(after.documents).stats["documents"] == open_manifest(before.documents).stats["documents"] - 1
    text = next(d.text for d in iter_documents(before.documents) if d.id == GONE)
    figures = [open_manifest(r.database_tokens).stats for r in (before, after)]
    assert figures[0]["text_bytes"] - figures[1]["text_bytes"] == len(text.encode()) and figures[1]["removed"] == 1


def test_tables_move_the_spares_up(pair: tuple[Path, Path]) -> None:
    before, after = (open_release(path) for path in pair)
    gone = secret_chunks(pair[0])
    dropped = 0
    for name in before.splits:
        tables = []
        for opened in (before, after):
            split = opened.split(name)
            assert split.neighbors is not None
            queries = open_chunk_store(split.chunks)
            tables.append(open_neighbor_table(split.neighbors, queries, open_chunk_store(opened.database_chunks)))
        old, new = tables
        new.verify()
        removed = new.queries.removed(np.arange(new.num_rows))
        folder = after.split(name).neighbors
        assert folder is not None
        stats, ids = open_manifest(folder).stats, new.rows(np.arange(new.num_rows))
        assert stats["none_share"] == pytest.approx(float((ids < 0).mean()))
        assert stats["retrieved_chunks"] == len(np.unique(ids[ids >= 0])) and stats["same_document"] == 0
        for row in range(old.num_rows):
            ids, far = old.rows(np.array([row]))[0], old.distances(np.array([row]))[0]
            keep = (ids >= 0) & ~np.isin(ids, gone) & ~removed[row]
            dropped += int(np.isin(ids, gone).sum())
            expected = np.full(len(ids), -1)
            expected[: keep.sum()] = ids[keep]
            np.testing.assert_array_equal(new.rows(np.array([row]))[0], expected)
            distances = np.full(len(ids), np.inf, np.float32)
            distances[: keep.sum()] = far[keep]
            np.testing.assert_array_equal(new.distances(np.array([row]))[0], distances)
    assert dropped > 3  # it was a neighbor


def test_no_search_returns_it(pair: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    before, after = pair
    query = f"{GONE} sum of all rows of the {SECRET}"
    assert main(["search", f"release={before}", query, "k=20"]) == 0
    assert GONE in capsys.readouterr().out
    assert main(["search", f"release={after}", query, "k=20"]) == 0
    printed = capsys.readouterr().out
    assert "distance" in printed and GONE not in printed and "klopf" not in printed
    # Not even a search for all there is, with the chunks themselves.
    opened = open_release(after)
    old = database(before)
    tokens, mask = old.gather(secret_chunks(before), 0)
    rows = [row[real].astype(np.int64) for row, real in zip(tokens, mask, strict=True)]
    found, _ = open_retriever(opened).retrieve(rows, old.num_chunks)
    assert not np.isin(found, secret_chunks(before)).any() and (found >= 0).any()


def test_the_index_is_that_of_a_database_without_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """BM25 and exact search: the same chunks for the same queries as from scratch (but for N in the idf)."""
    before, after = (open_release(path) for path in pair)
    assert after.searcher is not None and before.searcher is not None
    config = index_config(after.searcher)
    if config.kind != "vectors" or config.vectors.factory != "exact":
        pytest.skip("approximate, or with an idf of its own")
    store = open_chunk_store(after.database_chunks)
    queries = open_chunk_store(after.split("test").chunks)
    tokens, mask = queries.gather(np.arange(queries.num_chunks), 0)
    rows = [row[real].astype(np.int64) for row, real in zip(tokens, mask, strict=True)]
    found, far = Retriever(open_searcher(after.searcher), store, candidates=30).retrieve(rows, 6)
    old = Retriever(open_searcher(before.searcher), open_chunk_store(before.database_chunks), candidates=30)
    expected, near = old.retrieve(rows, 6, exclude_document_keys=np.array([document_key(GONE)], np.uint64))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(far, near)


def test_bm25_forgets_the_terms(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = (open_release(path) for path in pair)
    assert before.searcher is not None and after.searcher is not None
    config = index_config(after.searcher)
    if config.kind != "bm25":
        pytest.skip("an index over vectors")
    layout = stored_config(TokensConfig, before.database_tokens)
    tokens = run_stage(TokenizeStage(layout, after.documents, before.tokenizer), tmp_path, progress=False)
    chunks = run_stage(ChunkStage(ChunkConfig(CHUNK), tokens), tmp_path, progress=False)
    scratch = run_stage(build_index_stage(config, chunks), tmp_path, progress=False)
    for name in ("vocabulary.npy", "document_frequency.npy"):
        np.testing.assert_array_equal(np.load(after.searcher / name), np.load(scratch / name))
    assert len(np.load(after.searcher / "vocabulary.npy")) < len(np.load(before.searcher / "vocabulary.npy"))


def test_a_removed_training_document_contributes_no_loss(pair: tuple[Path, Path]) -> None:
    datasets = []
    for path in pair:
        opened = open_release(path)
        split = opened.split("train")
        queries, store = open_chunk_store(split.chunks), open_chunk_store(opened.database_chunks)
        assert split.neighbors is not None
        table = open_neighbor_table(split.neighbors, queries, store)
        length = 8 * CHUNK
        datasets.append(RetroDataset(queries, store, table, sequence_length=length, num_neighbors=2))
    old, new = (data.__getitems__(np.arange(len(data))) for data in datasets)
    gone = np.isin(old.chunk_ids_BL, secret_chunks(pair[0])).repeat(CHUNK, axis=1)
    assert old.loss_mask_BN[gone].any() and not new.loss_mask_BN[gone].any()
    np.testing.assert_array_equal(old.loss_mask_BN[~gone], new.loss_mask_BN[~gone])
    np.testing.assert_array_equal(old.tokens_BN[~gone], new.tokens_BN[~gone])
    assert (new.tokens_BN[gone] == datasets[1].pad_id).all()
    assert new.neighbor_mask_BLKR is not None
    secret = np.isin(new.chunk_ids_BL, secret_chunks(pair[0]))
    assert not new.neighbor_mask_BLKR[secret[:, : new.neighbor_mask_BLKR.shape[1]]].any()


def test_questions_about_it_are_dropped(pair: tuple[Path, Path]) -> None:
    before, after = (open_release(path) for path in pair)
    folders = [r.questions["docs"] for r in (before, after)]
    count = {}
    for split in ("train", "test"):
        old, new = (open_question_sequences(folder, split) for folder in folders)
        kept = [i for i, q in enumerate(old.questions) if q.document != GONE]
        assert [old.questions[i] for i in kept] == new.questions
        np.testing.assert_array_equal(new.tokens, old.tokens[kept])
        assert not np.isin(new.neighbor_ids, secret_chunks(pair[0])).any()
        assert new.database == open_chunk_store(after.database_chunks).fingerprint
        count[split] = len(old) - len(new)
        questions = [input_path(folder, open_manifest(folder), "questions") for folder in folders]
        assert [q for q in open_questions(questions[0], split) if q.document != GONE] == open_questions(
            questions[1], split
        )
    assert sum(count.values()) > 0


def test_generation_does_not_see_it(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before, after = pair
    prompt = f"prompt=Return the sum of all rows of the {SECRET} in the data"
    seen = {}
    for path in pair:
        run = write_run(tmp_path / path.parent.name, open_release(path), retro=True)
        assert main(["generate", f"checkpoint={run}", prompt, "max_new_tokens=4", "device=cpu"]) == 0
        seen[path] = capsys.readouterr().out.split("evidence", 1)[1]
    assert GONE in seen[before] and GONE not in seen[after] and "pkg." in seen[after]


def test_an_archive_of_it_holds_nothing_either(pair: tuple[Path, Path], tmp_path: Path) -> None:
    needles = traces(pair[0])
    export_release(pair[1], tmp_path / "a.tar", progress=False)
    path = import_release(tmp_path / "a.tar", tmp_path / "imported", progress=False)
    # The tokenizer is the old one; it knows the keys of the documents that it was trained on.
    files = {file: data for file, data in all_bytes(path.parent).items() if "train_tokenizer" not in str(file)}
    assert {kind: occurrences(files, group) for kind, group in needles.items()} == {kind: [] for kind in needles}
    open_retriever(open_release(path))


def test_documents_are_added_and_removed_in_turns(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, after = pair
    config = add_config(tmp_path / "more", after, [*records(9, 60), corpus()[20]])  # it comes back, as a new document
    assert main(["prep", "add", str(config)]) == 0
    grown = tmp_path / "more" / "prep" / "release.json"
    old, new = database(after), database(grown)
    ids = np.arange(old.num_chunks)
    np.testing.assert_array_equal(old.removed(ids), new.removed(ids))
    back = secret_chunks(grown)
    assert len(back) and back.min() >= old.num_chunks
    out = tmp_path / "again"
    gone = [GONE, records(1)[0]["id"], records(1, 60)[0]["id"]]
    command = ["prep", "remove", str(grown.parent), "--out", str(out), "--workers", "1"]
    assert main([*command, *(f"--id={name}" for name in gone)]) == 0
    store = database(out / "release.json")
    store.verify()
    names = {name for name, _ in chunk_names(store, np.flatnonzero(~store.removed(np.arange(store.num_chunks))))}
    assert not names & set(gone) and len(names) > 30
    assert {d.id for d in iter_documents(open_release(out).documents)}.isdisjoint(gone)
    open_retriever(open_release(out))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return release(tmp_path / "before", [*records(20), {**records(2)[1], "id": "a copy"}])


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_unknown_ids_are_named_and_nothing_is_done(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = records(1)[0]["id"]
    command = ["prep", "remove", str(small), "--out", str(tmp_path / "out"), "--id", name]
    assert main([*command, "--id", "nobody", "--id", "someone else"]) == 2
    error = capsys.readouterr().err
    assert "has no document 'nobody', 'someone else' (2 of 3 ids)" in error and error.count("\n") == 1
    listing = next(open_release(small).documents.glob("duplicates-*.jsonl"))
    twins = json.loads(listing.read_text())
    assert main([*command, "--id", twins["dropped"]]) == 2
    expected = f"'{twins['dropped']}' was left out as a duplicate of '{twins['kept']}', which holds its text"
    assert expected in capsys.readouterr().err
    assert main([*command[:5]]) == 2 and "expected at least one document id" in capsys.readouterr().err
    assert main([*command[:5], "--ids", str(tmp_path / "none")]) == 2 and "cannot be read" in capsys.readouterr().err
    assert main([*command[:5], "--id", "nobody", "--ignore-missing"]) == 2
    assert not (tmp_path / "out").exists()
    assert main([*command, "--id", "nobody", "--ignore-missing"]) == 0
    assert main([*command, "--id", "nobody", "--ignore-missing"]) == 0  # the same request again
    capsys.readouterr()
    assert main([*command[:5], "--id", records(3)[2]["id"]]) == 2
    assert "another release lies there" in capsys.readouterr().err


def test_a_document_of_one_split_leaves_the_others_alone(small: Path, tmp_path: Path) -> None:
    old = open_release(small)
    name = next(d.id for d in iter_documents(old.documents) if d.split == "test")
    assert main(["prep", "remove", str(small), "--out", str(tmp_path / "out"), "--id", name, "--workers", "1"]) == 0
    new = open_release(tmp_path / "out")
    assert new.database_chunks == old.database_chunks and new.searcher == old.searcher
    assert new.split("train") == old.split("train") and new.split("valid") == old.split("valid")
    test = open_chunk_store(new.split("test").chunks)
    assert test.removed(np.arange(test.num_chunks)).any()
    assert new.documents != old.documents


def test_older_folders_are_listed_and_purged(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, name = small.parent, records(1)[0]["id"]
    (root / "tokenize-unfinished" / "shards").mkdir(parents=True)
    (root / "tokenize-damaged").mkdir()
    (root / "tokenize-damaged" / "manifest.json").write_text("{")
    old = open_release(small)
    command = ["prep", "remove", str(small), "--id", name, "--out", str(tmp_path / "out"), "--workers", "1"]
    before = tree(root)
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert tree(root) == before and "give --purge" in printed and "tokenize-unfinished" in printed
    assert "tokenize-damaged" in printed
    listed = {Path(line.strip()).name.rpartition("-")[0] for line in printed.splitlines() if line.startswith("  /")}
    assert {"ingest", "deduplicate", "sign_documents", "tokenize", "build_index", "questions"} <= listed | {"questions"}
    assert str(old.split("test").tokens) not in printed and str(old.tokenizer) not in printed  # held nothing of it
    # A run folder beside it still reads the old release.
    run = write_run(root / "runs" / "x", old, retro=False)
    assert main([*command, "--purge"]) == 2
    assert f"{run / 'release.json'}: still uses" in capsys.readouterr().err
    assert set(before) <= set(tree(root))
    shutil.rmtree(root / "runs")
    new_files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert main([*command, "--purge"]) == 0
    assert "purged: " in capsys.readouterr().out
    assert not small.exists() and not old.database_tokens.exists() and old.tokenizer.exists()
    needle = b"sum_0("
    left = {p: d for p, d in all_bytes(root).items() if needle in d and "tokenizer" not in str(p)}
    assert left == {} and needle not in b"".join(all_bytes(tmp_path / "out").values())
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == new_files
    opened = open_release(tmp_path / "out")
    open_retriever(opened)
    export_release(opened.path, tmp_path / "a.tar", progress=False)
    tokenizer = open_tokenizer(opened.tokenizer)
    assert tokenizer.vocab_size == 400


def test_another_release_that_shares_folders_stops_the_purge(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    name = records(1)[0]["id"]
    assert main(["prep", "add", str(add_config(small.parent / "grown", small, records(3, 30)))]) == 0
    command = ["prep", "remove", str(small.parent / "grown" / "prep"), "--id", name, "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main([*command, "--purge", "--workers", "1"]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1 and f"{small}: still uses" in error[0] and "nothing was purged" in error[0]
    assert open_release(small).fingerprint and open_release(small.parent / "grown" / "prep").fingerprint
