"""A folder that appears whole or not at all.

Its writer holds a lock on it until then, by which what a killed writer left is told from what a live one is writing.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retro.artifacts.atomic import fsync_directory, fsync_file, lock_file
from retro.config.errors import ConfigError


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling to fill; on success it is flushed and renamed to `path`, on an exception removed.

    What a killed writer of `path` left is removed first. Raises ConfigError if `path` exists, or its parent cannot be
    made or written.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path}: exists already, and nothing is overwritten; choose another folder")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(path)
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made ({error.strerror}); choose another folder") from None
    try:
        lock_file(descriptor, wait=False)
        yield temporary
        for file in temporary.iterdir():
            fsync_file(file)
        fsync_directory(temporary)
        try:
            os.rename(temporary, path)
        except OSError as error:  # somebody made it meanwhile
            raise ConfigError(f"{path}: cannot be put in place ({error.strerror}); choose another folder") from None
        fsync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def _remove_dead(path: Path) -> None:
    """Remove the temporary siblings that killed writers of `path` left; where there are no locks, none."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*-*"):
        try:
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            # One that is empty may be a live writer's that is about to lock it.
            if any(leftover.iterdir()) and lock_file(descriptor, wait=False):
                shutil.rmtree(leftover, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(descriptor)
