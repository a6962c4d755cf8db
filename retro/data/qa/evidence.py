"""Which passages a question is given: those that were retrieved, those that hold the answer, or another question's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from retro.config.qa import Arm
from retro.data.qa.answers import AnswerFinder, AnswerKind
from retro.data.qa.record import Passage, PreparedQuestion

# Other questions that are looked at for the passages of one, in the arm `random`.
_MOST_OTHERS = 200


def choose_evidence(
    prepared: Sequence[PreparedQuestion],
    arm: Arm,
    seed: int = 0,
    *,
    answers_are: AnswerKind = "text",
    number: int | None = None,
) -> list[tuple[Passage, ...]]:
    """The passages of each question, best first, () for an arm without evidence.

    retrieved: as they are; oracle: those that hold the answer, then the retrieved ones; random: as many as were
    retrieved, of other questions in a seeded order, none that is from a document of the question's evidence, that was
    retrieved for it too, or that holds an answer. number: at most so many of each question.
    """
    if not (arm.in_prompt or arm.in_encoder):
        return [()] * len(prepared)
    if arm.evidence == "retrieved":
        return [question.passages[:number] for question in prepared]
    if arm.evidence == "oracle":
        return [_oracle_first(question)[:number] for question in prepared]
    return _of_others(prepared, seed, answers_are, number)


def _oracle_first(question: PreparedQuestion) -> tuple[Passage, ...]:
    texts = {passage.text for passage in question.oracle}
    return (*question.oracle, *(passage for passage in question.passages if passage.text not in texts))


def _of_others(
    prepared: Sequence[PreparedQuestion], seed: int, answers_are: AnswerKind, number: int | None
) -> list[tuple[Passage, ...]]:
    count = len(prepared)
    order = np.argsort(np.random.Philox(seed).random_raw(count), kind="stable").tolist() if count else []
    found: list[tuple[Passage, ...]] = [()] * count
    for place, index in enumerate(order):
        question = prepared[index]
        wanted = len(question.passages[:number])
        others = (prepared[order[(place + step) % count]] for step in range(1, min(count, _MOST_OTHERS)))
        found[index] = _foreign(question, others, wanted, AnswerFinder(question.question.answers, answers_are))
    return found


def _foreign(
    question: PreparedQuestion, others: Iterable[PreparedQuestion], wanted: int, finder: AnswerFinder
) -> tuple[Passage, ...]:
    own_documents = set(question.question.evidence)
    taken = {passage.text for passage in (*question.passages, *question.oracle)}
    out: list[Passage] = []
    for other in others:
        if len(out) >= wanted:
            break
        for passage in other.passages[: wanted - len(out)]:
            if passage.document in own_documents or passage.text in taken:
                continue
            if finder.found_in(f"{passage.title}\n{passage.text}"):
                continue
            taken.add(passage.text)
            out.append(passage)
    return tuple(out)
