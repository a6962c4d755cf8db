"""Weights & Biases, when asked for; its offline mode needs no account."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retro.config.errors import ConfigError
from retro.train.callbacks.metrics_file import LogWindow
from retro.train.callbacks.utilisation import Utilisation

if TYPE_CHECKING:
    from retro.train.trainer import Trainer


class WeightsAndBiases(LogWindow):
    """Logs what metrics.jsonl gets, as `train/...` and `validation/...`. A resumed run goes on under its old id.

    Raises ConfigError if the package is not installed.
    """

    name = "wandb"

    def __init__(
        self,
        *,
        every: int,
        mode: Literal["offline", "online"],
        project: str,
        run_name: str,
        folder: Path,
        config: dict[str, Any],
        utilisation: Utilisation,
    ) -> None:
        super().__init__(every, self._send, utilisation)
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                f"wandb={mode} needs the package wandb; pip install 'retro-pretraining[wandb]', or set wandb=disabled"
            ) from None
        self._wandb: Any = wandb
        self._options: dict[str, Any] = {
            "mode": mode,
            "project": project,
            "name": run_name,
            "dir": str(folder),
            "config": config,
        }
        self._id = secrets.token_hex(4)
        self._run: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Open the run."""
        settings = self._wandb.Settings(silent=True, console="off")
        try:
            self._run = self._wandb.init(id=self._id, resume="allow", settings=settings, **self._options)
        except self._wandb.errors.Error as error:
            line = " ".join(str(error).split())
            raise ConfigError(f"wandb={self._options['mode']}: {line}; use wandb=offline or wandb=disabled") from None

    def on_stop(self, trainer: Trainer, failed: bool) -> None:
        """Close the run."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None

    def state(self) -> dict[str, Any]:
        """The window, and the run's id."""
        return {**super().state(), "id": self._id}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with the run."""
        super().load_state(state)
        self._id = state["id"]

    def _send(self, row: dict[str, Any]) -> None:
        event, step = row["event"], row["step"]
        self._run.log({f"{event}/{k}": v for k, v in row.items() if k not in ("event", "step")}, step=step)
