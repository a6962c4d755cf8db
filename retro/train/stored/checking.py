"""Whether a checkpoint's files are what its manifest records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from retro.artifacts.fingerprint import sha256_file
from retro.artifacts.manifest import Manifest


def find_problems(
    folder: Path, manifest: Manifest, verify: bool, advance: Callable[[int], None] = lambda count: None
) -> list[str]:
    """One line for every file that is missing or of another size, and with `verify` of another content.

    advance: called with the number of bytes that were read.
    """
    problems = []
    for entry in manifest.all_files():
        file, size = folder / entry["name"], int(entry["bytes"])
        if not file.is_file():
            problems.append(f"{file}: recorded in the manifest but missing")
        elif file.stat().st_size != size:
            problems.append(f"{file}: expected {size} bytes, found {file.stat().st_size}")
        elif verify:
            found = sha256_file(file, advance)
            if found != entry["sha256"]:
                problems.append(f"{file}: expected sha256 {str(entry['sha256'])[:16]}, found {found[:16]}")
    return problems
