"""sessions.jsonl: when, where and how a run was started, and why each time ended. Nothing is ever taken out."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retro.artifacts.json_lines import append_json_line, read_json_lines


class Session:
    """One start of the run. `step` and `reason` are what its end will say."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.reason = "finished"


@contextmanager
def record_session(path: Path, *, step: int, **facts: Any) -> Iterator[Session]:
    """Append a line now, with `step` that the session begins at, host, command and `facts`; and one at the end of the
    context: the step it came to and the reason, an exception's if there is one. A killed session has no second line."""
    number = _last_number(path) + 1
    session = Session(step)
    begin = {"event": "start", "session": number, "time": _now(), "step": step, "host": socket.gethostname()}
    append_json_line(path, begin | {"pid": os.getpid(), "command": command_line()} | facts)
    try:
        yield session
    except BaseException as error:
        text = " ".join(str(error).split())
        session.reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise
    finally:
        end = {"event": "end", "session": number, "time": _now(), "step": session.step, "reason": session.reason}
        append_json_line(path, end)


def command_line() -> list[str]:
    """The command that started this process."""
    return list(sys.orig_argv)


def _last_number(path: Path) -> int:
    numbers = [row.get("session") for row in read_json_lines(path)]
    return max((number for number in numbers if isinstance(number, int)), default=0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
