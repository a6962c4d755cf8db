"""What the verbs that make a new release out of finished ones share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.config.errors import ConfigError

if TYPE_CHECKING:
    from data_prep.stage import Stage


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where the new release goes, and how many processes make it."""
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the new release and its artifacts")
    parser.add_argument("--workers", type=int, default=0, help="processes, 0 = one per core (default; speed only)")


def stage_runner(arguments: argparse.Namespace) -> Callable[[Stage], Path]:
    """Carries stages out below --out."""
    from data_prep.runner import Executor, run_stage

    if arguments.workers < 0:
        raise ConfigError(f"--workers: expected 0 (one per core) or more, found {arguments.workers}")
    executor = Executor(workers=arguments.workers or _cores())
    root = Path(arguments.out)
    return lambda stage: run_stage(stage, root, executor)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def parse_changes(items: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments as a mapping; the values are YAML."""
    import yaml

    changes: dict[str, Any] = {}
    for item in items:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise ConfigError(f"{item!r}: expected key=value, e.g. candidates=400")
        try:
            changes[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{item!r}: the value is not valid YAML") from None
    return changes
