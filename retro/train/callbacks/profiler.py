"""torch.profiler over some steps: what the time goes into."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from retro.config.errors import ConfigError
from retro.config.profile import ProfileConfig
from retro.train.callbacks.base import Callback
from retro.train.state import StepRecord

if TYPE_CHECKING:
    from retro.train.trainer import Trainer

#: Operators in the table.
_ROWS = 60


class Profiler(Callback):
    """Records the steps that `config` names, in every process: `steps_000010-000012_rank_00000.trace.json.gz` (open it
    in https://ui.perfetto.dev) and `...operators.txt`, the operators that took most, below `folder`.

    One step before them, where there is one, warms the profiler up. A run that goes back to a checkpoint meanwhile, or
    ends, drops the recording. Give it last: what other callbacks do after a profiled step belongs to it. Raises
    ConfigError for steps that a run of `run_steps` does not have.
    """

    name = "profiler"
    every_process = True

    def __init__(self, folder: Path, config: ProfileConfig, run_steps: int, log: logging.Logger) -> None:
        self.folder, self.config, self._log = folder, config, log
        #: Before the first and after the last recorded step.
        self._first, self._last = config.start - 1, config.start - 1 + config.steps
        if self._last > run_steps:
            raise ConfigError(
                f"profile: steps {config.start} to {self._last} lie outside the run's {run_steps} steps; lower "
                "profile.start or profile.steps"
            )
        self._profile: Any = None
        self._began = 0

    def on_start(self, trainer: Trainer) -> None:
        """Begin if the first of them is near."""
        if trainer.state.step >= self._last:
            self._log.warning(
                f"profile: steps {self.config.start} to {self._last} are behind step {trainer.state.step}, where the "
                "run resumes; nothing is recorded, raise profile.start"
            )
        self._begin_if_due(trainer)

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """The recording goes on, ends or begins."""
        if self._profile is not None:
            if record.state.step == self._last:
                self._end(trainer)
            else:
                self._profile.step()
        else:
            self._begin_if_due(trainer)

    def on_rollback(self, trainer: Trainer) -> None:
        """What was recorded did not happen."""
        self._drop()
        self._begin_if_due(trainer)

    def on_stop(self, trainer: Trainer, failed: bool) -> None:
        """What has not ended is of no use."""
        self._drop()

    def _begin_if_due(self, trainer: Trainer) -> None:
        step = trainer.state.step
        if not max(self._first - 1, 0) <= step < self._last:
            return
        from torch.profiler import ProfilerActivity, profile, schedule

        activities = [ProfilerActivity.CPU]
        if trainer.processes.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        warm_up = int(step < self._first)
        self._began = step + warm_up
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")  # nothing is before step 1
            # One step more than wanted, so that leaving the last one does not throw away what was recorded.
            plan = schedule(wait=0, warmup=warm_up, active=self._last - self._began + 1, repeat=1)
        self._profile = profile(
            activities=activities,
            schedule=plan,
            profile_memory=self.config.memory,
            with_stack=self.config.stacks,
        )
        self._profile.start()

    def _end(self, trainer: Trainer) -> None:
        profile, self._profile = self._profile, None
        on_gpu = trainer.processes.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(trainer.processes.device)
        profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"steps_{self._began + 1:06d}-{self._last:06d}_rank_{trainer.processes.rank:05d}"
        trace, table = self.folder / f"{stem}.trace.json.gz", self.folder / f"{stem}.operators.txt"
        hidden = self.folder / f".{stem}.tmp-{os.getpid()}.json.gz"
        profile.export_chrome_trace(str(hidden))
        os.replace(hidden, trace)
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table.write_text(profile.key_averages().table(sort_by=key, row_limit=_ROWS) + "\n", encoding="utf-8")
        self._log.info(f"profile of steps {self._began + 1} to {self._last}: {trace}")

    def _drop(self) -> None:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()
