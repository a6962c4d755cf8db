"""Which of several processes of one job this one is."""

from __future__ import annotations

import os
from collections.abc import Mapping

from retro.config.errors import ConfigError


def resolve_rank(
    rank: str | None, world_size: int | None, environment: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """(rank, world size) from the command line; `rank` "auto" asks the batch system.

    auto: in a Slurm job array the place of SLURM_ARRAY_TASK_ID in it and SLURM_ARRAY_TASK_COUNT, in tasks of `srun`
    SLURM_PROCID and SLURM_NTASKS. Both are only where a process begins; claims decide who does what, so a rank that is
    late, dead or given twice costs time and nothing else.
    Raises ConfigError for numbers that do not belong together, and for "auto" outside of Slurm.
    """
    environment = os.environ if environment is None else environment
    if rank is None:
        if world_size is not None:
            raise ConfigError("--world-size: --rank is missing; give a number below it, or --rank auto")
        return 0, 1
    if rank == "auto":
        if world_size is not None:
            raise ConfigError("--rank auto takes the world size from Slurm; remove --world-size, or give a number")
        return _slurm_rank(environment)
    if not rank.isdecimal():
        raise ConfigError(f"--rank: expected a number from 0, or auto, found {rank!r}")
    if world_size is None:
        raise ConfigError("--rank: --world-size is missing; give the number of processes")
    if not int(rank) < world_size:
        raise ConfigError(f"--rank: expected a number below the world size {world_size}, found {rank}")
    return int(rank), world_size


def _slurm_rank(environment: Mapping[str, str]) -> tuple[int, int]:
    try:
        if "SLURM_ARRAY_TASK_ID" in environment:
            task, count = int(environment["SLURM_ARRAY_TASK_ID"]), int(environment["SLURM_ARRAY_TASK_COUNT"])
            first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
            last = int(environment.get("SLURM_ARRAY_TASK_MAX", str(first + count - 1)))
            # --array=0-90:10 counts in tens. A list such as 1,2,7 has no step: there two may get one rank.
            step = max(1, (last - first) // max(count - 1, 1))
            return (task - first) // step % count, count
        if int(environment.get("SLURM_NTASKS", "1")) > 1:
            return int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"])
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"--rank auto: SLURM_* variables cannot be read ({error}); give --rank and --world-size"
        ) from None
    raise ConfigError(
        "--rank auto: this is no Slurm job array (SLURM_ARRAY_TASK_ID is not set) and no task of srun; "
        "give --rank and --world-size"
    )
