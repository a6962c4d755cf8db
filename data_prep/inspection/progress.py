"""How far an unfinished stage is, from what it has committed: no clock is written into artifacts, so the times of the
records on the file system are what there is."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from data_prep.execution.records import RECORDS, shard_records

# The speed is that of the last so many shards, not of the first ones of a long run.
_RECENT = 512


@dataclass(frozen=True)
class Progress:
    """shards, rows and bytes committed of `total` shards. shards_per_second, seconds_left: None when too few shards
    are there to tell; bytes_left: for the shards to come, at the mean size of those committed (None: none yet);
    idle_seconds: since the last commit, None without one."""

    shards: int
    total: int
    rows: int
    bytes: int
    shards_per_second: float | None
    seconds_left: float | None
    bytes_left: int | None
    idle_seconds: float | None


def read_progress(folder: Path, total: int) -> Progress:
    """Progress of the stage whose output folder is `folder` and whose plan has `total` shards."""
    records = shard_records(folder)
    times = []
    for record in records:
        try:
            times.append((folder / RECORDS / f"{record['name']}.json").stat().st_mtime)
        except OSError:
            continue
    size = sum(int(entry["bytes"]) for record in records for entry in record["files"])
    rate = commit_rate(times)
    left = max(total - len(records), 0)
    return Progress(
        shards=len(records),
        total=total,
        rows=sum(int(record["rows"]) for record in records),
        bytes=size,
        shards_per_second=rate,
        seconds_left=None if rate is None else left / rate,
        bytes_left=round(size / len(records) * left) if records else None,
        idle_seconds=max(0.0, time.time() - max(times)) if times else None,
    )


def commit_rate(times: list[float]) -> float | None:
    """Commits per second over the last `_RECENT` commits, pauses left out; None with fewer than three commits.

    A pause (the run was stopped and started again) is a gap longer than all the work between the other commits: without
    a clock in the records no more can be known, and a pause that is missed makes the estimate at most twice too long.
    """
    recent = sorted(times)[-_RECENT:]
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(recent))
    while len(gaps) > 2 and gaps[-1] > sum(gaps[:-1]) > 0:
        gaps.pop()
    return len(gaps) / sum(gaps) if len(gaps) >= 2 and sum(gaps) > 0 else None
