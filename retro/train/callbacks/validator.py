"""Validates every so many steps and after the last one."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from retro.train.answers import AnswerScorer, score_answers
from retro.train.callbacks.base import Callback
from retro.train.state import StepRecord
from retro.train.validation import Validation

if TYPE_CHECKING:
    from retro.train.trainer import Trainer


class Validator(Callback):
    """Runs `validation` at multiples of `every` steps and after step trainer.steps, and announces the result. scorer:
    what the model's answers are scored by then, None = it is not asked."""

    name = "validator"
    every_process = True

    def __init__(self, validation: Validation, every: int, scorer: AnswerScorer | None = None) -> None:
        self.validation, self.every, self.scorer = validation, every, scorer

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Validate if it is due."""
        step = record.state.step
        if step % self.every == 0 or step == trainer.steps:
            started = time.perf_counter()
            found = self.validation.run(trainer.model, trainer.processes, record.state)
            if self.scorer is not None:
                found = dataclasses.replace(found, scores=score_answers(self.scorer, trainer.model, trainer.processes))
            trainer.announce_validation(dataclasses.replace(found, seconds=time.perf_counter() - started))
