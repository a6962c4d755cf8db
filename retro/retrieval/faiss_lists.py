"""Filling inverted lists shard by shard, and merging the shards into one faiss file without holding it in memory.

What a list holds are entries (code, chunk id) in the order of the ids. Shards encode their rows on their own; the
merged file puts the entries of each list behind each other, and is the file that faiss writes of an index filled by one
process, byte for byte. A file of inverted lists is searched by memory map, so an index larger than memory serves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retro.config.prep_index import ENCODE_BLOCK
from retro.retrieval.faiss_training import inverted_lists, one_thread
from retro.retrieval.native import load_faiss
from retro.retrieval.vectors import VectorStore

# Bytes of entries that are held while shards are merged.
MERGE_BYTES = 256 << 20

_TAG = b"ilar"
Entries = tuple[np.ndarray, np.ndarray, np.ndarray]


def has_plain_lists(index: Any) -> bool:
    """Whether the index is inverted lists of plain entries, possibly behind a rotation: what shards can fill.

    Not: graphs, flat codes, indexes with a second level (Refine), lists in blocks (fast scan).
    """
    faiss = load_faiss()
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return (
        isinstance(inner, faiss.IndexIVF)
        and isinstance(faiss.downcast_InvertedLists(inner.invlists), faiss.ArrayInvertedLists)
        and _section(bytes(faiss.serialize_index(index))) is not None
    )


def encode_rows(index: Any, vectors: VectorStore, start: int, stop: int) -> Entries:
    """Entries of rows [start, stop): (lists int32 [n] ascending, ids int64 [n], codes uint8 [n, code size]).

    Within a list the ids ascend. Zero vectors are left out. `index` is trained and empty, and empty afterwards.
    """
    faiss = load_faiss()
    ivf = inverted_lists(index)
    with one_thread():
        for first, block in vectors.aligned_blocks(start, stop, ENCODE_BLOCK):
            rows = np.flatnonzero((block != 0).any(axis=1))
            if len(rows):
                index.add_with_ids(block[rows], first + rows)
    lists, ids, codes = read_entries(faiss, ivf)
    index.reset()
    return lists, ids, codes


def read_entries(faiss: Any, ivf: Any) -> Entries:
    """Everything in the inverted lists of an index."""
    held = ivf.invlists
    sizes = np.array([held.list_size(i) for i in range(ivf.nlist)], dtype=np.int64)
    ids = np.empty(int(sizes.sum()), dtype=np.int64)
    codes = np.empty((len(ids), ivf.code_size), dtype=np.uint8)
    first = 0
    for number in np.flatnonzero(sizes).tolist():
        last = first + int(sizes[number])
        ids[first:last] = faiss.rev_swig_ptr(held.get_ids(number), last - first)
        codes[first:last] = faiss.rev_swig_ptr(held.get_codes(number), (last - first) * ivf.code_size).reshape(
            -1, ivf.code_size
        )
        first = last
    return np.repeat(np.arange(ivf.nlist, dtype=np.int32), sizes), ids, codes


def write_merged(index: Any, shards: Sequence[Entries], path: Path, limit: int = MERGE_BYTES) -> int:
    """Write the file of a trained, empty index filled with the entries of the shards, in their order; returns how many.

    Reads the shards (arrays or memory maps, as of `encode_rows`) by ranges of lists and holds about `limit` bytes.
    """
    faiss = load_faiss()
    ivf = inverted_lists(index)
    sizes = np.zeros(ivf.nlist, dtype=np.int64)
    for lists, _, _ in shards:
        for start in range(0, len(lists), 1 << 22):
            sizes += np.bincount(lists[start : start + (1 << 22)], minlength=ivf.nlist)
    total = int(sizes.sum())
    header, tail = _surroundings(faiss, index, total)
    with open(path, "wb") as file:
        file.write(header)
        _write_sizes(file, sizes, ivf.code_size)
        for first, last in _ranges(sizes, ivf.code_size + 12, limit):
            _write_lists(file, _collect(shards, first, last), sizes[first:last], first)
        file.write(tail)
    return total


def without_ids(entries: Entries, removed: np.ndarray) -> Entries:
    """The entries whose id is not in `removed` (int64, ascending)."""
    lists, ids, codes = entries
    if len(removed) == 0:
        return lists, ids, codes
    place = np.minimum(np.searchsorted(removed, ids), len(removed) - 1)
    keep = removed[place] != ids
    return np.asarray(lists)[keep], np.asarray(ids)[keep], np.asarray(codes)[keep]


def _ranges(sizes: np.ndarray, entry_bytes: int, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of lists of at most `limit` bytes, a longer list alone."""
    ends = np.cumsum(sizes) * entry_bytes
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield first, last
        first = last


def _collect(shards: Sequence[Entries], first: int, last: int) -> Entries:
    """Entries of the lists [first, last) over all shards, sorted by list; within one by shard."""
    found: list[Entries] = []
    for lists, ids, codes in shards:
        start, stop = np.searchsorted(lists, [first, last])
        found.append((lists[start:stop], ids[start:stop], codes[start:stop]))
    lists = np.concatenate([part[0] for part in found])
    order = np.argsort(lists, kind="stable")
    return lists[order], np.concatenate([p[1] for p in found])[order], np.concatenate([p[2] for p in found])[order]


def _write_lists(file: BinaryIO, entries: Entries, sizes: np.ndarray, first: int) -> None:
    """A list after the other: its codes, then its ids."""
    _, ids, codes = entries
    codes, ids = np.ascontiguousarray(codes), np.ascontiguousarray(ids)
    start = 0
    for size in sizes[sizes > 0].tolist():
        file.write(codes[start : start + size].data)
        file.write(ids[start : start + size].data)
        start += size
    assert start == len(ids), first


def _write_sizes(file: BinaryIO, sizes: np.ndarray, code_size: int) -> None:
    """The head of faiss' section of inverted lists (faiss/impl/index_write.cpp, write_InvertedLists)."""
    filled = np.flatnonzero(sizes)
    file.write(_TAG + struct.pack("<QQ", len(sizes), code_size))
    if len(filled) > len(sizes) // 2:
        file.write(b"full" + struct.pack("<Q", len(sizes)) + sizes.astype("<u8").tobytes())
    else:
        pairs = np.stack([filled, sizes[filled]], axis=1)
        file.write(b"sprs" + struct.pack("<Q", pairs.size) + pairs.astype("<u8").tobytes())


def _surroundings(faiss: Any, index: Any, total: int) -> tuple[bytes, bytes]:
    """What faiss writes before and after the lists of this index with `total` vectors in it."""
    inner = faiss.downcast_index(index)
    parts = [inner]
    if isinstance(inner, faiss.IndexPreTransform):
        parts.append(faiss.downcast_index(inner.index))
    for part in parts:
        part.ntotal = total
    try:
        data = bytes(faiss.serialize_index(index))
    finally:
        for part in parts:
            part.ntotal = 0
    section = _section(data)
    assert section is not None  # has_plain_lists
    return data[: section[0]], data[section[1] :]


def _section(data: bytes) -> tuple[int, int] | None:
    """Where the (empty) lists stand in a serialised empty index: (start, end), None where this is not seen."""
    start = data.rfind(_TAG)
    end = start + len(_TAG) + 16 + 4 + 8
    if start < 0 or data[end - 12 : end] != b"sprs" + struct.pack("<Q", 0):
        return None
    return start, end
