"""Chunks beside their neighbors, with distances and documents, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retro.artifacts.release import open_release
from retro.config.errors import ConfigError
from retro.data.chunk_store import open_chunk_store
from retro.data.neighbor_table import open_neighbor_table
from retro.data.tokenizer import open_tokenizer


def show(release_path: Path, split: str, rows: list[int], count: int, neighbors: int, seed: int) -> Iterator[str]:
    """Lines about `rows` (or `count` seeded random rows) of a split's chunks and their first `neighbors` neighbors."""
    release = open_release(release_path)
    member = release.split(split)
    if member.neighbors is None:
        raise ConfigError(f"{release_path}: split {split!r} has no neighbors")
    tokenizer = open_tokenizer(release.tokenizer)
    queries, database = open_chunk_store(member.chunks), open_chunk_store(release.database_chunks)
    table = open_neighbor_table(member.neighbors, queries, database)
    for row in rows:
        if not 0 <= row < queries.num_chunks:
            raise ConfigError(f"row {row}: expected 0 to {queries.num_chunks - 1}, the chunks of split {split!r}")
    if not rows:
        generator = np.random.default_rng(seed)
        rows = sorted(generator.choice(queries.num_chunks, size=min(count, queries.num_chunks), replace=False).tolist())
    pad = tokenizer.pad_id
    for row in rows:
        ids = np.array([row])
        tokens, mask = queries.gather(ids, pad)
        document = queries.tokens.document_record(int(queries.documents(ids)[0]))["id"]
        yield f"=== {split} chunk {row}, of {document}"
        yield from _indent(tokenizer.decode(tokens[0][mask[0]].tolist()), "    ")
        found, distances = table.rows(ids)[0], table.distances(ids)[0]
        for rank, (neighbor, distance) in enumerate(zip(found[:neighbors], distances[:neighbors], strict=True), 1):
            if neighbor < 0:
                yield f"  {rank}. none"
                continue
            ids = np.array([neighbor])
            tokens, mask = database.gather_neighbors(ids, pad)
            document = database.tokens.document_record(int(database.documents(ids)[0]))["id"]
            yield f"  {rank}. distance {distance:.3f}, chunk {neighbor}, of {document}"
            length = database.chunk_length
            real = tokens[0][:length][mask[0][:length]]
            yield from _indent(tokenizer.decode(real.tolist()), "       | ")
            continuation = tokens[0][length:][mask[0][length:]]
            if len(continuation):
                yield from _indent(tokenizer.decode(continuation.tolist()), "       > ")
        yield ""


def _indent(text: str, prefix: str) -> Iterator[str]:
    for line in text.splitlines() or [""]:
        yield from textwrap.wrap(line, 110, initial_indent=prefix, subsequent_indent=prefix) or [prefix.rstrip()]
