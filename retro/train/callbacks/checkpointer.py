"""Writes checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retro.train.callbacks.base import Callback
from retro.train.checkpoint import Identity, Resumed, save_checkpoint
from retro.train.randomness import generator_states
from retro.train.state import StepRecord

if TYPE_CHECKING:
    from retro.train.trainer import Trainer


class Checkpointer(Callback):
    """Saves at multiples of `every` steps (0 = never), after the last one, and when a signal has asked to stop.

    Give it last: a checkpoint holds the other callbacks' states, and what they have written for this step.
    """

    name = "checkpointer"
    every_process = True

    def __init__(self, folder: Path, identity: Identity, *, every: int, keep: int) -> None:
        self.folder, self.identity, self.every, self.keep = folder, identity, every, keep

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Save if it is due."""
        due = self.every > 0 and record.state.step % self.every == 0
        if due or trainer.is_last_step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        rng = generator_states(trainer.processes)
        if trainer.processes.is_main:
            folder = self.folder / f"step_{trainer.state.step:06d}"
            for callback in trainer.callbacks:
                callback.on_checkpoint(trainer, folder)
            states = {c.name: state for c in trainer.callbacks if (state := c.state())}
            save_checkpoint(
                self.folder,
                model=trainer.model,
                optimizer=trainer.optimizer,
                resumed=Resumed(trainer.state, rng, states),
                identity=self.identity,
                keep=self.keep,
            )
        # A process that ended the run before the main one has finished writing would let torchrun kill it.
        trainer.processes.wait()
