"""Configuration of `retro launch`: on which machine, and as how many processes, a command runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from retro.config.errors import ConfigError


@dataclass(frozen=True)
class LaunchConfig:
    """Where a command runs. Raises ConfigError for impossible values.

    type: "local" = this machine, through torchrun when there is more than one process; processes: one per GPU, or on a
    CPU as many as wanted; threads_per_process: OMP_NUM_THREADS, None = the cores divided by the processes;
    environment: further variables.
    """

    type: Literal["local"] = "local"
    processes: int = 1
    threads_per_process: int | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("processes", "threads_per_process"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected 1 or more, found {value}")
        if self.threads_per_process is not None and "OMP_NUM_THREADS" in self.environment:
            raise ConfigError("environment: OMP_NUM_THREADS is set by threads_per_process; give one of them")
        for name in self.environment:
            if not name or "=" in name:
                raise ConfigError(f"environment: expected names of variables, found {name!r}")
