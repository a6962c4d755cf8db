"""Progress for people: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from retro.train.callbacks.base import Callback
from retro.train.callbacks.utilisation import Utilisation
from retro.train.state import StepRecord, ValidationRecord

if TYPE_CHECKING:
    from retro.train.nonfinite import Incident
    from retro.train.trainer import Trainer

# Of the previous mean, in the smoothed loss and speed that are shown.
_SMOOTHING = 0.9


class Progress(Callback):
    """Loss, gradient norm, tokens/s, model FLOPs utilisation, share of waiting for data, and remaining time. On a
    terminal a bar; otherwise one log line every `seconds`, and for the first and the last step of a session.
    `utilisation` comes before it among the callbacks."""

    name = "progress"

    def __init__(self, log: logging.Logger, utilisation: Utilisation, seconds: float = 15.0) -> None:
        self._log, self._utilisation, self._every = log, utilisation, seconds
        self._bar: Any = None
        self._printed = 0.0
        self._loss: float | None = None
        self._rate: float | None = None
        self._mfu: float | None = None
        self._wait: float | None = None
        self._step_seconds: float | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Begin the bar at the step that is resumed from."""
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=trainer.steps, initial=trainer.state.step, unit="step", dynamic_ncols=True, file=sys.stderr
            )

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Advance."""
        if record.taken:
            self._loss = _smooth(self._loss, record.loss)
        self._wait = _smooth(self._wait, record.data_seconds / max(record.seconds, 1e-9))
        self._step_seconds = _smooth(self._step_seconds, record.seconds)
        self._rate = _smooth(self._rate, record.tokens * record.taken / max(record.seconds, 1e-9))
        self._mfu = _smooth(self._mfu, self._utilisation.share(self._utilisation.step_flops, record.seconds))
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {_shown(self._loss)}, {self._rate:,.0f} tokens/s, MFU {self._mfu:.1%}, data {self._wait:.1%}",
                refresh=False,
            )
            self._bar.update()
            return
        now = time.monotonic()
        if trainer.is_last_step or now - self._printed >= self._every:
            self._printed = now
            left = _duration((trainer.steps - record.state.step) * self._step_seconds)
            self._log.info(
                f"step {record.state.step}/{trainer.steps}  loss {_shown(self._loss)}  grad {record.grad_norm:.2f}  "
                f"lr {record.learning_rate:.2e}  {self._rate:,.0f} tokens/s  MFU {self._mfu:.1%}  "
                f"data {self._wait:.1%}  left {left}"
            )

    def on_incident(self, trainer: Trainer, incident: Incident) -> None:
        """Say what happened and what was done."""
        then = {
            "stop": "the run ends",
            "skip": f"skipped, no weight was changed ({incident.state.skipped} skipped so far)",
            "rollback": f"back to the checkpoint of step {incident.state.step}, the data up to there is left out "
            f"({incident.state.rollbacks} times so far)",
        }
        self._log.warning(f"{incident.describe()}: {then[incident.action]}")

    def on_rollback(self, trainer: Trainer) -> None:
        """Put the bar back."""
        if self._bar is not None:
            self._bar.n = trainer.state.step
            self._bar.refresh()

    def on_validation(self, trainer: Trainer, record: ValidationRecord) -> None:
        """Say what was found."""
        self._log.log(
            logging.INFO if math.isfinite(record.loss) else logging.WARNING,
            f"validation after step {record.state.step}: loss {record.loss:.4f}, "
            f"{record.bits_per_byte:.4f} bits per byte ({record.tokens:,} tokens)"
            + "".join(f", {name} {value:.4f}" for name, value in record.scores.items()),
        )

    def on_stop(self, trainer: Trainer, failed: bool) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _smooth(mean: float | None, value: float) -> float:
    return value if mean is None else _SMOOTHING * mean + (1 - _SMOOTHING) * value


def _shown(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
