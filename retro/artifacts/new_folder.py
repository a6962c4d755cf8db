"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retro.artifacts.atomic import fsync_directory, fsync_file
from retro.config.errors import ConfigError


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling to fill; on success it is flushed and renamed to `path`, on an exception removed.

    Raises ConfigError if `path` exists, or its parent cannot be made or written.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path}: exists already, and nothing is overwritten; choose another folder")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made ({error.strerror}); choose another folder") from None
    try:
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
