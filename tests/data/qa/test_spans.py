"""Questions out of plain text: the gap, the answer, and that they depend on the document alone."""

from __future__ import annotations

import dataclasses
import re

import pytest

from retro.config.errors import ConfigError
from retro.config.qa_spans import SpanQuestionsConfig
from retro.data.document import Document
from retro.data.qa.spans import iter_span_questions

CONFIG = SpanQuestionsConfig("release.json", "out.jsonl", per_document=50, min_words=5)
GAPS = {"name": "what", "year": "what year", "number": "how many"}
TEXTS = {
    "palau": "In 1899 the islands were sold by Spain to Germany for 25,000,000 pesetas after a war of the United "
    "States. They had been visited by the explorer Ruy Lopez de Villalobos in 1543.\n\nToday about 21,000 people live "
    "there.",
    "cassatt": "Mary Cassatt was a distant cousin of the artist Robert Henri. She lived in Paris for most of her life.",
    "plain": "there is nothing here that anyone could ask for, not in this text and not after it either. Nor here, no.",
}


def documents(*names: str) -> list[Document]:
    return [Document(name, TEXTS[name], "", "", "", "train") for name in names]


def flat(name: str) -> str:
    return " ".join(TEXTS[name].split())


def test_a_question_is_a_piece_of_the_text_with_a_gap_that_its_answer_fills():
    questions = list(iter_span_questions(documents("palau", "cassatt"), CONFIG))
    assert {q.evidence for q in questions} == {("palau",), ("cassatt",)}
    assert {q.relation for q in questions} <= set(GAPS)
    assert len({q.id for q in questions}) == len(questions) >= 4
    for question in questions:
        gap = GAPS[question.relation]
        filled = [
            question.question[: m.start()] + question.answers[0] + question.question[m.end() :]
            for m in re.finditer(rf"\b{gap}\b", question.question)
        ]
        # Where a sign follows the answer without a space, the question has one.
        wanted = flat(question.evidence[0]).replace(" ", "")
        assert any(text.replace(" ", "") in wanted for text in filled), question


def test_kinds_of_answers():
    kinds: dict[str, set[str]] = {kind: set() for kind in GAPS}
    for seed in range(40):
        config = dataclasses.replace(CONFIG, seed=seed)
        for question in iter_span_questions(documents("palau"), config):
            kinds[question.relation].add(question.answers[0])
    assert kinds["year"] == {"1899", "1543"}
    assert kinds["number"] == {"25,000,000", "21,000"}
    assert {"Spain", "Germany", "United States", "Ruy Lopez de Villalobos"} <= kinds["name"]
    assert not kinds["name"] & {"In", "They", "Today"}


def test_questions_depend_on_the_document_and_the_seed_alone():
    together = list(iter_span_questions(documents("palau", "cassatt"), CONFIG))
    apart = [*iter_span_questions(documents("cassatt"), CONFIG), *iter_span_questions(documents("palau"), CONFIG)]
    assert sorted(together, key=lambda q: q.id) == sorted(apart, key=lambda q: q.id)
    others = [
        list(iter_span_questions(documents("palau", "cassatt"), dataclasses.replace(CONFIG, seed=s))) for s in (1, 2, 3)
    ]
    assert any(other != together for other in others)


@pytest.mark.parametrize("words", [4, 7, 12])
def test_no_question_is_longer_than_asked_for(words: int):
    config = dataclasses.replace(CONFIG, max_words=words)
    questions = list(iter_span_questions(documents("palau", "cassatt"), config))
    assert questions
    assert max(len(q.question.split()) for q in questions) <= words
    assert not list(iter_span_questions(documents("palau"), dataclasses.replace(config, min_words=60)))


def test_text_without_names_asks_nothing_and_few_are_few():
    assert not list(iter_span_questions(documents("plain"), CONFIG))
    assert len(list(iter_span_questions(documents("palau"), dataclasses.replace(CONFIG, per_document=1)))) == 1
    longest = dataclasses.replace(CONFIG, max_answer_words=1)
    assert all(len(q.answers[0].split()) == 1 for q in iter_span_questions(documents("palau", "cassatt"), longest))


def test_bad_configuration():
    with pytest.raises(ConfigError, match="max_words: expected 4 or more"):
        dataclasses.replace(CONFIG, max_words=3)
    with pytest.raises(ConfigError, match="output: expected a path"):
        dataclasses.replace(CONFIG, output="")
