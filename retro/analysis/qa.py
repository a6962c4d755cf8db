"""Question answering in arms: scores, paired differences with intervals and McNemar's test, as a whole and in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from retro.analysis.bootstrap import DocumentSums, Estimate, ratio
from retro.analysis.mcnemar import exact_mcnemar, holm
from retro.analysis.qa_cost import QaCost, costs
from retro.analysis.qa_policies import Adaptive, read_adaptive
from retro.analysis.qa_records import QaRow, read_qa_evaluations
from retro.analysis.qa_retrieval import Recall, RetrievalErrors, recalls, retrieval_errors
from retro.analysis.qa_series import QaArm, QaGroup, QaSeries, qa_groups
from retro.analysis.qa_subsets import QaSubset, subset_masks
from retro.analysis.runs import Run
from retro.config.errors import ArtifactMismatchError


@dataclasses.dataclass(frozen=True)
class QaScore:
    """Mean score (0..1) of one series over a subset."""

    series: str
    subset: str
    metric: str
    score: Estimate


@dataclasses.dataclass(frozen=True)
class QaContrast:
    """Candidate minus reference in the primary metric (positive: candidate better), in 0..1.

    both, only_candidate, only_reference, neither: questions that they got right; p: McNemar's exact test, two-sided,
    None for a metric that is not right or wrong; p_holm: the same, corrected for all pairs (subset "all" only).
    """

    candidate: str
    reference: str
    subset: str
    difference: Estimate
    both: int
    only_candidate: int
    only_reference: int
    neither: int
    p: float | None
    p_holm: float | None = None


@dataclasses.dataclass(frozen=True)
class QaComparison:
    """One task and split over all runs that were evaluated with it. series: the reference first; metrics: the primary
    one first; left_out: questions that some arm was not asked or did not answer, left out of all; unit: what was
    resampled; sweeps: key of a series -> passages -> primary metric, each over the questions that all of a sweep
    answered; baselines: name -> metric -> score of answers given without reading."""

    task: str
    version: int
    title: str
    split: str
    metrics: tuple[str, ...]
    questions: int
    left_out: int
    units: int
    unit: str
    series: tuple[QaSeries, ...]
    subsets: tuple[QaSubset, ...]
    scores: tuple[QaScore, ...]
    contrasts: tuple[QaContrast, ...]
    sweeps: dict[str, dict[int, Estimate]]
    baselines: dict[str, dict[str, float]]
    recalls: tuple[Recall, ...]
    retrieval_errors: tuple[RetrievalErrors, ...]
    costs: tuple[QaCost, ...]
    adaptive: tuple[Adaptive, ...]
    draws: int

    @property
    def primary(self) -> str:
        """Name of the metric that decides."""
        return self.metrics[0]

    @property
    def reference(self) -> QaSeries:
        """What the others are compared with."""
        return self.series[0]

    def of_kind(self, kind: str) -> list[QaSubset]:
        """The subsets of one kind."""
        return [subset for subset in self.subsets if subset.kind == kind]

    def score(self, series: str, subset: str = "all", metric: str | None = None) -> Estimate:
        """The mean of a series; without a metric, of the primary one."""
        wanted = (series, subset, metric or self.primary)
        return next((s.score for s in self.scores if (s.series, s.subset, s.metric) == wanted), Estimate(None))

    def contrast(self, candidate: str, reference: str, subset: str = "all") -> QaContrast | None:
        """The stored contrast of two series in this direction."""
        wanted = (candidate, reference, subset)
        return next((c for c in self.contrasts if (c.candidate, c.reference, c.subset) == wanted), None)

    def labels(self) -> dict[str, str]:
        """series key -> label."""
        return {item.key: item.label for item in self.series}


def compare_qa(runs: Sequence[Run], draws: int, seed: int) -> list[QaComparison]:
    """Every task and split that some run was evaluated with; [] without evaluations of task qa.

    Raises ArtifactMismatchError where questions of the same id differ or arms share no question, ArtifactCorruptError
    for damage.
    """
    return [_compare(group, draws, seed) for group in qa_groups(runs, read_qa_evaluations(runs))]


def _compare(group: QaGroup, draws: int, seed: int) -> QaComparison:
    arms, main = group.arms, group.reference
    metrics = tuple(m for m in main.answers.metrics if all(m in arm.answers.metrics for arm in arms))
    ids, asked = shared_questions(arms, metrics)
    rows = [main.rows[key].row for key in ids]
    units_Q, unit = _units(rows)
    subsets = subset_masks(rows, units_Q, main.answers.popularity_edges)
    values = {(arm.series.key, m): _values([arm.rows[key] for key in ids], m) for arm in arms for m in metrics}
    sums = DocumentSums(units_Q, draws, seed)
    wanted = [
        (arm.series.key, s.key, m)
        for s, _ in subsets
        for m in (metrics if s.key == "all" else metrics[:1])
        for arm in arms
    ]
    masks = {subset.key: mask for subset, mask in subsets}
    for subset, mask in subsets:
        sums.add(f"count|{subset.key}", mask)
    for key, subset_key, metric in wanted:
        sums.add(f"{metric}|{subset_key}|{key}", values[key, metric] * masks[subset_key])
    keys = [arm.series.key for arm in arms]
    pairs = [(candidate, reference, "all") for reference, candidate in combinations(keys, 2)]
    pairs += [(key, keys[0], subset.key) for subset, _ in subsets[1:] for key in keys[1:]]
    contrasts = [_contrast(sums, values, masks[s], metrics[0], c, r, s) for c, r, s in pairs]
    adjusted = holm([c.p for c in contrasts if c.subset == "all"])
    contrasts[: len(adjusted)] = [dataclasses.replace(c, p_holm=p) for c, p in zip(contrasts, adjusted, strict=False)]
    definition = main.answers.definition
    return QaComparison(
        task=main.answers.task,
        version=definition["version"],
        title=str(definition.get("title") or main.answers.task),
        split=main.answers.split,
        metrics=metrics,
        questions=len(ids),
        left_out=asked - len(ids),
        units=int(units_Q.max()) + 1,
        unit=unit,
        series=tuple(arm.series for arm in arms),
        subsets=tuple(subset for subset, _ in subsets),
        scores=tuple(QaScore(key, s, m, sums.estimate(ratio, f"{m}|{s}|{key}", f"count|{s}")) for key, s, m in wanted),
        contrasts=tuple(contrasts),
        sweeps={key: _sweep(list(by.values()), metrics[0], draws, seed) for key, by in group.sweeps.items()},
        baselines=_baselines(group, metrics),
        recalls=tuple(recalls(group)),
        retrieval_errors=tuple(retrieval_errors(group, ids, units_Q, metrics[0], draws, seed)),
        costs=tuple(costs(group)),
        adaptive=tuple(read_adaptive(group)),
        draws=draws,
    )


def shared_questions(arms: Sequence[QaArm], metrics: Sequence[str]) -> tuple[list[str], int]:
    """Ids, sorted, of the questions with every metric in every arm; and how many some arm was asked."""
    first = arms[0]
    every = set().union(*(arm.rows for arm in arms))
    shared = set.intersection(*(set(arm.rows) for arm in arms))
    for arm in arms[1:]:
        for key in sorted(first.rows.keys() & arm.rows.keys()):
            own, other = arm.rows[key].row, first.rows[key].row
            if (own.get("question"), own.get("answers")) != (other.get("question"), other.get("answers")):
                raise ArtifactMismatchError(
                    f"{arm.answers.where}: question {key!r} is not the one of {first.answers.where} (expected "
                    f"{str(other.get('question'))[:60]!r}, found {str(own.get('question'))[:60]!r}, or other answers); "
                    "evaluate both with questions prepared from the same source"
                )
    ids = sorted(k for k in shared if all(arm.rows[k].scores[m] is not None for arm in arms for m in metrics))
    if not ids:
        folders = ", ".join(dict.fromkeys(arm.answers.where for arm in arms))
        raise ArtifactMismatchError(
            f"{folders}: expected questions that every arm answered, found none among {len(every)}; evaluate all with "
            "the same qa.questions, qa.split and qa.max_questions"
        )
    return ids, len(every)


def _units(rows: Sequence[Any]) -> tuple[np.ndarray, str]:
    """What is resampled: the first evidence document of a question, the question where none is known."""
    units: dict[tuple[str, str], int] = {}
    named = [
        ("document", str(row["evidence"][0])) if row.get("evidence") else ("question", str(row["id"])) for row in rows
    ]
    numbers = [units.setdefault(name, len(units)) for name in named]
    documents = any(kind == "document" for kind, _ in named)
    return np.array(numbers, np.int64), "evidence documents" if documents else "questions"


def _values(rows: Sequence[QaRow], metric: str) -> np.ndarray:
    return np.array([row.scores[metric] for row in rows], np.float64)


def _contrast(
    sums: DocumentSums,
    values: dict[tuple[str, str], np.ndarray],
    mask: np.ndarray,
    metric: str,
    candidate: str,
    reference: str,
    subset: str,
) -> QaContrast:
    difference = sums.estimate(
        lambda a, b, n: (a - b) / n,
        f"{metric}|{subset}|{candidate}",
        f"{metric}|{subset}|{reference}",
        f"count|{subset}",
    )
    own, other = values[candidate, metric][mask], values[reference, metric][mask]
    a, b = own >= 1.0, other >= 1.0
    only_candidate, only_reference = int((a & ~b).sum()), int((b & ~a).sum())
    binary = bool(np.isin(own, (0.0, 1.0)).all() and np.isin(other, (0.0, 1.0)).all())
    return QaContrast(
        candidate=candidate,
        reference=reference,
        subset=subset,
        difference=difference,
        both=int((a & b).sum()),
        only_candidate=only_candidate,
        only_reference=only_reference,
        neither=int((~a & ~b).sum()),
        p=exact_mcnemar(only_candidate, only_reference) if binary else None,
    )


def _sweep(arms: Sequence[QaArm], metric: str, draws: int, seed: int) -> dict[int, Estimate]:
    ids, _ = shared_questions(arms, [metric])
    units_Q, _ = _units([arms[0].rows[key].row for key in ids])
    sums = DocumentSums(units_Q, draws, seed)
    sums.add("count", np.ones(len(ids)))
    for arm in arms:
        sums.add(str(arm.series.passages), _values([arm.rows[key] for key in ids], metric))
    return {arm.series.passages: sums.estimate(ratio, str(arm.series.passages), "count") for arm in arms}


def _baselines(group: QaGroup, metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for answers in group.answers:
        stored = answers.evaluation.results.get("baselines")
        for name, values in stored.items() if isinstance(stored, dict) else ():
            if isinstance(values, dict) and isinstance(values.get(metrics[0]), int | float):
                kept = {m: float(values[m]) for m in metrics if isinstance(values.get(m), int | float)}
                found.setdefault(str(name), kept)
    return found
