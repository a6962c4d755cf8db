"""Which part of the error is retrieval: recall beside answers, and scores where the answer was there to be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from retro.analysis.bootstrap import DocumentSums, Estimate, ratio
from retro.analysis.qa_series import QaGroup, reads_retrieved


@dataclasses.dataclass(frozen=True)
class Recall:
    """Share of questions with an evidence document ("evidence") or an answer ("answer") among the first k prepared
    passages. source: which prepared questions, or which group of them; "" for all where evaluations share them."""

    source: str
    shares: dict[str, dict[int, float]]


@dataclasses.dataclass(frozen=True)
class RetrievalErrors:
    """One arm that is given retrieved passages, beside the reference.

    given: share of questions with an answer among the passages that the model was given; with_answer, without_answer:
    mean score there and elsewhere; wrong: answers that score 0; wrong_without: share of these whose passages hold no
    answer, so that reading alone could not have found it. cells: (right in reference, right in this arm) as "both",
    "only_reference", "only_this", "neither" -> (questions, share of them with an answer among the passages).
    """

    series: str
    questions: int
    given: Estimate
    with_answer: Estimate
    without_answer: Estimate
    wrong: int
    wrong_without: Estimate
    cells: dict[str, tuple[int, float | None]]


def recalls(group: QaGroup) -> list[Recall]:
    """Recall of every set of prepared questions that the group's evaluations read."""
    by_prepared = {item.prepared: item for item in reversed(group.answers)}
    found = []
    for item in reversed(by_prepared.values()):
        source = f"{item.run.name}, eval/{item.evaluation.name}" if len(by_prepared) > 1 else ""
        for part, shares in item.recall:
            if shares:
                found.append(Recall(", ".join(name for name in (source, part) if name), shares))
    return found


def retrieval_errors(
    group: QaGroup, ids: Sequence[str], units_Q: np.ndarray, metric: str, draws: int, seed: int
) -> list[RetrievalErrors]:
    """One per arm that reads what was retrieved, over the questions `ids`; [] without such arms."""
    reference = np.array([group.reference.rows[key].scores[metric] for key in ids], np.float64)
    found = []
    for arm in group.arms:
        rows = [arm.rows[key] for key in ids]
        if not reads_retrieved(arm.series.arm) or not any(row.given for row in rows):
            continue
        scores = np.array([row.scores[metric] for row in rows], np.float64)
        given = np.array([row.answer_given for row in rows], bool)
        wrong = scores == 0
        sums = DocumentSums(units_Q, draws, seed)
        for name, values in {
            "given": given,
            "scores_with": scores * given,
            "scores_without": scores * ~given,
            "without": ~given,
            "wrong_without": wrong & ~given,
            "wrong": wrong,
            "all": np.ones(len(ids)),
        }.items():
            sums.add(name, values)
        right, right_before = scores >= 1, reference >= 1
        cells = {
            "both": right & right_before,
            "only_reference": ~right & right_before,
            "only_this": right & ~right_before,
            "neither": ~right & ~right_before,
        }
        found.append(
            RetrievalErrors(
                series=arm.series.key,
                questions=len(ids),
                given=sums.estimate(ratio, "given", "all"),
                with_answer=sums.estimate(ratio, "scores_with", "given"),
                without_answer=sums.estimate(ratio, "scores_without", "without"),
                wrong=int(wrong.sum()),
                wrong_without=sums.estimate(ratio, "wrong_without", "wrong"),
                cells={
                    name: (int(mask.sum()), float(given[mask].mean()) if mask.any() else None)
                    for name, mask in cells.items()
                },
            )
        )
    return found
