"""What an answer cost in each arm, as the evaluation recorded it."""

from __future__ import annotations

import dataclasses
from typing import Any

from retro.analysis.qa_series import QaGroup


@dataclasses.dataclass(frozen=True)
class QaCost:
    """Means per question; None where the evaluation does not say. seconds: in the model, of questions asked in
    batches; latency_ms: median of questions asked alone."""

    series: str
    seconds: float | None
    latency_ms: float | None
    prompt_tokens: float | None
    encoder_tokens: float | None
    new_tokens: float | None


def costs(group: QaGroup) -> list[QaCost]:
    """One per series, [] where no evaluation recorded any."""
    found = []
    for arm in group.arms:
        stored = arm.answers.evaluation.results.get("cost")
        values = stored.get(arm.series.arm) if isinstance(stored, dict) else None
        fields = [field.name for field in dataclasses.fields(QaCost)][1:]
        figures = {name: _number(values.get(name)) if isinstance(values, dict) else None for name in fields}
        found.append(QaCost(arm.series.key, **figures))
    return found if any(v is not None for cost in found for v in dataclasses.astuple(cost)[1:]) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
