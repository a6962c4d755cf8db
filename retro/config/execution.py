"""Configuration of where and how the shards of a preparation are run. Speed and robustness only: never a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retro.config.errors import ConfigError

_RAY_ONLY = {"address": None, "num_cpus": 1.0, "connect_seconds": 60.0}


@dataclass(frozen=True)
class ExecutorConfig:
    """Section `executor` of `retro prep run` (how many run at once is the field `workers` beside it).

    type: "process" = this process, or a pool of `workers` processes of this machine; "ray" = actors on a Ray cluster.
    attempts: a shard whose worker died (or raised what is not a statement about the content) is given to another worker
    until so many have failed on it; then the stage fails with its name.
    lease_seconds: several `retro prep run` may share one root folder. A claim of a process on another machine that has
    shown no sign of life for so long, by the clock of the file system, is taken over; one of a dead process of this
    machine at once. Keep it above the attribute cache of a network file system (60 s by default).

    With type "ray" only: address of the cluster (host:port, ray://host:port or auto; null: one is started on this
    machine and stopped at the end); num_cpus: logical cores that one worker reserves; connect_seconds: how long to wait
    for the cluster.
    """

    type: Literal["process", "ray"] = "process"
    attempts: int = 3
    lease_seconds: float = 300.0
    address: str | None = None
    num_cpus: float = 1.0
    connect_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"attempts: expected 1 or more, found {self.attempts}")
        if not self.lease_seconds >= 1:
            raise ConfigError(f"lease_seconds: expected 1 or more, found {self.lease_seconds:g}")
        for name in ("num_cpus", "connect_seconds"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name}: expected a number above 0, found {value:g}")
        if self.type != "ray":
            for name, default in _RAY_ONLY.items():
                if getattr(self, name) != default:
                    raise ConfigError(f"{name} is set, but type is {self.type!r}; set type=ray or remove it")
