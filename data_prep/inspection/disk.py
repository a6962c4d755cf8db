"""Bytes on disk: of a folder, of what is free, of folders that no step uses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_prep.execution.records import RECORDS
from retro.artifacts.manifest import MANIFEST_NAME


@dataclass(frozen=True)
class Disk:
    """used: bytes below the root; free, total: bytes of its file system, None where they cannot be had."""

    used: int
    free: int | None
    total: int | None


@dataclass(frozen=True)
class UnusedFolder:
    """An artifact folder below the root that no step of the configuration uses; finished: it has a manifest."""

    folder: Path
    bytes: int
    finished: bool


def folder_bytes(folder: str | Path) -> int:
    """Sizes of all files below `folder`, each inode once (unchanged shards of an updated database are hard links)."""
    return _count([Path(folder)])


def read_disk(root: str | Path) -> Disk:
    """Of the file system that holds `root`, or would."""
    root = Path(root)
    place = root
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return Disk(folder_bytes(root), None, None)
    return Disk(folder_bytes(root), usage.free, usage.total)


def unused_folders(root: str | Path, used: Iterable[Path]) -> list[UnusedFolder]:
    """Artifact folders (finished or begun) directly below `root` that are not among `used`, by name."""
    known = {Path(folder).resolve() for folder in used}
    found = []
    for folder in sorted(Path(root).iterdir() if Path(root).is_dir() else ()):
        if folder.is_symlink() or not folder.is_dir() or folder.resolve() in known:
            continue
        finished = (folder / MANIFEST_NAME).is_file()
        if finished or (folder / RECORDS).is_dir():
            found.append(UnusedFolder(folder, folder_bytes(folder), finished))
    return found


def _count(folders: list[Path]) -> int:
    total = 0
    seen: set[tuple[int, int]] = set()
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        if status.st_nlink > 1:
                            inode = (status.st_dev, status.st_ino)
                            if inode in seen:
                                continue
                            seen.add(inode)
                        total += status.st_size
        except OSError:
            continue  # a folder that goes away or may not be read is not counted
    return total
