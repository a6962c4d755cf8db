"""Questions and passages as JSON objects, the same in every file that holds them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from retro.data.qa.record import Passage, QaQuestion

_TEXTS = ("id", "question", "group", "relation", "subject")
_LISTS = ("answers", "evidence")
_NUMBERS = ("popularity", "object_popularity")


def question_record(question: QaQuestion) -> dict[str, Any]:
    """The fields of a question in their order, JSON-able."""
    return {field.name: getattr(question, field.name) for field in dataclasses.fields(question)}


def parse_question(record: dict[str, Any]) -> QaQuestion:
    """The question that `question_record` wrote. Raises ValueError, TypeError or KeyError for anything else."""
    question = QaQuestion(
        **{name: _text(record[name]) for name in _TEXTS},  # type: ignore[arg-type]
        **{name: tuple(map(_text, _list(record[name]))) for name in _LISTS},  # type: ignore[arg-type]
        **{name: None if record[name] is None else _number(record[name]) for name in _NUMBERS},  # type: ignore[arg-type]
    )
    if not question.answers:
        raise ValueError("no answers")
    return question


def passage_record(passage: Passage) -> dict[str, Any]:
    """The fields of a passage in their order, JSON-able: a score that is unknown (NaN) is None."""
    record = {field.name: getattr(passage, field.name) for field in dataclasses.fields(passage)}
    return {**record, "score": None if math.isnan(passage.score) else passage.score}


def parse_passage(record: dict[str, Any]) -> Passage:
    """The passage that `passage_record` wrote. Raises ValueError, TypeError or KeyError for anything else."""
    if type(record["chunk"]) is not int:
        raise ValueError(f"expected a whole number, found {record['chunk']!r}")
    return Passage(
        title=_text(record["title"]),
        text=_text(record["text"]),
        document=_text(record["document"]),
        chunk=record["chunk"],
        score=math.nan if record["score"] is None else _number(record["score"]),
    )


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, found {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {value!r}")
    value.encode()  # half a character is a ValueError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, found {value!r}")
    return float(value)
