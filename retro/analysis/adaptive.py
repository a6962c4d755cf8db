"""Adaptive retrieval judged: thresholds fitted on dev, tested on the rest, beside never, always and the oracle
(Mallen et al. 2023, section 5). One pure function from answered questions to figures and rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from retro.analysis.adaptive_curves import correlation_with_popularity, popularity_bins, share_curve
from retro.analysis.adaptive_policies import Policy, confidence_policy, fitted_rule, popularity_policy
from retro.analysis.adaptive_questions import AnsweredQuestions
from retro.analysis.adaptive_splits import (
    HeldOut,
    SplitPlan,
    describe_expenses,
    evaluate_splits,
    gain_over,
    spread,
)
from retro.analysis.adaptive_thresholds import EdgesFrom, ThresholdFit
from retro.analysis.bootstrap import DRAWS
from retro.artifacts.retrieval_rule import Measure, RetrievalRule
from retro.config.errors import ArtifactMismatchError

FORMAT = 1
Kind = Literal["popularity", "confidence"]
KINDS: tuple[Kind, ...] = ("popularity", "confidence")


@dataclasses.dataclass(frozen=True)
class AdaptiveSettings:
    """plan: the splits; bins, edges, margin: see ThresholdFit; min_questions: relations with fewer share a threshold;
    measure, tokens: of confidence; draws: of the bootstrap over questions."""

    plan: SplitPlan = dataclasses.field(default_factory=SplitPlan)
    bins: int = 10
    edges: EdgesFrom = "dev"
    margin: float = 2.0
    min_questions: int = 10
    measure: Measure = "mean"
    tokens: int = 24
    draws: int = DRAWS

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class AdaptiveResult:
    """figures: JSON-able, an entry of `comparisons` in adaptive.json (docs/qa.md); rules: by kind, fitted on all the
    questions, for use on others."""

    figures: dict[str, Any]
    rules: dict[str, RetrievalRule]


def analyse_adaptive(
    questions: AnsweredQuestions,
    kinds: tuple[Kind, ...],
    settings: AdaptiveSettings,
    fitted: Mapping[str, Any] | None = None,
) -> AdaptiveResult:
    """Judge the policies of these kinds. fitted: noted in the rules. Raises ArtifactMismatchError for questions without
    what a policy needs."""
    if len(questions.ids) < 4:
        raise ArtifactMismatchError(f"expected at least 4 answered questions, found {len(questions.ids)}")
    fit = ThresholdFit(settings.bins, edges=settings.edges, margin=settings.margin)
    policies: dict[str, Policy] = {}
    if "popularity" in kinds:
        policies["popularity"] = popularity_policy(questions, fit, settings.min_questions)
    if "confidence" in kinds:
        policies["confidence"] = confidence_policy(questions, fit, settings.measure, settings.tokens)
    noted = {**(fitted or {}), "questions": len(questions.ids)}
    rules = {
        kind: fitted_rule(policy, questions, noted, settings.measure, settings.tokens)
        for kind, policy in policies.items()
    }
    held_out = {kind: evaluate_splits(policy, questions, settings.plan) for kind, policy in policies.items()}
    figures = {
        "arms": {"closed": questions.closed.name, "retrieval": questions.retrieval.name},
        "questions": len(questions.ids),
        "left_out": questions.left_out,
        "units": len(np.unique(questions.units)),
        "with_popularity": int(np.isfinite(questions.popularity).sum()),
        "all": {
            "closed": float(questions.closed.scores.mean()),
            "retrieval": float(questions.retrieval.scores.mean()),
            "oracle": float(np.maximum(questions.closed.scores, questions.retrieval.scores).mean()),
        },
        "agreement": _agreement(questions),
        "correlation": correlation_with_popularity(questions),
        "policies": {
            kind: _describe(policies[kind], held_out[kind], questions, rules[kind], settings) for kind in policies
        },
        "by_popularity": popularity_bins(questions, held_out, settings.bins),
    }
    return AdaptiveResult(figures, rules)


def _describe(
    policy: Policy, held_out: HeldOut, questions: AnsweredQuestions, rule: RetrievalRule, settings: AdaptiveSettings
) -> dict[str, Any]:
    better = "retrieval" if questions.gains.sum() > 0 else "closed"
    fixed = questions.retrieval.scores if better == "retrieval" else questions.closed.scores
    gain = gain_over(held_out, questions, fixed, settings.draws, settings.plan.seed)
    scores = held_out.scores
    return {
        "accuracy": {name: spread(values).to_json() for name, values in scores.items()},
        "share_retrieved": spread(held_out.shares).to_json(),
        "oracle_share": spread(held_out.oracle_shares).to_json(),
        "better_fixed": better,
        "gain": {
            "over_better_fixed": spread(scores["adaptive"] - scores[better]).to_json(),
            "over_fixed_by_dev": spread(scores["adaptive"] - scores["fixed_by_dev"]).to_json(),
            "by_question": dataclasses.asdict(gain),
        },
        "expenses": describe_expenses(held_out),
        "tested": int((held_out.times > 0).sum()),
        "rule": {key: value for key, value in rule.to_json().items() if key not in ("format", "arms", "fitted")},
        "curve": share_curve(policy, questions),
    }


def _agreement(questions: AnsweredQuestions) -> dict[str, float]:
    """Shares of questions on which the arms differ (Mallen et al. 2023, section 4.2, "when retrieval hurts")."""
    gains = questions.gains
    return {
        "same": float((gains == 0).mean()),
        "only_closed": float((gains < 0).mean()),
        "only_retrieval": float((gains > 0).mean()),
    }
