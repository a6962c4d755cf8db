"""SIGTERM and SIGINT as a wish to stop after the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """`signal_number` is 0 until one has come."""

    def __init__(self) -> None:
        self.signal_number = 0


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within the context the first SIGTERM or SIGINT is only noted; a second one stops at once (KeyboardInterrupt).

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal_number:
            raise KeyboardInterrupt
        request.signal_number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
