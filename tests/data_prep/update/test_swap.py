"""Another database for the queries of a release, stored and live."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from retro.artifacts.manifest import open_manifest
from retro.artifacts.release import Release, open_release
from retro.cli.main import main
from retro.data.chunk_store import open_chunk_store
from retro.data.neighbor_table import open_neighbor_table
from retro.data.question_dataset import open_question_sequences
from retro.data.tokenizer import open_tokenizer
from retro.inference.evidence import open_retriever
from retro.inference.live_questions import ask_database
from retro.retrieval.chunk_text import chunk_token_rows
from tests.data_prep.update.releases import BM25, database, records, release, vectors
from tests.eval.workspace import write_run


def renamed(items: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same functions as of another package, all retrievable."""
    return [{**r, "id": "other." + r["id"], "text": r["text"].replace("pkg.", "other.pkg.")} for r in items]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Releases a and b: other documents, the tokenizer of a in both."""
    root = tmp_path_factory.mktemp("swap")
    a = release(root / "a", records(60))
    tokenizer = open_release(a).tokenizer / "tokenizer.model"
    existing = {"kind": "sentencepiece", "existing": {"path": str(tokenizer)}}
    b = release(root / "b", renamed(records(80)), vectors(), tokenizer=existing)
    return a, b


@pytest.fixture(scope="module")
def swapped(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "swapped"
    a, b = pair
    command = ["prep", "swap", "--queries", str(a), "--database", str(b), "--out", str(out), "--workers", "1"]
    assert main([*command, "keep=5"]) == 0
    return out / "release.json"


def document_ids(opened: Release, ids: np.ndarray) -> set[str]:
    store = open_chunk_store(opened.database_chunks)
    numbers = np.unique(store.documents(ids[ids >= 0])).tolist()
    return {store.tokens.document_record(number)["id"] for number in numbers}


def test_queries_of_the_one_and_database_of_the_other(pair: tuple[Path, Path], swapped: Path) -> None:
    a, b, new = (open_release(path) for path in (*pair, swapped))
    assert new.database_chunks == b.database_chunks and new.searcher == b.searcher and new.tokenizer == a.tokenizer
    assert set(new.splits) == set(a.splits) and len({a.fingerprint, b.fingerprint, new.fingerprint}) == 3
    store = open_chunk_store(new.database_chunks)
    for name, split in new.splits.items():
        assert split.chunks == a.split(name).chunks and split.neighbors is not None
        queries = open_chunk_store(split.chunks)
        table = open_neighbor_table(split.neighbors, queries, store)
        table.verify()
        assert table.k == 5 and open_manifest(split.neighbors).config["candidates"] == 30
        ids = np.arange(queries.num_chunks)
        # What a live search gives for the same chunk.
        retriever = open_retriever(new)
        expected, _ = retriever.retrieve(chunk_token_rows(queries, ids), 5)
        np.testing.assert_array_equal(table.rows(ids), expected)
        assert document_ids(new, table.rows(ids)) <= {r["id"] for r in renamed(records(80))}


def test_the_same_command_again_does_nothing_and_another_one_is_refused(
    pair: tuple[Path, Path], swapped: Path, capsys: pytest.CaptureFixture
) -> None:
    a, b = map(str, pair)
    before = {path: path.stat().st_mtime_ns for path in swapped.parent.rglob("*.npy")}
    out = str(swapped.parent)
    assert main(["prep", "swap", "--queries", a, "--database", b, "--out", out, "--workers", "1", "keep=5"]) == 0
    assert {path: path.stat().st_mtime_ns for path in swapped.parent.rglob("*.npy")} == before
    assert main(["prep", "swap", "--queries", b, "--database", a, "--out", out]) == 2
    assert "another release lies there" in capsys.readouterr().err
    assert main(["prep", "swap", "--queries", a, "--database", b, "--out", str(pair[0].parent)]) == 2
    assert "another release lies there" in capsys.readouterr().err


def test_generation_takes_its_evidence_from_the_other_database(
    pair: tuple[Path, Path], swapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    a, b = pair
    run = write_run(tmp_path / "run", open_release(a), retro=True)
    command = ["generate", f"checkpoint={run}", "prompt=Return the sum of all rows", "max_new_tokens=20", "device=cpu"]
    assert main(command) == 0
    own = capsys.readouterr().out.split("evidence", 1)[1]
    assert "pkg." in own and "other.pkg." not in own
    assert main([*command, f"database={b}"]) == 0
    live = capsys.readouterr().out
    evidence = [line for line in live.split("evidence", 1)[1].splitlines() if "distance" in line]
    assert evidence and all(line.strip().startswith("other.pkg.") for line in evidence)
    # The release that swap wrote does the same.
    assert main([*command, f"release={swapped}"]) == 0
    assert capsys.readouterr().out == live
    assert main([*command, f"database={b}", "retrieve=off"]) == 2
    assert "nothing is retrieved" in capsys.readouterr().err


def test_search_in_the_other_database(pair: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    a, b = pair
    assert main(["search", f"release={a}", f"database={b}", "sum of all rows", "k=3"]) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if "distance" in line]
    assert len(found) == 3 and all("other.pkg." in line for line in found)


def test_evaluation_of_the_swapped_release(pair: tuple[Path, Path], swapped: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", open_release(pair[0]), retro=True)
    common = [
        f"checkpoint={run}",
        f"release={swapped}",
        "device=cpu",
        f"output={tmp_path / 'out'}",
        "sequence_length=128",
    ]
    assert main(["eval", "configs/eval/perplexity.yaml", *common, "samples=2"]) == 0
    folder = tmp_path / "out" / "eval" / "perplexity-test"
    results = json.loads((folder / "results.json").read_text())
    assert results["release_fingerprint"] == open_release(swapped).fingerprint
    samples = json.loads((folder / "samples.json").read_text())
    found = {neighbor["document"] for sample in samples for neighbor in sample["neighbors"]}
    assert found and all(name.startswith("other.") for name in found)


def test_questions_asked_live_are_those_that_swap_stores(pair: tuple[Path, Path], swapped: Path) -> None:
    a, b, new = (open_release(path) for path in (*pair, swapped))
    tokenizer = open_tokenizer(a.tokenizer)
    own, stored = (open_question_sequences(r.questions["docs"], "test") for r in (a, new))
    live = ask_database(a.questions["docs"], own, a, b, tokenizer)
    np.testing.assert_array_equal(live.neighbor_ids, stored.neighbor_ids)
    np.testing.assert_array_equal(live.distances, stored.distances)
    np.testing.assert_array_equal(live.tokens, stored.tokens)
    assert live.database == stored.database and live.fingerprint not in (own.fingerprint, stored.fingerprint)


def test_question_answering_with_the_other_database(
    pair: tuple[Path, Path], swapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    a, b = pair
    run = write_run(tmp_path / "run", open_release(a), retro=True)
    common = ["eval", "configs/eval/docs_qa.yaml", f"checkpoint={run}", "device=cpu", "max_answer_tokens=3"]
    rows = {}
    for name, option in (("stored", f"release={swapped}"), ("live", f"database={b}"), ("own", "batch=8")):
        assert main([*common, option, f"output={tmp_path / name}"]) == 0, capsys.readouterr().err
        lines = (tmp_path / name / "eval" / "docs_qa" / "responses.jsonl").read_text().splitlines()
        rows[name] = [json.loads(line) for line in lines]
    assert rows["stored"] == rows["live"] != rows["own"]
    # Another database is another evaluation: nothing of the first one is taken for it.
    assert main([*common, f"output={tmp_path / 'live'}"]) != 0
    capsys.readouterr()
    command = ["eval", "configs/eval/perplexity.yaml", f"checkpoint={run}", f"database={b}"]
    assert main(command) == 2
    assert "retro prep swap --queries" in capsys.readouterr().err
    gpt = write_run(tmp_path / "gpt", open_release(a), retro=False)
    assert main(["eval", "configs/eval/docs_qa.yaml", f"checkpoint={gpt}", "device=cpu", f"database={b}"]) == 2
    assert "without retrieval" in capsys.readouterr().err


def test_databases_that_do_not_fit_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    a, _ = pair
    tokenizer = {"kind": "sentencepiece", "existing": {"path": str(open_release(a).tokenizer / "tokenizer.model")}}
    small = release(tmp_path / "small", records(30), BM25, chunk={"chunk_length": 8}, tokenizer=tokenizer)
    foreign = release(tmp_path / "foreign", records(40), BM25)
    out = str(tmp_path / "out")
    for other, message in (
        (small, "expected a database of chunks of 16 tokens"),
        (foreign, "expected tokens of the tokenizer"),
    ):
        assert main(["prep", "swap", "--queries", str(a), "--database", str(other), "--out", out]) == 3
        captured = capsys.readouterr().err
        assert message in captured and captured.count("\n") == 1
        assert main(["search", f"release={a}", f"database={other}", "rows"]) == 3
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["prep", "swap", "--queries", str(a), "--database", str(a), "--out", out, "kep=3"]) == 2
    assert "did you mean 'keep'" in capsys.readouterr().err
    assert database(a).num_chunks > 0
