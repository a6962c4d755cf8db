"""What a launch was made with, beside the source: installed packages and the git commit."""

from __future__ import annotations

from pathlib import Path

from retro.artifacts.installation import ask_git, installed_packages
from retro.artifacts.source_code import PACKAGES


def packages() -> str:
    """Installed distributions, one a line, as `pip install -r` takes them."""
    return "".join(f"{line}\n" for line in installed_packages())


def revision(root: Path) -> str | None:
    """The git commit of the checkout, with `+changes` where files differ from it; None outside a checkout."""
    commit = ask_git(root, "rev-parse", "HEAD")
    changed = ask_git(root, "status", "--porcelain", "--untracked-files=no", "--", *PACKAGES)
    return None if commit is None else commit + ("+changes" if changed else "")
