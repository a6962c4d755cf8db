"""Where shards run, and with which of them this process begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_prep.execution.backend import Backend, InProcess
from data_prep.execution.crew import Crew
from data_prep.execution.pool import LocalPool
from data_prep.stage import Stage
from retro.config.errors import ConfigError
from retro.config.execution import ExecutorConfig


@dataclasses.dataclass(frozen=True)
class Executor:
    """How the shards of a stage are run. Never part of what they are.

    workers: shards at a time; with the type "process" 1 is this process and more are a pool of spawned ones; with "ray"
    they are actors, and 0 is as many as the cluster has room for. config: where, and what happens when workers die.
    rank, world: this is one of `world` processes that share the output folder; it begins with every world-th shard.
    crew: local worker processes that outlive a stage.
    """

    workers: int = 1
    config: ExecutorConfig = dataclasses.field(default_factory=ExecutorConfig)
    rank: int = 0
    world: int = 1
    crew: Crew | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.world < 1 or not 0 <= self.rank < self.world:
            raise ConfigError(
                f"rank and world size: expected 0 <= rank < world size, found rank {self.rank} of {self.world}"
            )

    def open(self, stage: Stage, folder: Path, owner: str, shards: int) -> Backend:
        """A backend for `shards` shards of the stage; `owner` is the claimant they are made for."""
        if self.config.type == "ray":
            from data_prep.execution.ray_backend import RayBackend

            return RayBackend(stage, folder, owner, self.workers, shards, self.config)
        workers = min(self.workers, shards)
        if workers <= 1:
            return InProcess(stage, folder, owner)
        return LocalPool(stage, folder, owner, workers, self.crew)

    def order(self, count: int) -> list[int]:
        """In which order this process visits `count` shards: its own stride forwards, then what may be left of the
        others', beginning with its neighbor's and from the far end, where the owner comes last."""
        own = list(range(self.rank, count, self.world))
        for step in range(1, self.world):
            own += reversed(range((self.rank + step) % self.world, count, self.world))
        return own
