"""adaptive.json of `retro qa adaptive`, read for the report: accuracy against the share retrieved and what it costs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retro.analysis.bootstrap import Estimate
from retro.analysis.qa_records import QaAnswers
from retro.analysis.qa_series import QaGroup
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError

NAME = "adaptive.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Expense:
    """Mean per question of the policy, of never and of always retrieving; saved: share of the last that the policy
    saves, over the splits."""

    adaptive: float
    never: float
    always: float
    saved: Estimate


@dataclasses.dataclass(frozen=True)
class AdaptivePolicy:
    """A policy on held-out questions. accuracy: of "adaptive", "closed" (never), "retrieval" (always), "oracle", ... ->
    mean over the splits with the central 95% of them; gain: over the better fixed arm, with a bootstrap interval over
    questions; oracle_share: of questions that only retrieval answers better; curve: {"share",
    "accuracy", expenses} where that share of the questions retrieves."""

    kind: str
    accuracy: dict[str, Estimate]
    sd: float
    share: Estimate
    oracle_share: Estimate
    better_fixed: str
    gain: Estimate
    expenses: dict[str, Expense]
    curve: tuple[dict[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Two arms of an evaluation and the policies between them."""

    run: str
    evaluation: str
    closed: str
    retrieval: str
    metric: str
    questions: int
    splits: int
    policies: tuple[AdaptivePolicy, ...]


def read_adaptive(group: QaGroup) -> list[Adaptive]:
    """What adaptive.json of the group's evaluations says, [] without any.

    Raises ArtifactCorruptError, and ArtifactMismatchError for a file of another format, task or split.
    """
    found = []
    for item in group.answers:
        path = item.evaluation.path / NAME
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            _check_origin(content, path, item)
            for comparison in content["comparisons"]:
                found.append(_comparison(content, comparison, item.run.name, item.evaluation.name))
        except (OSError, KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
            detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactCorruptError(f"{path}: {detail}; run `retro qa adaptive` again") from None
    return found


def _check_origin(content: Mapping[str, Any], path: Path, answers: QaAnswers) -> None:
    if content["format"] != _FORMAT:
        raise ArtifactMismatchError(
            f"{path}: expected format {_FORMAT}, found {content['format']!r}; run `retro qa adaptive` again"
        )
    expected, found = (answers.task, answers.split), (content["task"], content["split"])
    if found != expected:
        expected_words, found_words = (f"{task}, split {split}" for task, split in (expected, found))
        raise ArtifactMismatchError(
            f"{path}: expected figures of {expected_words}, found {found_words}; run `retro qa adaptive` on this "
            "evaluation, or move the file to where it belongs"
        )


def _comparison(content: Mapping[str, Any], figures: Mapping[str, Any], run: str, evaluation: str) -> Adaptive:
    return Adaptive(
        run=run,
        evaluation=evaluation,
        closed=str(figures["arms"]["closed"]),
        retrieval=str(figures["arms"]["retrieval"]),
        metric=str(content["metric"]),
        questions=int(figures["questions"]),
        splits=int(content["settings"]["plan"]["splits"]),
        policies=tuple(_policy(kind, policy) for kind, policy in figures["policies"].items()),
    )


def _policy(kind: str, policy: Mapping[str, Any]) -> AdaptivePolicy:
    gain = policy["gain"]["by_question"]
    return AdaptivePolicy(
        kind=str(kind),
        accuracy={str(name): _spread(values) for name, values in policy["accuracy"].items()},
        sd=float(policy["accuracy"]["adaptive"]["sd"]),
        share=_spread(policy["share_retrieved"]),
        oracle_share=_spread(policy["oracle_share"]),
        better_fixed=str(policy["better_fixed"]),
        gain=Estimate(_finite(gain["value"]), _finite(gain["low"]), _finite(gain["high"])),
        expenses={
            str(name): Expense(
                float(values["adaptive"]["mean"]),
                float(values["never"]),
                float(values["always"]),
                _spread(values["saved"]),
            )
            for name, values in policy["expenses"].items()
        },
        curve=tuple(_point(point) for point in policy["curve"]),
    )


def _point(values: Mapping[str, Any]) -> dict[str, float]:
    needed = {name: float(values[name]) for name in ("share", "accuracy")}
    return needed | {str(name): float(value) for name, value in values.items()}


def _spread(values: Mapping[str, Any]) -> Estimate:
    return Estimate(float(values["mean"]), float(values["low"]), float(values["high"]))


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
