"""One array over the files of several shards, read by row number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retro.config.errors import ArtifactCorruptError

# Up to so many rows per shard touched, picking rows one by one is faster than one indexing operation per shard.
_FEW_ROWS = 8


class ShardedArray:
    """Rows of [n, ...] over parts with the same trailing shape and type. `len` is the number of rows."""

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts = parts
        self._first = np.cumsum([0] + [len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._first[-1])

    def take(self, ids: np.ndarray, columns: int | None = None) -> np.ndarray:
        """Rows of ids int64 [...], which the caller has checked: [..., trailing shape].

        columns: of rows that are vectors only the first so many entries.
        """
        select = (slice(None),) if columns is None else (slice(None), slice(columns))
        if len(self.parts) == 1:
            return np.asarray(self.parts[0][select][ids])
        flat = ids.reshape(-1)
        shards = np.searchsorted(self._first, flat, side="right") - 1
        local = flat - self._first[shards]
        touched = np.unique(shards)
        shape = self.parts[0][select].shape[1:] if self.parts else ()
        out = np.empty((len(flat), *shape), dtype=self.parts[0].dtype if self.parts else np.int64)
        if len(flat) <= _FEW_ROWS * len(touched):
            for i, (shard, row) in enumerate(zip(shards.tolist(), local.tolist(), strict=True)):
                out[i] = self.parts[shard][row] if columns is None else self.parts[shard][row, :columns]
        else:
            for shard in touched.tolist():
                where = np.flatnonzero(shards == shard)
                out[where] = self.parts[shard][select][local[where]]
        return out.reshape(*ids.shape, *shape)


def open_sharded(
    folder: Path, part: str, shards: list[dict[str, Any]], dtype: Any, width: tuple[int, ...] = ()
) -> ShardedArray:
    """`<part>-<shard>.npy` of every shard in a manifest, by memory map, checked for type and shape [rows, *width]."""
    names = [(folder / f"{part}-{shard['name']}.npy", (int(shard["rows"]), *width)) for shard in shards]
    return ShardedArray([load_array(path, dtype, shape, map_file=True) for path, shape in names])


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
