"""Questions and passages as lines of JSON: what was written is read, anything else is refused."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.config.errors import ArtifactCorruptError
from retro.data.qa.question_file import (
    SourceQuestion,
    iter_source_questions,
    parse_question_line,
    question_line,
    write_source_questions,
)
from retro.data.qa.record import Passage, QaQuestion

FULL = SourceQuestion(
    QaQuestion("é-1", "who?\nyou", ("a", "b"), ("d",), "popqa", "author", "Emma", 12.5, 0.0),
    (Passage("T", "x", "d", 3, 1.5), Passage("", "y")),
)
BARE = SourceQuestion(QaQuestion("2", "q", ("a",)))

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
QUESTIONS = st.builds(
    QaQuestion,
    id=TEXT,
    question=TEXT,
    answers=st.lists(TEXT, min_size=1).map(tuple),
    evidence=st.lists(TEXT).map(tuple),
    group=TEXT,
    popularity=st.none() | st.floats(0, 1e12),
)
PASSAGES = st.builds(
    Passage, title=TEXT, text=TEXT, document=TEXT, chunk=st.integers(-1, 2**40), score=st.floats(allow_infinity=False)
)


def plain(item: SourceQuestion) -> SourceQuestion:
    """NaN is unequal to itself: here it is a number of its own."""
    passages = [dataclasses.replace(p, score=-1e99 if math.isnan(p.score) else p.score) for p in item.passages]
    return SourceQuestion(item.question, tuple(passages))


@given(QUESTIONS, st.lists(PASSAGES, max_size=3).map(tuple))
def test_what_was_written_is_read(question, passages):
    item = SourceQuestion(question, passages)
    line = question_line(item)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert plain(parse_question_line(line, "x")) == plain(item)


def test_the_fields_of_a_line():
    assert list(json.loads(question_line(FULL))) == [
        "id",
        "question",
        "answers",
        "evidence",
        "group",
        "relation",
        "subject",
        "popularity",
        "object_popularity",
        "passages",
    ]
    assert "passages" not in json.loads(question_line(BARE))
    assert json.loads(question_line(FULL))["passages"][1]["score"] is None  # JSON has no NaN


def test_a_file(tmp_path):
    assert write_source_questions(tmp_path / "q.jsonl", [FULL, BARE]) == 2
    assert [plain(item) for item in iter_source_questions(tmp_path / "q.jsonl")] == [plain(FULL), plain(BARE)]


@pytest.mark.parametrize(
    "change",
    [
        {"id": 3},
        {"answers": []},
        {"answers": [1]},
        {"answers": None},
        {"popularity": "12"},
        {"popularity": True},
        {"evidence": "d"},
        {"passages": [{"text": "x"}]},
        {"passages": [{"title": "", "text": "", "document": "", "chunk": 1.0, "score": None}]},
        {"question": None},
    ],
)
def test_another_line_is_refused(change):
    record = {**json.loads(question_line(BARE)), **change}
    with pytest.raises(ArtifactCorruptError, match=r"f:7: not a question .*; make the questions again"):
        parse_question_line(json.dumps(record).encode(), "f:7")


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b"{broken", b"\xff\n", b"null"])
def test_no_question_at_all(line):
    with pytest.raises(ArtifactCorruptError, match="f:1"):
        parse_question_line(line, "f:1")
