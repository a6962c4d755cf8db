"""Work taken over from a finished artifact: hard links to its files, and the check that it fits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from retro.config.errors import ArtifactMismatchError

_SAMPLE = 64


def link_or_copy(source: Path, target: Path) -> None:
    """`target` becomes the finished file `source` under another name; a copy where links are impossible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sample_rows(start: int, stop: int) -> np.ndarray:
    """At most 64 rows spread evenly over [start, stop): int64, ascending."""
    if stop <= start:
        return np.zeros(0, np.int64)
    return np.unique(np.linspace(start, stop - 1, _SAMPLE, dtype=np.int64))


def check_same_rows(
    base: Path,
    source: Path,
    rows: np.ndarray,
    read_base: Callable[[np.ndarray], np.ndarray],
    read: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Raise ArtifactMismatchError unless both readers give the same for `rows`."""
    for row in rows:
        one = np.array([row])
        if not np.array_equal(read_base(one), read(one)):
            raise ArtifactMismatchError(
                f"{base}: expected an index over the first rows of {source}, found another content in row {row}; "
                "extend the index of the database that was added to"
            )
