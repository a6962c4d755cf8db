"""Configuration files of a queued command: checked when it is submitted, and kept as they were then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from launch.job import Job, array_commands, with_command
from retro.config.evaluation import EvalConfig
from retro.config.loader import from_dict, load_mapping
from retro.config.preparation import PrepConfig
from retro.config.train import TrainConfig

_CLASSES: dict[tuple[str, ...], type] = {
    ("retro", "train"): TrainConfig,
    ("retro", "eval"): EvalConfig,
    ("retro", "prep", "run"): PrepConfig,
}


@dataclass(frozen=True)
class KeptConfig:
    """The configuration file of a job: name in the launch folder, YAML text with included files in place, and the
    place of its path among the command's arguments."""

    name: str
    text: str
    position: int


def keep_config(job: Job) -> KeptConfig | None:
    """The configuration file that a `retro` command of this job names; None if it names none.

    Raises ConfigError, now and not when the job starts, for a file that is not there and for a configuration that is
    wrong, for every task of an array.
    """
    commands = [command for _, command in array_commands(job)] or [job.command]
    kept = None
    for command in commands:
        found = _find(command)
        if found is None:
            return None
        cls, position = found
        path = command[position]
        overrides = [item for item in command[position + 1 :] if "=" in item and not item.startswith("-")]
        from_dict(cls, load_mapping(cls, path, overrides), path)
        text = yaml.safe_dump(load_mapping(cls, path), sort_keys=False, allow_unicode=True, width=120)
        now = KeptConfig(f"{job.name}.yaml", f"# {path}, included files in place.\n{text}", position)
        if kept is not None and kept != now:
            return None  # the array chooses among files: they stay where they are
        kept = now
    return kept


def use_kept(job: Job, kept: KeptConfig | None, place: Callable[[str], str]) -> Job:
    """The job with the path of the kept file, which `place` makes of its name."""
    if kept is None:
        return job
    command = list(job.command)
    command[kept.position] = place(kept.name)
    return with_command(job, command)


def _find(command: Sequence[str]) -> tuple[type, int] | None:
    for words, cls in _CLASSES.items():
        if tuple(command[: len(words)]) == words:
            for position in range(len(words), len(command)):
                item = command[position]
                is_file = item.endswith((".yaml", ".yml")) and not item.startswith("-")
                if is_file and ("=" not in item or Path(item).is_file()):
                    return cls, position
    return None
