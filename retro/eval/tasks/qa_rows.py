"""The parts of a response row of task qa. docs/qa.md has the fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retro.data.qa.answers import AnswerFinder
from retro.data.qa.examples import Example
from retro.data.qa.recall import evidence_rank
from retro.data.qa.record import Passage, PreparedQuestion
from retro.data.qa.task import TaskDefinition
from retro.data.questions import parse_answer
from retro.data.tokenizer import Tokenizer
from retro.inference.language_model import Generated

# Natural logarithms: the next digits differ from batch to batch.
_DIGITS = 6
# By so many of its characters, behind what the template has before it, a cut passage is found in the prompt.
_BEGIN = 8
_MARK = "\0"


def question_fields(prepared: PreparedQuestion, finder: AnswerFinder) -> dict[str, Any]:
    """What the rows of a question hold in every arm. Ranks are of all prepared passages, from 0."""
    question = prepared.question
    return {
        "id": question.id,
        "question": question.question,
        "answers": list(question.answers),
        "evidence": list(question.evidence),
        "group": question.group,
        "relation": question.relation,
        "subject": question.subject,
        "popularity": question.popularity,
        "object_popularity": question.object_popularity,
        "seen": prepared.seen,
        "num_retrieved": len(prepared.passages),
        "evidence_rank": evidence_rank(question, prepared.passages),
        # As `answer_rank` has it.
        "answer_rank": finder.first_in([passage.text for passage in prepared.passages]),
    }


def readable(passage: Passage) -> str:
    """What of a passage is searched for an answer: title and text."""
    return f"{passage.title}\n{passage.text}"


def answer_fields(answer: Generated | None) -> dict[str, Any]:
    """What the model wrote; None and [] where it gave no answer."""
    if answer is None:
        return {"text": None, "prediction": None, "token_logprobs": []}
    return {
        "text": answer.text,
        "prediction": parse_answer(answer.text),
        "token_logprobs": [round(value, _DIGITS) for value in answer.token_logprobs],
    }


def passage_fields(example: Example, evidence: Sequence[Passage], holds_answer: bool | None) -> dict[str, Any]:
    """Which passages the model was given, and where."""
    places = ["prompt"] * example.in_prompt + ["encoder"] * (len(example.passages) - example.in_prompt)
    return {
        "passages": [
            {"document": evidence[i].document, "chunk": evidence[i].chunk, "where": place}
            for i, place in zip(example.passages, places, strict=True)
        ],
        "answer_given": holds_answer,
        "truncated_passage": example.truncated,
    }


def answer_is_given(
    example: Example,
    evidence: Sequence[Passage],
    finder: AnswerFinder,
    prepared: PreparedQuestion,
    task: TaskDefinition,
    tokenizer: Tokenizer,
) -> bool | None:
    """Whether what the model reads of the passages, after cutting, holds an answer; None if it reads none."""
    if not example.passages:
        return None
    texts = [tokenizer.decode(list(neighbor)) for neighbor in example.neighbors]
    if example.in_prompt:
        texts.append(_prompt_passage(example, evidence, prepared, task, tokenizer))
    return any(finder.found_in(text) for text in texts)


def _prompt_passage(
    example: Example,
    evidence: Sequence[Passage],
    prepared: PreparedQuestion,
    task: TaskDefinition,
    tokenizer: Tokenizer,
) -> str:
    """Title and text of the passage as far as the prompt has it: cut passages keep their begin."""
    passage = evidence[example.passages[0]]
    if not example.truncated:
        return readable(passage)
    prompt = tokenizer.decode(list(example.prompt))
    prompt = prompt.removesuffix(task.prompts.format_question(prepared.question.question))
    title, text = (" ".join(part.split()) for part in (passage.title, passage.text))
    head = task.prompts.format_passage(title, _MARK).split(_MARK)[0]
    begin = prompt.rfind(head + text[:_BEGIN])
    return f"{passage.title}\n{prompt[begin + len(head) :] if begin >= 0 else ''}"
