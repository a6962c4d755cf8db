"""Which steps of a training run are profiled: section `profile` of a training configuration."""

from __future__ import annotations

from dataclasses import dataclass

from retro.config.checks import require_at_least


@dataclass(frozen=True)
class ProfileConfig:
    """Record `steps` optimizer steps, the first of them step `start` (1-based), with torch's profiler into the run
    folder's `profile/`. memory: allocations too; stacks: source lines too (slow). Raises ConfigError."""

    start: int = 10
    steps: int = 3
    memory: bool = False
    stacks: bool = False

    def __post_init__(self) -> None:
        require_at_least(self, 1, "start", "steps")
