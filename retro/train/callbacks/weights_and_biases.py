"""Weights & Biases, when asked for; its offline mode needs no account."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retro.artifacts.atomic import write_text_atomic
from retro.config.errors import ConfigError
from retro.train.callbacks.figures import Figures
from retro.train.callbacks.log_window import LogWindow
from retro.train.callbacks.utilisation import Utilisation
from retro.train.signals import held_back

if TYPE_CHECKING:
    from retro.train.trainer import Trainer


class WeightsAndBiases(LogWindow):
    """Logs what metrics.jsonl gets, as `train/...` and `validation/...` over `step`. All sessions of a run go on under
    one id, which `wandb/run_id` in the run folder keeps from the first moment on.

    A run there cannot take back what it was told, so after a kill or a rollback some steps have two values: the later
    one counts. That is why `step` is a metric (the x-axis of all others) and not the service's own, which must rise.

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
        figures: Figures | None = None,
    ) -> None:
        super().__init__(every, self._send, utilisation, figures)
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
        self._id: str | None = None
        self._id_file = folder / "wandb" / "run_id"
        self._run: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Open the run."""
        if self._id_file.is_file():
            self._id = self._id_file.read_text(encoding="utf-8").strip() or self._id
        self._id = self._id or secrets.token_hex(4)
        self._id_file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(self._id_file, self._id + "\n")
        settings = self._wandb.Settings(silent=True, console="off")
        try:
            with held_back():  # it starts a process, which must live as long as this one
                self._run = self._wandb.init(id=self._id, resume="allow", settings=settings, **self._options)
        except self._wandb.errors.Error as error:
            line = " ".join(str(error).split())
            raise ConfigError(f"wandb={self._options['mode']}: {line}; use wandb=offline or wandb=disabled") from None
        self._run.define_metric("train/*", step_metric="step")
        self._run.define_metric("validation/*", step_metric="step")
        self._run.define_metric("validation/loss", step_metric="step", summary="min,last")

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
        event = row["event"]
        values = {f"{event}/{k}": v for k, v in row.items() if k not in ("event", "step") and v is not None}
        self._run.log({"step": row["step"], **values})
