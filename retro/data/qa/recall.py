"""Which part of an error is retrieval's: whether the passages of a question have its evidence, and its answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from retro.data.qa.answers import AnswerFinder, AnswerKind
from retro.data.qa.record import Passage, PreparedQuestion, QaQuestion

RECALL_AT = (1, 2, 3, 5, 10, 20, 50, 100)
_ALL = ""  # the group of all questions


def evidence_rank(question: QaQuestion, passages: Sequence[Passage]) -> int | None:
    """Number, from 0, of the first passage of a document that is known to hold the answer; None = none is."""
    documents = set(question.evidence)
    return next((i for i, passage in enumerate(passages) if passage.document in documents), None)


def answer_rank(question: QaQuestion, passages: Sequence[Passage], kind: AnswerKind = "text") -> int | None:
    """Number, from 0, of the first passage whose text holds an answer (`retro.data.qa.answers`); None = none does."""
    return AnswerFinder(question.answers, kind).first_in([passage.text for passage in passages])


class RecallCounts:
    """Counts of ranks, which add up over parts of a split.

    Figures: {"n", "passages" (mean number of passages), "seen" (questions whose evidence was trained on; null where
    none of them says), "oracle" (questions with a passage that holds the answer in their oracle), "evidence": {"n":
    questions that name evidence, "1": share of them that has it among the first passage, "2": ...}, "answer": the same
    of the answer, over all questions, "by_group": {group: figures}}.
    """

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Any]] = defaultdict(_no_counts)

    def add(self, prepared: PreparedQuestion, evidence: int | None, answer: int | None) -> None:
        """Count one question with its ranks, from 0, None = not among its passages."""
        question = prepared.question
        for group in (_ALL, question.group) if question.group else (_ALL,):
            counts = self._groups[group]
            counts["n"] += 1
            counts["passages"] += len(prepared.passages)
            counts["most"] = max(counts["most"], len(prepared.passages))
            counts["with_evidence"] += bool(question.evidence)
            counts["oracle"] += bool(prepared.oracle)
            counts["seen"] += prepared.seen is True
            counts["seen_known"] += prepared.seen is not None
            for name, rank in (("evidence", evidence), ("answer", answer)):
                if rank is not None:
                    ranks = counts[name]
                    ranks[str(rank)] = ranks.get(str(rank), 0) + 1

    def counts(self) -> dict[str, Any]:
        """JSON-able, for `merge_counts`."""
        return dict(self._groups)


def recall_figures(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Figures over parts of a split, as `RecallCounts.counts` gives them."""
    groups: dict[str, dict[str, Any]] = defaultdict(_no_counts)
    for part in parts:
        for group, counts in part.items():
            total = groups[group]
            for name, value in counts.items():
                if name == "most":
                    total[name] = max(total[name], value)
                elif isinstance(value, dict):
                    for rank, count in value.items():
                        total[name][rank] = total[name].get(rank, 0) + count
                else:
                    total[name] += value
    figures = _figures(groups[_ALL])
    by_group = {group: _figures(counts) for group, counts in sorted(groups.items()) if group != _ALL}
    return {**figures, "by_group": by_group}


def _no_counts() -> dict[str, Any]:
    numbers = dict.fromkeys(("n", "passages", "most", "with_evidence", "oracle", "seen", "seen_known"), 0)
    return {**numbers, "evidence": {}, "answer": {}}


def _figures(counts: dict[str, Any]) -> dict[str, Any]:
    n = counts["n"]
    result: dict[str, Any] = {
        "n": n,
        "passages": counts["passages"] / n if n else None,
        "seen": counts["seen"] if counts["seen_known"] else None,
        "oracle": counts["oracle"],
    }
    for name, asked in (("evidence", counts["with_evidence"]), ("answer", n)):
        result[name] = {"n": asked}
        for k in RECALL_AT:
            if asked and k <= counts["most"]:
                within = sum(count for rank, count in counts[name].items() if int(rank) < k)
                result[name][str(k)] = within / asked
    return result
