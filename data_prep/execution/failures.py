"""What went wrong with a part of a stage, in a form that travels between processes, and what follows from it."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import traceback
from pathlib import Path

from retro.config.errors import RetroError

# Trying again cannot mend these: a full disk, a quota, a read-only folder.
_LASTING = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.EMFILE,
    errno.ENFILE,
)
_NEARLY_FULL = 1 << 20  # bytes
#: Files with the traceback of a part that failed; removed when the artifact is finished.
TRACE = "failed-"


@dataclasses.dataclass(frozen=True)
class Failure:
    """cause: one line; final: it would happen again, so the part is not tried again; error: the class of a statement
    about content or configuration, which the user's error keeps; trace: for those who look for a bug."""

    cause: str
    final: bool = False
    error: type[RetroError] | None = None
    trace: str = ""


def describe_error(error: Exception) -> Failure:
    """What an exception means. RetroError: the content is wrong and stays wrong. OSError: lasting or worth a retry."""
    if isinstance(error, RetroError):
        return Failure(str(error), final=True, error=type(error))
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, OSError):
        cause = f"{error.strerror or error}: {error.filename or 'output'}"
        final = error.errno in _LASTING
        return Failure(f"{cause}; free the cause and run the command again" if final else cause, final, None, trace)
    message = " ".join(str(error).split())
    return Failure(f"{type(error).__name__}: {message}" if message else type(error).__name__, False, None, trace)


def name_disk(error: Exception, folder: Path) -> Exception:
    """The error of something that wrote into `folder`, such that it says where, and that the disk is full if it is.

    Writes by descriptor do not know their file, and libraries have words of their own for a full disk ("64 requested
    and 0 written"): what fails with no number of the system where there is no room left is taken for that.
    """
    if isinstance(error, RetroError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None:
            error.filename = str(folder)
        return error
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return error
    if free >= _NEARLY_FULL:
        return error
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    full.__cause__ = error
    return full


def describe_death(exit_code: int | None) -> Failure:
    """What the exit code of a worker process that should not have ended means (negative: a signal)."""
    if exit_code is None or exit_code >= 0:
        return Failure(f"its worker process ended with exit code {exit_code}")
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = "unknown"
    hint = (
        "; the system does this when memory runs out: fewer workers need less" if -exit_code == signal.SIGKILL else ""
    )
    return Failure(f"its worker process was killed by signal {-exit_code} ({name}){hint}")


def failure_error(stage: str, part: str, failure: Failure, attempts: int = 1, log: str = "") -> RetroError:
    """The error for the user: stage, part, cause. Statements about content keep their class and so their exit code."""
    if failure.error is not None:
        return failure.error(f"{stage}, {part}: {failure.cause}")
    times = f" ({attempts} attempts)" if attempts > 1 else ""
    where = f"; details in {log}" if log else ""
    return RetroError(f"{stage}, {part}{times}: {failure.cause}{where}; finished shards are kept")


def keep_trace(work: Path, name: str, failure: Failure) -> str:
    """Write what a programmer needs to `work`/failed-<name>.txt; returns the path, "" if there is nothing to say."""
    if not failure.trace or failure.error is not None:
        return ""
    path = work / f"{TRACE}{name}.txt"
    try:
        path.write_text(failure.trace, encoding="utf-8")
    except OSError:
        return ""
    return str(path)
