"""Records of any source as questions: one code for the hub, for files of every format, and for a task of one's own."""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from retro.config.errors import ArtifactError
from retro.config.qa_source import Fields
from retro.data.qa.question_file import SourceQuestion
from retro.data.qa.record import Passage, QaQuestion

FILE_FIELD = "@file"

_ABSENT = object()
# Whole numbers may be larger than any float.
_LARGEST = sys.float_info.max
_OPTIONAL = ("id", "evidence", "group", "relation", "subject", "popularity", "object_popularity", "target", "passages")


class _ValueProblem(Exception):
    """What is wrong with one value, for the line that the user sees."""


class QuestionReader:
    """Turns the records of one split into questions, in order.

    Raises ArtifactError, one line that names the record and the field, for missing or empty questions and answers,
    values of a wrong type, broken expressions, and ids that come twice.
    """

    def __init__(
        self, fields: Fields, answers_are: Literal["text", "regex"], split: str, passages: int | None = None
    ) -> None:
        """passages: most that are kept of each question, None = all."""
        self._fields, self._answers_are, self._split, self._most = fields, answers_are, split, passages
        self._found: set[str] = set()
        self._names: dict[str, None] = {}
        self._ids: dict[str, str] = {}
        self._made: dict[str, int] = {}
        self.count = 0

    def read(self, record: Mapping[str, Any], where: str, file: str = "") -> SourceQuestion:
        """The question of one record. where: names it in errors; file: name of its file, for @file."""
        if self.count < 100:
            self._names.update(dict.fromkeys(map(str, record)))
        field = "question"
        try:
            asked = self._needed(record, "question", _text)
            field = "answers"
            answers = self._answers(record)
            self._check_expressions(answers)
            values: dict[str, Any] = {}
            for field, convert in _CONVERSIONS.items():
                value = self._optional(record, field, file)
                if value is not None:
                    values[field] = convert(value)
        except _ValueProblem as problem:
            name = getattr(self._fields, field)
            raise ArtifactError(f"{where}: {name}: {problem}") from None
        target, passages = values.pop("target", None), values.pop("passages", ())
        if target is not None:
            answers = (target, *(answer for answer in answers if answer != target))
        identity = values.pop("id", None) or self._make_id(asked)
        if identity in self._ids:
            raise ArtifactError(
                f"{where}: expected ids that come once, found {identity!r} again (first in {self._ids[identity]}); "
                "correct the file, or set fields.id to null, and ids are made of the questions"
            )
        self._ids[identity] = where
        self.count += 1
        question = QaQuestion(id=identity, question=asked, answers=answers, **values)
        return SourceQuestion(question, tuple(passages[: self._most]))

    def finish(self, where: str) -> None:
        """After the last record. Raises ArtifactError if there was none, or if a field was in none of them."""
        if self.count == 0:
            raise ArtifactError(f"{where}: split {self._split}: expected questions, found none; correct the source")
        for field in _OPTIONAL:
            name = getattr(self._fields, field)
            if name is not None and not name.endswith("?") and field not in self._found:
                raise ArtifactError(
                    f"{where}: field {name!r} (fields.{field}) is in no record of split {self._split}; there are "
                    f"{', '.join(self._names)}; name another one, or null for none"
                )

    def _make_id(self, asked: str) -> str:
        """Of the question's text, so that it stays when the order of a file changes. Questions asked twice count up."""
        digest = hashlib.blake2b(asked.encode("utf-8", "replace"), digest_size=6, person=b"retro-qa-id").hexdigest()
        self._made[digest] = number = self._made.get(digest, 0) + 1
        return f"{self._split}-{digest}" + (f"-{number}" if number > 1 else "")

    def _needed(self, record: Mapping[str, Any], field: str, convert: Callable[[Any], Any]) -> Any:
        name = getattr(self._fields, field)
        value = lookup(record, name)
        if value is _ABSENT:
            raise _ValueProblem(f"no such field (fields.{field}) in {_some(record)}; name the one that it is")
        return convert(value)

    def _optional(self, record: Mapping[str, Any], field: str, file: str) -> Any:
        name = getattr(self._fields, field)
        if name is None:
            return None
        name = name.removesuffix("?")
        value = file.split(".")[0] if name == FILE_FIELD else lookup(record, name)
        if value is _ABSENT:
            return None
        self._found.add(field)
        # Tables write what is not known as an empty cell, pandas as NaN, even in place of a text.
        unknown = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
        return None if unknown else value

    def _answers(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        given = _listed(self._needed(record, "answers", lambda value: value), self._fields)
        answers = tuple(dict.fromkeys(text for text in (_scalar(value) for value in given) if text))
        if not answers:
            raise _ValueProblem("expected at least one answer, found none; leave the question out, or correct it")
        return answers

    def _check_expressions(self, answers: Sequence[str]) -> None:
        for answer in answers if self._answers_are == "regex" else ():
            try:
                re.compile(answer)
            except (re.error, OverflowError, RecursionError) as error:
                raise _ValueProblem(
                    f"expected regular expressions, found {_short(answer)} ({error}); correct it"
                ) from None


def lookup(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field; dots lead into nested records, unless a field has the whole name."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _listed(value: Any, fields: Fields) -> list[Any]:
    """The answers in a text, a list, or {"value", "aliases"}."""
    if isinstance(value, Mapping):
        small = {str(key).lower(): item for key, item in value.items()}
        if "value" not in small:
            raise _ValueProblem(f"expected a text, a list or {{value, aliases}}, found a record of {_some(value)}")
        aliases = small.get("aliases") or []
        return [small["value"], *(aliases if isinstance(aliases, (list, tuple)) else [aliases])]
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str) and fields.answers_separator is not None:
        return value.split(fields.answers_separator)
    if isinstance(value, str) and fields.answers_text != "one":
        try:
            parsed = json.loads(value) if fields.answers_text == "json" else ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            parsed = None
        if not isinstance(parsed, (list, tuple)):
            raise _ValueProblem(
                f"expected a {fields.answers_text} list of texts (fields.answers_text), found {_short(value)}"
            )
        return list(parsed)
    return [] if value is None else [value]


def _scalar(value: Any) -> str:
    """A text, or a number as text; "" for none."""
    if value is None:
        return ""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _ValueProblem(f"expected text, found half a character in {_short(value)}") from None
        return value.strip()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return str(value)
    if isinstance(value, datetime.date):  # datetime too
        raise _ValueProblem(
            "expected a text, found a time: the library that read the data set took texts for times; give its files "
            "under source.files instead"
        )
    raise _ValueProblem(f"expected a text, found {_short(value)}")


def _text(value: Any) -> str:
    text = _scalar(value)
    if not text:
        raise _ValueProblem("expected a text, found an empty one; leave the question out, or correct it")
    return text


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(dict.fromkeys(text for text in map(_scalar, values) if text))


def _popularity(value: Any) -> float | None:
    """Page views; None for numbers below 0, which PopQA writes where it does not know the page."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _ValueProblem(f"expected a number, found {_short(value)}")
    return number if number >= 0 else None


def _passages(value: Any) -> list[Passage]:
    if isinstance(value, Mapping):  # a list of records, as the hub's library gives it by columns
        columns = {name: column for name, column in value.items() if isinstance(column, (list, tuple))}
        lengths = {len(column) for column in columns.values()}
        if len(lengths) != 1:
            raise _ValueProblem("expected a list of passages, found columns of several lengths")
        value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise _ValueProblem(f"expected a list of passages, found {_short(value)}")
    passages = [_passage(item, number) for number, item in enumerate(items)]
    return [passage for passage in passages if passage.text]


def _passage(item: Any, number: int) -> Passage:
    if isinstance(item, str):
        item = {"text": item}
    if not isinstance(item, Mapping) or not isinstance(item.get("text"), str):
        raise _ValueProblem(f"passage {number}: expected a record with a text, found {_short(item)}")
    score = item.get("score")
    try:
        known = math.nan if score is None or isinstance(score, bool) else float(score)
    except (TypeError, ValueError, OverflowError):
        raise _ValueProblem(f"passage {number}: score: expected a number, found {_short(score)}") from None
    return Passage(
        title=_scalar(item.get("title")),
        text=_scalar(item["text"]),
        document=_scalar(item.get("id")),
        score=known if math.isfinite(known) else math.nan,
    )


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "id": _text,
    "evidence": _texts,
    "group": _scalar,
    "relation": _scalar,
    "subject": _scalar,
    "popularity": _popularity,
    "object_popularity": _popularity,
    "target": _scalar,
    "passages": _passages,
}


def _some(record: Mapping[str, Any]) -> str:
    names = [str(name) for name in record]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "an empty record"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
