"""Writes checkpoints."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.train.callbacks.base import Callback
from retro.train.checkpointing.background import BackgroundSave
from retro.train.checkpointing.folders import point_best, step_name
from retro.train.checkpointing.identity import Identity
from retro.train.checkpointing.peers import ALONE, Peers
from retro.train.checkpointing.resume import newest_checkpoint
from retro.train.checkpointing.save import Resumed, Retention, take_snapshot, write_snapshot
from retro.train.checkpointing.staging import Staging
from retro.train.randomness import generator_states
from retro.train.state import StepRecord, ValidationRecord

if TYPE_CHECKING:
    from retro.train.trainer import Trainer


class Checkpointer(Callback):
    """Saves at multiples of `every` steps (0 = none), after the last one, and when a signal has asked to stop.

    Give it last: a checkpoint holds the other callbacks' states, and what they have written for this step.

    keep: newest ones kept; keep_best: also save after each validation with the best value of `metric` so far (the
    lowest loss, or the highest of another; not with every 0), keep that one and let `best` point at it; asynchronous:
    training goes on while a copy of the state is written, the next save and the end of the run wait for it; keep_start:
    save before the first step of a run, so that there is always one to go back to; peers: the processes that write.
    """

    name = "checkpointer"
    every_process = True

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        *,
        every: int,
        keep: int,
        keep_best: bool = False,
        asynchronous: bool = False,
        keep_start: bool = False,
        peers: Peers = ALONE,
        metric: str = "loss",
    ) -> None:
        self.folder, self.identity, self.every, self.keep = folder, identity, every, keep
        self.keep_best, self.keep_start, self.peers = keep_best, keep_start, peers
        self._staging = Staging() if asynchronous else None
        self._pending: BackgroundSave | None = None
        self.metric = metric
        self._best = math.nan
        self._best_step: int | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Mend the link to the best one, which a kill may have left behind; save the start if asked to."""
        if self.peers.is_main:
            point_best(self.folder, self._best_step if self.keep_best else None)
        if self.keep_start and newest_checkpoint(self.folder, self.peers) is None:
            self._save(trainer)

    def on_validation(self, trainer: Trainer, record: ValidationRecord) -> None:
        """Note whether it is the best."""
        value, sign = record.metric(self.metric), record.direction(self.metric)
        if not math.isnan(value) and (self._best_step is None or sign * value > sign * self._best):
            self._best, self._best_step = value, record.state.step

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Save if it is due. Raises CheckpointError for an earlier one that could not be written."""
        self._settle(trainer)
        step = record.state.step
        due = self.every > 0 and (step % self.every == 0 or (self.keep_best and self._best_step == step))
        if due or trainer.is_last_step:
            self._save(trainer)

    def on_stop(self, trainer: Trainer, failed: bool) -> None:
        """Wait for the checkpoint that is being written, unless training ends at once."""
        if not trainer.interrupted:
            self.finish()

    def finish(self) -> None:
        """Return when no checkpoint is being written any more. Raises CheckpointError if it could not be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.wait()

    def state(self) -> dict[str, Any]:
        """The best validation so far."""
        best = None if self._best_step is None else self._best
        return {f"best_{self.metric}": best, "best_step": self._best_step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with it; another metric than before begins anew."""
        if state.get(f"best_{self.metric}") is None:
            self._best, self._best_step = math.nan, None
        else:
            self._best, self._best_step = state[f"best_{self.metric}"], state["best_step"]

    def _settle(self, trainer: Trainer) -> None:
        """Take note of a save that has ended in all processes, all at the same step: one that raised an error by itself
        would leave the others waiting for it."""
        if self._pending is None:
            return
        ended = trainer.processes.gather([float(self._pending.is_done)])
        if all(row[0] for row in ended):
            self.finish()

    def _save(self, trainer: Trainer) -> None:
        self.finish()
        rng = generator_states(trainer.processes)
        states: dict[str, dict[str, Any]] = {}
        if self.peers.is_main:
            folder = self.folder / step_name(trainer.state.step)
            for callback in trainer.callbacks:
                callback.on_checkpoint(trainer, folder)
            states = {c.name: state for c in trainer.callbacks if (state := c.state())}
        staging = None if trainer.is_last_step else self._staging
        resumed = Resumed(trainer.state, rng, states)
        snapshot = take_snapshot(trainer.model, trainer.optimizer, resumed, self.peers, staging)
        retention = Retention(self.keep, self._best_step if self.keep_best else None)
        write = partial(write_snapshot, self.folder, snapshot, self.identity, retention, self.peers)
        if staging is None:
            write()
        else:
            self._pending = BackgroundSave(write)
