"""What an observer of the loop may implement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from retro.data.batch import RetroBatch
from retro.train.state import StepRecord, ValidationRecord

if TYPE_CHECKING:
    from retro.train.nonfinite import Incident
    from retro.train.trainer import Trainer


class Callback:
    """Observes training; does nothing by itself. Callbacks are called in the order they are given.

    name: key of its state in checkpoints; every_process: whether it runs in all processes (it must, if it
    communicates) or in the main one only.
    """

    name: ClassVar[str] = ""
    every_process: ClassVar[bool] = False

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this session; trainer.state.step is more than 0 in a resumed run."""

    def on_micro_batch(self, trainer: Trainer, batch: RetroBatch) -> None:
        """Before the forward pass of each micro-batch of this process."""

    def on_gradient(self, trainer: Trainer, grad_norm: float) -> None:
        """Before the optimizer moves: gradients are complete and clipped; grad_norm: before clipping."""

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """After every optimizer step, and after every one that was skipped."""

    def on_rollback(self, trainer: Trainer) -> None:
        """The run has gone back to a checkpoint: trainer.state and the callback's own state are those of a run resumed
        there, and what was written after it must go."""

    def on_incident(self, trainer: Trainer, incident: Incident) -> None:
        """Loss or gradient of a step were not finite; `incident.action` has been done about it (`stop`: follows)."""

    def on_validation(self, trainer: Trainer, record: ValidationRecord) -> None:
        """After a validation."""

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        """Before the checkpoint at `folder` is written: what it counts on must be on disk after this."""

    def on_stop(self, trainer: Trainer, failed: bool) -> None:
        """Once, however training ends; `failed` = by an exception, which then is told instead of one raised here."""

    def state(self) -> dict[str, Any]:
        """JSON-able state for a checkpoint; what a resumed run needs to go on as if nothing had happened."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
