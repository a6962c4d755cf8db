"""Progress of one stage on stderr: a line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from data_prep.execution.records import recorded_names

_LINE_SECONDS = 10.0
_LOOK_SECONDS = 5.0
# Listing the records of a million shards takes a while: at most this share of the time goes there.
_LOOK_SHARE = 0.02


class Progress:
    """Shards done, by this process and by others at work in the same folder; rate; remaining time."""

    def __init__(self, label: str, total: int, enabled: bool = True) -> None:
        self.label, self.total, self.enabled = label, total, enabled
        self.own = self.others = self.before = self.failed = self.rows = 0
        self.started = time.monotonic()
        self._printed = self.started  # a short stage has one line, at its end
        self._looked = self._look_pause = 0.0

    @property
    def done(self) -> int:
        """Committed shards that we know of."""
        return self.before + self.own + self.others

    def begin(self, before: int) -> None:
        """`before` shards were there already."""
        self.before = before
        self.show()

    def advance(self, rows: int = 0) -> None:
        """This process has made a shard of so many rows."""
        self.own += 1
        self.rows += rows
        self.show()

    def look(self, folder: Path) -> None:
        """Count what other processes have committed, not too often."""
        now = time.monotonic()
        if not self.enabled or now - self._looked < max(_LOOK_SECONDS, self._look_pause):
            return
        self.others = max(self.others, len(recorded_names(folder)) - self.before - self.own)
        self._looked = time.monotonic()
        self._look_pause = (self._looked - now) / _LOOK_SHARE
        self.show()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._write(f"{self.label}: {text}", stays=True)

    def show(self) -> None:
        """Print the state."""
        now = time.monotonic()
        if not sys.stderr.isatty() and now - self._printed < _LINE_SECONDS:
            return
        self._printed = now
        self._write(self.text(now - self.started))

    def text(self, elapsed: float) -> str:
        """The state after `elapsed` seconds."""
        worked = self.own + self.others
        rate = worked / elapsed if elapsed > 0 else 0.0
        parts = [f"{self.label}: {self.done}/{self.total} shards"]
        if self.others:
            parts[0] += f" ({self.others} by other processes)"
        if self.failed:
            parts.append(f"{self.failed} failed attempt{'s' if self.failed > 1 else ''}")
        if rate > 0:
            parts.append(f"{rate:.2f}/s" if rate >= 0.1 else f"{rate * 3600:.1f}/h")
            if self.rows:
                parts.append(f"{self.rows / elapsed:,.0f} rows/s")
            parts.append(f"{format_seconds((self.total - self.done) / rate)} left")
        return ", ".join(parts)

    def close(self, summary: str) -> None:
        """End the display with a summary of the finished artifact, and the rate of the rows that this process made."""
        elapsed = time.monotonic() - self.started
        rate = f", {self.rows / elapsed:,.0f} rows/s" if self.rows and elapsed > 0 else ""
        self._write(f"{self.label}: {summary} ({elapsed:.1f} s{rate})", stays=True)

    def _write(self, text: str, stays: bool = False) -> None:
        if not self.enabled:
            return
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if stays else ""))
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def format_seconds(seconds: float) -> str:
    """A duration for people: 54 s, 12 min, 3.4 h, 2.1 d."""
    for limit, size, unit, digits in ((120, 1, "s", 0), (7200, 60, "min", 0), (172800, 3600, "h", 1)):
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} d"
