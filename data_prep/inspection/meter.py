"""Progress of a long check on stderr: what is done, how fast, how long it will take."""

from __future__ import annotations

import sys
import time

_TERMINAL_SECONDS, _FILE_SECONDS = 0.5, 10.0


class Meter:
    """Counts up to `total` of something. label: what is being done; unit: "B" is printed as MB."""

    def __init__(self, label: str, total: int, unit: str, enabled: bool = True) -> None:
        self.label, self.total, self.unit, self.enabled = label, total, unit, enabled
        self.done = 0
        self._started = self._printed = time.monotonic()
        self._shown = False

    def advance(self, count: int = 1) -> None:
        """Count; print if it is time to."""
        self.done += count
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if not self.enabled or now - self._printed < (_TERMINAL_SECONDS if terminal else _FILE_SECONDS):
            return
        self._printed, self._shown = now, True
        text = self.text(now - self._started)
        sys.stderr.write(f"\r\x1b[K{text}" if terminal else f"{text}\n")
        sys.stderr.flush()

    def text(self, elapsed: float) -> str:
        """One line after `elapsed` seconds."""
        rate = self.done / elapsed if elapsed > 0 else 0.0
        left = f", {max(self.total - self.done, 0) / rate:.0f} s left" if rate > 0 else ""
        if self.unit == "B":
            return f"{self.label}: {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB, {rate / 1e6:,.1f} MB/s{left}"
        return f"{self.label}: {self.done} of {self.total} {self.unit}, {rate:.2f}/s{left}"

    def close(self) -> None:
        """Take the line off a terminal."""
        if self._shown and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
