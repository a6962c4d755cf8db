"""Names of processes from which another process can tell whether the bearer is still there."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from pathlib import Path

_PROC = Path("/proc")
_UNKNOWN = "0"


def new_owner() -> str:
    """A name for this process that nobody else has: <place>.<pid>.<start>.<random>, in hexadecimal digits and dots.

    Place stands for the host, its boot and the space of process numbers (a container has its own): there the number
    means something. Start tells it from a later process of the same number. Both are 0 where the system does not say.
    """
    return f"{_place()}.{os.getpid():x}.{_started(os.getpid())}.{secrets.token_hex(4)}"


def is_gone(owner: str) -> bool | None:
    """True: the process of that name has ended (or is a zombie); False: it lives; None: cannot be told from here."""
    try:
        place, number, started, _ = owner.split(".")
        pid = int(number, 16)
    except ValueError:
        return None
    if place in ("", _UNKNOWN) or place != _place():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return None  # there, but another user's
    found = _started(pid)
    return None if _UNKNOWN in (found, started) else found != started


def _place() -> str:
    boot = _read(_PROC / "sys/kernel/random/boot_id")
    try:
        space = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return _UNKNOWN
    if not boot:
        return _UNKNOWN
    return hashlib.sha256(f"{socket.gethostname()}\n{boot}\n{space}".encode()).hexdigest()[:12]


def _started(pid: int) -> str:
    """Ticks between boot and the start of the process; "zombie" for one that has ended; "0" if not known."""
    # The second field is the program's name in parentheses and may hold anything.
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return _UNKNOWN
    return "zombie" if fields[0] in ("Z", "X") else f"{int(fields[19]):x}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
