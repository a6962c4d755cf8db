"""Runs a plan on this machine."""

from __future__ import annotations

import os
import shutil
import sys
from typing import NoReturn

from launch.plan import LaunchPlan
from retro.config.errors import ConfigError


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_plan(plan: LaunchPlan) -> NoReturn:
    """Become the planned command: its output, signals and exit code are this process's own.

    Raises ConfigError if the program is not found.
    """
    started = [plan.arguments[0]]
    for option in (
        "--no-python",
        "--no_python",
    ):  # torchrun starts it, and fails with a traceback where it is not there
        if option in plan.arguments:
            started.append(plan.arguments[plan.arguments.index(option) + 1])
            break
    for name in started:
        if shutil.which(name) is None:
            raise ConfigError(f"launch: program {name!r} not found")
    program = shutil.which(plan.arguments[0])
    assert program is not None
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, list(plan.arguments), {**os.environ, **dict(plan.environment)})
