"""What is still to come of a preparation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retro.config.preparation import PrepConfig

if TYPE_CHECKING:
    from data_prep.inspection.status import StepStatus


@dataclass(frozen=True)
class Forecast:
    """bytes to come on disk and seconds of the stage at work; None: cannot be told yet."""

    bytes: int | None
    seconds: float | None


def forecast(config: PrepConfig, found: Sequence[StepStatus]) -> Forecast:
    """Of the steps as they stand."""
    for item in found:
        if item.progress is not None:
            return Forecast(item.progress.bytes_left, item.progress.seconds_left)
    return Forecast(0 if all(item.state == "done" for item in found) else None, None)
