"""What a command line starts: a sub-command of `retro`, a Python module or script, or any program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retro.config.errors import EXIT_REQUEUE, ConfigError
from retro.config.launch import LaunchConfig

# The sub-commands of `retro` that share their work among processes; the others would do the same work several times.
DISTRIBUTED_COMMANDS = ("train",)
_EXAMPLE = "retro train configs/train/tiny_retro.yaml"


@dataclass(frozen=True)
class Program:
    """A command ready to be started. kind: retro = `arguments` begin with a module of retro.cli; python = a module
    (-m first) or a script; other = any program."""

    kind: Literal["retro", "python", "other"]
    python: str
    arguments: tuple[str, ...]

    def alone(self) -> tuple[str, ...]:
        """Started directly."""
        if self.kind == "other":
            return self.arguments
        return (self.python, *(("-m",) if self.kind == "retro" else ()), *self.arguments)

    def as_worker(self) -> tuple[str, ...]:
        """Started directly as one of several processes whose starter must not see exit code 75 as a failure."""
        if self.kind == "retro":
            return (self.python, "-m", "launch.worker", *self.arguments)
        return self.alone()

    def under_torchrun(self) -> tuple[str, ...]:
        """torchrun's arguments after its options."""
        if self.kind == "retro":
            return ("-m", "launch.worker", *self.arguments)
        return ("--no-python", *self.arguments) if self.kind == "other" else self.arguments

    def under_accelerate(self) -> tuple[str, ...]:
        """The arguments of `accelerate launch` after its options."""
        if self.kind == "other":
            return ("--no_python", *self.arguments)
        return self.under_torchrun()

    @property
    def is_training(self) -> bool:
        """Whether it checkpoints on SIGUSR1."""
        return self.kind == "retro" and self.arguments[0] == "retro.cli.train"

    @property
    def stop_signal(self) -> str:
        """What asks it to stop before a time limit. Training tells SIGUSR1 apart; others would die of it."""
        return "USR1" if self.is_training else "TERM"

    @property
    def requeue_codes(self) -> tuple[int, ...]:
        """Exit codes after a wish to stop that say: run the same command again. Preparation and evaluation resume
        where they were interrupted (130) or killed (143); training may be told to stop by SIGUSR1 (138) or SIGTERM
        before it has loaded what notes signals."""
        if self.kind != "retro":
            return (EXIT_REQUEUE,)
        return (EXIT_REQUEUE, 138, 143) if self.is_training else (EXIT_REQUEUE, 130, 143)


def read_program(config: LaunchConfig, command: Sequence[str], python: str) -> Program:
    """The program that `command` names. python: the interpreter for `retro` and a bare `python`.

    Raises ConfigError for an empty command, for a sub-command of `retro` that runs as one process only, and for what
    torchrun could not start.
    """
    if not command:
        raise ConfigError(f"launch: expected a command after --, e.g. -- {_EXAMPLE}")
    program, *rest = command
    if program == "retro":
        return Program("retro", python, _retro_module(config, rest))
    if program.rsplit("/", 1)[-1] in ("python", "python3"):
        return Program("python", program if "/" in program else python, _script_or_module(rest))
    return Program("other", python, (program, *rest))


def _retro_module(config: LaunchConfig, rest: Sequence[str]) -> tuple[str, ...]:
    if not rest or rest[0].startswith("-"):
        raise ConfigError("launch: expected a sub-command after retro, e.g. -- retro train CONFIG.yaml")
    several = config.processes > 1 or config.node_range[1] > 1
    if several and rest[0] not in DISTRIBUTED_COMMANDS:
        raise ConfigError(
            f"launch: `retro {rest[0]}` runs as one process, expected one of {', '.join(DISTRIBUTED_COMMANDS)} for "
            f"{config.processes} processes on {config.nodes} node(s); set processes=1 and nodes=1"
        )
    return (f"retro.cli.{rest[0]}", *rest[1:])


def _script_or_module(rest: Sequence[str]) -> tuple[str, ...]:
    if not rest or (rest[0].startswith("-") and rest[0] != "-m"):
        found = rest[0] if rest else "nothing"
        raise ConfigError(f"launch: expected `python SCRIPT ...` or `python -m MODULE ...`, found {found} after python")
    return tuple(rest)
