"""Ends training when validations find nothing better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retro.config.early_stopping import EarlyStoppingConfig
from retro.train.callbacks.base import Callback
from retro.train.state import ValidationRecord

if TYPE_CHECKING:
    from retro.train.trainer import Trainer


class EarlyStopping(Callback):
    """Counts the validations in a row whose metric is not better than the best before them by more than min_delta; at
    `patience` of them the step is the run's last one. A metric that is not a number is not better."""

    name = "early_stopping"
    every_process = True

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self.config = config
        self._begin()

    def _begin(self) -> None:
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0

    def on_validation(self, trainer: Trainer, record: ValidationRecord) -> None:
        """Count, and end the run if it is time."""
        value = record.metric(self.config.metric)
        sign = record.direction(self.config.metric)
        better = value == value and (self.best is None or sign * (value - self.best) > self.config.min_delta)
        if better:
            self.best, self.best_step, self.waited = value, record.state.step, 0
        else:
            self.waited += 1
        if is_exhausted(self.config, self.waited, record.state.step):
            trainer.end_early()

    def state(self) -> dict[str, Any]:
        """The best value and how long ago it was."""
        return {
            "metric": self.config.metric,
            "best": self.best,
            "best_step": self.best_step,
            "waited": self.waited,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting; another metric than before begins anew."""
        self._begin()
        if state["metric"] == self.config.metric:
            self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]

    def describe(self) -> str:
        """Why the run ended."""
        best = "no number" if self.best is None else f"{self.best:.4f} after step {self.best_step}"
        return f"{self.config.metric} was best with {best}, and not better in the {self.waited} validations since"


def is_exhausted(config: EarlyStoppingConfig | None, waited: int, step: int) -> bool:
    """Whether a run that has waited for so many validations ends at this step."""
    return config is not None and waited >= config.patience and step >= config.min_steps


def has_ended(config: EarlyStoppingConfig | None, state: dict[str, Any] | None, step: int) -> bool:
    """Whether the run whose checkpoint of `step` holds this state of the callback has ended by it (None = no state)."""
    if config is None or state is None or state["metric"] != config.metric:
        return False
    return is_exhausted(config, int(state["waited"]), step)
