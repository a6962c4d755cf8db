"""Oracle and random evidence."""

from __future__ import annotations

import dataclasses

from retro.config.qa import parse_arm
from retro.data.qa.evidence import choose_evidence
from tests.data.qa.questions import passage, question

QUESTIONS = [question(i) for i in range(30)]


def test_retrieved_and_none():
    assert choose_evidence(QUESTIONS, parse_arm("closed_book")) == [()] * 30
    assert choose_evidence(QUESTIONS, parse_arm("retro")) == [q.passages for q in QUESTIONS]
    assert choose_evidence(QUESTIONS, parse_arm("rag"), number=1)[3] == (passage(3),)


def test_oracle_passages_come_first_and_once():
    asked = question(1, passages=[passage(5), passage(1)], oracle=[passage(1)])
    plain = question(2)
    first, second = choose_evidence([asked, plain], parse_arm("retro/oracle"))
    assert first == (passage(1), passage(5))
    assert second == plain.passages


def test_random_evidence_is_of_others_and_holds_no_answer():
    # All questions about documents 0 to 4 share these; one passage names every answer.
    tell = passage(2000, " ".join(f"a{i}" for i in range(30)))
    asked = [
        dataclasses.replace(
            question(i, passages=[passage(i), tell, passage(i + 1000)]),
            question=dataclasses.replace(question(i).question, evidence=tuple(f"doc{j}" for j in range(5))),
        )
        for i in range(30)
    ]
    found = choose_evidence(asked, parse_arm("retro/random"), 3)
    for prepared, passages in zip(asked, found, strict=True):
        assert len(passages) == 3
        assert len({p.text for p in passages}) == 3
        assert not {p.document for p in passages} & set(prepared.question.evidence)
        assert not {p.text for p in passages} & {p.text for p in prepared.passages}
        assert all(prepared.question.answers[0] not in p.text.split() for p in passages)
        assert tell not in passages
    assert found == choose_evidence(asked, parse_arm("retro++/random"), 3)
    assert found != choose_evidence(asked, parse_arm("retro/random"), 4)


def test_random_evidence_respects_expressions():
    asked = [question(0, passages=[passage(0, "nothing")]), question(1, passages=[passage(1, "year 1889")])]
    asked[0] = dataclasses.replace(asked[0], question=dataclasses.replace(asked[0].question, answers=(r"18\d\d",)))
    arm = parse_arm("rag/random")
    assert choose_evidence(asked, arm)[0] == (passage(1, "year 1889"),)
    assert choose_evidence(asked, arm, answers_are="regex")[0] == ()


def test_a_question_alone_has_no_random_evidence():
    assert choose_evidence([question(1)], parse_arm("rag/random")) == [()]
    assert choose_evidence([], parse_arm("rag/random")) == []
