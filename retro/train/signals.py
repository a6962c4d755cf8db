"""Signals as a wish to stop after the step, with a checkpoint.

SIGTERM (schedulers, preemption), SIGUSR1 and SIGUSR2 (Slurm's --signal, some time before the limit), SIGINT (Ctrl-C).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)

#: A signal so soon after the first is its echo: a terminal and Slurm send to every process of a group, and torchrun,
#: which is one of them, then sends to its workers once more.
ECHO_S = 2.0


class Interrupted(KeyboardInterrupt):
    """A second signal: stop at once, without a checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


class StopRequest:
    """`signal_number` is 0 until a signal has come."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._came = 0.0

    def note(self, number: int) -> None:
        """Take up a signal. Raises Interrupted for one that is neither the first nor an echo of it."""
        now = time.monotonic()
        if self.signal_number == 0:
            self.signal_number, self._came = number, now
            if os.environ.get("RANK", "0") == "0":
                name = signal.Signals(number).name
                # Not print: it may be what the signal has interrupted.
                os.write(2, f"{name}: stopping after this step, with a checkpoint; again = at once\n".encode())
        elif now - self._came >= ECHO_S:
            raise Interrupted(number)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within the context the first of STOP_SIGNALS is only noted; a second one raises Interrupted, in the main thread.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.note(number)

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Within the context signals wait. Processes that are started here never get them: they inherit that, and a
    scheduler that signals all processes of a job does not kill what the trainer needs to finish its step."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
