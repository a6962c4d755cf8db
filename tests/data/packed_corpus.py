"""A corpus on disk whose packing tests know token by token: any lengths, removed documents, groups, shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retro.data.chunk_store import open_chunk_store
from retro.data.neighbor_table import open_neighbor_table
from retro.data.packed_dataset import PackedDataset
from tests.data.builders import (
    BOS,
    EOS,
    random_neighbors,
    write_chunks,
    write_fake_tokenizer,
    write_neighbors,
    write_tokens,
)
from tests.reference.slow_packing import Sequence, chunk_numbers, pack

M, K, KEEP = 4, 2, 6


@dataclass(frozen=True)
class Corpus:
    """A store with its table. documents: tokens in the order of use, empty if removed; chunks: their numbers; keys:
    what each excludes, its group or itself; table int64 [chunks, KEEP]."""

    folder: Path
    documents: list[list[int]]
    chunks: list[list[int]]
    keys: list[Any]
    table: np.ndarray

    def data(self, length: int, **options: Any) -> PackedDataset:
        store = open_chunk_store(self.folder / "c")
        table = open_neighbor_table(self.folder / "n", store, store)
        return PackedDataset(store, store, table, **{"sequence_length": length, "num_neighbors": K, **options})

    def pack(self, length: int, score_last: bool) -> list[Sequence]:
        return pack(self.documents, self.chunks, M, length, score_last)


def build(
    root: Path,
    lengths: list[int],
    removed: Iterable[int] = (),
    exclude: str = "documents",
    seed: int = 0,
    shards: int = 1,
) -> Corpus:
    """Documents of these lengths (begin and end included), two to a group; `removed`: numbers of those taken out."""
    generator = np.random.default_rng(seed)
    texts = [generator.integers(4, 300, size=n - 2).tolist() for n in lengths]
    parts = [[texts[i] for i in part] for part in np.array_split(np.arange(len(texts)), shards)]
    groups = [f"g{i // 2}" for i in range(len(texts))]
    tokenizer = write_fake_tokenizer(root / "k")
    tokens = write_tokens(root / "t", parts, tokenizer, groups=groups)
    chunks = write_chunks(root / "c", tokens, M, shards=shards)
    order = np.load(root / "t" / "order.npy").tolist()
    counts = [-(-lengths[d] // M) for d in order]
    owner = np.repeat(order, counts)
    key = [groups[d] if exclude == "groups" else d for d in range(len(texts))]
    table = random_neighbors(chunks, KEEP, 0.3, seed)
    for row, found in enumerate(table):
        allowed = [c for c in found if c >= 0 and key[owner[c]] != key[owner[row]] and owner[c] not in removed]
        table[row] = (allowed + [-1] * KEEP)[:KEEP]
    write_neighbors(root / "n", chunks, chunks, table, shards=shards, exclude=exclude)
    for file in sorted(chunks.glob("spans-*.npy")):  # what `retro prep remove` does
        spans, documents = np.load(file), np.load(chunks / file.name.replace("spans", "documents"))
        np.save(file, np.where(np.isin(documents, list(removed)), 0, spans))
    documents = [[] if d in removed else [BOS, *texts[d], EOS] for d in order]
    return Corpus(root, documents, chunk_numbers(counts), [key[d] for d in order], table)
