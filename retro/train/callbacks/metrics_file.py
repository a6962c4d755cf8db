"""metrics.jsonl: one line per logged step and per validation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from retro.artifacts.atomic import write_text_atomic
from retro.train.callbacks.base import Callback
from retro.train.callbacks.utilisation import Utilisation
from retro.train.state import StepRecord, ValidationRecord

if TYPE_CHECKING:
    from retro.train.trainer import Trainer


class LogWindow(Callback):
    """Every `every` steps (0 = after the last one only) gives `emit` the figures of the steps since the last time.

    Its state survives a resume, so the figures are those of a run that was never stopped. `utilisation` comes before it
    among the callbacks.
    """

    name = "log_window"

    def __init__(self, every: int, emit: Callable[[dict[str, Any]], None], utilisation: Utilisation) -> None:
        self.every, self._emit, self._utilisation = every, emit, utilisation
        self._loss_sum, self._tokens, self._seconds = 0.0, 0, 0.0
        self._flops, self._flop_seconds = 0, 0.0

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Add the step; emit at multiples of `every` and after the run's last step."""
        self._loss_sum += record.loss_sum
        self._tokens += record.tokens
        self._seconds += record.seconds
        self._flops += self._utilisation.step_flops
        self._flop_seconds += record.seconds
        step = record.state.step
        due = self.every > 0 and step % self.every == 0
        if not due and step < trainer.steps:
            return
        self._emit(
            {
                "event": "train",
                "step": step,
                "samples": record.state.samples,
                "sample_hash": f"{record.state.sample_hash:016x}",
                "tokens": record.state.tokens,
                "loss": self._loss_sum / max(self._tokens, 1),
                "learning_rate": record.learning_rate,
                "grad_norm": record.grad_norm,
                "tokens_per_s": round(self._tokens / max(self._seconds, 1e-9), 1),
                "model_tflops_per_s": float(f"{self._flops / max(self._flop_seconds, 1e-9) / 1e12:.4g}"),
                "mfu": float(f"{self._utilisation.share(self._flops, self._flop_seconds):.4g}"),
                "elapsed_s": round(record.state.elapsed_s, 3),
            }
        )
        self._loss_sum, self._tokens, self._seconds = 0.0, 0, 0.0
        self._flops, self._flop_seconds = 0, 0.0

    def on_validation(self, trainer: Trainer, record: ValidationRecord) -> None:
        """Emit the validation's figures."""
        self._emit(
            {
                "event": "validation",
                "step": record.state.step,
                "loss": record.loss,
                "bits_per_byte": record.bits_per_byte,
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
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with a window."""
        self._loss_sum, self._tokens, self._seconds = state["loss_sum"], state["tokens"], state["seconds"]
        # A window that an earlier version began has steps whose operations were not counted.
        self._flops, self._flop_seconds = state.get("flops", 0), state.get("flop_seconds", 0.0)


class MetricsFile(LogWindow):
    """Appends to metrics.jsonl; on start drops the lines after the step that is resumed from.

    train: step, samples and scored tokens so far; sample_hash, of the samples so far, equal in runs that consumed the
    same ones in the same order, however many processes they had and wherever they were resumed; loss, nats per token
    over the steps since the last line; learning rate and gradient norm (before clipping) of the step; tokens_per_s,
    scored tokens, over these steps; model_tflops_per_s and mfu, of one device over these steps
    (retro/train/callbacks/utilisation.py); elapsed_s, training seconds so far.
    """

    name = "metrics"

    def __init__(self, path: Path, every: int, utilisation: Utilisation) -> None:
        super().__init__(every, self._write, utilisation)
        self.path = path
        self._file: IO[str] | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Truncate and open."""
        truncate_metrics(self.path, trainer.state.step)
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        """A checkpoint promises the lines before it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def on_stop(self, trainer: Trainer, failed: bool) -> None:
        """Close."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, row: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(row, separators=(", ", ": "), allow_nan=False) + "\n")
        self._file.flush()


def truncate_metrics(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a line that was cut off by a kill and what follows it goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
            if int(row["step"]) > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line.decode("utf-8") + "\n")
    write_text_atomic(path, "".join(kept))
