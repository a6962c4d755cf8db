"""The two policies of adaptive retrieval as what can be fitted: a value per question, a threshold per group."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from retro.analysis.adaptive_questions import AnsweredQuestions
from retro.analysis.adaptive_thresholds import ThresholdFit, best_threshold, better_fixed, candidates, fit_thresholds
from retro.artifacts.retrieval_rule import ConfidenceRule, Measure, PopularityRule, RetrievalRule, RuleArms
from retro.config.errors import ArtifactMismatchError

#: Groups that are no relation; relations have names that are not empty.
_POOLED, _UNKNOWN = "\0pooled", "\0unknown"


@dataclasses.dataclass(frozen=True)
class Policy:
    """Retrieve if the value is below the group's threshold.

    kind: "popularity" or "confidence"; values: float64 [Q]; groups: int64 [Q], which of `names`; pays_both: whether a
    question that retrieves was answered without retrieval before, and costs both, unless its threshold is never or
    always, which need no answer.
    """

    kind: str
    values: np.ndarray
    groups: np.ndarray
    names: tuple[str, ...]
    fit: ThresholdFit
    pays_both: bool

    def thresholds(self, gains: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """float64 [len(names)], fitted on the chosen questions (bool [Q])."""
        return fit_thresholds(self.values, gains, self.groups, len(self.names), chosen, self.fit)

    def retrieves(self, thresholds: np.ndarray) -> np.ndarray:
        """bool [Q]."""
        return self.values < thresholds[self.groups]

    def expense(
        self, retrieves: np.ndarray, closed: np.ndarray, retrieval: np.ndarray, thresholds: np.ndarray | None = None
    ) -> np.ndarray:
        """float64 [Q]: what each question costs, given what it costs in either arm. thresholds: of the groups, None =
        none of them is never or always."""
        if self.pays_both:
            asked_first = True if thresholds is None else ~retrieves | np.isfinite(thresholds)[self.groups]
            return np.where(asked_first, closed, 0.0) + np.where(retrieves, retrieval, 0.0)
        return np.where(retrieves, retrieval, closed)


def popularity_policy(questions: AnsweredQuestions, fit: ThresholdFit, min_questions: int = 10) -> Policy:
    """A threshold of log popularity for each relation (Mallen et al. 2023, section 5.1). Relations of fewer than
    `min_questions` questions share one; questions without popularity form a group that retrieves always or never.

    Raises ArtifactMismatchError if no question has a popularity.
    """
    known = np.isfinite(questions.popularity)
    if not known.any():
        raise ArtifactMismatchError(
            "expected questions with the popularity of their subject, found none; use --policy confidence"
        )
    counts = Counter(name for name, has in zip(questions.relations, known, strict=True) if has)
    large = sorted(name for name, count in counts.items() if count >= min_questions)
    names = (*large, _POOLED, _UNKNOWN)
    places = {name: number for number, name in enumerate(names)}
    groups = [
        places[_UNKNOWN] if not has else places.get(name, places[_POOLED])
        for name, has in zip(questions.relations, known, strict=True)
    ]
    values = np.where(known, questions.log_popularity, 0.0)
    return Policy("popularity", values, np.array(groups, np.int64), names, fit, pays_both=False)


def confidence_policy(
    questions: AnsweredQuestions, fit: ThresholdFit, measure: Measure = "mean", tokens: int = 1 << 30
) -> Policy:
    """One threshold for the confidence in the answer without retrieval, which is always asked for first.

    Raises ArtifactMismatchError if no answer has log-probabilities.
    """
    values = questions.closed.confidence(measure, tokens)
    if not np.isfinite(values).any():
        raise ArtifactMismatchError(
            f"arm {questions.closed.name!r}: expected answers with token_logprobs, found none; evaluate it again"
        )
    fit = dataclasses.replace(fit, spacing="number")
    return Policy("confidence", values, np.zeros(len(values), np.int64), ("all",), fit, pays_both=True)


def fitted_rule(
    policy: Policy,
    questions: AnsweredQuestions,
    fitted: Mapping[str, Any],
    measure: Measure = "mean",
    tokens: int = 1 << 30,
) -> RetrievalRule:
    """The policy fitted on all questions, as it is used on others. fitted: what is noted about where it comes from;
    measure, tokens: of a confidence policy."""
    thresholds = policy.thresholds(questions.gains, np.ones(len(questions.ids), bool))
    arms = RuleArms(questions.closed.name, questions.retrieval.name)
    if policy.kind == "confidence":
        return ConfidenceRule(measure, tokens, float(thresholds[0]), arms, fitted)
    by_name = dict(zip(policy.names, thresholds.tolist(), strict=True))
    unknown = policy.groups == policy.names.index(_UNKNOWN)
    known = ~unknown
    # Relations that were never seen: the threshold that is best for all questions together.
    values, gains, fixed = policy.values[known], questions.gains[known], better_fixed(questions.gains)
    default = best_threshold(values, gains, candidates(values, policy.fit), fixed, policy.fit.margin)
    without = by_name[_UNKNOWN] > 0 if unknown.any() else bool(questions.gains.sum() > 0)
    small = set(questions.relations) - set(policy.names)
    by_relation = {
        relation: by_name[_POOLED if relation in small else relation]
        for relation in sorted({r for r, has in zip(questions.relations, known, strict=True) if has})
    }
    return PopularityRule(by_relation, default, bool(without), arms, fitted)
