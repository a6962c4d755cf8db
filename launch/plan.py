"""What would be run, as text: a pure function of the configuration, the command and the machine's figures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from retro.config.errors import ConfigError
from retro.config.launch import LaunchConfig

# The sub-commands of `retro` that share their work among processes; the others would do the same work several times.
DISTRIBUTED_COMMANDS = ("train",)


@dataclass(frozen=True)
class LaunchPlan:
    """One command on one machine. environment: the variables that are added."""

    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]

    def render(self) -> str:
        """A line for a POSIX shell that does the same."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment]
        return " ".join([*variables, shlex.join(self.arguments)])


def plan_launch(config: LaunchConfig, command: Sequence[str], *, python: str, cores: int) -> LaunchPlan:
    """How `command` runs on this machine.

    command: `retro train ...`, `python -m module ...`, `python script.py ...`, or any program; python: the
    interpreter; cores: usable ones. One process runs directly, more run through torchrun on a free port.
    Raises ConfigError for an empty command and for a sub-command of `retro` that runs as one process only.
    """
    if not command:
        raise ConfigError("launch: expected a command after --, e.g. -- retro train configs/train/tiny_retro.yaml")
    program, *rest = command
    threads = config.threads_per_process or max(1, cores // config.processes)
    environment = (("OMP_NUM_THREADS", str(threads)), *sorted(config.environment.items()))
    python_arguments: list[str] | None = None
    if program == "retro":
        python_arguments = _retro_module(config, rest)
    elif program.rsplit("/", 1)[-1] in ("python", "python3"):
        python = program if "/" in program else python
        python_arguments = _script_or_module(rest)
    if config.processes == 1:
        arguments = [program, *rest] if python_arguments is None else [python, *python_arguments]
        return LaunchPlan(tuple(arguments), environment)
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config.processes}"]
    what = ["--no-python", program, *rest] if python_arguments is None else python_arguments
    return LaunchPlan((*torchrun, *what), environment)


def _retro_module(config: LaunchConfig, rest: Sequence[str]) -> list[str]:
    if not rest or rest[0].startswith("-"):
        raise ConfigError("launch: expected a sub-command after retro, e.g. -- retro train CONFIG.yaml")
    if config.processes > 1 and rest[0] not in DISTRIBUTED_COMMANDS:
        raise ConfigError(
            f"launch: `retro {rest[0]}` runs as one process, expected one of {', '.join(DISTRIBUTED_COMMANDS)} for "
            f"{config.processes} processes; set processes=1"
        )
    return ["-m", f"retro.cli.{rest[0]}", *rest[1:]]


def _script_or_module(rest: Sequence[str]) -> list[str]:
    if not rest or (rest[0].startswith("-") and rest[0] != "-m"):
        found = rest[0] if rest else "nothing"
        raise ConfigError(f"launch: expected `python SCRIPT ...` or `python -m MODULE ...`, found {found} after python")
    return list(rest)
