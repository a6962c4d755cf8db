"""Configuration of early stopping: when validations say that training may end."""

from __future__ import annotations

from dataclasses import dataclass

from retro.config.checks import require, require_at_least


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Section `early_stopping` of a training run; not part of its identity.

    metric: one of the task's (exact_match, f1, regex, ...; docs/qa.md), of answers that the model itself writes to
    questions of the validation split (dataset qa), or the validation loss; `checkpoints/best` follows it. patience:
    training ends after so many validations in a row that found nothing better by more than min_delta, but not before
    min_steps. questions: so many are asked at each validation, the first of the split, batch: side by side.
    """

    metric: str = "exact_match"
    patience: int = 5
    min_delta: float = 0.0
    min_steps: int = 0
    questions: int = 200
    batch: int = 32

    def __post_init__(self) -> None:
        require(self.metric != "", "metric: expected loss or a metric of the task, found an empty text")
        require_at_least(self, 1, "patience", "questions", "batch")
        require_at_least(self, 0, "min_steps", "min_delta")
        for name in ("questions", "batch"):
            require(
                self.asks_questions or getattr(self, name) == getattr(EarlyStoppingConfig, name),
                f"{name}: no question is asked for metric {self.metric!r}; remove it",
            )

    @property
    def asks_questions(self) -> bool:
        """Whether the model has to write answers for it."""
        return self.metric != "loss"
