"""Documents by key, and where their chunks begin: what `ChunkStore.find` reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.external_sort import MEMORY_BYTES, sort_runs
from retro.data.chunk_store import LOOKUP_CHUNKS, LOOKUP_KEYS, first_chunks
from retro.data.npy_file import NpyReader, NpyWriter
from retro.data.sharded_array import ShardedArray
from retro.data.token_store import TokenStore

_ENTRY = np.dtype([("key", "<u8"), ("chunk", "<i8")])
_BLOCK = 1 << 16


def write_lookup(documents: ShardedArray, tokens: TokenStore, out: Path, memory_bytes: int = MEMORY_BYTES) -> None:
    """Write lookup_keys.npy and lookup_chunks.npy into the folder `out`, sorted on disk.

    documents: int64, the number of the document of every chunk (documents-*.npy of all shards).
    """

    def runs() -> Iterator[np.ndarray]:
        for keys, chunks in first_chunks(documents, tokens):
            entries = np.empty(len(keys), _ENTRY)
            entries["key"], entries["chunk"] = keys, chunks
            yield entries

    whole = sort_runs(runs(), out / ".lookup.npy", _ENTRY, memory_bytes)
    with NpyWriter(out / LOOKUP_KEYS, np.uint64) as known, NpyWriter(out / LOOKUP_CHUNKS, np.int64) as first:
        for block in NpyReader(whole).blocks(_BLOCK):
            known.append(block["key"])
            first.append(block["chunk"])
    whole.unlink()
