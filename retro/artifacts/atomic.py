"""Writes that are either whole or not there: temporary sibling, flush to disk, rename.

A writer holds an advisory lock (flock) on its temporary file for as long as it lives. What a killed writer left is
therefore told from what a live one is writing, whatever the host, container or process number: its lock can be had.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no such locks on this system: temporaries are then never taken for those of the dead
    fcntl = None  # type: ignore[assignment]


def fsync_file(path: str | Path) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: str | Path) -> None:
    """Flush a folder's entries (the names made by create and rename) to the disk; a no-op where that is not offered."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except (OSError, PermissionError):
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; on success flush it and rename it into place.

    On an exception the temporary file is removed and `path` stays as it was.
    """
    path = Path(path)
    temporary, descriptor = _create_locked(path)
    try:
        yield temporary
        fsync_file(temporary)
        os.replace(temporary, path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def remove_dead_temporaries(folder: str | Path, name: str | None = None) -> list[Path]:
    """Remove the temporary files that killed writers of `folder / name` (None: of any file there) left behind.

    Those of live writers stay, as do all on a file system without locks. Returns what was removed. Not recursive.
    """
    removed = []
    for path in sorted(Path(folder).glob(f".{glob.escape(name) if name else '*'}.tmp-*")):
        try:
            # Writable, because network file systems grant exclusive locks on such descriptors only.
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            continue  # gone meanwhile, not ours to write, or no file
        try:
            if lock_file(descriptor, wait=False):
                path.unlink(missing_ok=True)
                removed.append(path)
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return removed


def _create_locked(path: Path) -> tuple[Path, int]:
    """A new temporary sibling of `path` and the open descriptor that holds its lock."""
    while True:
        # The number says whose it is; the random part tells threads and containers of one number apart.
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        try:
            lock_file(descriptor, wait=True)
            # Between creation and lock somebody may have taken it for a dead writer's.
            if os.path.samestat(os.stat(temporary), os.fstat(descriptor)):
                return temporary, descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        os.close(descriptor)


def lock_file(descriptor: int, wait: bool) -> bool:
    """Take the exclusive lock of an open file or folder; False if another holds it or if there are no locks here."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        # EBADF: network file systems lock only what is open for writing, which a folder cannot be.
        unavailable = (errno.EACCES, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EBADF)
        if error.errno in (errno.EWOULDBLOCK, *unavailable):
            return False
        raise
    return True


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with a fixed key order to `path`, whole or not at all."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")
