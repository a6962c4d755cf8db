"""What the plots of adaptive retrieval show: accuracy by popularity, and against the share of retrieving questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from retro.analysis.adaptive_policies import Policy
from retro.analysis.adaptive_questions import AnsweredQuestions
from retro.analysis.adaptive_splits import HeldOut

_POINTS = 21


def share_curve(policy: Policy, questions: AnsweredQuestions) -> list[dict[str, float]]:
    """If the same share of all questions retrieved, those of the least values: {"share", "accuracy", and the mean of
    each expense that is known of every question}, from none to all in 21 steps. One threshold for all relations and
    nothing fitted, so it is what a policy of one number would reach at any budget. Equal values retrieve together."""
    order = np.sort(policy.values)
    count = len(order)
    points: list[dict[str, float]] = []
    for wanted in np.linspace(0.0, 1.0, _POINTS):
        place = round(wanted * count)
        threshold = order[place] if place < count else np.inf
        retrieves = policy.values < threshold
        if points and points[-1]["share"] == retrieves.mean():
            continue
        adaptive = np.where(retrieves, questions.retrieval.scores, questions.closed.scores)
        point = {"share": float(retrieves.mean()), "accuracy": float(adaptive.mean())}
        for name, closed in questions.closed.expenses.items():
            spent = policy.expense(retrieves, closed, questions.retrieval.expenses[name])
            if np.isfinite(closed).all() and np.isfinite(questions.retrieval.expenses[name]).all():
                point[name] = float(spent.mean())
        points.append(point)
    return points


def popularity_bins(
    questions: AnsweredQuestions, held_out: Mapping[str, HeldOut], bins: int = 10
) -> list[dict[str, Any]]:
    """Bins of equal width in log popularity over all questions that have it: {"low", "high": page views, "questions",
    "closed", "retrieval": accuracy, "oracle", "policies": {kind: {"accuracy", "share"} of the questions tested}}.
    Empty bins are left out."""
    known = np.isfinite(questions.popularity)
    if not known.any():
        return []
    logs = np.where(known, questions.log_popularity, np.nan)
    edges = np.linspace(np.nanmin(logs), np.nanmax(logs), bins + 1)
    place = np.clip(np.searchsorted(edges, logs, side="right") - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        inside = known & (place == number)
        if not inside.any():
            continue
        policies = {}
        for kind, result in held_out.items():
            tested = inside & (result.times > 0)
            if tested.any():
                accuracy, share = result.question_scores[tested].mean(), result.question_shares[tested].mean()
                policies[kind] = {"accuracy": float(accuracy), "share": float(share)}
        closed, retrieval = questions.closed.scores[inside], questions.retrieval.scores[inside]
        found.append(
            {
                "low": float(np.exp(edges[number])),
                "high": float(np.exp(edges[number + 1])),
                "questions": int(inside.sum()),
                "closed": float(closed.mean()),
                "retrieval": float(retrieval.mean()),
                "oracle": float(np.maximum(closed, retrieval).mean()),
                "policies": policies,
            }
        )
    return found


def correlation_with_popularity(questions: AnsweredQuestions) -> dict[str, float | None]:
    """Pearson's correlation of score and log popularity in each arm (Mallen et al. 2023, section 4.1); None where one
    of them does not vary."""
    known = np.isfinite(questions.popularity)
    found: dict[str, float | None] = {}
    for name, arm in (("closed", questions.closed), ("retrieval", questions.retrieval)):
        values, scores = questions.log_popularity[known], arm.scores[known]
        varies = len(values) > 1 and np.ptp(values) > 0 and np.ptp(scores) > 0
        found[name] = float(np.corrcoef(values, scores)[0, 1]) if varies else None
    return found
