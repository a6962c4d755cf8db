"""How many choices may be inside the server: those that hold a slot, and a bounded number that waits."""

from __future__ import annotations

import math
from collections import deque

from retro.serving.errors import ApiError


class Admission:
    """Counts places; used in the event loop only. places: slots of the engine plus the longest queue."""

    def __init__(self, slots: int, max_queued: int) -> None:
        self.slots, self.places = slots, slots + max_queued
        self.taken = 0
        #: Set while the server stops: nothing is admitted any more.
        self.closed = False
        self._durations: deque[float] = deque(maxlen=32)

    def enter(self, choices: int) -> None:
        """Take places for a request. Raises ApiError 429 with Retry-After if there are not enough, 503 when closed."""
        if self.closed:
            raise ApiError(503, "the server is shutting down", code="shutting_down", headers={"connection": "close"})
        if self.taken + choices > self.places:
            raise ApiError(
                429,
                f"the server is full: {self.taken} of {self.places} places are taken, the request needs {choices}; "
                "try again later",
                code="server_full",
                headers={"retry-after": str(self.retry_after())},
            )
        self.taken += choices

    def leave(self, choices: int, seconds: float | None = None) -> None:
        """Give places back; seconds: how long a finished one was held, to estimate waiting times."""
        self.taken -= choices
        if seconds is not None:
            self._durations.append(seconds)

    def retry_after(self) -> int:
        """Seconds until a place may be free, 1 to 60: the time that one round of all slots takes of late."""
        mean = sum(self._durations) / len(self._durations) if self._durations else 1.0
        return min(60, max(1, math.ceil(mean)))
