"""What is installed where this runs: packages, and the git commit of the source."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

#: This project: its source is kept beside the list, and no index has it.
_OWN = "retro-pretraining"


def installed_packages() -> list[str]:
    """`name==version` of all distributions that Python finds but this project, sorted: for `pip install -r`."""
    found = {(d.metadata["Name"], d.version) for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return sorted((f"{name}=={version}" for name, version in found if name.lower() != _OWN), key=str.lower)


def ask_git(root: Path, *arguments: str) -> str | None:
    """What git says of the checkout `root`; None if it is none. Takes no lock, so that others may work in it."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
