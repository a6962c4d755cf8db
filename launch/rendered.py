"""What a launch consists of: files in a folder of its own, and the commands that hand them to a batch system."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What rendering has to know beside configuration and command, so that it is a pure function.

    python: the interpreter; working_directory: where the command is given, absolute; folder:
    of this launch, absolute; digest: 8 characters that stand for everything that goes into it; snapshot: whether it
    has a copy of the source.
    """

    python: str
    working_directory: str
    folder: str
    digest: str
    snapshot: bool


@dataclass(frozen=True)
class Submission:
    """One command that hands a job over. job: its name; after: the jobs whose numbers it needs; dependency: makes an
    option of these numbers' text and comes before the last argument."""

    job: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()

    def with_numbers(self, numbers: dict[str, str]) -> list[str]:
        """The arguments, the numbers of the jobs waited for filled in."""
        return [*self.arguments[:-1], *self._dependency([numbers[name] for name in self.after]), self.arguments[-1]]

    def _dependency(self, numbers: list[str]) -> list[str]:
        if not numbers:
            return []
        return [f"--dependency=afterok:{':'.join(numbers)}", "--kill-on-invalid-dep=yes"]

    def line(self, capture: bool) -> str:
        """For a POSIX shell; with `capture` the job's number goes into a variable that later lines use."""
        text = " ".join(
            item if item.startswith("--dependency=") else shlex.quote(item)
            for item in self.with_numbers({name: f'"${{{variable(name)}%%;*}}"' for name in self.after})
        )
        return f"{variable(self.job)}=$({text})" if capture else text


@dataclass(frozen=True)
class Rendered:
    """files: (name in the launch folder, text); program: what submits (sbatch, kubectl, sky); submissions in order."""

    folder: str
    files: tuple[tuple[str, str], ...]
    program: str
    submissions: tuple[Submission, ...]

    def text(self) -> str:
        """Everything as `--dry-run` prints it: each file, then the commands."""
        parts = [f"# === {self.folder}/{name}\n{text}" for name, text in self.files]
        return "\n".join([*parts, f"# === commands\n{self.commands()}"])

    def commands(self) -> str:
        """The commands alone, one a line, for a POSIX shell."""
        chain = any(item.after for item in self.submissions)
        return "".join(f"{item.line(capture=chain)}\n" for item in self.submissions)


def variable(job: str) -> str:
    """The name of a shell variable for a job's number."""
    return "job_" + re.sub(r"[^A-Za-z0-9]", "_", job)
