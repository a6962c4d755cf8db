"""A copy of the project's source, so that a queued job runs what was there when it was submitted."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

#: The packages that a job imports.
PACKAGES = ("retro", "data_prep", "launch")


def source_root() -> Path:
    """The folder that holds the packages: a checkout, or site-packages."""
    return Path(__file__).resolve().parents[1]


def read_source(root: Path) -> dict[str, bytes]:
    """Relative path -> content of every file of the packages below `root`, sorted."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            inside = path.relative_to(root)
            if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in inside.parts):
                found[inside.as_posix()] = path.read_bytes()
    return dict(sorted(found.items()))


def digest(files: Mapping[str, bytes]) -> str:
    """sha256 of names and contents."""
    total = hashlib.sha256()
    for name, content in files.items():
        total.update(f"{len(name.encode())} {len(content)} {name}\n".encode())
        total.update(content)
    return total.hexdigest()


def pack(files: Mapping[str, bytes]) -> bytes:
    """The files as a .tar.gz, the same bytes for the same files."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


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
