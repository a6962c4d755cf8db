"""Stored embeddings: vectors by chunk id over the shards of an artifact of kind "embeddings"."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError

EMBEDDINGS_KIND = "embeddings"
# Numbers of the buffer that a thread reads half precision into.
_BUFFER = 1 << 20


class VectorStore:
    """Read-only vectors [n, d] in shards (arrays or memory maps), each float32 or float16. Reading gives float32."""

    def __init__(self, shards: list[np.ndarray], recipe: dict[str, Any] | None = None) -> None:
        self.shards = shards
        self.recipe = recipe
        self.starts = np.concatenate([[0], np.cumsum([len(s) for s in shards])]).astype(np.int64)
        self.dimension = int(shards[0].shape[1]) if shards else 0

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, ids: np.ndarray) -> np.ndarray:
        """float32 [n, d] of int64 [n]. Raises IndexError for an id outside the store."""
        ids = np.asarray(ids, dtype=np.int64)
        if len(ids) == 0:
            return np.empty((0, self.dimension), dtype=np.float32)
        if (ids[1:] >= ids[:-1]).all():
            return self.read_ascending(ids, np.empty((len(ids), self.dimension), dtype=np.float32))
        order = np.argsort(ids)
        out = np.empty((len(ids), self.dimension), dtype=np.float32)
        out[order] = self.read_ascending(ids[order], np.empty_like(out))
        return out

    def read_ascending(self, ids: np.ndarray, out: np.ndarray) -> np.ndarray:
        """As `gather` of ascending ids, into `out` float32 [n, d]: the rows of a shard are read together."""
        if len(ids) and (ids[0] < 0 or ids[-1] >= len(self)):
            raise IndexError(f"vector ids: expected 0 to {len(self) - 1}, found {ids[0]} to {ids[-1]}")
        ends = np.searchsorted(ids, self.starts[1:])
        start = 0
        for number in np.flatnonzero(np.diff(ends, prepend=0)):
            stop = int(ends[number])
            _read_rows(self.shards[number], ids[start:stop] - self.starts[number], out[start:stop])
            start = stop
        return out

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first id, float32 [<= size, d]) over the whole store, in order."""
        for start, shard in zip(self.starts, self.shards, strict=False):
            for offset in range(0, len(shard), size):
                block = np.array(shard[offset : offset + size])
                if block.dtype != np.float32:
                    block = _widen(block, np.empty(block.shape, dtype=np.float32))
                yield int(start) + offset, block

    def aligned_blocks(self, start: int, stop: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first id, float32 [<= size, d]) over rows [start, stop), cut at multiples of `size` whatever the shards."""
        first = start
        while first < stop:
            last = min((first // size + 1) * size, stop)
            yield first, self.gather(np.arange(first, last))
            first = last


def _read_rows(shard: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Rows of a shard as float32."""
    if shard.dtype == np.float32:
        np.take(shard, rows, axis=0, out=out, mode="clip")  # clip: the ids are checked, and "raise" would buffer
    else:
        half = _half_buffer(len(rows), shard.shape[1])
        _widen(np.take(shard, rows, axis=0, out=half, mode="clip"), out)


_local = threading.local()


def _half_buffer(rows: int, dimension: int) -> np.ndarray:
    """float16 [rows, dimension] of this thread, to be overwritten at its next call: fresh memory costs page faults."""
    size = rows * dimension
    if size > _BUFFER:
        return np.empty((rows, dimension), dtype=np.float16)
    if not hasattr(_local, "half"):
        _local.half = np.empty(_BUFFER, dtype=np.float16)
    buffer: np.ndarray = _local.half
    return buffer[:size].reshape(rows, dimension)


def _widen(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """float16 as float32 into `out`. numpy widens one number at a time, torch 20 times faster."""
    if values.size < 4096:
        out[...] = values
        return out
    import torch

    torch.from_numpy(out).copy_(torch.from_numpy(values))
    return out


def open_vectors(folder: str | Path) -> VectorStore:
    """The vectors of a finished embeddings artifact, by memory map."""
    folder = Path(folder)
    manifest = open_manifest(folder, EMBEDDINGS_KIND)
    shards = []
    for shard in manifest.shards:
        path = folder / f"vectors-{shard['name']}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactCorruptError(f"{path}: not a readable array ({error}); make the embeddings again") from None
        if array.ndim != 2 or len(array) != shard["rows"]:
            raise ArtifactCorruptError(f"{path}: expected {shard['rows']} vectors, found shape {array.shape}")
        shards.append(np.asarray(array))
    return VectorStore(shards, manifest.config["recipe"])
