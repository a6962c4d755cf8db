"""The figures of a log line: over the steps since the last one, for every place that lines go to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retro.train.callbacks.base import Callback
from retro.train.callbacks.figures import Figures, is_log_step
from retro.train.callbacks.utilisation import Utilisation
from retro.train.state import StepRecord, ValidationRecord

if TYPE_CHECKING:
    from retro.train.trainer import Trainer


class LogWindow(Callback):
    """Every `every` steps (0 = after the last one only) gives `emit` the figures of the steps since the last time.

    Its state survives a resume, so the figures are those of a run that was never stopped, but for those of memory and
    of seconds outside training. `utilisation` and `figures` (None = without) come before it among the callbacks.
    """

    name = "log_window"

    def __init__(
        self,
        every: int,
        emit: Callable[[dict[str, Any]], None],
        utilisation: Utilisation,
        figures: Figures | None = None,
    ) -> None:
        self.every, self._emit, self._utilisation, self._figures = every, emit, utilisation, figures
        self._outside: dict[str, float] = {}
        self._begin()

    def _begin(self) -> None:
        self._loss_sum, self._tokens, self._seconds = 0.0, 0, 0.0
        self._flops, self._flop_seconds = 0, 0.0
        self._steps, self._clipped, self._sequences, self._data_seconds = 0, 0, 0, 0.0

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Add the step; emit at multiples of `every` and after the run's last step."""
        if record.taken:
            self._loss_sum += record.loss_sum
            self._tokens += record.tokens
            self._clipped += record.clipped
            self._steps += 1
        self._seconds += record.seconds
        self._data_seconds += record.data_seconds
        self._sequences += record.sequences
        self._flops += self._utilisation.step_flops
        self._flop_seconds += record.seconds
        state = record.state
        if not is_log_step(self.every, state.step, trainer.steps):
            return
        seconds = max(self._seconds, 1e-9)
        self._emit(
            {
                "event": "train",
                "step": state.step,
                "samples": state.samples,
                "sample_hash": f"{state.sample_hash:016x}",
                "tokens": state.tokens,
                "loss": self._loss_sum / self._tokens if self._tokens else None,
                "learning_rate": record.learning_rate,
                "grad_norm": _finite(record.grad_norm),
                "clipped": round(self._clipped / max(self._steps, 1), 4),
                "skipped_steps": state.skipped,
                "rollbacks": state.rollbacks,
                "tokens_per_s": round(self._tokens / seconds, 1),
                "sequences_per_s": float(f"{self._sequences / seconds:.4g}"),
                "model_tflops_per_s": float(f"{self._flops / max(self._flop_seconds, 1e-9) / 1e12:.4g}"),
                "mfu": float(f"{self._utilisation.share(self._flops, self._flop_seconds):.4g}"),
                "data_wait": float(f"{self._data_seconds / seconds:.4g}"),
                "validation_s": self._since_last_line(trainer, "validator"),
                "checkpoint_s": self._since_last_line(trainer, "checkpointer"),
                "elapsed_s": round(state.elapsed_s, 3),
                **({} if self._figures is None else self._figures.values),
            }
        )
        self._begin()

    def on_validation(self, trainer: Trainer, record: ValidationRecord) -> None:
        """Emit the validation's figures."""
        self._emit(
            {
                "event": "validation",
                "step": record.state.step,
                "loss": _finite(record.loss),
                "bits_per_byte": _finite(record.bits_per_byte),
                **{name: _finite(value) for name, value in record.scores.items()},
                "seconds": round(record.seconds, 3),
                "elapsed_s": round(record.state.elapsed_s, 3),
            }
        )

    def state(self) -> dict[str, Any]:
        """The window so far."""
        return {
            "loss_sum": self._loss_sum,
            "tokens": self._tokens,
            "seconds": self._seconds,
            "flops": self._flops,
            "flop_seconds": self._flop_seconds,
            "steps": self._steps,
            "clipped": self._clipped,
            "sequences": self._sequences,
            "data_seconds": self._data_seconds,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with a window; one that an earlier version began lacks what was not counted then."""
        self._begin()
        for name, value in state.items():
            if hasattr(self, f"_{name}"):
                setattr(self, f"_{name}", value)

    def _since_last_line(self, trainer: Trainer, callback: str) -> float:
        """Seconds that the callback has taken in this session since then, outside training time."""
        now = trainer.callback_seconds.get(callback, 0.0)
        before, self._outside[callback] = self._outside.get(callback, 0.0), now
        return round(now - before, 3)


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None
