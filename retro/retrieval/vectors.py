"""Stored embeddings: vectors by chunk id over the shards of an artifact of kind "embeddings"."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError

EMBEDDINGS_KIND = "embeddings"


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
        if len(ids) and (ids.min() < 0 or ids.max() >= len(self)):
            raise IndexError(f"vector ids: expected 0 to {len(self) - 1}, found {ids.min()} to {ids.max()}")
        if len(self.shards) == 1:
            return as_float32(self.shards[0].take(ids, axis=0))
        out = np.empty((len(ids), self.dimension), dtype=np.float32)
        shard = np.searchsorted(self.starts, ids, side="right") - 1
        for number in np.unique(shard):
            rows = np.flatnonzero(shard == number)
            out[rows] = as_float32(self.shards[number].take(ids[rows] - self.starts[number], axis=0))
        return out

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first id, float32 [<= size, d]) over the whole store, in order."""
        for start, shard in zip(self.starts, self.shards, strict=False):
            for offset in range(0, len(shard), size):
                yield int(start) + offset, as_float32(np.array(shard[offset : offset + size]))

    def aligned_blocks(self, start: int, stop: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first id, float32 [<= size, d]) over rows [start, stop), cut at multiples of `size` whatever the shards."""
        first = start
        while first < stop:
            last = min((first // size + 1) * size, stop)
            yield first, self.gather(np.arange(first, last))
            first = last


def as_float32(values: np.ndarray) -> np.ndarray:
    """`values` (not read-only) as float32. numpy widens half precision one number at a time, torch 20 times faster."""
    if values.dtype == np.float32:
        return values
    if values.dtype == np.float16 and values.size >= 4096:
        import torch

        return np.asarray(torch.from_numpy(np.ascontiguousarray(values)).float().numpy())
    return values.astype(np.float32)


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
