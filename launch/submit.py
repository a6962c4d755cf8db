"""Hands the jobs of a launch to the batch system, in order, and says their numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from launch.rendered import Rendered, Submission
from retro.config.errors import ConfigError, RetroError


class SubmissionError(RetroError):
    """The batch system refused a job."""


def check_environment(names: tuple[str, ...], environment: Mapping[str, str]) -> None:
    """Raise ConfigError if a variable that is to be passed on is not set here."""
    missing = [name for name in names if name not in environment]
    if missing:
        raise ConfigError(f"pass_environment: {', '.join(missing)} is not set here; set it, or remove it from the list")


def submit(rendered: Rendered, say: Callable[[str], None]) -> dict[str, str]:
    """Submit everything; job -> its number, where the system tells it (Slurm).

    Raises ConfigError if the system's command is not installed here, SubmissionError if it refuses; the jobs of a
    chain that were submitted before are then cancelled.
    """
    if shutil.which(rendered.program) is None:
        raise ConfigError(
            f"launch: {rendered.program} is not installed here; --write only writes the files and says what submits "
            "them, where it is"
        )
    numbers: dict[str, str] = {}
    for item in rendered.submissions:
        arguments = item.with_numbers(numbers)
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode != 0:
            _cancel(rendered.program, numbers)
            text = " ".join((done.stderr or done.stdout).split())
            raise SubmissionError(f"{rendered.program}: job {item.job}: {text or f'exit code {done.returncode}'}")
        answer = done.stdout.strip()
        if rendered.program == "sbatch":
            numbers[item.job] = answer.split(";")[0]  # NUMBER;CLUSTER where there are several clusters
            say(_told(item, numbers))
        elif answer:
            say(answer)
        _record(Path(rendered.folder), item.job, numbers.get(item.job))
    return numbers


def _told(item: Submission, numbers: Mapping[str, str]) -> str:
    waiting = ", ".join(f"{name} ({numbers[name]})" for name in item.after)
    return f"{item.job}: job {numbers[item.job]}" + (f", after {waiting}" if waiting else "")


def _cancel(program: str, numbers: Mapping[str, str]) -> None:
    if program == "sbatch" and numbers:
        subprocess.run(["scancel", *numbers.values()], capture_output=True)


def _record(folder: Path, job: str, number: str | None) -> None:
    line = json.dumps({"job": job, "number": number, "time": datetime.now(UTC).isoformat(timespec="seconds")})
    with open(folder / "submitted.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
