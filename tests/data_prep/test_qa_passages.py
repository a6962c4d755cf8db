"""Questions with passages: what each method finds, oracle, seen, recall; any workers and any kill, the same bytes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.qa_passages import QaPassagesStage
from data_prep.qa_pipeline import QaPipeline
from retro.artifacts.manifest import open_manifest
from retro.artifacts.release import open_release
from retro.config.errors import ArtifactError, ArtifactMismatchError, ConfigError
from retro.config.qa_prepare import QaPassagesConfig, QaRetrievalConfig
from retro.data.qa.answers import has_answer
from retro.data.qa.prepared import PreparedQuestions, open_prepared
from retro.data.qa.recall import answer_rank, evidence_rank
from tests.data_prep.qa_corpus import TOWNS, config_of, questions, write_corpus

LEXICAL = "retrieval.embed={kind: lexical, lexical: {dimension: 64, buckets: 4096}}"
METHODS = {
    "bm25": (),
    "release": ("retrieval.method=release",),
    "release, reranked": ("retrieval.method=release", "retrieval.rerank=bm25"),
    "dense": ("retrieval.method=dense", LEXICAL),
    "bm25, reranked": ("retrieval.rerank=dense", LEXICAL),
    "hybrid": ("retrieval.method=hybrid", LEXICAL),
    "weighted": ("retrieval.method=hybrid", LEXICAL, "retrieval.fusion=weighted", "retrieval.dense_weight=0.25"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towns")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedQuestions:
    root = tmp_path_factory.mktemp("prepared")
    return open_prepared(QaPipeline(config_of(corpus, root)).run(progress=False))


def content(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".question-hashes")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_every_question_is_there_with_its_passages(prepared: PreparedQuestions) -> None:
    assert prepared.splits == ("train", "test") and prepared.task.name == "towns"
    for split, rows in questions().items():
        found = prepared.read(split)
        assert prepared.count(split) == len(found) == len(rows)
        assert sorted(item.question.id for item in found) == sorted(row["id"] for row in rows)
        for item in found:
            assert 1 <= len(item.passages) <= 4
            scores = [passage.score for passage in item.passages]
            assert scores == sorted(scores, reverse=True) and not np.isnan(scores).any()
            chunks = [passage.chunk for passage in item.passages]
            assert len(set(chunks)) == len(chunks) and min(chunks) >= 0


def test_the_title_alone_names_the_town_and_finds_it(prepared: PreparedQuestions, corpus: Path, tmp_path: Path) -> None:
    def share(found: PreparedQuestions) -> float:
        return found.recall("test")["evidence"]["1"]

    assert share(prepared) == 1.0
    for item in prepared.read("test"):
        assert item.passages[0].title == item.question.subject
    without = QaPipeline(config_of(corpus, tmp_path, "retrieval.bm25.title=0")).run(progress=False)
    assert share(open_prepared(without)) < 0.5


def test_oracle_passages_hold_the_answer_and_are_of_the_evidence(prepared: PreparedQuestions) -> None:
    for split in prepared.splits:
        for item in prepared.read(split):
            assert item.oracle
            for passage in item.oracle:
                assert has_answer(passage.text, item.question.answers)
                assert not item.question.evidence or passage.document in item.question.evidence


def test_seen_tells_documents_of_the_training_split_from_others(prepared: PreparedQuestions) -> None:
    for split in prepared.splits:
        for item in prepared.read(split):
            town = TOWNS.index(item.question.subject)
            assert item.seen == (None if not item.question.evidence else town < 6)


def test_recall_is_that_of_the_questions(prepared: PreparedQuestions) -> None:
    for split in prepared.splits:
        found, figures = prepared.read(split), prepared.recall(split)
        assert figures["n"] == len(found) and set(figures["by_group"]) == {"houses", "river"}
        named = [item for item in found if item.question.evidence]
        for k in (1, 2, 3):
            ranks = [evidence_rank(item.question, item.passages) for item in named]
            assert figures["evidence"][str(k)] == sum(r is not None and r < k for r in ranks) / len(named)
            ranks = [answer_rank(item.question, item.passages) for item in found]
            assert figures["answer"][str(k)] == sum(r is not None and r < k for r in ranks) / len(found)


def test_no_text_is_written_twice_for_a_question(prepared: PreparedQuestions) -> None:
    for item in prepared.read("test"):
        for number in range(3):
            first = [p for p in item.passages if p.document == f"t{number}"]
            texts = " | ".join(passage.text for passage in first)
            assert texts.count("was founded") <= 1


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_what_its_kind_can(corpus: Path, tmp_path: Path, name: str) -> None:
    found = open_prepared(QaPipeline(config_of(corpus, tmp_path, *METHODS[name])).run(progress=False))
    assert found.retrieval["method"] == name.split(",")[0].replace("weighted", "hybrid")
    assert found.release == open_release(corpus / "release").fingerprint
    recall = found.recall("test")
    assert recall["passages"] == 4
    # Only an index that knows titles tells towns apart; vectors of texts do not.
    if name in ("bm25", "release, reranked"):
        assert recall["evidence"]["1"] == 1.0
    if name == "dense":
        assert recall["evidence"]["1"] < 1.0


def test_fusion_is_better_than_the_worse_of_two_and_knows_its_options(corpus: Path, tmp_path: Path) -> None:
    def made(name: str, *more: str) -> PreparedQuestions:
        config = config_of(corpus, tmp_path, *METHODS[name], *more)
        return open_prepared(QaPipeline(config).run(progress=False))

    dense, fused, weighted = made("dense"), made("hybrid"), made("weighted")
    assert fused.recall("test")["evidence"]["2"] >= dense.recall("test")["evidence"]["2"]
    assert weighted.recall("test")["evidence"]["1"] >= dense.recall("test")["evidence"]["1"]
    steep = made("hybrid", "retrieval.rank_constant=1")
    assert len({item.fingerprint for item in (dense, fused, weighted, steep)}) == 4
    lines = [[dataclasses.astuple(q) for q in item.read("test")] for item in (fused, weighted)]
    assert lines[0] != lines[1]


def test_one_and_two_workers_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        QaPipeline(config_of(corpus, tmp_path / str(workers), f"workers={workers}")).run(progress=False)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "1").rglob("*.json*") if path.name[0] != "."}
    QaPipeline(config_of(corpus, tmp_path / "1")).run(progress=False)
    assert before and {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    QaPipeline(config_of(corpus, tmp_path / "clean")).run(progress=False)
    root = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.data_prep.qa_corpus", str(corpus), str(root), "shard_questions=1"]
    QaPipeline(config_of(corpus, tmp_path / "small", "shard_questions=1")).run(progress=False)
    kills = 0
    for wait in (0.0, 0.02, 0.05, 0.1, 0.3):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        while process.poll() is None and not list(root.glob("qa_*")):
            time.sleep(0.01)
        time.sleep(wait)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills
    assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode == 0
    assert content(root) == content(tmp_path / "small")
    # The size of a shard does not change a question.
    for split in ("train", "test"):
        assert open_prepared(root).read(split) == open_prepared(tmp_path / "clean").read(split)


def test_passages_that_came_with_the_questions_are_taken_as_they_are(corpus: Path, tmp_path: Path) -> None:
    rows = [
        {
            "question": "Which river is Porto on?",
            "answers": ["Douro"],
            "ctxs": [
                {"title": "A", "text": "no river", "score": "3.5", "id": "a"},
                {"title": "B", "text": "the Douro", "score": "2.5", "id": "b"},
                {"title": "C", "text": "Douro again", "id": "c"},
            ],
        }
    ]
    (tmp_path / "fid.json").write_text(json.dumps(rows))
    overrides = ["release=null", "retrieval.method=given", f"source.files={{test: [{tmp_path / 'fid.json'}]}}"]
    overrides += ["source.fields={passages: ctxs, id: null, evidence: null, group: null, subject: null}"]
    config = config_of(corpus, tmp_path / "out", "passages={keep: 2, oracle: 1}", *overrides)
    found = open_prepared(QaPipeline(config).run(progress=False))
    (item,) = found.read("test")
    assert [(p.title, p.text, p.document, p.chunk, p.score) for p in item.passages] == [
        ("A", "no river", "a", -1, 3.5),
        ("B", "the Douro", "b", -1, 2.5),
    ]
    assert [p.title for p in item.oracle] == ["B"] and item.seen is None
    assert found.release is None and found.retrieval["method"] == "given"
    assert found.recall("test")["answer"] == {"n": 1, "1": 0.0, "2": 1.0}
    assert found.recall("test")["evidence"] == {"n": 0}


def test_the_passages_can_be_read_where_release_and_index_are_gone(prepared: PreparedQuestions, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(prepared.folder, tmp_path / "alone")
    alone = open_prepared(tmp_path / "alone")
    assert alone.read("test") == prepared.read("test") and alone.task == prepared.task


def test_a_release_without_vectors_has_no_dense_search(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no index over vectors; add retrieval\.embed"):
        QaPipeline(config_of(corpus, tmp_path, "retrieval.method=dense")).run(progress=False)


def test_an_index_of_another_database_is_refused(corpus: Path, prepared: PreparedQuestions, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_corpus(other)
    (other / "more").mkdir()
    release = open_release(corpus / "release")
    manifest = open_manifest(prepared.folder)
    folder = prepared.folder.parent / Path(manifest.inputs["questions"]["path"]).name
    foreign = open_release(other / "release")
    inputs = {"questions": folder, "database": release.splits["train"].chunks, "searcher": foreign.searcher}
    with pytest.raises(ArtifactMismatchError, match="expected an index of the database"):
        QaPassagesStage(QaRetrievalConfig(method="release"), QaPassagesConfig(), inputs)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"method bm25: expected inputs \['bm25', 'database'\]"):
        QaPassagesStage(QaRetrievalConfig(), QaPassagesConfig(), {"questions": folder})


def test_questions_of_a_release_need_its_path(corpus: Path, tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path, "source.release=docs")
    with pytest.raises(ArtifactError, match="no questions 'docs' in the release"):
        QaPipeline(config).run(progress=False)
