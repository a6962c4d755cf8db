"""The interface of what carries out shards, and the simplest one: this process."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from data_prep.execution.failures import Failure, describe_error
from data_prep.execution.records import execute_shard
from data_prep.stage import Shard, Stage


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a shard: its record, or a failure."""

    shard: Shard
    record: dict[str, Any] | None
    failure: Failure | None = None


def attempt_shard(stage: Stage, folder: Path, shard: Shard, owner: str) -> Outcome:
    """Run and commit one shard; every exception becomes a failure, so that it can be sent to another process."""
    try:
        return Outcome(shard, execute_shard(stage, folder, shard, owner))
    except Exception as error:
        return Outcome(shard, None, describe_error(error))


class Backend(ABC):
    """Runs shards of one stage. Never holds more of them than it has workers, so that a plan may be of any length.

    Every submitted shard comes back from `wait` exactly once, whatever happens to the worker that had it.
    """

    @abstractmethod
    def free(self) -> int:
        """How many shards may be submitted now."""

    @abstractmethod
    def busy(self) -> int:
        """How many submitted shards have not come back."""

    @abstractmethod
    def submit(self, shard: Shard) -> None:
        """Give a shard to a free worker."""

    @abstractmethod
    def wait(self, timeout: float) -> list[Outcome]:
        """Shards that are done or failed, after at most `timeout` seconds; may be empty.

        Raises RetroError if there can be no workers.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop all workers at once, whatever they are at."""


class InProcess(Backend):
    """One shard at a time in this process."""

    def __init__(self, stage: Stage, folder: Path, owner: str) -> None:
        self._stage, self._folder, self._owner = stage, folder, owner
        self._waiting: Shard | None = None

    def free(self) -> int:
        """1 unless a shard waits to be run."""
        return 1 - self.busy()

    def busy(self) -> int:
        """1 if a shard waits to be run."""
        return int(self._waiting is not None)

    def submit(self, shard: Shard) -> None:
        """Keep it for `wait`."""
        self._waiting = shard

    def wait(self, timeout: float) -> list[Outcome]:
        """Run the shard, however long it takes."""
        if self._waiting is None:
            return []
        shard, self._waiting = self._waiting, None
        return [attempt_shard(self._stage, self._folder, shard, self._owner)]

    def close(self) -> None:
        """Nothing runs beside this process."""
