"""Questions out of plain text: a sentence asks for a name or a number that was taken out of it.

Salient span masking (Guu et al. 2020, REALM, section 3.4) as question answering: what a model learns from it is to find
in its evidence the words around the gap, and to copy what stands there. It needs no annotation, so a small set of real
questions can be preceded by as many of these as there is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from retro.config.qa_spans import SpanQuestionsConfig
from retro.data.document import Document, document_key
from retro.data.qa.record import QaQuestion

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n+")
_NAME = r"[A-Z][\w'’-]+(?:\s+(?:(?:of|the|de|von|van|and)\s+)?[A-Z][\w'’-]+)*"
_SPAN = re.compile(rf"\b(?:(?P<year>1\d{{3}}|20\d{{2}})|(?P<number>\d[\d,.]*\d|\d+)|(?P<name>{_NAME}))(?!\w)")
_GAP = {"year": "what year", "number": "how many", "name": "what"}
# Words with a capital letter that say nothing by themselves.
_FUNCTION_WORDS = frozenset(
    """
    a an and as at but by for from he her his if in it its no not of on or she so some such that the their then
    there these they this those to under was we were what when where which while who with after also although
    before during however many most one other since several
    """.split()  # noqa: SIM905 - a list of a line each would be long
)


def iter_span_questions(documents: Iterable[Document], config: SpanQuestionsConfig) -> Iterator[QaQuestion]:
    """Questions of documents, in their order; which ones a document gets depends on its id and the seed alone.

    group "span"; relation: the kind of the answer (name, number, year); evidence: the document itself.
    """
    for document in documents:
        generator = np.random.Generator(np.random.Philox(key=[document_key(document.id), config.seed]))
        sentences = [s for s in map(_flatten, _SENTENCE.split(document.text)) if len(s.split()) >= config.min_words]
        made = 0
        for place in generator.permutation(len(sentences)):
            if made == config.per_document:
                break
            question = _question(sentences[place], config, generator)
            if question is not None:
                text, answer, kind = question
                yield QaQuestion(
                    id=f"{document.id}#{place}",
                    question=text,
                    answers=(answer,),
                    evidence=(document.id,),
                    group="span",
                    relation=kind,
                )
                made += 1


def _question(
    sentence: str, config: SpanQuestionsConfig, generator: np.random.Generator
) -> tuple[str, str, str] | None:
    """(question, answer, kind of answer) out of a sentence; None if it has no span that could be asked for."""
    spans = [span for span in _SPAN.finditer(sentence) if _is_salient(span, config)]
    if not spans:
        return None
    span = spans[int(generator.integers(len(spans)))]
    kind, answer = str(span.lastgroup), span.group()
    before, after = sentence[: span.start()].split(), sentence[span.end() :].split()
    # A window around the gap that is not always in its middle.
    room = max(config.max_words - 2, 1)
    least, most = min(max(0, room - len(after)), len(before)), min(room, len(before))
    left = int(generator.integers(least, most + 1))
    words = [*before[len(before) - left :], _GAP[kind], *after[: room - left]]
    return " ".join(words), answer, kind


def _is_salient(span: re.Match[str], config: SpanQuestionsConfig) -> bool:
    words = span.group().split()
    # The first word of a sentence is written with a capital letter whatever it is.
    begins = span.start() == 0 and len(words) == 1
    return (
        len(words) <= config.max_answer_words
        and not (span.lastgroup == "name" and begins)
        and words[0].lower() not in _FUNCTION_WORDS
    )


def _flatten(sentence: str) -> str:
    return " ".join(sentence.split())
