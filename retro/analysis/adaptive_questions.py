"""Questions answered without and with retrieval, as columns: what adaptive retrieval is judged on."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retro.analysis.adaptive_prices import Prices
from retro.artifacts.retrieval_rule import Measure, confidence
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError

Row = Mapping[str, Any]
#: Of a response row, per question, besides the cost.
EXPENSES = ("seconds", "latency_ms", "prompt_tokens", "encoder_tokens", "new_tokens")


@dataclasses.dataclass(frozen=True)
class ArmAnswers:
    """What one arm did. scores: float64 [Q], 0..1; expenses: name (EXPENSES, "cost") -> float64 [Q], NaN where it is
    not known; logprobs: natural, per question, of the tokens of its answer."""

    name: str
    scores: np.ndarray
    expenses: Mapping[str, np.ndarray]
    logprobs: Sequence[Sequence[float]]

    def confidence(self, measure: Measure, tokens: int) -> np.ndarray:
        """float64 [Q] of the first so many tokens of each answer, -inf for an answer without tokens."""
        found = np.array([confidence(row[:tokens], measure) for row in self.logprobs], np.float64)
        return np.where(np.isnan(found), -np.inf, found)


@dataclasses.dataclass(frozen=True)
class AnsweredQuestions:
    """Q questions that both arms answered.

    relations: "" where there is none; popularity: float64 [Q], monthly page views of the subject, NaN where unknown;
    units: int64 [Q], which of the units 0.. that a bootstrap draws: questions about one document are not independent;
    left_out: how many questions are missing for want of an answer in one of the arms.
    """

    ids: tuple[str, ...]
    relations: tuple[str, ...]
    popularity: np.ndarray
    units: np.ndarray
    closed: ArmAnswers
    retrieval: ArmAnswers
    left_out: int = 0

    @property
    def gains(self) -> np.ndarray:
        """float64 [Q]: score with retrieval minus score without."""
        return self.retrieval.scores - self.closed.scores

    @property
    def log_popularity(self) -> np.ndarray:
        """float64 [Q]: natural log of page views, fewer than one count as one; NaN where unknown."""
        return np.log(np.maximum(self.popularity, 1.0))


def pair_answers(
    closed: Sequence[Row],
    retrieval: Sequence[Row],
    score: Callable[[Row], float | None],
    prices: Prices | None = None,
) -> AnsweredQuestions:
    """Rows of two arms, paired by question, in the order of `closed`.

    score: of a row, None = it was not answered; prices: None = no cost is known. Raises ArtifactMismatchError if the
    arms answered different questions and ArtifactCorruptError for rows that are not responses of task qa.
    """
    by_id = [{_id(row): row for row in rows} for rows in (closed, retrieval)]
    for rows, known in zip((closed, retrieval), by_id, strict=True):
        if len(known) != len(rows):
            raise ArtifactCorruptError(f"arm {rows[0]['arm']!r}: expected each question once, found one twice")
    if by_id[0].keys() != by_id[1].keys():
        both = len(by_id[0].keys() & by_id[1].keys())
        raise ArtifactMismatchError(
            f"expected two arms of the same questions, found {len(closed)} and {len(retrieval)} with {both} in common; "
            "evaluate both with the same qa.questions, qa.split and qa.max_questions"
        )
    pairs = [(row, by_id[1][key]) for key, row in by_id[0].items()]
    scored = [(c, r, score(c), score(r)) for c, r in pairs]
    kept = [(c, r, a, b) for c, r, a, b in scored if a is not None and b is not None]
    if not kept:
        raise ArtifactMismatchError(f"expected questions that both arms answered, found none among {len(pairs)}")
    numbers: dict[str, int] = {}
    return AnsweredQuestions(
        ids=tuple(_id(c) for c, *_ in kept),
        relations=tuple(str(c.get("relation") or "") for c, *_ in kept),
        popularity=np.array([_number(c, "popularity") for c, *_ in kept]),
        units=np.array([numbers.setdefault(_unit(c), len(numbers)) for c, *_ in kept], np.int64),
        closed=_answers([c for c, *_ in kept], [a for *_, a, _ in kept], prices),
        retrieval=_answers([r for _, r, *_ in kept], [b for *_, b in kept], prices),
        left_out=len(pairs) - len(kept),
    )


def _answers(rows: Sequence[Row], scores: Sequence[float], prices: Prices | None) -> ArmAnswers:
    expenses = {name: np.array([_number(row, name) for row in rows]) for name in EXPENSES}
    if prices is not None:
        search_ms = np.array([prices.search_ms if row.get("passages") else 0.0 for row in rows])
        expenses["latency_ms"] = expenses["latency_ms"] + search_ms
        expenses["seconds"] = expenses["seconds"] + search_ms / 1000
        if prices.priced:
            expenses["cost"] = np.array([prices.price(row) for row in rows])
    return ArmAnswers(str(rows[0]["arm"]), np.array(scores, np.float64), expenses, [_logprobs(row) for row in rows])


def _id(row: Row) -> str:
    if "id" not in row or "arm" not in row:
        raise ArtifactCorruptError("responses: expected rows of task qa with `id` and `arm`; evaluate with task: qa")
    return str(row["id"])


def _unit(row: Row) -> str:
    """The first document that holds the answer, where the source names one; else the question itself."""
    evidence = row.get("evidence")
    if evidence and not isinstance(evidence, list):
        raise _wrong(row, "evidence", "a list of documents")
    return f"document {evidence[0]}" if evidence else f"question {_id(row)}"


def _logprobs(row: Row) -> list[float]:
    found = row.get("token_logprobs") or []
    if not isinstance(found, list) or not all(_is_number(value) for value in found):
        raise _wrong(row, "token_logprobs", "a list of numbers")
    return [float(value) for value in found]


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    if value is None:
        return math.nan
    if not _is_number(value):
        raise _wrong(row, name, "a number")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _wrong(row: Row, name: str, expected: str) -> ArtifactCorruptError:
    found = repr(row[name])
    found = found if len(found) <= 60 else f"{found[:59]}…"
    return ArtifactCorruptError(f"responses: question {row['id']!r}: {name}: expected {expected}, found {found}")
