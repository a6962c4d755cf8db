"""Sorts arrays that need not fit into memory: sorted runs on disk, then a merge of blocks, all of it vectorised.

Elements are plain numbers or records (structured types), which are compared field by field in the order of the fields.
Elements that are equal in all fields cannot be told apart, so the result is one array, whatever the memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retro.data.npy_file import NpyReader, NpyWriter

MEMORY_BYTES = 64 << 20
# What is held at once beside a block while it is sorted: the order, the sorted copy, parts of the next block.
_SHARE = 4
# Runs merged in one pass get blocks of at least so many bytes: below, reading them costs more than another pass.
_SMALLEST_BLOCK = 64 << 10
_FEWEST_ROWS = 16


def sort_runs(runs: Iterable[np.ndarray | str | Path], out: Path, dtype: Any, memory_bytes: int = MEMORY_BYTES) -> Path:
    """Write the elements of all `runs`, ascending, to `out` (.npy, one dimension) and return it.

    runs: arrays [n] or paths of .npy files of type `dtype`, in any order and not necessarily sorted; an iterator is
    asked for one at a time, so that it need not hold them. dtype: integers, or a structured type of integers, in which
    the first field counts most. Beside the arrays given, at most about `memory_bytes` are held, and twice the size of
    the data is used on disk, in the folder of `out`, until the end.

    Raises ArtifactCorruptError for a file that is not of this type and TypeError for such an array.
    """
    dtype = np.dtype(dtype)
    out = Path(out)
    rows = max(_FEWEST_ROWS, memory_bytes // (_SHARE * dtype.itemsize))
    with tempfile.TemporaryDirectory(prefix=".sort-", dir=out.parent) as name:
        folder = Path(name)
        sorted_runs: list[Path] = []
        waiting: np.ndarray | None = None
        for block in _blocks(runs, dtype, rows):
            if waiting is not None:
                sorted_runs.append(_spill(folder / f"0-{len(sorted_runs)}.npy", waiting))
            waiting = sort_array(block)
        if not sorted_runs:  # everything fitted
            return _spill(out, np.zeros(0, dtype) if waiting is None else waiting)
        assert waiting is not None
        sorted_runs.append(_spill(folder / f"0-{len(sorted_runs)}.npy", waiting))
        waiting = None
        fan_in = max(2, rows * dtype.itemsize // _SMALLEST_BLOCK)
        level = 0
        while len(sorted_runs) > fan_in:
            level += 1
            merged: list[Path] = []
            for first in range(0, len(sorted_runs), fan_in):
                part = sorted_runs[first : first + fan_in]
                path = folder / f"{level}-{len(merged)}.npy"
                _merge(part, path, dtype, rows)
                for done in part:
                    done.unlink()
                merged.append(path)
            sorted_runs = merged
        _merge(sorted_runs, out, dtype, rows)
    return out


def sort_array(array: np.ndarray) -> np.ndarray:
    """A sorted copy of one array [n] in memory; records by all their fields, the first one counting most."""
    if array.dtype.names is None:
        return np.sort(array)
    return np.asarray(array[np.lexsort([array[name] for name in reversed(array.dtype.names)])])


def find_repeats(path: str | Path, field: str | None = None, block_rows: int = 1 << 16) -> Iterator[Any]:
    """Each element that a sorted .npy file has more than once, once, ascending, as a Python number (or a tuple).

    field: compare this field of records only; the file must be sorted by it first.
    """
    last: np.ndarray | None = None
    told: np.ndarray | None = None
    for block in NpyReader(path).blocks(block_rows):
        values = block if field is None else block[field]
        joined = values if last is None else np.concatenate([last, values])
        again = joined[1:][joined[1:] == joined[:-1]]
        if len(again):
            new = np.concatenate([[True], again[1:] != again[:-1]])
            new[0] = told is None or bool(again[0] != told[0])
            yield from again[new].tolist()
            told = again[-1:]
        last = joined[-1:]


def _blocks(runs: Iterable[np.ndarray | str | Path], dtype: np.dtype[Any], rows: int) -> Iterator[np.ndarray]:
    """The elements of all runs in blocks of `rows`, the last one shorter: a million small runs make few blocks."""
    parts: list[np.ndarray] = []
    held = 0
    for piece in _pieces(runs, dtype, rows):
        while held + len(piece) >= rows:
            taken = rows - held
            parts.append(piece[:taken])
            yield np.concatenate(parts)
            parts, held, piece = [], 0, piece[taken:]
        if len(piece):
            parts.append(piece.copy())  # not a view that keeps the whole alive
            held += len(piece)
    if held:
        yield np.concatenate(parts)


def _pieces(runs: Iterable[np.ndarray | str | Path], dtype: np.dtype[Any], rows: int) -> Iterator[np.ndarray]:
    for run in runs:
        if isinstance(run, np.ndarray):
            if run.dtype != dtype or run.ndim != 1:
                raise TypeError(f"runs: expected {dtype} in one dimension, found {run.dtype} {run.shape}")
            yield run
        else:
            yield from NpyReader(run, dtype).blocks(rows)


def _spill(path: Path, array: np.ndarray) -> Path:
    with NpyWriter(path, array.dtype) as writer:
        writer.append(array)
    return path


def _merge(paths: list[Path], out: Path, dtype: np.dtype[Any], rows: int) -> None:
    """Merge sorted files into one.

    Every run has a block in memory. The smallest of the blocks' last elements bounds what can still come, so all
    elements up to it are sorted and written at once; blocks that are more than half used are filled up.
    """
    readers = [NpyReader(path, dtype) for path in paths]
    block = max(_FEWEST_ROWS, rows // len(paths))
    heads = [np.zeros(0, dtype) for _ in readers]
    position = [0] * len(readers)
    alive = list(range(len(readers)))
    with NpyWriter(out, dtype) as writer:
        while alive:
            for i in alive:
                if len(heads[i]) <= block // 2 and position[i] < len(readers[i]):
                    more = readers[i].read(position[i], position[i] + block - len(heads[i]))
                    position[i] += len(more)
                    heads[i] = np.concatenate([heads[i], more])
            # A run of which everything is in memory does not bound the others.
            open_ends = [heads[i][-1:] for i in alive if position[i] < len(readers[i])]
            if open_ends:
                limit = sort_array(np.concatenate(open_ends))[:1]
                taken = []
                for i in alive:
                    count = int(np.searchsorted(heads[i], limit, side="right")[0])
                    if count:
                        taken.append(heads[i][:count])
                        heads[i] = heads[i][count:]
            else:
                taken = [heads[i] for i in alive]
                heads = [np.zeros(0, dtype) for _ in readers]
            writer.append(sort_array(np.concatenate(taken)))
            alive = [i for i in alive if len(heads[i]) or position[i] < len(readers[i])]
