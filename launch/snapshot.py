"""What a launch was made with, beside the source: installed packages and the git commit."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

from retro.artifacts.source_code import PACKAGES


def packages() -> str:
    """Installed distributions, one `name==version` a line, as `pip install -r` takes them."""
    found = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def revision(root: Path) -> str | None:
    """The git commit of the checkout, with `+changes` where files differ from it; None outside a checkout."""
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *PACKAGES)
    return None if commit is None else commit + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str | None:
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
