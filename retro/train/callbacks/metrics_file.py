"""metrics.jsonl: one line per logged step, per validation and per step that was not taken."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from retro.artifacts.atomic import write_text_atomic
from retro.train.callbacks.figures import Figures
from retro.train.callbacks.log_window import LogWindow
from retro.train.callbacks.utilisation import Utilisation

if TYPE_CHECKING:
    from retro.train.nonfinite import Incident
    from retro.train.state import TrainState
    from retro.train.trainer import Trainer


class MetricsFile(LogWindow):
    """Appends to metrics.jsonl; on start, and when the run goes back to a checkpoint, drops the lines of what is done
    again. docs/formats.md tells the fields."""

    name = "metrics"

    def __init__(self, path: Path, every: int, utilisation: Utilisation, figures: Figures | None = None) -> None:
        super().__init__(every, self._write, utilisation, figures)
        self.path = path
        self._file: IO[str] | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Truncate and open."""
        truncate_metrics(self.path, trainer.state)
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115

    def on_rollback(self, trainer: Trainer) -> None:
        """As a run that resumes there."""
        self.on_stop(trainer, failed=False)
        self.on_start(trainer)

    def on_incident(self, trainer: Trainer, incident: Incident) -> None:
        """A line of its own."""
        self._write(incident.row())

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


def truncate_metrics(path: Path, state: TrainState) -> None:
    """Keep the lines of a run at `state`; a line that was cut off by a kill and what follows it goes too, and so do
    lines of incidents that the run has not had."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
            if int(row["step"]) > state.step:
                break
            if row.get("event") == "nonfinite" and int(row["incident"]) > state.incidents:
                continue
        except (ValueError, KeyError, TypeError, AttributeError):
            break
        kept.append(line.decode("utf-8") + "\n")
    write_text_atomic(path, "".join(kept))
