"""The jobs of a launch: one command, or the links of a chain, each with the configuration that holds for it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from retro.config.errors import ConfigError
from retro.config.launch import LaunchConfig
from retro.config.launch_parts import SAFE_NAME

_PLACEHOLDER = re.compile(r"@\{([^{}]*)\}")


@dataclass(frozen=True)
class Job:
    """name: of the job; command: the arguments as given; after: jobs that must have ended well before."""

    name: str
    config: LaunchConfig
    command: tuple[str, ...]
    after: tuple[str, ...] = ()


def list_jobs(config: LaunchConfig, command: Sequence[str]) -> tuple[Job, ...]:
    """The jobs in the order of submission. Raises ConfigError if a chain is given a command of the command line."""
    if not config.jobs:
        return (Job(config.name or _name_of(command), config, tuple(command)),)
    if command:
        raise ConfigError("launch: this configuration is a chain with commands of its own; leave out the one after --")
    return tuple(Job(job.name, config.of_job(job), job.arguments(), job.predecessors) for job in config.jobs)


def _name_of(command: Sequence[str]) -> str:
    """`retro-train` of `retro train ...`, or the program's name."""
    words = command[:2] if list(command[:1]) == ["retro"] else [word.rsplit("/", 1)[-1] for word in command[:1]]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(words)).lstrip("-._")[:40]
    return name if SAFE_NAME.fullmatch(name) else "job"


def array_commands(job: Job) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(what tells the task apart, its command) of every task, in the order of the array's index; () without values.

    The last key varies fastest. Raises ConfigError if two tasks of `retro train` would train the same run, and if a
    value is not used.
    """
    array = job.config.array
    if not array:
        return ()
    mentioned = {name for argument in job.command for name in _PLACEHOLDER.findall(argument)}
    unknown = sorted(mentioned - set(array) - {"index"})
    if unknown:
        raise ConfigError(f"launch: @{{{unknown[0]}}} names no key of the array; known: index, {', '.join(array)}")
    is_retro = job.command[:1] == ("retro",)
    unused = [key for key in array if key not in mentioned]
    if unused and not is_retro:
        raise ConfigError(f"array: {unused[0]} is not used; write @{{{unused[0]}}} where the command takes it")
    names = [argument for argument in job.command if argument.startswith("name=")]
    several = len(list(itertools.product(*array.values()))) > 1
    if job.command[:2] == ("retro", "train") and several and "name" not in array:
        varying = [key for key, values in array.items() if len(values) > 1]
        told = set(_PLACEHOLDER.findall(names[-1])) if names else set()
        if not ("index" in told or set(varying) <= told):
            example = "".join(f"-@{{{key}}}" for key in varying)
            raise ConfigError(f"array: its tasks would train one run; give the command name=NAME{example}")
    tasks = []
    for index, values in enumerate(itertools.product(*array.values())):
        texts = {key: _text(value) for key, value in zip(array, values, strict=True)}
        own = [f"{key}={text}" for key, text in texts.items()]
        found = {**texts, "index": str(index)}
        command = [_PLACEHOLDER.sub(lambda match: found[match[1]], argument) for argument in job.command]  # noqa: B023
        tasks.append((" ".join(own), (*command, *(own if is_retro else []))))
    return tuple(tasks)


def check_placeholders(job: Job) -> None:
    """Raise ConfigError for a placeholder where there is no array."""
    if not job.config.array:
        for argument in job.command:
            if _PLACEHOLDER.search(argument):
                raise ConfigError(f"launch: {argument!r} has a placeholder, but there is no array")


def with_command(job: Job, command: Sequence[str]) -> Job:
    """The same job with another command."""
    return replace(job, command=tuple(command))


def _text(value: Any) -> str:
    """As `key=value` takes it: YAML in one line."""
    if isinstance(value, str):
        return value
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")
