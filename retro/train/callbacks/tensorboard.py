"""TensorBoard, when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.config.errors import ConfigError
from retro.train.callbacks.figures import Figures
from retro.train.callbacks.log_window import LogWindow
from retro.train.callbacks.utilisation import Utilisation

if TYPE_CHECKING:
    from retro.train.trainer import Trainer


class TensorBoard(LogWindow):
    """Logs what metrics.jsonl gets, as scalars `train/...` and `validation/...`, below `folder`.

    Raises ConfigError if the package is not installed.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, every: int, utilisation: Utilisation, figures: Figures | None = None) -> None:
        super().__init__(every, self._send, utilisation, figures)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "tensorboard=true needs the package tensorboard; pip install 'retro-pretraining[tensorboard]', or set "
                "tensorboard=false"
            ) from None
        self._open, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Open; what an interrupted session logged after the step that is resumed from is marked as void."""
        before = self._folder.is_dir() and any(self._folder.iterdir())
        self._writer = self._open(str(self._folder), purge_step=trainer.state.step + 1 if before else None)

    def on_rollback(self, trainer: Trainer) -> None:
        """As a run that resumes there."""
        self.on_stop(trainer, failed=False)
        self.on_start(trainer)

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        """A checkpoint promises what was logged before it."""
        self._writer.flush()

    def on_stop(self, trainer: Trainer, failed: bool) -> None:
        """Close."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _send(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{row['event']}/{name}", value, row["step"])
