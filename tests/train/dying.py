"""A process that dies, as by `kill -9`, at its n-th operation on files, in whichever thread that is."""

from __future__ import annotations

import builtins
import io
import itertools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from retro.model import tensor_bytes

_OPERATIONS = ("mkdir", "replace", "symlink", "unlink", "rmdir", "fsync")


class Deaths:
    """Counts operations from `arm` on; `die_at`: the one that is not survived, 0 = none. Half of a write is made."""

    def __init__(self, die_at: int) -> None:
        self.die_at, self.count = die_at, 0
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def arm(self) -> None:
        """From now on. Once per process."""
        for name in _OPERATIONS:
            setattr(os, name, self._deadly(getattr(os, name)))
        builtins.open = io.open = self._deadly_open(io.open)  # type: ignore[assignment]
        whole = tensor_bytes._write_all

        def write_half(file: Any, block: memoryview) -> None:
            if self._is_last():
                whole(file, block[: len(block) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            whole(file, block)

        tensor_bytes._write_all = write_half

    def _is_last(self) -> bool:
        with self._lock:
            self.count = next(self._numbers)
            return self.count == self.die_at

    def _deadly(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if self._is_last():
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapped

    def _deadly_open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if any(letter in mode for letter in "wxa+") and self._is_last():
                os.kill(os.getpid(), signal.SIGKILL)
            return call(path, mode, *arguments, **options)

        return wrapped
