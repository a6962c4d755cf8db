"""Question answering: exact match and F1 per run and mode, and paired differences over documents (or questions)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from retro.analysis.bootstrap import DocumentSums, Estimate, ratio
from retro.analysis.runs import Evaluation, Run
from retro.analysis.series import Series, describe, main_mode, reference_run
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError

METRICS = ("exact_match", "f1")


@dataclasses.dataclass(frozen=True)
class QuestionScore:
    """Mean exact match and F1 (0..1) of one series over all questions."""

    series: str
    exact_match: Estimate
    f1: Estimate


@dataclasses.dataclass(frozen=True)
class QuestionContrast:
    """Candidate minus reference (positive: candidate better), in 0..1."""

    candidate: str
    reference: str
    exact_match: Estimate
    f1: Estimate


@dataclasses.dataclass(frozen=True)
class QuestionComparison:
    """One question-answering evaluation over all runs that have it. `controls`: name -> {exact_match, f1} as stored by
    the task (answers given without any model); unit: what was resampled."""

    name: str
    questions: int
    left_out: int  # questions that some series did not answer, left out of all
    units: int
    unit: str
    series: tuple[Series, ...]
    scores: tuple[QuestionScore, ...]
    contrasts: tuple[QuestionContrast, ...]
    controls: dict[str, dict[str, float]]
    retrieval: dict[
        str, dict[str, float]
    ]  # "document", "evidence" -> k -> share of questions that have it in the first k

    def labels(self) -> dict[str, str]:
        """series key -> label."""
        return {item.key: item.label for item in self.series}


def compare_questions(runs: Sequence[Run], name: str, draws: int, seed: int) -> QuestionComparison | None:
    """Compare the runs that have the evaluation `name`; None if no responses are stored.

    Raises ArtifactMismatchError when runs answered different questions.
    """
    having = [run for run in runs if name in run.evaluations and run.evaluations[name].responses]
    if not having:
        return None
    reference = reference_run(runs) if reference_run(runs) in having else having[0]
    ordered = [reference] + [run for run in having if run is not reference]
    answers = {run.name: _read_answers(run.evaluations[name]) for run in ordered}
    base_modes = answers[reference.name]
    base = next(iter(base_modes.values()))
    for run in ordered:
        for mode, rows in answers[run.name].items():
            if rows.keys() != base.keys():
                shared = len(rows.keys() & base.keys())
                raise ArtifactMismatchError(
                    f"{run.path}/eval/{name}: not the same questions as {reference.path}/eval/{name} (mode {mode}: "
                    f"expected {len(base)}, found {len(rows)} of which {shared} are shared); "
                    "evaluate both runs with the same release, split and limits"
                )
    series = tuple(describe(runs, run, mode) for run in ordered for mode in answers[run.name])
    answered = [rows for modes in answers.values() for rows in modes.values()]
    ids = [key for key in sorted(base) if all(rows[key][m] is not None for rows in answered for m in METRICS)]
    by_document = all("document" in base[key] for key in ids)
    clusters: dict[str, int] = {}
    unit_of = [clusters.setdefault(str(base[key]["document"]) if by_document else key, len(clusters)) for key in ids]
    sums = DocumentSums(np.array(unit_of, np.int64), draws, seed)
    sums.add("count", np.ones(len(ids)))
    main = {run.name: f"{run.name}/{main_mode(list(answers[run.name]))}" for run in ordered}
    for item in series:
        rows = answers[item.run][item.mode]
        for metric in METRICS:
            sums.add(f"{metric}|{item.key}", np.array([rows[key][metric] for key in ids]))
    pairs = [(s.key, main[reference.name]) for s in series if s.run != reference.name]
    for run_name, key in main.items():
        pairs += [(key, s.key) for s in series if s.run == run_name and s.key != key]

    def score(metric: str, key: str) -> Estimate:
        return sums.estimate(ratio, f"{metric}|{key}", "count")

    def difference(metric: str, candidate: str, against: str) -> Estimate:
        return sums.estimate(
            lambda a, b, n: (a - b) / n, f"{metric}|{candidate}", f"{metric}|{against}", "count", support="count"
        )

    return QuestionComparison(
        name=name,
        questions=len(ids),
        left_out=len(base) - len(ids),
        units=len(clusters),
        unit="documents" if by_document else "questions",
        series=series,
        scores=tuple(QuestionScore(s.key, score("exact_match", s.key), score("f1", s.key)) for s in series),
        contrasts=tuple(
            QuestionContrast(c, r, difference("exact_match", c, r), difference("f1", c, r)) for c, r in pairs
        ),
        controls=_controls([run.evaluations[name] for run in ordered]),
        retrieval=_recall([run.evaluations[name] for run in ordered if run.model == "retro"]),
    )


def _read_answers(evaluation: Evaluation) -> dict[str, dict[str, dict[str, Any]]]:
    """mode -> question id -> response."""
    source = evaluation.path / "responses.jsonl"
    answers: dict[str, dict[str, dict[str, Any]]] = {mode: {} for mode in evaluation.modes}
    for number, row in enumerate(evaluation.responses, start=1):
        try:
            mode, key = str(row["mode"]), str(row["id"])
            values = {metric: None if row[metric] is None else float(row[metric]) for metric in METRICS}
        except (KeyError, TypeError, ValueError) as error:
            detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactCorruptError(f"{source}:{number}: {detail}; run `retro eval` again") from None
        if mode not in answers or key in answers[mode]:
            problem = f"mode {mode!r} is not in results.json" if mode not in answers else f"question {key!r} repeats"
            raise ArtifactCorruptError(f"{source}:{number}: {problem}; run `retro eval` again")
        answers[mode][key] = {**row, **values}
    return answers


def _controls(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for evaluation in evaluations:
        controls = evaluation.results.get("controls")
        for name, values in controls.items() if isinstance(controls, dict) else ():
            if isinstance(values, dict) and all(isinstance(values.get(m), int | float) for m in METRICS):
                found.setdefault(str(name), {m: float(values[m]) for m in METRICS})
    return found


def _recall(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
    """The first stored recall of the document asked about and of the line that answers."""
    for evaluation in evaluations:
        stored = evaluation.results.get("retrieval")
        if isinstance(stored, dict):
            return {
                what: {str(k): float(v) for k, v in stored[what].items() if isinstance(v, int | float)}
                for what in ("document", "evidence")
                if isinstance(stored.get(what), dict) and stored[what]
            }
    return {}
