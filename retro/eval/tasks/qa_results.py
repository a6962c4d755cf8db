"""Figures of task qa: functions of the stored rows and the task definition alone. No model, no torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from retro.data.qa.recall import RECALL_AT
from retro.eval.metrics.answers import mean_scores, retrieval_recall, scores_by
from retro.eval.metrics.bits_per_byte import Row
from retro.eval.metrics.qa_baselines import guesses_for
from retro.eval.metrics.qa_popularity import scores_by_popularity
from retro.eval.metrics.qa_scores import check_metrics, score_answer, score_text

_SEEN = {True: "seen", False: "unseen", None: "unknown"}
_GIVEN = {True: "given", False: "not_given"}
_COSTS = ("seconds", "prompt_tokens", "encoder_tokens", "new_tokens")


def qa_scores(rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Every metric (0..1, None = no answer) of every row, with "id" and "arm", in the order of the rows.

    Raises ArtifactMismatchError for a metric that there is not.
    """
    check_metrics(metrics, "task of the evaluation")
    return [{"id": row["id"], "arm": row["arm"], **score_answer(row, metrics)} for row in rows]


def qa_results(rows: Sequence[Row], material: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of results.json that are a function of rows and identity.

    arms: every metric over all questions; by_group, by_seen, by_relation, by_popularity: the same by part; retrieval:
    how often the first k prepared passages are of an evidence document, and hold an answer; by_answer_given: scores
    where the passages that the model read hold an answer, and where not; baselines: answers without reading; cost: per
    question, and the median latency of those asked alone.
    """
    metrics, primary, arms = material["metrics"], material["primary"], material["arms"]
    scored = [{**row, **scores} for row, scores in zip(rows, qa_scores(rows, metrics), strict=True)]
    for row in scored:
        row["seen"], row["answer_given"] = _SEEN[row["seen"]], _GIVEN.get(row["answer_given"])
    by_arm = {arm: [row for row in scored if row["arm"] == arm] for arm in arms}
    once = by_arm[arms[0]]
    return {
        "task_definition": material["task"],
        "metrics": list(metrics),
        "primary": primary,
        "qa": {name: material[name] for name in ("questions", "layout", "shots", "shots_seed", "max_new_tokens")},
        "questions": len(once),
        "documents": len({document for row in once for document in row["evidence"]}),
        "arms": {arm: mean_scores(part, metrics) for arm, part in by_arm.items()},
        "by_group": _by(by_arm, "group", metrics),
        "by_seen": _by_seen(by_arm, metrics),
        "by_relation": _by(by_arm, "relation", metrics),
        "by_popularity": scores_by_popularity(by_arm, metrics, primary),
        "by_answer_given": {
            arm: scores_by([row for row in part if row["answer_given"] is not None], "answer_given", metrics)
            for arm, part in by_arm.items()
        },
        "retrieval": _recall(once),
        **_baselines(once, material["guesses"], metrics),
        "share_retrieved": {arm: _share_retrieved(part) for arm, part in by_arm.items()},
        "truncated_passages": {arm: sum(row["truncated_passage"] for row in part) for arm, part in by_arm.items()},
        "too_long": {arm: sum(row["prompt_tokens"] == 0 for row in part) for arm, part in by_arm.items()},
        "cost": {arm: _cost(part) for arm, part in by_arm.items()},
    }


def _by(by_arm: Mapping[str, Sequence[Row]], field: str, metrics: Sequence[str]) -> dict[str, Any]:
    """Scores by arm and value of a field, of the questions that have one; {} where none has."""
    having = {arm: [row for row in part if row[field]] for arm, part in by_arm.items()}
    return {arm: scores_by(part, field, metrics) for arm, part in having.items()} if any(having.values()) else {}


def _by_seen(by_arm: Mapping[str, Sequence[Row]], metrics: Sequence[str]) -> dict[str, Any]:
    """Scores by whether the evidence was in the model's training text; {} where that is known of no question."""
    known = any(row["seen"] != _SEEN[None] for part in by_arm.values() for row in part)
    return _by(by_arm, "seen", metrics) if known else {}


def _recall(once: Sequence[Row]) -> dict[str, Any]:
    """Over the questions whose evidence is named, and over all; "by_group" where there are groups."""

    def figures(rows: Sequence[Row]) -> dict[str, Any]:
        named = [row for row in rows if row["evidence"]]
        answer = retrieval_recall(rows, RECALL_AT, ("answer",))
        evidence = retrieval_recall(named, RECALL_AT, ("evidence",))
        return {**answer, "n_evidence": len(named), "evidence": evidence["evidence"]}

    groups = sorted({row["group"] for row in once})
    parts = {group: figures([row for row in once if row["group"] == group]) for group in groups}
    return {**figures(once), "by_group": parts if len(groups) > 1 else {}}


def _baselines(once: Sequence[Row], guesses: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """Scores of guesses, over all questions and by group and by whether the evidence was seen in training."""
    guessed = [guesses_for(row, guesses) for row in once]
    names = list(guessed[0]) if guessed else []
    scored = {
        name: [{**row, **score_text(g[name], row["answers"], metrics)} for row, g in zip(once, guessed, strict=True)]
        for name in names
    }
    return {
        "baselines": {name: mean_scores(rows, metrics) for name, rows in scored.items()},
        "baselines_by_group": _by(scored, "group", metrics),
        "baselines_by_seen": _by_seen(scored, metrics),
    }


def _cost(rows: Sequence[Row]) -> dict[str, Any]:
    """Means per question of those that were asked; latency: median, milliseconds."""
    asked = [row for row in rows if row["prompt_tokens"]]
    latencies = [row["latency_ms"] for row in asked if row["latency_ms"] is not None]
    return {
        **{name: statistics.fmean(row[name] for row in asked) if asked else None for name in _COSTS},
        "latency_ms": statistics.median(latencies) if latencies else None,
        "latency_questions": len(latencies),
    }


def _share_retrieved(rows: Sequence[Row]) -> float | None:
    """Share of the questions that were given passages."""
    return statistics.fmean(bool(row["passages"]) for row in rows) if rows else None
