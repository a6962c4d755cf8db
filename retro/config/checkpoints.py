"""Configurations of `retro checkpoint convert` and `retro checkpoint average`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from retro.config.checks import require, require_at_least

_MOST_FILES = 99_999  # the number in a file's name has five digits


@dataclass(frozen=True)
class ConvertConfig:
    """Cut a checkpoint into another number of files; every bit of its content stays.

    checkpoint: run folder (its newest checkpoint), checkpoint folder or `checkpoints/best`; output: the folder to make;
    files: per set of tensors, 1 = one file as a run on one process writes it, more = pieces of about equal size.
    """

    checkpoint: str
    output: str
    files: int = 1

    def __post_init__(self) -> None:
        _require_path("checkpoint", self.checkpoint)
        _require_path("output", self.output)
        require(1 <= self.files <= _MOST_FILES, f"files: expected 1 to {_MOST_FILES}, found {self.files}")


@dataclass(frozen=True)
class AverageConfig:
    """Write the mean of the weights of several checkpoints of one model as a model folder.

    checkpoints: run folders (their newest checkpoint), checkpoint folders or exported models; or, instead, run and
    last: the newest `last` checkpoints of the folder `run`. output: the folder to make; weights: one for each
    checkpoint, oldest first with `run`; they are divided by their sum; () = all alike.
    """

    output: str
    checkpoints: tuple[str, ...] = ()
    run: str | None = None
    last: int | None = None
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _require_path("output", self.output)
        if self.run is None:
            require(self.last is None, "last: is read with run=FOLDER only; add it, or list checkpoints=[A, B]")
            require(len(self.checkpoints) >= 2, f"checkpoints: expected 2 or more, found {len(self.checkpoints)}")
            for number, path in enumerate(self.checkpoints):
                _require_path(f"checkpoints[{number}]", path)
        else:
            _require_path("run", self.run)
            require(not self.checkpoints, "checkpoints: is not read with run; remove one of the two")
            require(self.last is not None, f"last: is required with run={self.run}; give last=NUMBER")
            require_at_least(self, 2, "last")
        count = self.last if self.run is not None else len(self.checkpoints)
        require(
            len(self.weights) in (0, count),
            f"weights: expected {count}, one for each checkpoint, found {len(self.weights)}",
        )
        for number, weight in enumerate(self.weights):
            require(
                math.isfinite(weight) and weight > 0,
                f"weights[{number}]: expected a finite number above 0, found {weight}",
            )


def _require_path(name: str, value: str) -> None:
    require(value != "", f"{name}: expected a path, found an empty text")
