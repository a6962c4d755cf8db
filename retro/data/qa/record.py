"""One question of question answering, and one passage of evidence for it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that was retrieved, or given, for a question.

    title, text: as the model reads them; document: id of the document, "" where unknown; chunk: first database chunk
    of the text, -1 where it is of no release; score: of its retriever, larger is better, NaN where unknown.
    """

    title: str
    text: str
    document: str = ""
    chunk: int = -1
    score: float = float("nan")


@dataclasses.dataclass(frozen=True, slots=True)
class QaQuestion:
    """One question.

    id: unique and stable; answers: all accepted ones (texts, or regular expressions if the task says so), the first is
    what a model is trained to say; evidence: ids of documents that hold the answer, where the source names them; group:
    part of the task that is also reported by itself; relation, subject: of a fact about an entity (Mallen et al. 2023);
    popularity, object_popularity: monthly page views of the subject and of the answer, None where unknown.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...] = ()
    group: str = ""
    relation: str = ""
    subject: str = ""
    popularity: float | None = None
    object_popularity: float | None = None


def wording(question: str) -> str:
    """What two questions share that differ in case and spaces alone."""
    return " ".join(question.casefold().split())


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedQuestion:
    """A question with its evidence, as prepared once and read by training and evaluation.

    passages: retrieved, best first; oracle: passages that hold the answer, best first, () where there is none; seen:
    whether a document of `evidence` was in the language model's training split, None where that is unknown.
    """

    question: QaQuestion
    passages: tuple[Passage, ...] = ()
    oracle: tuple[Passage, ...] = ()
    seen: bool | None = None
