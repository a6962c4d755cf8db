"""Prepared questions: what is written is read, and what is not one is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError, ConfigError
from retro.data.qa.prepared import open_prepared, parse_prepared, prepared_line
from retro.data.qa.record import Passage, PreparedQuestion, QaQuestion
from tests.data.qa.prepared_folder import write_prepared_folder

TASK = {"name": "rivers", "version": 3}
QUESTION = QaQuestion("q1", "Which river?", ("Douro", "Duero"), ("d7",), "g", "river", "Porto", 120.0, None)
PASSAGE = Passage("Porto", "Porto lies on the Douro.", "d7", 12, 3.5)
GIVEN = Passage("", "no\nscore \u2028 here", "", -1)
PREPARED = PreparedQuestion(QUESTION, (PASSAGE, GIVEN), (PASSAGE,), False)

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
passages = st.builds(
    Passage, texts, texts, texts, st.integers(-1, 1 << 50), st.floats(allow_nan=False, allow_infinity=False)
)
questions = st.builds(
    QaQuestion,
    texts,
    texts,
    st.lists(texts, min_size=1, max_size=3).map(tuple),
    st.lists(texts, max_size=2).map(tuple),
    texts,
    texts,
    texts,
    numbers,
    numbers,
)
prepared = st.builds(
    PreparedQuestion,
    questions,
    st.lists(passages, max_size=2).map(tuple),
    st.lists(passages, max_size=2).map(tuple),
    st.sampled_from([True, False, None]),
)


@settings(max_examples=100, deadline=None)
@given(prepared)
def test_a_line_gives_back_the_question(question: PreparedQuestion) -> None:
    line = prepared_line(question)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert parse_prepared(line, "x:1") == question


def test_an_unknown_score_is_null_and_comes_back_as_nan() -> None:
    line = prepared_line(PREPARED)
    assert [passage["score"] for passage in json.loads(line)["passages"]] == [3.5, None]
    back = parse_prepared(line, "x:1")
    assert math.isnan(back.passages[1].score)
    assert back.passages[0] == PASSAGE and back.oracle == (PASSAGE,) and back.question == QUESTION


@pytest.mark.parametrize(
    "change",
    [
        {"answers": []},
        {"answers": [3]},
        {"answers": None},
        {"id": 7},
        {"seen": "yes"},
        {"seen": 1},
        {"popularity": "many"},
        {"popularity": True},
        {"popularity": 10**400},
        {"question": "\ud800"},
        {"passages": [{"title": "a", "text": "b", "document": "c", "chunk": 1.5, "score": 1}]},
        {"passages": [{"title": "a", "text": "b", "document": "c", "chunk": 1}]},
        {"oracle": 3},
    ],
)
def test_what_is_no_prepared_question_is_refused(change: dict[str, object]) -> None:
    record = json.loads(prepared_line(PREPARED)) | change
    with pytest.raises(ArtifactCorruptError, match=r"^file:4: not a prepared question"):
        parse_prepared(json.dumps(record).encode(), "file:4")


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"3", b'{"id": "a"}', b"\xff", b"[" * 99999])
def test_broken_lines_are_refused(line: bytes) -> None:
    with pytest.raises(ArtifactCorruptError, match="prepare the questions again"):
        parse_prepared(line, "file:1")


def test_the_folder_the_file_and_the_artifact_open_alike(tmp_path: Path) -> None:
    other = PreparedQuestion(QaQuestion("q2", "Why?", ("so",)))
    root = write_prepared_folder(
        tmp_path / "qa", TASK, {"train": [PREPARED, other], "a-1": [other]}, retrieval={"method": "bm25"}, release="ab"
    )
    for path in (root, root / "questions.json", root / "passages", str(root)):
        opened = open_prepared(path)
        assert opened.splits == ("train", "a-1")
        assert opened.release == "ab" and opened.retrieval == {"method": "bm25"}
        assert opened.count("train") == 2
        assert [question.question.id for question in opened.read("train")] == ["q1", "q2"]
        assert opened.read("a-1") == [other]
    assert open_prepared(root).fingerprint == open_prepared(root / "passages").fingerprint


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    opened = open_prepared(write_prepared_folder(tmp_path / "qa", TASK, {"train": [PREPARED]}))
    for ask in (opened.read, opened.count, opened.recall):
        with pytest.raises(ConfigError, match=r"\(train\), found 'test'"):
            ask("test")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="retro qa prepare"):
        open_prepared(tmp_path / "nowhere")


def test_another_artifact_than_the_file_names_is_refused(tmp_path: Path) -> None:
    first = write_prepared_folder(tmp_path / "a", TASK, {"train": [PREPARED]})
    second = write_prepared_folder(tmp_path / "b", TASK | {"version": 4}, {"train": [PREPARED]})
    (first / "passages").rename(tmp_path / "old")
    (second / "passages").rename(first / "passages")
    with pytest.raises(ArtifactMismatchError, match="expected passages"):
        open_prepared(first)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "passages": {"kind": "qa_passages"}}', "[" * 99999])
def test_a_broken_pointer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "questions.json").write_text(content)
    with pytest.raises(ArtifactCorruptError, match=r"questions\.json: not a readable"):
        open_prepared(tmp_path)


def test_figures_that_lack_a_number_are_refused(tmp_path: Path) -> None:
    root = write_prepared_folder(tmp_path / "qa", TASK, {"train": [PREPARED]})
    path = root / "passages" / "manifest.json"
    path.write_text(path.read_text().replace('"questions":', '"question":'))
    with pytest.raises(ArtifactCorruptError, match="lacks figures of prepared questions"):
        open_prepared(root)


def test_a_pointer_of_a_later_format_is_refused(tmp_path: Path) -> None:
    root = write_prepared_folder(tmp_path / "qa", TASK, {"train": [PREPARED]})
    content = json.loads((root / "questions.json").read_text()) | {"format": 2}
    (root / "questions.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactMismatchError, match="expected format 1, found 2"):
        open_prepared(root)
