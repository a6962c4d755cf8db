"""RETRO_EXIT_FILE: where a process that others start says its exit code, because torchrun and srun hide or blur it."""

from __future__ import annotations

import os
from pathlib import Path

from retro.artifacts.atomic import write_text_atomic

VARIABLE = "RETRO_EXIT_FILE"


def forget(path: Path) -> None:
    """Remove what an earlier attempt wrote."""
    path.unlink(missing_ok=True)


def write_exit_code(path: Path, code: int) -> None:
    """Say `code`."""
    write_text_atomic(path, f"{code}\n")


def read_exit_code(path: Path) -> int | None:
    """The code that was said, None if none was."""
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def from_environment() -> Path | None:
    """The file that this process is asked to write."""
    found = os.environ.get(VARIABLE)
    return Path(found) if found else None
