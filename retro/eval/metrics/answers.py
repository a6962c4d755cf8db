"""Scores of question answering over response rows: per mode, per kind of question, and what needs no model at all.

A row is one line of a question task's responses.jsonl (retro/eval/tasks/docs_qa.py, qa.py): one question in one mode.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from retro.data.questions import Question
from retro.eval.metrics.bits_per_byte import Row
from retro.eval.metrics.exact_match import exact_match, f1, normalise_literal

METRICS = ("exact_match", "f1")
RECALL_AT = (1, 2, 5, 10, 20)


def score_answer(prediction: str | None, answers: Sequence[str]) -> dict[str, float | None]:
    """{"exact_match", "f1"} of one answer to a question about code; None where the model gave none."""
    if prediction is None:
        return {"exact_match": None, "f1": None}
    return {
        "exact_match": exact_match(prediction, answers, normalise_literal),
        "f1": f1(prediction, answers, normalise_literal),
    }


def mean_scores(rows: Iterable[Row], metrics: Sequence[str] = METRICS) -> dict[str, Any]:
    """Mean of each metric (0..1) over the rows that have an answer; n counts them, missing the others (all metrics of
    a row are None there)."""
    rows = list(rows)
    answered = [row for row in rows if row[metrics[0]] is not None]
    n = len(answered)
    means = {name: sum(row[name] for row in answered) / n if n else None for name in metrics}
    return {**means, "n": n, "missing": len(rows) - n}


def scores_by(rows: Iterable[Row], field: str, metrics: Sequence[str] = METRICS) -> dict[str, dict[str, Any]]:
    """`mean_scores` of each value of a field, by value."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[str(row[field])].append(row)
    return {value: mean_scores(groups[value], metrics) for value in sorted(groups)}


def retrieval_recall(
    rows: Sequence[Row], at: Sequence[int] = RECALL_AT, names: Sequence[str] = ("document", "evidence")
) -> dict[str, Any]:
    """How often retrieval brought the evidence, over the rows' ranks `NAME_rank`.

    Ranks count from 0, None = not among the `num_retrieved` neighbors. "document": the document asked about is among
    the first k; "evidence": the very line that holds the answer stands in the text of one of the first k. Only k up to
    the number of neighbors retrieved is reported.
    """
    most = max((row["num_retrieved"] for row in rows), default=0)
    result: dict[str, Any] = {"n": len(rows), "num_retrieved": most}
    for name in names:
        ranks = [row[f"{name}_rank"] for row in rows]
        result[name] = {
            str(k): sum(rank is not None and rank < k for rank in ranks) / len(ranks) for k in at if ranks and k <= most
        }
    return result


def common_answers(train: Iterable[Question]) -> Callable[[str, str], dict[str, str]]:
    """Guesses that need no reading, learnt from training questions: a function of (kind, parameter name).

    "most_common_answer": the commonest training answer of the kind; "most_common_for_parameter": the commonest for
    the same parameter name and kind, or else that of the kind. Without training questions: no guesses.
    """
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for question in train:
        answer = normalise_literal(question.answers[0])
        counts[question.kind][answer] += 1
        counts[question.kind, question.parameter][answer] += 1
    commonest = {key: min(counter.items(), key=lambda item: (-item[1], item[0]))[0] for key, counter in counts.items()}

    def guess(kind: str, parameter: str) -> dict[str, str]:
        if not commonest:
            return {}
        by_kind = commonest.get(kind, "")
        return {
            "most_common_answer": by_kind,
            "most_common_for_parameter": commonest.get((kind, parameter), by_kind),
        }

    return guess
