"""Adaptive retrieval on questions that its thresholds were not fitted on: many random splits of dev and test."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from retro.analysis.adaptive_policies import Policy
from retro.analysis.adaptive_questions import AnsweredQuestions
from retro.analysis.bootstrap import CONFIDENCE, DocumentSums, Estimate
from retro.config.errors import ArtifactMismatchError


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """splits: how many random ones; dev_share: of each relation's questions, on which thresholds are fitted."""

    splits: int = 100
    dev_share: float = 0.75
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of one figure over the splits: mean, standard deviation (n - 1), and the central 95% of them. Splits share
    questions: this is the spread of the procedure, no confidence interval."""

    mean: float
    sd: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """JSON-able."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A policy on test questions, over all splits. S splits, Q questions.

    scores: float64 [S] each of adaptive, closed, retrieval, oracle (the better answer of each question) and
    fixed_by_dev (the arm that was better on dev); shares: float64 [S], of questions that retrieve; oracle_shares: that
    only retrieval answers better; expenses: name -> arm ("adaptive", "closed", "retrieval") -> float64 [S], means per
    question; times: int64 [Q], how often a question was tested; question_scores, question_shares: float64 [Q], means
    of the adaptive score and of retrieving over these, 0 where there were none.
    """

    scores: dict[str, np.ndarray]
    shares: np.ndarray
    oracle_shares: np.ndarray
    expenses: dict[str, dict[str, np.ndarray]]
    times: np.ndarray
    question_scores: np.ndarray
    question_shares: np.ndarray


def draw_dev(groups: np.ndarray, plan: SplitPlan, number: int) -> np.ndarray:
    """bool [Q]: the dev questions of split `number`, the share of each group rounded down but at least one question."""
    generator = np.random.Generator(np.random.Philox([plan.seed, number]))
    order = generator.permutation(len(groups))
    dev = np.zeros(len(groups), bool)
    for group in np.unique(groups):
        members = order[groups[order] == group]
        dev[members[: max(1, int(plan.dev_share * len(members)))]] = True
    return dev


def evaluate_splits(policy: Policy, questions: AnsweredQuestions, plan: SplitPlan) -> HeldOut:
    """Fit on dev and test on the rest, `plan.splits` times. Raises ArtifactMismatchError if no split leaves a test
    question."""
    closed, retrieval = questions.closed.scores, questions.retrieval.scores
    best = np.maximum(closed, retrieval)
    scores: dict[str, list[float]] = {n: [] for n in ("adaptive", "closed", "retrieval", "oracle", "fixed_by_dev")}
    shares, oracle_shares = [], []
    known = _known_expenses(questions)
    expenses: dict[str, dict[str, list[float]]] = {
        n: {a: [] for a in ("adaptive", "closed", "retrieval")} for n in known
    }
    times = np.zeros(len(closed), np.int64)
    sums, retrieved = np.zeros(len(closed)), np.zeros(len(closed))
    for number in range(plan.splits):
        dev = draw_dev(policy.groups, plan, number)
        test = ~dev
        if not test.any():
            raise ArtifactMismatchError(
                "expected relations of two questions or more, one to fit on and one to test, found none; raise "
                "--min-questions, below which relations share a threshold"
            )
        thresholds = policy.thresholds(questions.gains, dev)
        retrieves = policy.retrieves(thresholds)
        adaptive = np.where(retrieves, retrieval, closed)
        fixed = retrieval if questions.gains[dev].sum() > 0 else closed
        named = {"adaptive": adaptive, "closed": closed, "retrieval": retrieval, "oracle": best, "fixed_by_dev": fixed}
        for name, values in named.items():
            scores[name].append(float(values[test].mean()))
        shares.append(float(retrieves[test].mean()))
        oracle_shares.append(float((retrieval > closed)[test].mean()))
        for name, where in known.items():
            if (asked := where & test).any():
                spent = policy.expense(retrieves, *_both(questions, name), thresholds)
                for arm, paid in zip(
                    ("adaptive", "closed", "retrieval"), (spent, *_both(questions, name)), strict=True
                ):
                    expenses[name][arm].append(float(paid[asked].mean()))
        times += test
        sums += np.where(test, adaptive, 0.0)
        retrieved += test & retrieves
    return HeldOut(
        {name: np.array(values) for name, values in scores.items()},
        np.array(shares),
        np.array(oracle_shares),
        {n: {a: np.array(v) for a, v in arms.items()} for n, arms in expenses.items() if arms["adaptive"]},
        times,
        sums / np.maximum(times, 1),
        retrieved / np.maximum(times, 1),
    )


def _both(questions: AnsweredQuestions, name: str) -> tuple[np.ndarray, np.ndarray]:
    return questions.closed.expenses[name], questions.retrieval.expenses[name]


def _known_expenses(questions: AnsweredQuestions) -> dict[str, np.ndarray]:
    """Expense -> bool [Q], the questions for which it is known in both arms; without those known for none."""
    found = {
        name: np.isfinite(questions.closed.expenses[name]) & np.isfinite(questions.retrieval.expenses[name])
        for name in questions.closed.expenses
    }
    return {name: where for name, where in found.items() if where.any()}


def spread(values: np.ndarray) -> Spread:
    """Of one figure over the splits, float64 [S]."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Spread(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0, float(low), float(high))


def gain_over(held_out: HeldOut, questions: AnsweredQuestions, fixed: np.ndarray, draws: int, seed: int) -> Estimate:
    """Adaptive minus fixed scores (float64 [Q]), each question with the mean over the splits that tested it, and the
    95% interval of a paired bootstrap over the questions' units."""
    tested = held_out.times > 0
    sums = DocumentSums(np.unique(questions.units[tested], return_inverse=True)[1], draws, seed)
    sums.add("adaptive", held_out.question_scores[tested])
    sums.add("fixed", fixed[tested])
    sums.add("count", np.ones(int(tested.sum())))
    return sums.estimate(lambda a, f, n: (a - f) / n, "adaptive", "fixed", "count")


def saved(adaptive: np.ndarray, always: np.ndarray) -> np.ndarray:
    """float64 [S]: the share of what always retrieving costs that is saved; negative = it costs more."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(always > 0, 1 - adaptive / always, 0.0)


def describe_expenses(held_out: HeldOut) -> dict[str, Any]:
    """JSON-able: expense -> {"adaptive", "never", "always": mean per question, "saved": Spread against always}."""
    return {
        name: {
            "adaptive": spread(arms["adaptive"]).to_json(),
            "never": float(arms["closed"].mean()),
            "always": float(arms["retrieval"].mean()),
            "saved": spread(saved(arms["adaptive"], arms["retrieval"])).to_json(),
        }
        for name, arms in held_out.expenses.items()
    }
