"""One array over the files of several shards, read by row number."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retro.config.errors import ArtifactCorruptError

# Up to so many rows per shard touched, picking rows one by one is faster than one indexing operation per shard.
_FEW_ROWS = 8
# Files that a process keeps free for other purposes.
_SPARE_FILES = 256


class ShardedArray:
    """Rows of [n, ...] over parts with the same trailing shape and type. `len` is the number of rows.

    Indexed with an int, a slice of step 1 or an int64 array of any shape, like an array that it is too large to be.
    """

    def __init__(self, parts: list[np.ndarray], dtype: Any = np.int64) -> None:
        """dtype: of an array without parts."""
        self.parts = parts
        self.dtype: np.dtype[Any] = parts[0].dtype if parts else np.dtype(dtype)
        self._first = np.cumsum([0] + [len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...]"""
        return (len(self), *(self.parts[0].shape[1:] if self.parts else ()))

    def __getitem__(self, index: Any) -> Any:
        """Copies of rows. Raises IndexError for a row that there is not (negative ones included)."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise IndexError(f"rows: expected a range without gaps, found step {step}")
            return self.range(start, stop)
        ids = np.asarray(index)
        if ids.dtype.kind not in "iu":
            raise IndexError(f"rows: expected integers, found {ids.dtype}")
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(self):
            raise IndexError(f"rows: expected 0 to {len(self) - 1}, found {ids.min()} to {ids.max()}")
        return self.take(ids.astype(np.int64, copy=False))[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole in memory."""
        if copy is False:
            raise ValueError("an array over several files is always copied")
        return self.range(0, len(self)).astype(self.dtype if dtype is None else dtype, copy=False)

    def range(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 (a copy), which the caller has checked."""
        first, last = np.searchsorted(self._first, [start, max(stop - 1, start)], side="right") - 1
        touched = range(int(first), min(int(last) + 1, len(self.parts)))
        pieces = [
            self.parts[i][max(start - int(self._first[i]), 0) : max(stop - int(self._first[i]), 0)] for i in touched
        ]
        return np.concatenate([np.zeros((0, *self.shape[1:]), self.dtype), *pieces])

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """All rows in order, at most `rows` at a time."""
        for start in range(0, len(self), rows):
            yield self.range(start, min(start + rows, len(self)))

    def take(self, ids: np.ndarray, columns: int | None = None) -> np.ndarray:
        """Rows of ids int64 [...], which the caller has checked: [..., trailing shape].

        columns: of rows that are vectors only the first so many entries.
        """
        select = (slice(None),) if columns is None else (slice(None), slice(columns))
        if len(self.parts) == 1:
            return np.asarray(self.parts[0][select][ids])
        flat = ids.reshape(-1)
        shape = self.parts[0][select].shape[1:] if self.parts else ()
        out = np.empty((len(flat), *shape), dtype=self.dtype)
        for where, shard, local in by_shard(self._first, flat):
            if isinstance(where, int):
                out[where] = self.parts[shard][local] if columns is None else self.parts[shard][local, :columns]
            else:
                out[where] = self.parts[shard][select][local]
        return out.reshape(ids.shape + shape)


def by_shard(first: np.ndarray, rows: np.ndarray) -> Iterator[tuple[Any, int, Any]]:
    """Split rows int64 [n] by the shard they lie in: (where in `rows`, shard, row in the shard).

    first: int64 [S + 1], first row of every shard and the end. Where there are few rows for each shard they come one by
    one, as ints; else as int64 arrays, one group per shard that is touched.
    """
    if not len(rows):
        return
    shards = np.searchsorted(first, rows, side="right") - 1
    local = rows - first[shards]
    if len(first) <= 1 << 16:  # numbers of two bytes are sorted in linear time
        order = np.argsort(shards.astype(np.uint16), kind="stable")
    else:
        order = np.argsort(shards, kind="stable")
    ordered = shards[order]
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    if len(rows) <= _FEW_ROWS * (len(cuts) + 1):
        yield from zip(range(len(rows)), shards.tolist(), local.tolist(), strict=True)
        return
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True):
        where = order[begin:end]
        yield where, int(ordered[begin]), local[where]


def open_sharded(
    folder: Path, part: str, shards: list[dict[str, Any]], dtype: Any, width: tuple[int, ...] = ()
) -> ShardedArray:
    """`<part>-<shard>.npy` of every shard in a manifest, by memory map, checked for type and shape [rows, *width]."""
    allow_files(len(shards))
    names = [(folder / f"{part}-{shard['name']}.npy", (int(shard["rows"]), *width)) for shard in shards]
    return ShardedArray([load_array(path, dtype, shape, map_file=True) for path, shape in names], dtype)


def allow_files(more: int) -> None:
    """Raise this process's limit of open files, as far as the system lets it, so that `more` can be mapped.

    A map keeps its file open, and the usual limit of 1,024 is less than a large store has files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:  # no such place on this system
        used = 0
    needed = used + more + _SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    limit = needed * 2 if hard == resource.RLIM_INFINITY else min(needed * 2, hard)
    if limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def read_array(path: Path, map_file: bool = False) -> np.ndarray:
    """A .npy file, whatever its type and shape. Raises ArtifactCorruptError if it is none."""
    try:
        return np.load(path, mmap_mode="r" if map_file else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactCorruptError(f"{path}: not a readable array ({error}); restore it or make it again") from None


def load_array(path: Path, dtype: Any, shape: tuple[int, ...], map_file: bool = False) -> np.ndarray:
    """A .npy file of exactly this type and shape; map_file: by memory map. Raises ArtifactCorruptError."""
    array = read_array(path, map_file and 0 not in shape)
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ArtifactCorruptError(
            f"{path}: expected {np.dtype(dtype).name} {list(shape)}, found {array.dtype.name} {list(array.shape)}; "
            "restore it or make it again"
        )
    # Plain arrays: the subclass of memory maps costs more per operation than the operation.
    return np.asarray(array)


def read_bytes(path: Path) -> np.ndarray:
    """The bytes of a file, uint8 [n], by memory map. Raises ArtifactCorruptError where there is no such file."""
    try:
        if path.stat().st_size == 0:  # nothing can be mapped
            return np.zeros(0, np.uint8)
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        raise ArtifactCorruptError(f"{path}: not readable ({error}); restore it or make the folder again") from None
