"""Steps whose loss or gradient are not finite numbers: what becomes of the run.

Always decided before the optimizer moves, by numbers that all processes share, so that all decide the same. Every
incident is kept in `incidents.jsonl` of the run folder, which nothing truncates; its rollbacks are what a run that is
killed before its next checkpoint needs to go on behind the data that it left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retro.artifacts.json_lines import append_json_line, read_json_lines
from retro.train.state import TrainingDivergedError, TrainState

if TYPE_CHECKING:
    from retro.train.trainer import Trainer

Action = Literal["stop", "skip", "rollback"]


@dataclass(frozen=True)
class BadLoss:
    """A micro-batch (0-based, of `rank`) whose loss is not finite, the first one of its process; positions: its
    sequences in the sample stream, first and behind the last."""

    rank: int
    micro_batch: int
    positions: tuple[int, int]


@dataclass(frozen=True)
class BadStep:
    """A step that must not be taken, over all processes.

    loss: nats per token; grad_norm: before clipping; positions: its sequences in the sample stream, first and behind
    the last; losses: where the loss is not finite, empty if only the gradient is not; passed: the state behind the step
    if it is skipped.
    """

    loss: float
    grad_norm: float
    positions: tuple[int, int]
    losses: tuple[BadLoss, ...]
    passed: TrainState


@dataclass(frozen=True)
class Incident:
    """What was done about a bad step. number: counted over the run, from 1; failed_step: number of the step that was
    not taken; state: where the run goes on; restored: the position of the checkpoint that it went back to."""

    number: int
    failed_step: int
    action: Action
    bad: BadStep
    state: TrainState
    restored: TrainState | None = None

    def describe(self) -> str:
        """For people, without what follows from it."""
        bad = self.bad
        line = f"step {self.failed_step}: loss {bad.loss:.4g}, gradient norm {bad.grad_norm:.4g}"
        if bad.losses:
            where = [
                f"micro-batch {b.micro_batch} of process {b.rank} (sequences {_span(b.positions)})" for b in bad.losses
            ]
            line += f", from {', '.join(where[:4])}" + (f" and {len(where) - 4} more" if len(where) > 4 else "")
        return f"{line}, sequences {_span(bad.positions)} of the sample stream"

    def row(self) -> dict[str, Any]:
        """JSON-able: the line of event `nonfinite`. `step` is that after which the run goes on; numbers that JSON does
        not have are texts."""
        bad = self.bad
        return {
            "event": "nonfinite",
            "step": self.state.step,
            "incident": self.number,
            "failed_step": self.failed_step,
            "action": self.action,
            "loss": _number(bad.loss),
            "grad_norm": _number(bad.grad_norm),
            "positions": list(bad.positions),
            "losses": [dataclasses.asdict(b) | {"positions": list(b.positions)} for b in bad.losses],
            "samples": self.state.samples,
        }


class NonfinitePolicy:
    """Decides what becomes of a bad step.

    action: stop = raise TrainingDivergedError; skip = the step counts, and no weight or optimizer state changes;
    rollback = `restore` is called and the run goes on from there behind the bad step's sequences. limit: so many are
    borne in the whole run, the next one stops it. history: incidents.jsonl, written where it is given (the main
    process); restore: puts model, optimizer, generators and callbacks back to the newest checkpoint and returns its
    position.
    """

    def __init__(
        self,
        action: Action = "stop",
        limit: int = 0,
        *,
        history: Path | None = None,
        restore: Callable[[], TrainState] | None = None,
    ) -> None:
        if action == "rollback" and restore is None:
            raise ValueError("a rollback needs something to go back to: give restore")
        self.action: Action = action
        self.limit, self._history, self._restore = limit, history, restore

    def handle(self, trainer: Trainer, bad: BadStep) -> bool:
        """Bring `trainer` to where it goes on; returns whether the step counts. Raises TrainingDivergedError where it
        does not go on."""
        before = trainer.state
        trainer.optimizer.zero_grad(set_to_none=True)
        action: Action = self.action if before.incidents < self.limit else "stop"
        state, restored = before, None
        if action == "skip":
            state = dataclasses.replace(bad.passed, skipped=before.skipped + 1)
            trainer.state = state
        elif action == "rollback":
            assert self._restore is not None
            restored = self._restore()
            state = dataclasses.replace(restored, samples=bad.positions[1], rollbacks=before.rollbacks + 1)
            trainer.go_back(state)
        incident = Incident(before.incidents + 1, before.step + 1, action, bad, state, restored)
        for callback in trainer.callbacks:
            callback.on_incident(trainer, incident)
        if self._history is not None:
            # Last: a run that is killed before this line does all of it again.
            append_json_line(self._history, _entry(incident))
        if action == "stop":
            raise TrainingDivergedError(f"{incident.describe()}, expected finite numbers; {self._remedy(before)}")
        return action == "skip"

    def _remedy(self, state: TrainState) -> str:
        rest = "lower learning_rate, lengthen warmup_steps or use precision=fp32, under another name="
        if self.action == "stop":
            return (
                "this step was not taken and no checkpoint was written; to go past it, resume with on_nonfinite=skip "
                f"or on_nonfinite=rollback; if it comes back, {rest}"
            )
        return (
            f"this step was not taken: {state.incidents} were borne before, and nonfinite_limit is {self.limit}; raise "
            f"it to go on, or {rest}"
        )


def position_after_rollbacks(state: TrainState, history: Path) -> TrainState:
    """The position of a run that resumes from a checkpoint with `state`: behind what it left out after the last
    rollback to this very checkpoint, if there was one."""
    for entry in reversed(read_json_lines(history)):
        if entry.get("restored") == _key(state):
            try:
                return dataclasses.replace(
                    state, samples=int(entry["samples"]), rollbacks=max(int(entry["rollbacks"]), state.rollbacks)
                )
            except (KeyError, TypeError, ValueError):
                continue
    return state


def _entry(incident: Incident) -> dict[str, Any]:
    row = incident.row()
    if incident.restored is not None:
        row |= {"restored": _key(incident.restored), "rollbacks": incident.state.rollbacks}
    return row


def _key(state: TrainState) -> dict[str, Any]:
    """Tells a checkpoint from others of the run, those of an earlier life of the same step too."""
    return {"step": state.step, "samples": state.samples, "sample_hash": f"{state.sample_hash:016x}"}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _span(positions: tuple[int, int]) -> str:
    first, stop = positions
    return str(first) if stop - first == 1 else f"{first} to {stop - 1}"
