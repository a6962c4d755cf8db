"""Progress of work that is measured in bytes, on stderr."""

from __future__ import annotations

import sys
import time


class ByteProgress:
    """Bytes done of `total`, rate and remaining time. One line that moves on a terminal, else a line every 10 s."""

    def __init__(self, label: str, total: int, enabled: bool = True) -> None:
        self.label, self.total, self.enabled = label, total, enabled
        self.done = 0
        self._started = time.monotonic()
        self._printed = self._started

    def advance(self, count: int) -> None:
        """Count so many bytes more."""
        self.done += count
        now = time.monotonic()
        if self.enabled and now - self._printed >= (0.2 if sys.stderr.isatty() else 10.0):
            self._printed = now
            self._write(self.line(now - self._started))

    def line(self, elapsed: float) -> str:
        """The state after so many seconds."""
        rate = self.done / elapsed if elapsed > 0 else 0.0
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        return f"{self.label}: {self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB, {rate / 1e6:,.1f} MB/s{left}"

    def close(self) -> None:
        """End a moving line."""
        if self.enabled and sys.stderr.isatty():
            self._write(self.line(time.monotonic() - self._started))
            sys.stderr.write("\n")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}" if sys.stderr.isatty() else f"{text}\n")
        sys.stderr.flush()
