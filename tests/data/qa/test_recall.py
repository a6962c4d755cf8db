"""Recall of evidence and answers, worked out by hand, whole and in parts."""

from __future__ import annotations

import json

from retro.data.qa.recall import RecallCounts, answer_rank, evidence_rank, recall_figures
from retro.data.qa.record import Passage, PreparedQuestion, QaQuestion


def passages(*items: tuple[str, str]) -> tuple[Passage, ...]:
    return tuple(Passage("", text, document) for document, text in items)


FOUND = passages(("a", "the Minho"), ("b", "the Douro"), ("c", "the Tejo"))
QUESTIONS = [
    PreparedQuestion(QaQuestion("1", "?", ("Douro",), ("b",), "river"), FOUND, FOUND[1:2], True),
    PreparedQuestion(QaQuestion("2", "?", ("Tejo", "Minho"), ("c", "x"), "river"), FOUND, (), False),
    PreparedQuestion(QaQuestion("3", "?", ("Lima",), ("y",), "town"), FOUND[:1], (), False),
    PreparedQuestion(QaQuestion("4", "?", ("minho",)), FOUND[:2]),
]


def test_ranks() -> None:
    assert [evidence_rank(q.question, q.passages) for q in QUESTIONS] == [1, 2, None, None]
    assert [answer_rank(q.question, q.passages) for q in QUESTIONS] == [1, 0, None, 0]
    assert answer_rank(QaQuestion("5", "?", ("D.*o",)), FOUND, "regex") == 1
    assert answer_rank(QaQuestion("5", "?", ("D.*o",)), FOUND) is None


def counts(questions: list[PreparedQuestion]) -> dict:
    found = RecallCounts()
    for question in questions:
        ranks = [rank(question.question, question.passages) for rank in (evidence_rank, answer_rank)]
        found.add(question, *ranks)
    return json.loads(json.dumps(found.counts()))


def test_figures_by_hand() -> None:
    figures = recall_figures([counts(QUESTIONS)])
    groups = figures.pop("by_group")
    assert figures == {
        "n": 4,
        "passages": 9 / 4,
        "seen": 1,
        "oracle": 1,
        "evidence": {"n": 3, "1": 0.0, "2": 1 / 3, "3": 2 / 3},
        "answer": {"n": 4, "1": 0.5, "2": 0.75, "3": 0.75},
    }
    assert list(groups) == ["river", "town"]
    assert groups["river"]["evidence"] == {"n": 2, "1": 0.0, "2": 0.5, "3": 1.0}
    assert groups["town"]["answer"] == {"n": 1, "1": 0.0} and groups["town"]["seen"] == 0


def test_parts_add_up() -> None:
    whole = recall_figures([counts(QUESTIONS)])
    assert recall_figures([counts(QUESTIONS[:1]), counts(QUESTIONS[1:]), counts([])]) == whole


def test_nothing_known_is_null() -> None:
    figures = recall_figures([])
    assert figures["n"] == 0 and figures["passages"] is None and figures["seen"] is None
    assert figures["evidence"] == {"n": 0} and figures["by_group"] == {}
    assert recall_figures([counts(QUESTIONS[3:])])["seen"] is None
