"""What the loop knows about where it is, and what it tells its observers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from retro.config.errors import RetroError


class TrainingDivergedError(RetroError):
    """The loss or the gradient is not a finite number."""


@dataclass(frozen=True)
class TrainState:
    """Position of a run after `step` optimizer steps.

    samples: sequences consumed, the position in the sample stream; tokens: scored tokens trained on so far;
    elapsed_s: seconds of training, without validation and checkpoints, over all sessions of the run; sample_hash: of
    the sequences consumed and their positions, over all processes (retro/data/order.py). skipped: of the steps, those
    that changed no weight because their numbers were not finite; rollbacks: how often the run went back to a checkpoint
    for that reason, after which `samples` is beyond what was left out.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    sample_hash: int = 0
    skipped: int = 0
    rollbacks: int = 0

    @property
    def incidents(self) -> int:
        """Steps with numbers that were not finite, so far."""
        return self.skipped + self.rollbacks


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, over all processes and micro-batches.

    state: after the step; loss: nats per scored token; loss_sum: nats; tokens: scored ones; learning_rate: the one
    used; grad_norm: before clipping; seconds: of the step, waiting for data included. data_seconds: of these, what the
    process that waited longest for its micro-batches waited; clipped: whether the gradient was; taken: False for a step
    that was skipped because loss or gradient are not finite; sequences: of the step.
    """

    state: TrainState
    loss: float
    loss_sum: float
    tokens: int
    learning_rate: float
    grad_norm: float
    seconds: float
    data_seconds: float = 0.0
    clipped: bool = False
    taken: bool = True
    sequences: int = 0


@dataclass(frozen=True)
class ValidationRecord:
    """Validation after state.step steps. loss: nats per scored token; bits_per_byte: of the text's UTF-8 bytes;
    seconds: it took; scores: of answers that the model wrote, by metric, {} = it was not asked."""

    state: TrainState
    loss: float
    bits_per_byte: float
    tokens: int
    bytes: int
    seconds: float = 0.0
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def metric(self, name: str) -> float:
        """The loss, or one of the scores."""
        return self.loss if name == "loss" else self.scores[name]

    @staticmethod
    def direction(name: str) -> int:
        """1 if more of the metric is better, -1 if less is."""
        return -1 if name == "loss" else 1
