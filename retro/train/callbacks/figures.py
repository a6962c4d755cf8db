"""Figures of log lines that cost something to get or that only all processes together have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retro.train.callbacks.base import Callback
from retro.train.gradient_parts import norms_by_part
from retro.train.memory import take_peak
from retro.train.state import StepRecord

if TYPE_CHECKING:
    from retro.train.trainer import Trainer


def is_log_step(every: int, step: int, steps: int) -> bool:
    """Whether a line is due after `step`: every `every` steps (0 = never) and after the last of `steps`."""
    return (every > 0 and step % every == 0) or step >= steps


class Figures(Callback):
    """At steps that are logged: norms of the gradient by part, before clipping, and the memory that the process which
    used most has used since the last line. Give it before the callbacks that write `values`.

    values: of the last such step: `grad_norm_<part>`; `memory_gib`, `gpu_allocated_gib`, `gpu_reserved_gib`.
    """

    name = "figures"
    every_process = True

    def __init__(self, every: int) -> None:
        self.every = every
        self.values: dict[str, float] = {}

    def on_start(self, trainer: Trainer) -> None:
        """What start-up used does not count."""
        take_peak(trainer.processes.device)

    def on_gradient(self, trainer: Trainer, grad_norm: float) -> None:
        """Norms by part."""
        self.values = {}
        if not is_log_step(self.every, trainer.state.step + 1, trainer.steps):
            return
        limit = trainer.gradient_clip
        # As torch clips.
        clipped = 1.0 if limit is None else min(1.0, limit / (grad_norm + 1e-6))
        norms = norms_by_part(trainer.model.named_parameters())
        self.values = {f"grad_norm_{part}": norm / clipped for part, norm in norms.items()}

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Memory."""
        if not record.taken:
            self.values = {}
        if not is_log_step(self.every, record.state.step, trainer.steps):
            return
        peak = take_peak(trainer.processes.device)
        found = {"memory_gib": peak.resident}
        if peak.allocated is not None and peak.reserved is not None:
            found |= {"gpu_allocated_gib": peak.allocated, "gpu_reserved_gib": peak.reserved}
        rows = trainer.processes.gather(list(found.values()))
        self.values |= {name: round(max(row[i] for row in rows), 3) for i, name in enumerate(found)}
